// The forward pass of one prompt on a device: everything that is enqueued between tokens and
// logits. CUDA builds only.
//
// Rows go through a layer in chunks of kPrefillChunkRows, from attention to attention: output
// projection, MLP, and the fused projection of the next layer. Only the residual stream, Q, K, V
// and the attention output exist for the whole prompt.
//
// Over several GPUs, every one runs the pass with its slice of the model. What the output
// projection and the MLP add to the residual stream is then summed over the GPUs chunk by chunk in
// a second stream, while the next chunk is computed; those addends exist for the whole prompt too.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "kernels/common/device_buffer.h"
#include "kernels/common/stream.h"
#include "kernels/model/all_reduce.h"
#include "kernels/model/matrix_product.h"
#include "lib/device/phase_timer.h"
#include "lib/input/attention_input.h"
#include "lib/prefill/layer_attention.h"
#include "lib/prefill/model_slice.h"
#include "lib/prefill/prefill_memory.h"
#include "lib/prefill/weight_layout.h"

namespace s2o {

// Device copies of one capture, one head for every head of the model.
struct ReplayedHeads {
  DeviceBuffer<std::uint16_t> q;  // [num_q_heads, seqlen, head_dim]
  DeviceBuffer<std::uint16_t> k;  // [num_kv_heads, seqlen, head_dim]
  DeviceBuffer<std::uint16_t> v;  // [num_kv_heads, seqlen, head_dim]
};

// The two parts of next-token losses, over the tokens of a slice: [seqlen - 1] each.
struct LossParts {
  std::vector<double> log_sums;      // log of the sum of exp(logit), nats
  std::vector<float> target_logits;  // -infinity where another slice has the target
};

class PrefillPass {
 public:
  // Works in `stream`, on a slice of the model `config`.
  PrefillPass(const ModelConfig& config, const ModelSlice& slice, StorageDType dtype,
              CudaStream stream, MatrixProducts& products);
  // What sums over the GPUs of the slices; needed before enqueue() unless the slice is whole.
  void set_sums(AllReduce* sums) { sums_ = sums; }

  // For prompts of up to `max_seqlen` tokens.
  void allocate(std::int64_t max_seqlen);
  std::int64_t max_seqlen() const { return max_seqlen_; }
  void set_tokens(std::span<const std::int32_t> tokens);
  Problem problem() const;

  // Enqueues the whole pass, down to the logits of the last row. After the attention of a layer,
  // `after_attention` is called with it. `replays` may be empty. `first` says that it is the first
  // pass of a prompt, which may allocate on the way: a sum over GPUs in flight would be waited for.
  void enqueue(const PlacedWeights& weights, std::span<const ReplayedHeads> replays,
               LayerAttention& attention, PhaseTimer& timer, bool first,
               const std::function<void(std::size_t layer)>& after_attention);

  // After a pass: waits. InputError naming the place of the first hidden state that is not finite.
  void check_finite() const;
  // Q, K and V of the layer whose attention was enqueued last: waits.
  AttentionInput layer_input(int layer, const std::string& name) const;
  // Logits of rows of the pass: [positions.size(), vocab_size].
  std::vector<float> logits(const PlacedWeights& weights, std::span<const std::int64_t> positions);
  // Rows of the residual stream after the last layer: [positions.size(), hidden_size].
  std::vector<float> hidden_rows(std::span<const std::int64_t> positions) const;
  // Logits [rows, vocab_size] of such rows, of any pass. The residual stream of the last pass is
  // gone after it.
  void logits_of(const PlacedWeights& weights, std::span<const float> hidden,
                 std::span<float> logits);
  LossParts losses(const PlacedWeights& weights);

 private:
  // For positions [0, seqlen) of a prompt of `seqlen` tokens.
  void fill_rope_table(std::int64_t seqlen);
  void start_layer(const PlacedWeights& weights, std::size_t layer, std::int64_t first_row,
                   std::int64_t rows, bool has_delta, PhaseTimer& timer);
  void project_attention(const PlacedLayer& place, const std::uint16_t* attention_out,
                         std::int64_t first_row, std::int64_t rows, PhaseTimer& timer);
  void run_mlp(const PlacedLayer& place, std::size_t layer, std::int64_t first_row,
               std::int64_t rows, PhaseTimer& timer);
  void end_layer(const PlacedWeights& weights, std::size_t layer, std::int64_t first_row,
                 std::int64_t rows, PhaseTimer& timer);
  // Of the rows from first_row on: what is added to the residual stream next.
  std::uint16_t* delta(std::int64_t first_row);
  void sum_delta(std::int64_t first_row, std::int64_t rows, bool wait_here);
  void await_delta(std::int64_t first_row, PhaseTimer& timer);
  std::int64_t chunk_rows() const;
  DeviceInput attention_input(std::span<const ReplayedHeads> replays, std::size_t layer) const;
  void multiply(const PlacedLinear& linear, const DeviceBuffer<std::uint16_t>& x, std::uint16_t* y,
                std::int64_t rows, PhaseTimer& timer);
  void add_norm(const float* weight, const float* bias, std::int64_t first_row, std::int64_t rows,
                std::uint64_t place, bool has_delta);
  void project_logits(const PlacedWeights& weights, float* residual,
                      const std::int64_t* row_indices, std::int64_t rows);
  void download_logits(std::size_t rows, float* target) const;

  // A chunk of rows on its way through the sum over GPUs.
  struct ChunkEvents {
    Event computed, summed;
  };

  const ModelConfig& whole_;
  const ModelSlice slice_;
  const ModelConfig config_;  // of the slice
  const StorageDType storage_;
  const KernelDType dtype_;
  const CudaStream stream_;
  MatrixProducts& products_;
  AllReduce* sums_ = nullptr;
  Stream sum_stream_;
  std::vector<ChunkEvents> chunks_;
  std::int64_t max_seqlen_ = 0;
  std::int64_t seqlen_ = 0;

  DeviceBuffer<std::int32_t> tokens_;                // [seqlen]
  DeviceBuffer<float> rope_;                         // [seqlen, head_dim / 2, 2]
  DeviceBuffer<float> residual_;                     // [seqlen, hidden_size]
  DeviceBuffer<std::uint16_t> q_, k_, v_;            // [heads, seqlen, head_dim]
  DeviceBuffer<std::uint16_t> rows_in_, rows_wide_;  // see PrefillExtents
  DeviceBuffer<std::uint16_t> rows_active_, rows_out_;
  DeviceBuffer<std::uint16_t> logit_rows_;      // [logit_rows, hidden_size]
  DeviceBuffer<float> logits_;                  // [logit_rows, logit_stride(vocab_size)]
  DeviceBuffer<double> log_sums_;               // [logit_rows]
  DeviceBuffer<float> target_logits_;           // [logit_rows]
  DeviceBuffer<std::int64_t> positions_;        // [logit_rows]
  DeviceBuffer<unsigned long long> first_bad_;  // [1]
};

}  // namespace s2o
