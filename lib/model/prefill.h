// CPU prefill of one sequence, layer by layer.
//
// Precision: weights in the dtype of their file, activations and accumulation in fp32. Q, K and V
// are rounded to the storage dtype after RoPE, before attention reads them; these are the values
// that captures and evaluations see. The attention output is not rounded.
// Memory grows linearly with seqlen: the residual stream, Q/K/V and the attention output of one
// layer, and fixed-size chunks of everything wider. Results do not depend on the number of threads.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "lib/input/attention_input.h"
#include "lib/model/rope.h"
#include "lib/model/weights.h"

namespace s2o {

// Computes attention of one layer: fills `out` [num_q_heads, seqlen, head_dim], original token
// order. `out` arrives with that size.
using AttentionFn =
    std::function<void(int layer, const AttentionInput& input, std::vector<float>& out)>;

// Exact causal attention by the CPU reference kernel.
void dense_attention(int layer, const AttentionInput& input, std::vector<float>& out);

// Called when `done` of `total` layers are complete.
using PrefillProgress = std::function<void(int done, int total)>;

struct PrefillOptions {
  StorageDType dtype = StorageDType::kBF16;  // of Q, K and V
  bool allow_nonfinite = false;              // else NaN or infinity in Q, K, V is an InputError
  std::string name;                          // of the AttentionInputs; default: the model's
};

// Wall-clock time since construction.
struct PrefillTimes {
  double linear_ms = 0.0;     // projections (RoPE and norms of heads with them) and MLP products
  double attention_ms = 0.0;  // inside the AttentionFn
};

// The state between two layers. Layers are run in order; the input of the next layer can be taken
// as often as wanted before its attention is decided:
//
//   Prefill prefill(model, tokens, {});
//   while (prefill.next_layer() < prefill.num_layers()) {
//     const AttentionInput input = prefill.layer_input();
//     prefill.finish_layer(input, dense_attention);
//   }
//   next_token_losses(*model, prefill.hidden(), tokens);   // lib/model/logits.h
class Prefill {
 public:
  // `tokens` are checked against the vocabulary (InputError with the index). UnsupportedError when
  // the memory that a layer needs is not free, or when a sliding window would cut the prompt. More
  // tokens than the model was made for are a warning.
  Prefill(std::shared_ptr<const Model> model, const std::vector<std::int32_t>& tokens,
          PrefillOptions options);

  int num_layers() const { return model_->config.num_layers; }
  int next_layer() const { return next_layer_; }
  std::int64_t seqlen() const { return seqlen_; }

  // Q, K, V of next_layer(), post-RoPE, rounded and validated.
  AttentionInput layer_input();
  // Attention over `input` (= layer_input()), output projection and MLP; next_layer() grows by one.
  void finish_layer(const AttentionInput& input, const AttentionFn& attention);
  // layer_input() and finish_layer() until next_layer() == end_layer. `progress` may be empty.
  void run_to(int end_layer, const AttentionFn& attention, const PrefillProgress& progress);

  // Residual stream before next_layer(), without the final norm: [seqlen, hidden_size].
  const std::vector<float>& hidden() const { return hidden_; }
  const PrefillTimes& times() const { return times_; }

 private:
  void embed(const std::vector<std::int32_t>& tokens);
  void project_heads(const Linear& linear, int num_heads, const std::vector<float>& norm,
                     bool rotate, const float* x, std::int64_t first_row, std::int64_t rows,
                     std::vector<float>& heads) const;
  void add_attention_output(const std::vector<float>& out);
  void add_mlp();
  void normalise(const std::vector<float>& weight, std::int64_t first_row, std::int64_t rows,
                 float* out) const;

  std::shared_ptr<const Model> model_;
  PrefillOptions options_;
  std::int64_t seqlen_ = 0;
  int next_layer_ = 0;
  std::vector<float> hidden_;  // [seqlen, hidden_size]
  RopeTable rope_;
  PrefillTimes times_;
};

// Bytes that Prefill and dense_attention hold at their peak, file mappings excluded.
std::uint64_t prefill_bytes(const ModelConfig& config, std::int64_t seqlen);

}  // namespace s2o
