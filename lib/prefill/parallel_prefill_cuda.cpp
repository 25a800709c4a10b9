#include "lib/prefill/parallel_prefill.h"

#include <cuda_runtime.h>
#include <fmt/format.h>

#include <algorithm>
#include <atomic>
#include <thread>
#include <utility>

#include "kernels/common/current_device.h"
#include "kernels/model/all_reduce.h"
#include "lib/core/error.h"
#include "lib/core/failure.h"
#include "lib/core/log.h"
#include "lib/prefill/slice_prefill.h"

namespace s2o {
namespace {

// A slice of the model and a thread for each GPU.
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
      parts_.push_back(std::make_unique<SlicePrefill>(shared, slice, first_device + i, variant));
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
      result.losses = join_losses(losses);
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
  std::vector<std::unique_ptr<SlicePrefill>> parts_;
  std::unique_ptr<AllReduce> sums_;
  bool is_computing_ = false;
};

}  // namespace

std::unique_ptr<PrefillBackend> make_parallel_prefill(
    const std::shared_ptr<const PrefillModel>& model, int first_device,
    const std::string& kernel_variant) {
  return std::make_unique<ParallelPrefill>(model, first_device, kernel_variant);
}

}  // namespace s2o
