// Prefill on a CUDA device: weights, buffers and repeats. What a pass enqueues is prefill_pass.h.
#include <cuda_runtime.h>
#include <fmt/format.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <optional>
#include <thread>
#include <utility>

#include "kernels/common/current_device.h"
#include "kernels/common/device_buffer.h"
#include "kernels/common/parallel.h"
#include "kernels/common/stream.h"
#include "kernels/model/all_reduce.h"
#include "kernels/model/matrix_product.h"
#include "kernels/model/model_kernels.h"
#include "lib/core/error.h"
#include "lib/core/failure.h"
#include "lib/core/log.h"
#include "lib/core/text.h"
#include "lib/device/cuda_device.h"
#include "lib/device/phase_timer.h"
#include "lib/input/storage_bits.h"
#include "lib/prefill/error_estimate.h"
#include "lib/prefill/head_probes.h"
#include "lib/prefill/layer_attention.h"
#include "lib/prefill/model_slice.h"
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

// Exact attention of some rows of each layer.
class RowChecks {
 public:
  RowChecks(CudaStream stream, const Problem& problem, const PrefillWanted& wanted)
      : stream_(stream), problem_(problem), wanted_(wanted), timer_(stream) {
    const auto rows = static_cast<std::size_t>(rows_of(0).size());
    rows_.resize(rows, "rows to check");
    partial_.resize(static_cast<std::size_t>(row_check_partials(problem, static_cast<int>(rows))),
                    "check of rows");
    errors_.resize(rows * static_cast<std::size_t>(problem.num_q_heads), "check of rows");
  }

  // Of the attention output `out`; waits.
  std::vector<RowError> run(int layer, const DeviceInput& input, const std::uint16_t* out) {
    const std::vector<std::int64_t> rows = rows_of(layer);
    rows_.upload(rows.data(), rows.size(), "upload of rows to check");
    cuda_check(cudaDeviceSynchronize(), "upload of rows to check");
    timer_.begin(Phase::kRest);
    launch_row_check({.input = input,
                      .out = out,
                      .rows = rows_.data(),
                      .num_rows = static_cast<int>(rows.size()),
                      .partial = partial_.data(),
                      .errors = errors_.data()},
                     stream_);
    timer_.end();
    total_ms_ += timer_.total_milliseconds();
    std::vector<RowError> errors(errors_.size());
    errors_.download(errors.data(), "download of checked rows");
    return errors;
  }
  double total_ms() const { return total_ms_; }

 private:
  std::vector<std::int64_t> rows_of(int layer) const {
    return checked_rows(problem_.seqlen, wanted_.check_rows, wanted_.check_seed, layer);
  }

  const CudaStream stream_;
  const Problem problem_;
  const PrefillWanted& wanted_;
  PhaseTimer timer_;
  double total_ms_ = 0.0;
  DeviceBuffer<std::int64_t> rows_;
  DeviceBuffer<float> partial_;
  DeviceBuffer<RowError> errors_;
};

class CudaPrefill final : public PrefillBackend {
 public:
  // Runs a slice of the model.
  CudaPrefill(std::shared_ptr<const PrefillModel> model, const ModelSlice& slice, int device_index,
              const std::string& variant)
      : shared_(std::move(model)),
        model_(*shared_),
        slice_(slice),
        device_index_(device_index),
        device_(open_cuda_device(device_index, variant)),
        kernel_(
            attention_kernel_name(kernel_with_head_dim(device_.attention, model_.config.head_dim))),
        products_(checked().cublas_folder),
        attention_(device_, stream_.get()),
        pass_(model_.config, slice_, model_.dtype, stream_.get(), products_),
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
                               static_cast<std::int64_t>(model_.replay.size()), free_bytes_,
                               slice_.count);
  }

  void prepare(std::int64_t max_seqlen) override {
    const CurrentDevice current(device_index_);
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
    const CurrentDevice current(device_index_);
    begin(tokens, layers, wanted);
    PrefillRun result = compute(wanted, timing, progress);
    if (wanted.losses) result.losses = losses_of({&loss_parts_, 1});
    return result;
  }

  // run() in two steps: all that may fail on one GPU alone, then all that needs the others.
  void begin(std::span<const std::int32_t> tokens, std::span<const LayerMethod> layers,
             const PrefillWanted& wanted) {
    check_tokens(tokens, layers.size(), wanted);
    const auto seqlen = static_cast<std::int64_t>(tokens.size());
    prepare(seqlen);
    load_replays(seqlen);
    pass_.set_tokens(tokens);
    attention_.prepare(pass_.problem(), model_.dtype, layers);
  }

  // Losses are left in loss_parts().
  PrefillRun compute(const PrefillWanted& wanted, const TimingConfig& timing,
                     const PrefillProgress& progress) {
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
    std::optional<HeadProbes> probes;
    if (wanted.probes != nullptr && !wanted.probes->layers.empty()) {
      probes.emplace(device_, stream_.get(), pass_.problem(), model_.dtype, *wanted.probes);
    }
    std::optional<RowChecks> checks;
    if (wanted.check_rows > 0) checks.emplace(stream_.get(), pass_.problem(), wanted);
    enqueue(/*first=*/true, [&](std::size_t layer) {
      if (checks) {
        result.row_errors.push_back(
            checks->run(static_cast<int>(layer), attention_.input(), attention_.out()));
      }
      if (wanted.densities) result.layers.push_back(attention_.account());
      if (probes && std::ranges::binary_search(wanted.probes->layers, static_cast<int>(layer))) {
        wanted.probes->done(static_cast<int>(layer), probes->measure(attention_.input()));
      }
      if (std::ranges::binary_search(wanted.layers, static_cast<int>(layer))) {
        result.layer_inputs.push_back(layer_input(static_cast<int>(layer)));
      }
      advance(1);
    });
    probes.reset();
    if (checks) result.check_ms = checks->total_ms();
    check_finite();
    for (int i = 1; i < untimed + timing.repeats; ++i) {
      enqueue(/*first=*/false, [](std::size_t) {});
      const PrefillSplit split = measured_split();
      if (i >= untimed) result.repeats.push_back(split);
      advance(num_layers);
    }
    check_finite();
    result.logits = pass_.logits(weights_, wanted.logit_positions);
    result.hidden = pass_.hidden_rows(wanted.hidden_positions);
    if (wanted.losses) loss_parts_ = pass_.losses(weights_);
    result.device_bytes = memory(pass_.max_seqlen()).total_bytes + attention_.device_bytes();
    return result;
  }

  void logits_of(std::span<const float> hidden, std::span<float> logits) override {
    const CurrentDevice current(device_index_);
    pass_.logits_of(weights_, hidden, logits);
  }

  int device_index() const { return device_index_; }
  const ModelSlice& slice() const { return slice_; }
  const LossParts& loss_parts() const { return loss_parts_; }
  void set_sums(AllReduce* sums) { pass_.set_sums(sums); }

  // Next-token losses from the parts of all slices of the vocabulary.
  static std::vector<double> losses_of(std::span<const LossParts> slices) {
    std::vector<double> losses(slices.front().log_sums.size());
    for (std::size_t i = 0; i < losses.size(); ++i) {
      double log_sum = slices.front().log_sums[i];
      float target = slices.front().target_logits[i];
      for (const LossParts& slice : slices.subspan(1)) {
        const double larger = std::max(log_sum, slice.log_sums[i]);
        const double smaller = std::min(log_sum, slice.log_sums[i]);
        log_sum = larger + std::log1p(std::exp(smaller - larger));
        target = std::max(target, slice.target_logits[i]);
      }
      losses[i] = log_sum - static_cast<double>(target);
    }
    return losses;
  }

 private:
  const PrefillModel& checked() const {
    const ModelConfig& config = model_.config;
    if (model_.dtype == StorageDType::kF32) {
      throw UnsupportedError(fmt::format(
          "{}: dtype is fp32, supported are bf16 and fp16; fp32 runs on the CPU (--device cpu)",
          kernel_));
    }
    const int d = config.head_dim;
    if (d != 64 && d != 96 && d != 128 && d != 256) {
      throw UnsupportedError(fmt::format(
          "{}: head_dim of {} is {}, supported are 64, 96, 128 and 256", kernel_, config.name, d));
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
    const std::int64_t bytes = place_weights(model_.config, slice_, nullptr).bytes;
    weight_memory_.reserve(static_cast<std::size_t>(bytes), "weights");
    const PlacedWeights placed =
        place_weights(model_.config, slice_, static_cast<std::byte*>(weight_memory_.data()));
    if (model_.weights != nullptr) {
      upload_weights(*model_.weights, slice_, placed, stream_.get());
    } else {
      make_random_weights(model_.seed, model_.config, slice_, placed, stream_.get());
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
      const int first_q = static_cast<int>(slice_.q_heads.first);
      const int first_kv = static_cast<int>(slice_.kv_heads.first);
      const auto q_source = [&](int head) { return heads.q_source(first_q + head); };
      const auto kv_source = [&](int head) { return heads.kv_source(first_kv + head); };
      const int num_q = static_cast<int>(slice_.q_heads.count);
      const int num_kv = static_cast<int>(slice_.kv_heads.count);
      ReplayedHeads& target = replays_[i];
      upload_heads(input.q, p, model_.dtype, seqlen, num_q, q_source, target.q);
      upload_heads(input.k, p, model_.dtype, seqlen, num_kv, kv_source, target.k);
      upload_heads(input.v, p, model_.dtype, seqlen, num_kv, kv_source, target.v);
    }
    cuda_check(cudaDeviceSynchronize(), "upload of replayed q, k, v");
    replay_seqlen_ = seqlen;
  }

  template <class AfterAttention>
  void enqueue(bool first, const AfterAttention& after_attention) {
    pass_.enqueue(weights_, replays_, attention_, timer_, first, after_attention);
  }

  // Of the last pass; waits for it.
  PrefillSplit measured_split() const {
    PrefillSplit split = {.total_ms = timer_.total_milliseconds(),
                          .linear_ms = timer_.milliseconds(Phase::kLinear),
                          .attention_ms = timer_.milliseconds(Phase::kAttention),
                          .planning_ms = timer_.milliseconds(Phase::kPlanning),
                          .communication_ms = timer_.milliseconds(Phase::kCommunication)};
    split.rest_ms = split.total_ms - split.linear_ms - split.attention_ms - split.planning_ms -
                    split.communication_ms;
    return split;
  }

  const std::shared_ptr<const PrefillModel> shared_;  // a replay may be gigabytes
  const PrefillModel& model_;
  const ModelSlice slice_;
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
  LossParts loss_parts_;
};

// A model over several GPUs of this machine: a slice and a thread for each.
class ParallelPrefill final : public PrefillBackend {
 public:
  ParallelPrefill(const std::shared_ptr<const PrefillModel>& shared, int first_device,
                  const std::string& variant)
      : config_(shared->config), nccl_folder_(shared->nccl_folder) {
    const PrefillModel& model = *shared;
    // Before any of them reads its weights.
    for (int i = 0; i < model.parallel; ++i) require_cuda_device(first_device + i);
    const NcclStatus nccl = query_nccl(nccl_folder_);
    if (!nccl.usable) {
      throw UnsupportedError(fmt::format("parallel {}: {}", model.parallel, nccl.detail));
    }
    for (int i = 0; i < model.parallel; ++i) {
      const CurrentDevice current(first_device + i);
      const ModelSlice slice = slice_model(config_, i, model.parallel);
      parts_.push_back(std::make_unique<CudaPrefill>(shared, slice, first_device + i, variant));
    }
    nccl_ = nccl.detail;
    const auto repeats = model.parallel / config_.num_kv_heads;
    if (repeats > 1) {
      log_warning("parallel {}: each of the {} KV heads is held by {} GPUs", model.parallel,
                  config_.num_kv_heads, repeats);
    }
  }

  std::string name() const override { return "cuda"; }
  std::string kernel() const override { return parts_.front()->kernel(); }
  nlohmann::ordered_json context() override {
    nlohmann::ordered_json context = parts_.front()->context();
    context["gpus"] = parts_.size();
    context["nccl"] = nccl_;
    return context;
  }
  std::string lost() override {
    for (const auto& part : parts_) {
      if (const std::string lost = part->lost(); !lost.empty()) return lost;
    }
    return "";
  }

  PrefillMemory memory(std::int64_t seqlen) const override {
    PrefillMemory least = parts_.front()->memory(seqlen);
    for (const auto& part : parts_) {
      const PrefillMemory memory = part->memory(seqlen);
      if (memory.free_bytes < least.free_bytes) least = memory;
    }
    return least;
  }

  void prepare(std::int64_t max_seqlen) override {
    on_all([&](std::size_t i) { parts_[i]->prepare(max_seqlen); });
  }

  PrefillRun run(std::span<const std::int32_t> tokens, std::span<const LayerMethod> layers,
                 const PrefillWanted& wanted, const TimingConfig& timing,
                 const PrefillProgress& progress) override {
    if (!wanted.layers.empty() || wanted.probes != nullptr) {
      throw Error("a model over several GPUs gives no Q, K and V");
    }
    if (wanted.check_rows > 0) {
      throw UnsupportedError("check_rows: rows are checked on one GPU only; parallel is above 1");
    }
    on_all([&](std::size_t i) { parts_[i]->begin(tokens, layers, wanted); });
    connect();
    std::vector<PrefillRun> runs(parts_.size());
    // The residual stream is the same everywhere.
    PrefillWanted others = wanted;
    others.hidden_positions.clear();
    on_all([&](std::size_t i) {
      runs[i] = parts_[i]->compute(i == 0 ? wanted : others, timing,
                                   i == 0 ? progress : PrefillProgress());
    });
    return joined(runs, wanted);
  }

  void logits_of(std::span<const float> hidden, std::span<float> logits) override {
    const auto rows =
        static_cast<std::int64_t>(hidden.size()) / static_cast<std::int64_t>(config_.hidden_size);
    std::vector<std::vector<float>> found(parts_.size());
    on_all([&](std::size_t i) {
      found[i].resize(static_cast<std::size_t>(rows * parts_[i]->slice().vocab.count));
      parts_[i]->logits_of(hidden, found[i]);
    });
    for (std::size_t i = 0; i < parts_.size(); ++i) place_logits(i, found[i], logits);
  }

 private:
  // Calls body(i) for each part in a thread with its device. The first exception is thrown here,
  // with its GPU unless all say the same.
  template <class Body>
  void on_all(const Body& body) {
    std::vector<std::exception_ptr> failures(parts_.size());
    std::atomic<int> first{-1};
    std::vector<std::thread> threads;
    for (std::size_t i = 0; i < parts_.size(); ++i) {
      threads.emplace_back([&, i] {
        try {
          cuda_check(cudaSetDevice(parts_[i]->device_index()), "select device");
          body(i);
        } catch (...) {
          failures[i] = std::current_exception();
          int none = -1;
          first.compare_exchange_strong(none, static_cast<int>(i));
          // Others may wait for a sum with this part.
          if (is_computing_) sums_->abort();
        }
      });
    }
    for (std::thread& thread : threads) thread.join();
    is_computing_ = false;
    if (first < 0) return;
    if (sums_ && sums_->aborted()) sums_.reset();
    const auto failed = static_cast<std::size_t>(first.load());
    const nlohmann::ordered_json found = failure_to_json(failures[failed]);
    const bool all_same = std::all_of(failures.begin(), failures.end(), [&](const auto& failure) {
      return failure && failure_to_json(failure) == found;
    });
    if (all_same || found["type"] == "interrupted") std::rethrow_exception(failures[failed]);
    std::rethrow_exception(
        failure_from_json(found, fmt::format("cuda:{}: ", parts_[failed]->device_index())));
  }

  // Again after a failure, which leaves nothing that can be used.
  void connect() {
    if (!sums_) {
      std::vector<int> devices;
      for (const auto& part : parts_) devices.push_back(part->device_index());
      sums_ = std::make_unique<AllReduce>(devices, nccl_folder_);
      for (const auto& part : parts_) part->set_sums(sums_.get());
    }
    is_computing_ = true;
  }

  PrefillRun joined(std::vector<PrefillRun>& runs, const PrefillWanted& wanted) const {
    PrefillRun result = std::move(runs.front());
    std::vector<float> logits(wanted.logit_positions.size() *
                              static_cast<std::size_t>(config_.vocab_size));
    place_logits(0, result.logits, logits);
    for (std::size_t i = 1; i < runs.size(); ++i) {
      place_logits(i, runs[i].logits, logits);
      result.device_bytes = std::max(result.device_bytes, runs[i].device_bytes);
      for (std::size_t repeat = 0; repeat < result.repeats.size(); ++repeat) {
        PrefillSplit& slowest = result.repeats[repeat];
        if (runs[i].repeats[repeat].total_ms > slowest.total_ms) slowest = runs[i].repeats[repeat];
      }
      // Parts have equally many heads: the density of all is the mean.
      for (std::size_t layer = 0; layer < result.layers.size(); ++layer) {
        result.layers[layer].compute_density += runs[i].layers[layer].compute_density;
        result.layers[layer].pair_density += runs[i].layers[layer].pair_density;
      }
    }
    for (PrefillLayer& layer : result.layers) {
      layer.compute_density /= static_cast<double>(runs.size());
      layer.pair_density /= static_cast<double>(runs.size());
    }
    result.logits = std::move(logits);
    if (wanted.losses) {
      std::vector<LossParts> losses;
      for (const auto& part : parts_) losses.push_back(part->loss_parts());
      result.losses = CudaPrefill::losses_of(losses);
    }
    return result;
  }

  // Logits [rows, tokens of part i] into rows of the whole vocabulary.
  void place_logits(std::size_t i, std::span<const float> found, std::span<float> logits) const {
    const SliceRange& vocab = parts_[i]->slice().vocab;
    const auto width = static_cast<std::size_t>(vocab.count);
    for (std::size_t row = 0; row * width < found.size(); ++row) {
      std::copy_n(found.data() + row * width, width,
                  logits.data() + row * static_cast<std::size_t>(config_.vocab_size) + vocab.first);
    }
  }

  ModelConfig config_;
  std::string nccl_folder_;
  std::string nccl_;
  std::vector<std::unique_ptr<CudaPrefill>> parts_;
  std::unique_ptr<AllReduce> sums_;
  bool is_computing_ = false;
};

}  // namespace

SumStatus query_sums() {
  const NcclStatus nccl = query_nccl();
  return {.usable = nccl.usable,
          .detail = nccl.usable ? nccl.detail + "; one prompt over GPUs: s2o prefill --parallel N"
                                : nccl.detail};
}
std::string sums_build_text() { return nccl_build_text(); }

std::unique_ptr<PrefillBackend> make_cuda_prefill(PrefillModel model, int device_index,
                                                  const std::string& kernel_variant) {
  const auto shared = std::make_shared<const PrefillModel>(std::move(model));
  if (shared->parallel > 1) {
    return std::make_unique<ParallelPrefill>(shared, device_index, kernel_variant);
  }
  const ModelSlice whole = slice_model(shared->config, 0, 1);
  return std::make_unique<CudaPrefill>(shared, whole, device_index, kernel_variant);
}

}  // namespace s2o
