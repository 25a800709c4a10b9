// Shapes of published models, for runs that measure time without their weights.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "lib/model/weights.h"

namespace s2o {

// "llama-3.1-8b", "qwen3-8b", "tiny-llama".
std::vector<std::string> model_shape_names();
// The config of that model, without a folder. ConfigError "<path>: ..." for any other name.
ModelConfig model_shape(const std::string& name, const std::string& path);

// A model of that shape whose weights are seeded random bf16 numbers, scaled so that activations
// keep their size; norms are 1. UnsupportedError when the memory is not free.
std::shared_ptr<const Model> make_seeded_model(const ModelConfig& config, std::uint64_t seed);

// Parameters of a model of that shape, and their bytes in 16-bit storage.
std::int64_t num_parameters(const ModelConfig& config);

}  // namespace s2o
