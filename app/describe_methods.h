// Methods as JSON: what `s2o list methods` and the Python module show.
#pragma once

#include <nlohmann/json.hpp>

#include "lib/methods/method.h"

namespace s2o {

// {name, knob, summary, title, source, is_oracle, knob_sweep, params}, where params are
// {name, type, default, min, max, choices, help}: those of the method, or with `of_configs` those
// of setting_specs(), which the Python module does not take.
nlohmann::ordered_json describe_method(const Method& method, bool of_configs);
// A list of them, in the order of methods.def.
nlohmann::ordered_json describe_methods(bool of_configs);

}  // namespace s2o
