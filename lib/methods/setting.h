// The parameters of a method in a config beyond its own: how attention computes what it plans.
#pragma once

#include <optional>
#include <vector>

#include "kernels/attention/quantise_rule.h"
#include "lib/methods/method.h"

namespace s2o {

// Those of the method, then "compute", "smooth_k" and "rotate_qk"; of `tuned` its own alone.
std::vector<ParamSpec> setting_specs(const MethodInfo& info);
// Empty where attention takes Q, K and V as they are stored.
std::optional<QuantiseRule> quantise_rule(const ParamSet& params);

}  // namespace s2o
