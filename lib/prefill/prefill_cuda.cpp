// Prefill on a CUDA device: weights, buffers and repeats. What a pass enqueues is prefill_pass.h.
#include <cuda_runtime.h>
#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "kernels/common/device_buffer.h"
#include "kernels/common/parallel.h"
#include "kernels/common/stream.h"
#include "kernels/model/matrix_product.h"
#include "kernels/model/model_kernels.h"
#include "lib/core/error.h"
#include "lib/core/log.h"
#include "lib/core/text.h"
#include "lib/device/cuda_device.h"
#include "lib/device/phase_timer.h"
#include "lib/input/storage_bits.h"
#include "lib/prefill/layer_attention.h"
#include "lib/prefill/prefill_backend.h"
#include "lib/prefill/prefill_memory.h"
#include "lib/prefill/prefill_pass.h"
#include "lib/prefill/replay_heads.h"
#include "lib/prefill/weight_layout.h"
#include "lib/prefill/weight_upload.h"

namespace s2o {
namespace {

// What kernels and products read in vectors of 16 bytes.
void require_multiple_of_8(const ModelConfig& config, const char* name, int value) {
  if (value % 8 == 0) return;
  throw UnsupportedError(
      fmt::format("{}: {} is {}, CUDA prefill needs a multiple of 8", config.name, name, value));
}

// Heads [num_heads, capture seqlen, head_dim] of `values`, cut to `seqlen` tokens, to the device.
template <class Source>
void upload_heads(const std::vector<float>& values, const Problem& captured, StorageDType dtype,
                  std::int64_t seqlen, int num_heads, const Source& source,
                  DeviceBuffer<std::uint16_t>& target) {
  const auto head = static_cast<std::size_t>(seqlen * captured.head_dim);
  target.resize(head * static_cast<std::size_t>(num_heads), "replayed q, k, v");
  std::vector<std::uint16_t> bits(head);
  for (int i = 0; i < num_heads; ++i) {
    const float* const from = values.data() + captured.row_offset(source(i), 0);
    to_16_bit({from, head}, dtype, bits.data());
    cuda_check(cudaMemcpy(target.data() + static_cast<std::size_t>(i) * head, bits.data(),
                          head * sizeof(std::uint16_t), cudaMemcpyHostToDevice),
               "upload of replayed q, k, v");
  }
}

class CudaPrefill final : public PrefillBackend {
 public:
  CudaPrefill(PrefillModel model, int device_index, const std::string& variant)
      : model_(std::move(model)),
        device_index_(device_index),
        device_(open_cuda_device(device_index, variant)),
        kernel_(attention_kernel_name(device_.attention)),
        products_(checked().cublas_folder),
        attention_(device_, stream_.get()),
        pass_(model_.config, model_.dtype, stream_.get(), products_),
        timer_(stream_.get()),
        free_bytes_(free_device_bytes()) {
    log_info("prefill on {}: {}, cuBLAS {}", device_.info.name, kernel_, products_.version());
  }

  std::string name() const override { return "cuda"; }
  std::string kernel() const override { return kernel_; }
  nlohmann::ordered_json context() override { return device_context(device_); }
  std::string lost() override {
    if (lost_.empty()) lost_ = lost_device(device_index_);
    return lost_;
  }

  PrefillMemory memory(std::int64_t seqlen) const override {
    return plan_prefill_memory(model_.config, seqlen,
                               static_cast<std::int64_t>(model_.replay.size()), free_bytes_);
  }

  void prepare(std::int64_t max_seqlen) override {
    if (max_seqlen <= pass_.max_seqlen()) return;
    const PrefillMemory plan = memory(max_seqlen);
    if (plan.total_bytes > plan.free_bytes) {
      throw UnsupportedError(fmt::format(
          "prefill of {} tokens through {}: needs {} bytes of device memory ({}), {} bytes ({}) "
          "are free; the longest prompt that fits has {} tokens",
          max_seqlen, model_.config.name, plan.total_bytes,
          bytes_text(static_cast<double>(plan.total_bytes)), plan.free_bytes,
          bytes_text(static_cast<double>(plan.free_bytes)), plan.longest_seqlen));
    }
    load_weights();
    pass_.allocate(max_seqlen);
  }

  PrefillRun run(std::span<const std::int32_t> tokens, std::span<const LayerMethod> layers,
                 const PrefillWanted& wanted, const TimingConfig& timing,
                 const PrefillProgress& progress) override {
    check_tokens(tokens, layers.size(), wanted);
    const auto seqlen = static_cast<std::int64_t>(tokens.size());
    prepare(seqlen);
    load_replays(seqlen);
    pass_.set_tokens(tokens);
    attention_.prepare(pass_.problem(), model_.dtype, layers);

    const int num_layers = model_.config.num_layers;
    const int untimed = std::max(timing.warmup, 1);
    const int total = (untimed + timing.repeats) * num_layers;
    int done = 0;
    const auto advance = [&](int count) {
      done += count;
      if (progress) progress(done, total);
      throw_if_cancelled();
    };
    PrefillRun result;
    enqueue([&](std::size_t layer) {
      result.layers.push_back(attention_.account());
      if (std::ranges::binary_search(wanted.layers, static_cast<int>(layer))) {
        result.layer_inputs.push_back(layer_input(static_cast<int>(layer)));
      }
      advance(1);
    });
    check_finite();
    for (int i = 1; i < untimed + timing.repeats; ++i) {
      enqueue([](std::size_t) {});
      const PrefillSplit split = measured_split();
      if (i >= untimed) result.repeats.push_back(split);
      advance(num_layers);
    }
    check_finite();
    result.logits = pass_.logits(weights_, wanted.logit_positions);
    result.hidden = pass_.hidden_rows(wanted.hidden_positions);
    if (wanted.losses) result.losses = pass_.losses(weights_);
    result.device_bytes = memory(pass_.max_seqlen()).total_bytes + attention_.device_bytes();
    return result;
  }

  void logits_of(std::span<const float> hidden, std::span<float> logits) override {
    pass_.logits_of(weights_, hidden, logits);
  }

 private:
  const PrefillModel& checked() const {
    const ModelConfig& config = model_.config;
    if (model_.dtype == StorageDType::kF32) {
      throw UnsupportedError(fmt::format(
          "{}: dtype is fp32, supported are bf16 and fp16; fp32 runs on the CPU (--device cpu)",
          kernel_));
    }
    if (config.head_dim != 64 && config.head_dim != 128) {
      throw UnsupportedError(fmt::format("{}: head_dim of {} is {}, supported are 64 and 128",
                                         kernel_, config.name, config.head_dim));
    }
    require_multiple_of_8(config, "hidden_size", config.hidden_size);
    require_multiple_of_8(config, "intermediate_size", config.intermediate_size);
    if (config.hidden_size > kMaxNormSize) {
      throw UnsupportedError(fmt::format("{}: hidden_size is {}, CUDA prefill supports up to {}",
                                         config.name, config.hidden_size, kMaxNormSize));
    }
    return model_;
  }

  AttentionInput layer_input(int layer) const {
    AttentionInput input =
        pass_.layer_input(layer, model_.name.empty() ? model_.config.name : model_.name);
    validate_attention_input(input, model_.allow_nonfinite);
    return input;
  }

  void check_finite() const {
    if (!model_.allow_nonfinite) pass_.check_finite();
  }

  void load_weights() {
    if (weights_.bytes > 0) return;
    const std::int64_t bytes = place_weights(model_.config, nullptr).bytes;
    weight_memory_.reserve(static_cast<std::size_t>(bytes), "weights");
    const PlacedWeights placed =
        place_weights(model_.config, static_cast<std::byte*>(weight_memory_.data()));
    if (model_.weights != nullptr) {
      upload_weights(*model_.weights, placed, stream_.get());
    } else {
      make_random_weights(model_.seed, placed, model_.config.hidden_size, model_.config.head_dim,
                          stream_.get());
    }
    weights_ = placed;
  }

  void check_tokens(std::span<const std::int32_t> tokens, std::size_t num_methods,
                    const PrefillWanted& wanted) const {
    const ModelConfig& config = model_.config;
    if (tokens.empty()) throw InputError(fmt::format("{}: the prompt is empty", config.name));
    check_prompt_length(config, static_cast<std::int64_t>(tokens.size()), config.name);
    for (std::size_t i = 0; i < tokens.size(); ++i) {
      if (tokens[i] >= 0 && tokens[i] < config.vocab_size) continue;
      throw InputError(fmt::format("{}: token id {} at index {}, expected an id in [0, {})",
                                   config.name, tokens[i], i, config.vocab_size));
    }
    for (const auto* positions : {&wanted.logit_positions, &wanted.hidden_positions}) {
      check_positions(*positions, static_cast<std::int64_t>(tokens.size()));
    }
    if (num_methods == static_cast<std::size_t>(config.num_layers)) return;
    throw Error(
        fmt::format("{}: {} methods for {} layers", config.name, num_methods, config.num_layers));
  }

  void check_positions(const std::vector<std::int64_t>& positions, std::int64_t seqlen) const {
    for (const std::int64_t position : positions) {
      if (position >= 0 && position < seqlen) continue;
      throw InputError(fmt::format("{}: logits of position {}, expected one in [0, {})",
                                   model_.config.name, position, seqlen));
    }
  }

  void load_replays(std::int64_t seqlen) {
    if (model_.replay.empty() || replay_seqlen_ == seqlen) return;
    const ModelConfig& config = model_.config;
    replays_.resize(model_.replay.size());
    for (std::size_t i = 0; i < model_.replay.size(); ++i) {
      const AttentionInput& input = model_.replay[i];
      const Problem& p = input.problem;
      if (p.seqlen < seqlen || p.head_dim != config.head_dim) {
        throw InputError(fmt::format(
            "{} layer {}: {} tokens of head_dim {}, a replay through {} needs {} tokens of "
            "head_dim {}",
            input.name, input.layer, p.seqlen, p.head_dim, config.name, seqlen, config.head_dim));
      }
      const ReplayHeads heads = {config.num_q_heads, config.num_kv_heads, p.num_q_heads,
                                 p.num_kv_heads};
      const auto q_source = [&heads](int head) { return heads.q_source(head); };
      const auto kv_source = [&heads](int head) { return heads.kv_source(head); };
      ReplayedHeads& target = replays_[i];
      upload_heads(input.q, p, model_.dtype, seqlen, config.num_q_heads, q_source, target.q);
      upload_heads(input.k, p, model_.dtype, seqlen, config.num_kv_heads, kv_source, target.k);
      upload_heads(input.v, p, model_.dtype, seqlen, config.num_kv_heads, kv_source, target.v);
    }
    cuda_check(cudaDeviceSynchronize(), "upload of replayed q, k, v");
    replay_seqlen_ = seqlen;
  }

  template <class AfterAttention>
  void enqueue(const AfterAttention& after_attention) {
    pass_.enqueue(weights_, replays_, attention_, timer_, after_attention);
  }

  // Of the last pass; waits for it.
  PrefillSplit measured_split() const {
    PrefillSplit split = {.total_ms = timer_.total_milliseconds(),
                          .linear_ms = timer_.milliseconds(Phase::kLinear),
                          .attention_ms = timer_.milliseconds(Phase::kAttention),
                          .planning_ms = timer_.milliseconds(Phase::kPlanning)};
    split.rest_ms = split.total_ms - split.linear_ms - split.attention_ms - split.planning_ms;
    return split;
  }

  PrefillModel model_;
  const int device_index_;
  std::string lost_;
  CudaDevice device_;
  Stream stream_;
  std::string kernel_;
  MatrixProducts products_;
  LayerAttention attention_;
  PrefillPass pass_;
  PhaseTimer timer_;
  std::int64_t free_bytes_;  // before weights and buffers
  DeviceBytes weight_memory_;
  PlacedWeights weights_;
  std::vector<ReplayedHeads> replays_;
  std::int64_t replay_seqlen_ = 0;
};

}  // namespace

std::unique_ptr<PrefillBackend> make_cuda_prefill(PrefillModel model, int device_index,
                                                  const std::string& kernel_variant) {
  return std::make_unique<CudaPrefill>(std::move(model), device_index, kernel_variant);
}

}  // namespace s2o
