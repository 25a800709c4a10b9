// JSON Schema (draft 2020-12) of a prefill config, for editors: configs/prefill_schema.json is this
// document, and a test holds it to both.
#pragma once

#include <nlohmann/json.hpp>

namespace s2o {

nlohmann::ordered_json prefill_config_schema();

}  // namespace s2o
