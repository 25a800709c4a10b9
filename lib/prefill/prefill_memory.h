// What a prefill on a device takes: memory before it is allocated, and the floors of its work.
// Host arithmetic, tested everywhere.
#pragma once

#include <algorithm>
#include <cstdint>
#include <ranges>

#include "lib/model/model_config.h"
#include "lib/prefill/prefill_backend.h"

namespace s2o {

// Rows whose wide activations exist at a time. Enough tiles for a product to fill a large device
// more than ten times over: the last, partly filled wave costs under 5 %.
inline constexpr std::int64_t kPrefillChunkRows = 32768;
// Rows whose logits exist at a time: 525 MB for a vocabulary of 128,256.
inline constexpr std::int64_t kLogitChunkRows = 1024;
// Code of kernels, and what the allocator rounds up.
inline constexpr std::int64_t kDeviceReserveBytes = 512ll << 20;

// Floats between rows of logits: whole vectors of the library that writes them.
constexpr std::int64_t logit_stride(int vocab_size) { return (vocab_size + 7) / 8 * 8; }

// Sizes of the buffers, in elements. What is allocated is what is planned.
struct PrefillExtents {
  std::int64_t residual = 0;     // fp32 [seqlen, hidden_size]
  std::int64_t q = 0;            // 16-bit [num_q_heads, seqlen, head_dim]
  std::int64_t kv = 0;           // 16-bit [num_kv_heads, seqlen, head_dim], each of k and v
  std::int64_t rope = 0;         // fp32 [seqlen, head_dim / 2, 2]
  std::int64_t chunk_rows = 0;   // of the four below, bf16
  std::int64_t rows_in = 0;      // input of a projection: normalised rows, or joined heads
  std::int64_t rows_wide = 0;    // fused q, k, v, or gate and up
  std::int64_t rows_active = 0;  // after the activation
  std::int64_t rows_out = 0;     // what is added to the residual stream; over GPUs: of all rows
  std::int64_t logit_rows = 0;
  std::int64_t logits = 0;  // fp32 [logit_rows, logit_stride(vocab_size)]
};
// Of one of `gpus`, each with its slice of `config`.
PrefillExtents prefill_extents(const ModelConfig& config, std::int64_t seqlen, int gpus = 1);

// Over GPUs, sums of one chunk travel while another is computed: at least some chunks to a prompt.
inline constexpr std::int64_t kParallelChunks = 4;
inline constexpr std::int64_t kMinParallelChunkRows = 2048;
// Buffers of NCCL.
inline constexpr std::int64_t kNcclBytes = 512ll << 20;

// The longest sequence for which fits(seqlen): memory grows with seqlen everywhere. 0: none.
template <class Fits>
std::int64_t longest_seqlen(const Fits& fits) {
  const auto lengths = std::views::iota(1u, 1u << 31);  // positions are 32-bit
  return std::ranges::partition_point(lengths, fits) - lengths.begin();
}

// `replays` captured inputs are held beside the layer's own Q, K and V.
PrefillMemory plan_prefill_memory(const ModelConfig& config, std::int64_t seqlen,
                                  std::int64_t replays, std::int64_t free_bytes, int gpus = 1);

// What a prefill must at least do: floating-point operations of its products, and bytes that
// everything which is neither a product nor attention reads and writes, each array once.
struct PrefillFloor {
  double linear_flops = 0.0;
  double rest_bytes = 0.0;
};
PrefillFloor prefill_floor(const ModelConfig& config, std::int64_t seqlen);

}  // namespace s2o
