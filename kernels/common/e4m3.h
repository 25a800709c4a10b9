// The 8-bit floating-point type e4m3 (1 sign, 4 exponent, 3 mantissa bits; no infinity), on the
// host: rounding as the device converts, to nearest even and saturating at 448.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>

namespace s2o {

inline constexpr float kLargestE4m3 = 448.0f;

inline std::uint8_t float_to_e4m3(float value) {
  const auto bits = std::bit_cast<std::uint32_t>(value);
  const auto sign = static_cast<std::uint8_t>(bits >> 24 & 0x80u);
  const float size = std::fabs(value);
  if (size != size) return static_cast<std::uint8_t>(sign | 0x7fu);
  if (size >= kLargestE4m3) return static_cast<std::uint8_t>(sign | 0x7eu);
  if (size < 0.015625f) {  // subnormal: multiples of 2^-9
    return static_cast<std::uint8_t>(sign | static_cast<std::uint8_t>(std::nearbyint(size * 512)));
  }
  const std::uint32_t magnitude = bits & 0x7fffffffu;
  const std::uint32_t rounded = (magnitude + 0x7ffffu + (magnitude >> 20 & 1u)) >> 20;
  return static_cast<std::uint8_t>(sign | static_cast<std::uint8_t>(rounded - ((127u - 7u) << 3)));
}

inline float e4m3_to_float(std::uint8_t code) {
  const int exponent = code >> 3 & 15;
  const int mantissa = code & 7;
  if ((code & 0x7f) == 0x7f) return NAN;
  const float size = exponent == 0 ? std::ldexp(static_cast<float>(mantissa), -9)
                                   : std::ldexp(static_cast<float>(8 + mantissa), exponent - 10);
  return (code & 0x80) != 0 ? -size : size;
}

}  // namespace s2o
