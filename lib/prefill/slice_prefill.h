// A model, or the slice of it that one GPU of several holds, on one CUDA device: weights, buffers
// and repeats. What a pass enqueues is prefill_pass.h. CUDA builds only.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "kernels/common/device_buffer.h"
#include "kernels/common/stream.h"
#include "kernels/model/all_reduce.h"
#include "kernels/model/matrix_product.h"
#include "lib/device/cuda_device.h"
#include "lib/device/phase_timer.h"
#include "lib/prefill/layer_attention.h"
#include "lib/prefill/model_slice.h"
#include "lib/prefill/prefill_backend.h"
#include "lib/prefill/prefill_pass.h"
#include "lib/prefill/weight_layout.h"

namespace s2o {

class SlicePrefill final : public PrefillBackend {
 public:
  // UnsupportedError for a model that no kernel or product here can run.
  SlicePrefill(std::shared_ptr<const PrefillModel> model, const ModelSlice& slice, int device_index,
               const std::string& kernel_variant);

  std::string name() const override { return "cuda"; }
  std::string kernel() const override { return kernel_; }
  nlohmann::ordered_json context() override { return device_context(device_); }
  std::string lost() override;

  PrefillMemory memory(std::int64_t seqlen) const override;
  void prepare(std::int64_t max_seqlen) override;
  PrefillRun run(std::span<const std::int32_t> tokens, std::span<const LayerMethod> layers,
                 const PrefillWanted& wanted, const TimingConfig& timing,
                 const PrefillProgress& progress) override;

  // run() in two steps: all that may fail on one GPU alone, then all that needs the others.
  void begin(std::span<const std::int32_t> tokens, std::span<const LayerMethod> layers,
             const PrefillWanted& wanted);
  // Losses are left in loss_parts().
  PrefillRun compute(const PrefillWanted& wanted, const TimingConfig& timing,
                     const PrefillProgress& progress);

  void logits_of(std::span<const float> hidden, std::span<float> logits) override;

  int device_index() const { return device_index_; }
  const ModelSlice& slice() const { return slice_; }
  const LossParts& loss_parts() const { return loss_parts_; }
  void set_sums(AllReduce* sums) { pass_.set_sums(sums); }

 private:
  const PrefillModel& checked() const;
  AttentionInput layer_input(int layer) const;
  void check_finite() const;
  void load_weights();
  void check_tokens(std::span<const std::int32_t> tokens, std::size_t num_methods,
                    const PrefillWanted& wanted) const;
  void check_positions(const std::vector<std::int64_t>& positions, std::int64_t seqlen) const;
  void load_replays(std::int64_t seqlen);
  // Of the last pass; waits for it.
  PrefillSplit measured_split() const;

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

// Next-token losses from the parts of all slices of the vocabulary.
std::vector<double> join_losses(std::span<const LossParts> slices);

}  // namespace s2o
