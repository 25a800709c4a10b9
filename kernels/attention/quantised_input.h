// Q, K and V of attention in 8 bits in device memory, for the Hopper kernel (definition:
// quantise.h). Host-safe.
#pragma once

#include <cstdint>

#include "kernels/attention/quantise_rule.h"
#include "kernels/common/cuda_stream.h"
#include "kernels/common/device_input.h"
#include "kernels/common/host_device.h"

namespace s2o {

// Transposed values come in groups of keys whose order is that of the fragments of P.
inline constexpr int kQuantisedGroup = 16;
// Where key `key` of its group stands.
S2O_ANYWHERE constexpr int quantised_place(int key) {
  return key % 8 / 2 * 4 + key / 8 * 2 + key % 2;
}
// The key that stands there.
S2O_ANYWHERE constexpr int quantised_key(int place) {
  return place / 4 * 2 + place / 2 % 2 * 8 + place % 2;
}
// Keys of a row of transposed values: whole groups.
S2O_ANYWHERE constexpr std::int64_t quantised_padding(std::int64_t seqlen) {
  return (seqlen + kQuantisedGroup - 1) / kQuantisedGroup * kQuantisedGroup;
}

// Blocks of keys per head whose statistics are taken apart.
inline constexpr int kQuantiseParts = 64;

// Device arrays; head_dim is 128.
struct QuantisedInput {
  std::int8_t* q = nullptr;  // [num_q_heads, seqlen, head_dim]
  std::int8_t* k = nullptr;  // [num_kv_heads, seqlen, head_dim]
  // Values, one of the two (has_wide_values): e4m3, [num_kv_heads, head_dim,
  // quantised_padding(seqlen)], zeros from seqlen on, or fp16, [num_kv_heads, seqlen, head_dim].
  std::uint8_t* v_columns = nullptr;
  std::uint16_t* v_rows = nullptr;
  float* logit_scale = nullptr;  // [num_q_heads, seqlen]
  float* lse_shift = nullptr;    // [num_q_heads, seqlen]
  // A head that quantise.h refuses has a NaN here (refused_scale) or what is not finite.
  float* key_scale = nullptr;    // [num_kv_heads]
  float* value_scale = nullptr;  // [num_kv_heads]
  float* query_check = nullptr;  // [num_q_heads]; 1 where a head is not refused
  float* mean = nullptr;         // [num_kv_heads, head_dim], of k H
  float* parts = nullptr;        // [num_kv_heads, kQuantiseParts, 3 head_dim + 2]
};
// Bytes of all arrays for a problem, and the arrays in so many bytes at `base`, a multiple of 256.
std::int64_t quantised_bytes(const Problem& problem, bool wide_values);
QuantisedInput place_quantised(const Problem& problem, bool wide_values, void* base);

// Floats of key_scale, value_scale and query_check, one after the other, and their places.
std::int64_t num_head_scales(const Problem& problem);
void place_head_scales(const Problem& problem, float* base, QuantisedInput& input);

// The bits of a NaN that carries what was found, a positive number of these bits, to 13 bits. NaN
// of larger numbers are larger.
S2O_ANYWHERE constexpr std::uint32_t refused_scale(std::uint32_t found) {
  return 0x7fc00000u | (found & 0x7fffffffu) >> 9;
}
// UnsupportedError for the first head with a scale that is not finite, as quantise_ref words it.
// `scales`: num_head_scales() of them, in host memory.
void check_head_scales(const Problem& problem, const float* scales);

// Three launches: statistics of K and V, one pass over them; their end; one pass over all.
// Deterministic. Outputs of a refused head are not finite.
void launch_quantise(const DeviceInput& input, QuantiseRule rule, const QuantisedInput& output,
                     CudaStream stream);

}  // namespace s2o
