// Methods as JSON: what `s2o list methods` and the Python module show.
#pragma once

#include <nlohmann/json.hpp>

#include "lib/methods/method.h"

namespace s2o {

// {name, knob, summary, title, source, is_oracle, knob_sweep, params}, where params are
// {name, type, default, min, max, choices, help}.
nlohmann::ordered_json describe_method(const Method& method);
// A list of them, in the order of methods.def.
nlohmann::ordered_json describe_methods();

}  // namespace s2o
