#include "lib/prefill/prefill_memory.h"

#include <algorithm>

#include "kernels/model/matrix_product.h"
#include "lib/prefill/weight_layout.h"

namespace s2o {
namespace {

std::int64_t q_width(const ModelConfig& config) {
  return static_cast<std::int64_t>(config.num_q_heads) * config.head_dim;
}
std::int64_t fused_width(const ModelConfig& config) {
  return q_width(config) + 2ll * config.num_kv_heads * config.head_dim;
}

std::vector<PrefillMemory::Part> parts_of(const ModelConfig& whole, std::int64_t seqlen,
                                          std::int64_t replays, int gpus) {
  // Slices are of the same size, but for some tokens of the vocabulary: the last has most.
  const ModelSlice slice = slice_model(whole, gpus - 1, gpus);
  const ModelConfig config = slice_config(whole, slice);
  const PrefillExtents e = prefill_extents(whole, seqlen, gpus);
  const std::int64_t qkv = 2 * (e.q + 2 * e.kv);
  std::vector<PrefillMemory::Part> parts = {
      {"weights", place_weights(whole, slice, nullptr).bytes},
      {"residual stream", 4 * e.residual},
      {"q, k, v", qkv},
      {"attention output and lse", 2 * e.q + 4 * seqlen * config.num_q_heads},
      {"rope table and tokens", 4 * (e.rope + 2 * seqlen)},
      {"activations of " + std::to_string(e.chunk_rows) + " rows",
       2 * (e.rows_in + e.rows_wide + e.rows_active + (gpus > 1 ? 0 : e.rows_out))},
      {"logits of " + std::to_string(e.logit_rows) + " rows",
       4 * e.logits + 2 * e.logit_rows * config.hidden_size},
      {"cuBLAS and kernels", MatrixProducts::kWorkspaceBytes + kDeviceReserveBytes}};
  if (gpus > 1) {
    parts.push_back({"sums over GPUs", 2 * e.rows_out});
    parts.push_back({"NCCL", kNcclBytes});
  }
  if (replays > 0) parts.push_back({"replayed q, k, v", replays * qkv});
  return parts;
}

std::int64_t total_of(const std::vector<PrefillMemory::Part>& parts) {
  std::int64_t total = 0;
  for (const PrefillMemory::Part& part : parts) total += part.bytes;
  return total;
}

}  // namespace

PrefillExtents prefill_extents(const ModelConfig& whole, std::int64_t seqlen, int gpus) {
  const ModelConfig config = slice_config(whole, slice_model(whole, gpus - 1, gpus));
  PrefillExtents e;
  e.residual = seqlen * config.hidden_size;
  e.q = seqlen * q_width(config);
  e.kv = seqlen * config.num_kv_heads * config.head_dim;
  e.rope = seqlen * config.head_dim;
  e.chunk_rows = std::min(seqlen, kPrefillChunkRows);
  if (gpus > 1) {
    const std::int64_t part = (seqlen + kParallelChunks - 1) / kParallelChunks;
    e.chunk_rows =
        std::min(e.chunk_rows, std::max(kMinParallelChunkRows, (part + 127) / 128 * 128));
  }
  e.rows_in = e.chunk_rows * std::max<std::int64_t>(config.hidden_size, q_width(config));
  e.rows_wide =
      e.chunk_rows * std::max<std::int64_t>(fused_width(config), 2ll * config.intermediate_size);
  e.rows_active = e.chunk_rows * config.intermediate_size;
  e.rows_out = (gpus > 1 ? seqlen : e.chunk_rows) * config.hidden_size;
  e.logit_rows = std::min(seqlen, kLogitChunkRows);
  e.logits = e.logit_rows * logit_stride(config.vocab_size);
  return e;
}

PrefillMemory plan_prefill_memory(const ModelConfig& config, std::int64_t seqlen,
                                  std::int64_t replays, std::int64_t free_bytes, int gpus) {
  PrefillMemory memory;
  memory.gpus = gpus;
  memory.parts = parts_of(config, seqlen, replays, gpus);
  memory.total_bytes = total_of(memory.parts);
  memory.free_bytes = free_bytes;
  memory.longest_seqlen = longest_seqlen([&](std::int64_t tokens) {
    return total_of(parts_of(config, tokens, replays, gpus)) <= free_bytes;
  });
  return memory;
}

PrefillFloor prefill_floor(const ModelConfig& config, std::int64_t seqlen) {
  const auto tokens = static_cast<double>(seqlen);
  const auto hidden = static_cast<double>(config.hidden_size);
  const auto inner = static_cast<double>(config.intermediate_size);
  const auto q = static_cast<double>(q_width(config));
  const auto fused = static_cast<double>(fused_width(config));
  const auto layers = static_cast<double>(config.num_layers);
  const double weights = fused * hidden + q * hidden + 3.0 * inner * hidden;
  PrefillFloor floor;
  floor.linear_flops = 2.0 * (layers * tokens * weights + hidden * config.vocab_size);
  // Per token of a layer: heads split and joined (bf16 in and out), two sums into the residual
  // stream (fp32 in and out, bf16 in) with a norm (bf16 out), the activation (bf16, two in, one
  // out).
  const double per_token =
      2.0 * (2.0 * fused + 2.0 * q) + 2.0 * (12.0 * hidden) + 2.0 * 3.0 * inner;
  const double embedding = 2.0 * hidden + 4.0 * hidden + 6.0 * hidden;  // and the first norm
  floor.rest_bytes = tokens * (layers * per_token + embedding);
  return floor;
}

}  // namespace s2o
