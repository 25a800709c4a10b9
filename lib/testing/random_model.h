// Models with seeded random weights, in memory. Tests only.
#pragma once

#include <cstdint>
#include <memory>

#include "lib/model/weights.h"

namespace s2o::testing {

// Matrices of normal numbers whose products keep the size of their input, stored in `dtype` (F32,
// F16 or BF16); norms near one; biases of deviation 0.5 where the config has them.
std::shared_ptr<Model> random_model(const ModelConfig& config, std::uint64_t seed,
                                    DType dtype = DType::kBF16);

}  // namespace s2o::testing
