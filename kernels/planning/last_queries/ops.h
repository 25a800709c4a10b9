// Arguments of the kernels behind methods that estimate from the softmax of the last queries. All
// pointers are device pointers. Host-safe.
#pragma once

#include <cstdint>

namespace s2o {

inline constexpr int kLastQueries = 128;      // most queries
inline constexpr int kLastQueryChunk = 1024;  // keys of a block of threads
inline constexpr int kLastQueryDiagonals = kLastQueryChunk + kLastQueries;

// P = softmax of the logits of the last num_queries positions over keys [0, num_keys);
// mass[x] = mass_factor * sum of P[., x] over the queries. Logits are r(r(q . k) * scale), or
// r(r(q * scale) . k).
struct LastQueryArgs {
  const void* q = nullptr;  // [num_q_heads, seqlen, head_dim], 16-bit
  const void* k = nullptr;  // [num_kv_heads, seqlen, head_dim], 16-bit
  std::int64_t seqlen = 0;
  std::int64_t num_keys = 0;
  std::int32_t num_queries = 0;
  std::int32_t num_q_heads = 0;
  std::int32_t group_size = 1;
  std::int32_t num_chunks = 0;  // ceil(num_keys / kLastQueryChunk)
  float scale = 0.0f;
  bool scales_queries = false;
  bool causal = false;  // hides the keys after each query; num_keys is seqlen
  float mass_factor = 1.0f;
  // Largest logit and normaliser of each query, by chunk and then in all.
  float* largest = nullptr;      // [num_q_heads, num_chunks + 1, kLastQueries]
  float* normalisers = nullptr;  // the same shape; the last entry holds the whole row
  float* mass = nullptr;         // [num_q_heads, num_keys]
  // With `causal`, mass_factor times the sum of P at each distance query - key, [num_q_heads,
  // seqlen], by way of the sums of each chunk, [num_q_heads, num_chunks, kLastQueryDiagonals]:
  // entry e holds query r and the key x of the chunk with r - x = e - (kLastQueryChunk - 1). May be
  // null.
  float* distance_mass = nullptr;
  float* chunk_diagonals = nullptr;
  std::uint32_t* bad_row = nullptr;  // zero, or the complement of a head with a bad logit
  std::int32_t rows_per_head = 1;    // what a head counts as in bad_row
};

}  // namespace s2o
