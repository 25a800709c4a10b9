// Methods as JSON: what `s2o list methods` and the Python module show.
#pragma once

#include <nlohmann/json.hpp>

namespace s2o {

// A list of {name, knob, summary, title, source, is_oracle, knob_sweep, params}, where params are
// {name, type, default, min, max, choices, help}, in the order of methods.def.
nlohmann::ordered_json describe_methods();

}  // namespace s2o
