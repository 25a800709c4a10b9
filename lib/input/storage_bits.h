// Between fp32 values and the 16-bit elements that devices store, on all threads.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "lib/input/attention_input.h"

namespace s2o {

// Rounded to nearest; `dtype` is kBF16 or kF16. `bits` has the size of `values`.
void to_16_bit(std::span<const float> values, StorageDType dtype, std::uint16_t* bits);
std::vector<std::uint16_t> to_16_bit(const std::vector<float>& values, StorageDType dtype);
// Exact. `values` has the size of `bits`.
void from_16_bit(std::span<const std::uint16_t> bits, StorageDType dtype, float* values);

}  // namespace s2o
