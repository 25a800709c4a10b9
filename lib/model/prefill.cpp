#include "lib/model/prefill.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstring>
#include <limits>
#include <utility>

#include "kernels/attention/attention.h"
#include "kernels/common/parallel.h"
#include "lib/core/error.h"
#include "lib/core/memory.h"
#include "lib/plan/sparse_plan.h"

namespace s2o {
namespace {

// Rows whose wide intermediates (normalised input, MLP) exist at a time.
constexpr std::int64_t kChunkRows = 2048;
constexpr std::int64_t kNormRows = 64;  // of one task

class Stopwatch {
 public:
  explicit Stopwatch(double& total_ms) : total_ms_(total_ms) {}
  ~Stopwatch() {
    const std::chrono::duration<double, std::milli> elapsed = Clock::now() - start_;
    total_ms_ += elapsed.count();
  }
  Stopwatch(const Stopwatch&) = delete;
  Stopwatch& operator=(const Stopwatch&) = delete;

 private:
  using Clock = std::chrono::steady_clock;
  double& total_ms_;
  Clock::time_point start_ = Clock::now();
};

template <class Body>
void for_each_chunk(std::int64_t seqlen, Body&& body) {
  for (std::int64_t row = 0; row < seqlen; row += kChunkRows) {
    body(row, std::min(kChunkRows, seqlen - row));
  }
}

// gate[i] = silu(gate[i]) * up[i]. Scalar exp: vector and scalar versions differ in the last bit,
// and which one an element gets would depend on the address of the buffer.
void multiply_silu(std::vector<float>& gate, const std::vector<float>& up, std::int64_t rows,
                   std::int64_t size) {
  parallel_for(rows, [&](std::int64_t row) {
    for (std::int64_t i = row * size; i < (row + 1) * size; ++i) {
      gate[i] = gate[i] / (1.0f + std::exp(-gate[i])) * up[i];
    }
  });
}

// Checked before anything is allocated.
std::int64_t checked_seqlen(const Model& model, const std::vector<std::int32_t>& tokens,
                            const std::string& name) {
  const auto seqlen = static_cast<std::int64_t>(tokens.size());
  if (seqlen < 1 || seqlen > std::numeric_limits<std::int32_t>::max()) {
    throw InputError(fmt::format("{}: {} tokens, expected between 1 and {}", name, seqlen,
                                 std::numeric_limits<std::int32_t>::max()));
  }
  for (std::int64_t i = 0; i < seqlen; ++i) {
    if (tokens[i] >= 0 && tokens[i] < model.config.vocab_size) continue;
    throw InputError(fmt::format("{}: token id {} at index {}, expected an id in [0, {})", name,
                                 tokens[i], i, model.config.vocab_size));
  }
  check_prompt_length(model.config, seqlen, name);
  require_memory(prefill_bytes(model.config, seqlen),
                 fmt::format("prefill of {} tokens through {}", seqlen, model.config.name));
  return seqlen;
}

}  // namespace

std::uint64_t prefill_bytes(const ModelConfig& config, std::int64_t seqlen) {
  const auto heads = [&](double count) { return count * config.head_dim; };
  // Residual stream, Q and the attention output, K and V, RoPE tables, log-sum-exp.
  const double per_token = config.hidden_size + 2.0 * heads(config.num_q_heads) +
                           2.0 * heads(config.num_kv_heads) + config.head_dim + config.num_q_heads;
  const double per_chunk_row =
      config.hidden_size + std::max(heads(config.num_q_heads), 2.0 * config.intermediate_size);
  const double chunk_rows = static_cast<double>(std::min(seqlen, kChunkRows));
  return static_cast<std::uint64_t>(
      sizeof(float) * (per_token * static_cast<double>(seqlen) + per_chunk_row * chunk_rows));
}

void dense_attention(int /*layer*/, const AttentionInput& input, std::vector<float>& out) {
  const Problem& problem = input.problem;
  const SparsePlan plan = dense_plan(problem, /*block_m=*/128, /*block_n=*/128);
  std::vector<float> lse(static_cast<std::size_t>(problem.num_q_heads * problem.seqlen));
  attention_ref(problem, PlanPointers(plan).view(), input.q.data(), input.k.data(), input.v.data(),
                out.data(), lse.data(), nullptr);
}

Prefill::Prefill(std::shared_ptr<const Model> model, const std::vector<std::int32_t>& tokens,
                 PrefillOptions options)
    : model_(std::move(model)),
      options_(std::move(options)),
      seqlen_(checked_seqlen(*model_, tokens,
                             options_.name.empty() ? model_->config.name : options_.name)),
      rope_(rope_frequencies(model_->config.rope, model_->config.head_dim, seqlen_), seqlen_) {
  if (options_.name.empty()) options_.name = model_->config.name;
  embed(tokens);
}

void Prefill::embed(const std::vector<std::int32_t>& tokens) {
  const std::int64_t size = model_->config.hidden_size;
  hidden_.resize(static_cast<std::size_t>(seqlen_ * size));
  for (std::int64_t t = 0; t < seqlen_; ++t) {
    model_->embedding.copy_float(tokens[t] * size, size, hidden_.data() + t * size);
  }
}

void Prefill::normalise(const std::vector<float>& weight, std::int64_t first_row, std::int64_t rows,
                        float* out) const {
  const std::int64_t size = model_->config.hidden_size;
  parallel_for((rows + kNormRows - 1) / kNormRows, [&](std::int64_t task) {
    const std::int64_t row = task * kNormRows;
    rms_norm_rows(hidden_.data() + (first_row + row) * size, weight.data(),
                  model_->config.rms_norm_eps, std::min(kNormRows, rows - row), size,
                  out + row * size);
  });
}

// x [rows, hidden_size] are normalised rows [first_row, first_row + rows); the result goes to the
// same rows of heads [num_heads, seqlen, head_dim].
void Prefill::project_heads(const Linear& linear, int num_heads, const std::vector<float>& norm,
                            bool rotate, const float* x, std::int64_t first_row, std::int64_t rows,
                            std::vector<float>& heads) const {
  const ModelConfig& config = model_->config;
  const std::int64_t d = config.head_dim;
  const std::int64_t row_blocks = (rows + kLinearRows - 1) / kLinearRows;
  parallel_for(row_blocks * num_heads, [&](std::int64_t task) {
    const std::int64_t head = task % num_heads;
    const std::int64_t row = task / num_heads * kLinearRows;
    const std::int64_t count = std::min(kLinearRows, rows - row);
    float* out = heads.data() + (head * seqlen_ + first_row + row) * d;
    linear_block(linear, head * d, d, x + row * config.hidden_size, count, out, d,
                 /*accumulate=*/false);
    if (!norm.empty()) rms_norm_rows(out, norm.data(), config.rms_norm_eps, count, d, out);
    if (!rotate) return;
    for (std::int64_t i = 0; i < count; ++i) rope_.rotate(out + i * d, first_row + row + i);
  });
}

AttentionInput Prefill::layer_input() {
  const ModelConfig& config = model_->config;
  const LayerWeights& layer = model_->layers.at(static_cast<std::size_t>(next_layer_));
  AttentionInput input;
  input.name = options_.name;
  input.layer = next_layer_;
  input.dtype = options_.dtype;
  input.problem = {.seqlen = seqlen_,
                   .num_q_heads = config.num_q_heads,
                   .num_kv_heads = config.num_kv_heads,
                   .head_dim = config.head_dim};
  const auto head_elements = static_cast<std::size_t>(seqlen_ * config.head_dim);
  input.q.resize(config.num_q_heads * head_elements);
  input.k.resize(config.num_kv_heads * head_elements);
  input.v.resize(config.num_kv_heads * head_elements);

  std::vector<float> x(static_cast<std::size_t>(std::min(kChunkRows, seqlen_)) *
                       config.hidden_size);
  for_each_chunk(seqlen_, [&](std::int64_t row, std::int64_t rows) {
    normalise(layer.input_norm, row, rows, x.data());
    const Stopwatch stopwatch(times_.linear_ms);
    project_heads(layer.q, config.num_q_heads, layer.q_norm, true, x.data(), row, rows, input.q);
    project_heads(layer.k, config.num_kv_heads, layer.k_norm, true, x.data(), row, rows, input.k);
    project_heads(layer.v, config.num_kv_heads, {}, false, x.data(), row, rows, input.v);
  });
  const std::string place = fmt::format("{}: layer {}: tensor ", input.name, input.layer);
  round_to_dtype(input.q, input.dtype, place + "'q'");
  round_to_dtype(input.k, input.dtype, place + "'k'");
  round_to_dtype(input.v, input.dtype, place + "'v'");
  validate_attention_input(input, options_.allow_nonfinite);
  return input;
}

void Prefill::finish_layer(const AttentionInput& input, const AttentionFn& attention) {
  const ModelConfig& config = model_->config;
  std::vector<float> out(static_cast<std::size_t>(config.num_q_heads * seqlen_) * config.head_dim);
  {
    const Stopwatch stopwatch(times_.attention_ms);
    attention(next_layer_, input, out);
  }
  add_attention_output(out);
  add_mlp();
  ++next_layer_;
}

void Prefill::add_attention_output(const std::vector<float>& out) {
  const ModelConfig& config = model_->config;
  const Linear& projection = model_->layers[next_layer_].o;
  const std::int64_t d = config.head_dim;
  const std::int64_t width = config.num_q_heads * d;
  std::vector<float> rows_of_heads(static_cast<std::size_t>(std::min(kChunkRows, seqlen_) * width));
  for_each_chunk(seqlen_, [&](std::int64_t row, std::int64_t rows) {
    parallel_for(rows, [&](std::int64_t i) {
      for (std::int64_t head = 0; head < config.num_q_heads; ++head) {
        std::memcpy(rows_of_heads.data() + i * width + head * d,
                    out.data() + (head * seqlen_ + row + i) * d,
                    static_cast<std::size_t>(d) * sizeof(float));
      }
    });
    const Stopwatch stopwatch(times_.linear_ms);
    apply_linear(projection, rows_of_heads.data(), rows, hidden_.data() + row * config.hidden_size,
                 /*accumulate=*/true);
  });
}

void Prefill::add_mlp() {
  const ModelConfig& config = model_->config;
  const LayerWeights& layer = model_->layers[next_layer_];
  const auto chunk = static_cast<std::size_t>(std::min(kChunkRows, seqlen_));
  std::vector<float> x(chunk * config.hidden_size);
  std::vector<float> gate(chunk * config.intermediate_size);
  std::vector<float> up(chunk * config.intermediate_size);
  for_each_chunk(seqlen_, [&](std::int64_t row, std::int64_t rows) {
    normalise(layer.post_attention_norm, row, rows, x.data());
    {
      const Stopwatch stopwatch(times_.linear_ms);
      apply_linear(layer.gate, x.data(), rows, gate.data(), /*accumulate=*/false);
      apply_linear(layer.up, x.data(), rows, up.data(), /*accumulate=*/false);
    }
    multiply_silu(gate, up, rows, config.intermediate_size);
    const Stopwatch stopwatch(times_.linear_ms);
    apply_linear(layer.down, gate.data(), rows, hidden_.data() + row * config.hidden_size,
                 /*accumulate=*/true);
  });
}

void Prefill::run_to(int end_layer, const AttentionFn& attention, const PrefillProgress& progress) {
  const int first = next_layer_;
  while (next_layer_ < end_layer) {
    const AttentionInput input = layer_input();
    finish_layer(input, attention);
    if (progress) progress(next_layer_ - first, end_layer - first);
  }
}

}  // namespace s2o
