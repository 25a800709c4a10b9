// JSON Schema (draft 2020-12) of a run config, made from what the parsers declare, for editors:
// configs/schema.json is this document, and a test holds it to both.
#pragma once

#include <nlohmann/json.hpp>

namespace s2o {

nlohmann::ordered_json config_schema();

}  // namespace s2o
