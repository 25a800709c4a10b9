// Rounding of fp32 values to the 16-bit activation types, on the host.
#pragma once

#include <bit>
#include <cstdint>

namespace s2o {

inline float bf16_to_float(std::uint16_t bits) {
  return std::bit_cast<float>(static_cast<std::uint32_t>(bits) << 16);
}

// Round to nearest even; NaN stays NaN, overflow becomes infinity.
inline std::uint16_t float_to_bf16(float value) {
  const auto bits = std::bit_cast<std::uint32_t>(value);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return static_cast<std::uint16_t>((bits >> 16) | 0x40u);
  return static_cast<std::uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

// r(x) of the method definitions: the value after one rounding to bf16.
inline float round_bf16(float value) { return bf16_to_float(float_to_bf16(value)); }

// IEEE half precision, same conventions. Implemented with the compiler's _Float16.
inline float fp16_to_float(std::uint16_t bits) {
  return static_cast<float>(std::bit_cast<_Float16>(bits));
}
inline std::uint16_t float_to_fp16(float value) {
  return std::bit_cast<std::uint16_t>(static_cast<_Float16>(value));
}
inline float round_fp16(float value) { return fp16_to_float(float_to_fp16(value)); }

}  // namespace s2o
