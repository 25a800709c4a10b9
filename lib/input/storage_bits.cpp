#include "lib/input/storage_bits.h"

#include <algorithm>

#include "kernels/common/bf16.h"
#include "kernels/common/parallel.h"

namespace s2o {
namespace {

template <class Body>
void for_each_index(std::size_t size, const Body& body) {
  constexpr std::int64_t kChunk = 1 << 20;
  const auto count = static_cast<std::int64_t>(size);
  parallel_for((count + kChunk - 1) / kChunk, [&](std::int64_t chunk) {
    const std::int64_t end = std::min((chunk + 1) * kChunk, count);
    for (std::int64_t i = chunk * kChunk; i < end; ++i) body(static_cast<std::size_t>(i));
  });
}

}  // namespace

void to_16_bit(std::span<const float> values, StorageDType dtype, std::uint16_t* bits) {
  const bool bf16 = dtype == StorageDType::kBF16;
  for_each_index(values.size(), [&](std::size_t i) {
    bits[i] = bf16 ? float_to_bf16(values[i]) : float_to_fp16(values[i]);
  });
}

std::vector<std::uint16_t> to_16_bit(const std::vector<float>& values, StorageDType dtype) {
  std::vector<std::uint16_t> bits(values.size());
  to_16_bit(values, dtype, bits.data());
  return bits;
}

void from_16_bit(std::span<const std::uint16_t> bits, StorageDType dtype, float* values) {
  const bool bf16 = dtype == StorageDType::kBF16;
  for_each_index(bits.size(), [&](std::size_t i) {
    values[i] = bf16 ? bf16_to_float(bits[i]) : fp16_to_float(bits[i]);
  });
}

}  // namespace s2o
