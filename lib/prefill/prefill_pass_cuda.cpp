#include <cuda_runtime.h>
#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "kernels/common/parallel.h"
#include "kernels/model/model_kernels.h"
#include "lib/core/error.h"
#include "lib/input/storage_bits.h"
#include "lib/prefill/prefill_pass.h"

namespace s2o {
namespace {

// A row that is not finite is reported as place << kPlaceShift | row, so that the first place wins.
// Place 0 is the embedding, 2 i + 1 follows the attention of layer i, 2 i + 2 its MLP.
constexpr int kPlaceShift = 40;
constexpr unsigned long long kAllFinite = ~0ull;

std::string place_name(unsigned long long place) {
  if (place == 0) return "after the embedding";
  return fmt::format("after the {} of layer {}", place % 2 == 1 ? "attention" : "MLP",
                     (place - 1) / 2);
}

}  // namespace

PrefillPass::PrefillPass(const ModelConfig& config, const ModelSlice& slice, StorageDType dtype,
                         CudaStream stream, MatrixProducts& products)
    : whole_(config),
      slice_(slice),
      config_(slice_config(config, slice)),
      storage_(dtype),
      dtype_(dtype == StorageDType::kF16 ? KernelDType::kFp16 : KernelDType::kBf16),
      stream_(stream),
      products_(products) {}

void PrefillPass::allocate(std::int64_t max_seqlen) {
  const PrefillExtents e = prefill_extents(whole_, max_seqlen, slice_.count);
  const auto size = [](std::int64_t count) { return static_cast<std::size_t>(count); };
  max_seqlen_ = 0;  // a buffer that cannot grow is gone
  tokens_.resize(size(max_seqlen), "tokens");
  rope_.resize(size(e.rope), "rope table");
  residual_.resize(size(e.residual), "residual stream");
  q_.resize(size(e.q), "q");
  k_.resize(size(e.kv), "k");
  v_.resize(size(e.kv), "v");
  rows_in_.resize(size(e.rows_in), "activations");
  rows_wide_.resize(size(e.rows_wide), "activations");
  rows_active_.resize(size(e.rows_active), "activations");
  rows_out_.resize(size(e.rows_out), "activations");
  logit_rows_.resize(size(e.logit_rows * config_.hidden_size), "logits");
  logits_.resize(size(e.logits), "logits");
  log_sums_.resize(size(e.logit_rows), "losses");
  target_logits_.resize(size(e.logit_rows), "losses");
  positions_.resize(size(e.logit_rows), "positions");
  first_bad_.resize(1, "error word");
  products_.prepare();
  max_seqlen_ = max_seqlen;
  fill_rope_table(max_seqlen);
}

void PrefillPass::fill_rope_table(std::int64_t seqlen) {
  const RopeFrequencies frequencies = rope_frequencies(config_.rope, config_.head_dim, seqlen);
  DeviceBuffer<float> on_device;
  on_device.upload(frequencies.inverse, "rope frequencies");
  cuda_check(cudaDeviceSynchronize(), "upload of rope frequencies");
  launch_rope_table({.inverse_frequencies = on_device.data(),
                     .num_frequencies = static_cast<int>(frequencies.inverse.size()),
                     .scale = frequencies.scale,
                     .seqlen = seqlen,
                     .rope = rope_.data()},
                    stream_);
  cuda_check(cudaStreamSynchronize(stream_), "rope table");
}

void PrefillPass::set_tokens(std::span<const std::int32_t> tokens) {
  seqlen_ = static_cast<std::int64_t>(tokens.size());
  tokens_.upload(tokens.data(), tokens.size(), "upload of tokens");
  cuda_check(cudaDeviceSynchronize(), "upload of tokens");
  if (config_.rope.type == RopeType::kDynamic) fill_rope_table(seqlen_);
}

Problem PrefillPass::problem() const {
  return {.seqlen = seqlen_,
          .num_q_heads = config_.num_q_heads,
          .num_kv_heads = config_.num_kv_heads,
          .head_dim = config_.head_dim,
          .softmax_scale = 1.0f / std::sqrt(static_cast<float>(config_.head_dim))};
}

std::int64_t PrefillPass::chunk_rows() const {
  return prefill_extents(whole_, seqlen_, slice_.count).chunk_rows;
}

void PrefillPass::enqueue(const PlacedWeights& weights, std::span<const ReplayedHeads> replays,
                          LayerAttention& attention, PhaseTimer& timer, bool first,
                          const std::function<void(std::size_t)>& after_attention) {
  timer.begin(Phase::kRest);
  cuda_check(cudaMemsetAsync(first_bad_.data(), 0xff, sizeof(kAllFinite), stream_),
             "reset of the error word");
  launch_embed({.tokens = tokens_.data(),
                .table = weights.embedding,
                .residual = residual_.data(),
                .rows = seqlen_,
                .hidden_size = config_.hidden_size},
               stream_);
  const std::int64_t chunk = chunk_rows();
  const auto for_each_chunk = [this, chunk](const auto& body) {
    for (std::int64_t row = 0; row < seqlen_; row += chunk) {
      body(row, std::min(chunk, seqlen_ - row));
    }
  };
  for_each_chunk([&](std::int64_t row, std::int64_t rows) {
    start_layer(weights, 0, row, rows, /*has_delta=*/false, timer);
  });
  for (std::size_t layer = 0; layer < weights.layers.size(); ++layer) {
    throw_if_cancelled();
    const PlacedLayer& place = weights.layers[layer];
    attention.enqueue(layer, attention_input(replays, layer), timer);
    timer.enter(Phase::kRest);
    after_attention(layer);
    if (slice_.is_whole()) {
      for_each_chunk([&](std::int64_t row, std::int64_t rows) {
        project_attention(place, attention.out(), row, rows, timer);
        run_mlp(place, layer, row, rows, timer);
        end_layer(weights, layer, row, rows, timer);
      });
      continue;
    }
    for_each_chunk([&](std::int64_t row, std::int64_t rows) {
      project_attention(place, attention.out(), row, rows, timer);
      sum_delta(row, rows, first);
    });
    for_each_chunk([&](std::int64_t row, std::int64_t rows) {
      await_delta(row, timer);
      run_mlp(place, layer, row, rows, timer);
      sum_delta(row, rows, first);
    });
    for_each_chunk([&](std::int64_t row, std::int64_t rows) {
      await_delta(row, timer);
      end_layer(weights, layer, row, rows, timer);
    });
  }
  timer.enter(Phase::kLinear);
  project_logits(weights, residual_.data() + (seqlen_ - 1) * config_.hidden_size, nullptr, 1);
  timer.end();
}

std::uint16_t* PrefillPass::delta(std::int64_t first_row) {
  return rows_out_.data() + (slice_.is_whole() ? 0 : first_row * config_.hidden_size);
}

void PrefillPass::sum_delta(std::int64_t first_row, std::int64_t rows, bool wait_here) {
  const auto index = static_cast<std::size_t>(first_row / chunk_rows());
  if (chunks_.size() <= index) chunks_.resize(index + 1);
  ChunkEvents& chunk = chunks_[index];
  const CudaStream sums = sum_stream_.get();
  chunk.computed.record(stream_);
  chunk.computed.hold(sums);
  sums_->sum_bf16(slice_.index, delta(first_row),
                  static_cast<std::size_t>(rows * config_.hidden_size), sums);
  chunk.summed.record(sums);
  if (wait_here) cuda_check(cudaStreamSynchronize(sums), "sum over GPUs");
}

void PrefillPass::await_delta(std::int64_t first_row, PhaseTimer& timer) {
  const ChunkEvents& chunk = chunks_[static_cast<std::size_t>(first_row / chunk_rows())];
  timer.enter(Phase::kCommunication);
  chunk.summed.hold(stream_);
  timer.enter(Phase::kRest);
}

// What the previous layer left goes into the residual stream; then norm, fused
// projection, and Q, K and V of these rows.
void PrefillPass::start_layer(const PlacedWeights& weights, std::size_t layer,
                              std::int64_t first_row, std::int64_t rows, bool has_delta,
                              PhaseTimer& timer) {
  const PlacedLayer& place = weights.layers[layer];
  timer.enter(Phase::kRest);
  add_norm(place.input_norm, has_delta ? weights.layers[layer - 1].down.bias : nullptr, first_row,
           rows, 2 * layer, has_delta);
  multiply(place.qkv, rows_in_, rows_wide_.data(), rows, timer);
  launch_split_heads({.fused = rows_wide_.data(),
                      .bias = place.qkv.bias,
                      .q_norm = place.q_norm,
                      .k_norm = place.k_norm,
                      .eps = config_.rms_norm_eps,
                      .rope = rope_.data(),
                      .q = q_.data(),
                      .k = k_.data(),
                      .v = v_.data(),
                      .layout = {.num_q_heads = config_.num_q_heads,
                                 .num_kv_heads = config_.num_kv_heads,
                                 .head_dim = config_.head_dim},
                      .seqlen = seqlen_,
                      .first_row = first_row,
                      .rows = rows},
                     dtype_, stream_);
}

DeviceInput PrefillPass::attention_input(std::span<const ReplayedHeads> replays,
                                         std::size_t layer) const {
  const auto input = [this](const auto& q, const auto& k, const auto& v) {
    return DeviceInput{
        .problem = problem(), .dtype = dtype_, .q = q.data(), .k = k.data(), .v = v.data()};
  };
  if (replays.empty()) return input(q_, k_, v_);
  const ReplayedHeads& replay = replays[layer % replays.size()];
  return input(replay.q, replay.k, replay.v);
}

// From the attention output of these rows to what it adds to the residual stream.
void PrefillPass::project_attention(const PlacedLayer& place, const std::uint16_t* attention_out,
                                    std::int64_t first_row, std::int64_t rows, PhaseTimer& timer) {
  timer.enter(Phase::kRest);
  launch_join_heads({.heads = attention_out,
                     .out = rows_in_.data(),
                     .num_heads = config_.num_q_heads,
                     .head_dim = config_.head_dim,
                     .seqlen = seqlen_,
                     .first_row = first_row,
                     .rows = rows},
                    dtype_, stream_);
  multiply(place.o, rows_in_, delta(first_row), rows, timer);
}

// Adds that, and leaves what the MLP adds.
void PrefillPass::run_mlp(const PlacedLayer& place, std::size_t layer, std::int64_t first_row,
                          std::int64_t rows, PhaseTimer& timer) {
  add_norm(place.post_attention_norm, place.o.bias, first_row, rows, 2 * layer + 1, true);
  multiply(place.gate_up, rows_in_, rows_wide_.data(), rows, timer);
  launch_swiglu({.gate_up = rows_wide_.data(),
                 .bias = place.gate_up.bias,
                 .out = rows_active_.data(),
                 .rows = rows,
                 .intermediate_size = config_.intermediate_size},
                stream_);
  multiply(place.down, rows_active_, delta(first_row), rows, timer);
}

void PrefillPass::end_layer(const PlacedWeights& weights, std::size_t layer, std::int64_t first_row,
                            std::int64_t rows, PhaseTimer& timer) {
  if (layer + 1 < weights.layers.size()) {
    start_layer(weights, layer + 1, first_row, rows, /*has_delta=*/true, timer);
    return;
  }
  timer.enter(Phase::kRest);
  add_norm(nullptr, weights.layers[layer].down.bias, first_row, rows, 2 * layer + 2, true);
}

void PrefillPass::multiply(const PlacedLinear& linear, const DeviceBuffer<std::uint16_t>& x,
                           std::uint16_t* y, std::int64_t rows, PhaseTimer& timer) {
  timer.enter(Phase::kLinear);
  products_.run(
      {.rows = rows, .out_features = linear.out_features, .in_features = linear.in_features},
      x.data(), linear.weight, y, stream_);
  timer.enter(Phase::kRest);
}

void PrefillPass::add_norm(const float* weight, const float* bias, std::int64_t first_row,
                           std::int64_t rows, std::uint64_t place, bool has_delta) {
  launch_add_rms_norm({.residual = residual_.data() + first_row * config_.hidden_size,
                       .delta = has_delta ? delta(first_row) : nullptr,
                       .delta_bias = bias,
                       .weight = weight,
                       .out = rows_in_.data(),
                       .rows = rows,
                       .hidden_size = config_.hidden_size,
                       .eps = config_.rms_norm_eps,
                       .first_bad = first_bad_.data(),
                       .bad_key = (static_cast<unsigned long long>(place) << kPlaceShift) +
                                  static_cast<unsigned long long>(first_row)},
                      stream_);
}

void PrefillPass::project_logits(const PlacedWeights& weights, float* residual,
                                 const std::int64_t* row_indices, std::int64_t rows) {
  launch_add_rms_norm({.residual = residual,
                       .weight = weights.final_norm,
                       .out = logit_rows_.data(),
                       .row_indices = row_indices,
                       .rows = rows,
                       .hidden_size = config_.hidden_size,
                       .eps = config_.rms_norm_eps},
                      stream_);
  products_.run({.rows = rows,
                 .out_features = config_.vocab_size,
                 .in_features = config_.hidden_size,
                 .fp32_output = true,
                 .out_stride = logit_stride(config_.vocab_size)},
                logit_rows_.data(), weights.output.weight, logits_.data(), stream_);
}

void PrefillPass::check_finite() const {
  unsigned long long first = kAllFinite;
  cuda_check(cudaStreamSynchronize(stream_), "wait for the prefill");
  first_bad_.download(&first, "error word");
  if (first == kAllFinite) return;
  throw InputError(fmt::format("{}: {}, the hidden state of token {} is not finite", config_.name,
                               place_name(first >> kPlaceShift),
                               first & ((1ull << kPlaceShift) - 1)));
}

AttentionInput PrefillPass::layer_input(int layer, const std::string& name) const {
  cuda_check(cudaStreamSynchronize(stream_), "wait for the layer");
  AttentionInput input;
  input.name = name;
  input.layer = layer;
  input.dtype = storage_;
  input.problem = problem();
  std::vector<std::uint16_t> bits;
  const auto fetch = [&](const DeviceBuffer<std::uint16_t>& source, int heads,
                         std::vector<float>& target) {
    bits.resize(static_cast<std::size_t>(heads * seqlen_ * config_.head_dim));
    cuda_check(cudaMemcpy(bits.data(), source.data(), bits.size() * sizeof(std::uint16_t),
                          cudaMemcpyDeviceToHost),
               "download of q, k, v");
    target.resize(bits.size());
    from_16_bit(bits, storage_, target.data());
  };
  fetch(q_, config_.num_q_heads, input.q);
  fetch(k_, config_.num_kv_heads, input.k);
  fetch(v_, config_.num_kv_heads, input.v);
  return input;
}

// The first `rows` rows of logits_, without the gaps between them; waits for them.
void PrefillPass::download_logits(std::size_t rows, float* target) const {
  const auto vocab = static_cast<std::size_t>(config_.vocab_size);
  const auto stride = static_cast<std::size_t>(logit_stride(config_.vocab_size));
  cuda_check(cudaStreamSynchronize(stream_), "logits");
  cuda_check(cudaMemcpy2D(target, vocab * sizeof(float), logits_.data(), stride * sizeof(float),
                          vocab * sizeof(float), rows, cudaMemcpyDeviceToHost),
             "download of logits");
}

std::vector<float> PrefillPass::logits(const PlacedWeights& weights,
                                       std::span<const std::int64_t> positions) {
  const auto vocab = static_cast<std::size_t>(config_.vocab_size);
  std::vector<float> result(positions.size() * vocab);
  for (std::size_t first = 0; first < positions.size(); first += positions_.size()) {
    const std::size_t rows = std::min(positions_.size(), positions.size() - first);
    cuda_check(cudaMemcpy(positions_.data(), positions.data() + first, rows * sizeof(std::int64_t),
                          cudaMemcpyHostToDevice),
               "upload of positions");
    cuda_check(cudaDeviceSynchronize(), "upload of positions");
    project_logits(weights, residual_.data(), positions_.data(), static_cast<std::int64_t>(rows));
    download_logits(rows, result.data() + first * vocab);
  }
  return result;
}

std::vector<float> PrefillPass::hidden_rows(std::span<const std::int64_t> positions) const {
  const auto size = static_cast<std::size_t>(config_.hidden_size);
  std::vector<float> rows(positions.size() * size);
  cuda_check(cudaStreamSynchronize(stream_), "hidden states");
  for (std::size_t i = 0; i < positions.size(); ++i) {
    cuda_check(
        cudaMemcpy(rows.data() + i * size, residual_.data() + positions[i] * config_.hidden_size,
                   size * sizeof(float), cudaMemcpyDeviceToHost),
        "download of hidden states");
  }
  return rows;
}

void PrefillPass::logits_of(const PlacedWeights& weights, std::span<const float> hidden,
                            std::span<float> logits) {
  const auto size = static_cast<std::size_t>(config_.hidden_size);
  const auto vocab = static_cast<std::size_t>(config_.vocab_size);
  const std::size_t count = hidden.size() / size;
  const std::size_t most = std::min(positions_.size(), static_cast<std::size_t>(max_seqlen_));
  for (std::size_t first = 0; first < count; first += most) {
    const std::size_t rows = std::min(most, count - first);
    cuda_check(cudaMemcpy(residual_.data(), hidden.data() + first * size,
                          rows * size * sizeof(float), cudaMemcpyHostToDevice),
               "upload of hidden states");
    cuda_check(cudaDeviceSynchronize(), "upload of hidden states");
    project_logits(weights, residual_.data(), nullptr, static_cast<std::int64_t>(rows));
    download_logits(rows, logits.data() + first * vocab);
  }
}

LossParts PrefillPass::losses(const PlacedWeights& weights) {
  const auto count = static_cast<std::size_t>(std::max<std::int64_t>(seqlen_ - 1, 0));
  LossParts parts = {.log_sums = std::vector<double>(count),
                     .target_logits = std::vector<float>(count)};
  for (std::size_t first = 0; first < count; first += log_sums_.size()) {
    const std::size_t rows = std::min(log_sums_.size(), count - first);
    const auto row = static_cast<std::int64_t>(first);
    project_logits(weights, residual_.data() + row * config_.hidden_size, nullptr,
                   static_cast<std::int64_t>(rows));
    launch_losses({.logits = logits_.data(),
                   .targets = tokens_.data() + row + 1,
                   .first_token = static_cast<int>(slice_.vocab.first),
                   .log_sums = log_sums_.data(),
                   .target_logits = target_logits_.data(),
                   .rows = static_cast<std::int64_t>(rows),
                   .stride = logit_stride(config_.vocab_size),
                   .vocab_size = config_.vocab_size},
                  stream_);
    cuda_check(cudaStreamSynchronize(stream_), "losses");
    cuda_check(cudaMemcpy(parts.log_sums.data() + first, log_sums_.data(), rows * sizeof(double),
                          cudaMemcpyDeviceToHost),
               "download of losses");
    cuda_check(cudaMemcpy(parts.target_logits.data() + first, target_logits_.data(),
                          rows * sizeof(float), cudaMemcpyDeviceToHost),
               "download of losses");
  }
  return parts;
}

}  // namespace s2o
