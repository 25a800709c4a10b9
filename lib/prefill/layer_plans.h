// The attention plans of the layers of a prompt: layers with the same method and settings share a
// planner, and plans that do not depend on Q, K and V are made once. CUDA builds only.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "kernels/attention/attention_cuda.h"
#include "lib/prefill/prefill_backend.h"

namespace s2o {

class LayerPlans {
 public:
  explicit LayerPlans(CudaAttention& attention);
  ~LayerPlans();
  LayerPlans(const LayerPlans&) = delete;
  LayerPlans& operator=(const LayerPlans&) = delete;

  // Allocates what the layers need, and keeps what an earlier prompt of the same shape has.
  // UnsupportedError for oracles, whose dense output nobody has, and for settings that cannot run
  // on the problem.
  void prepare(const Problem& problem, StorageDType dtype, std::span<const LayerMethod> layers);

  // Batches in which the layer is planned (kernels/planning/planner.h).
  int num_batches(std::size_t layer) const;
  // Plans a batch for what is, or will be, in attention's input; the first sets the plan. Waits for
  // the device only where the method has no code on it.
  void plan(std::size_t layer, int batch);
  // After a run of that layer: waits, and counts what it did. InputError naming the layer when a
  // score was not finite.
  PrefillLayer account(std::size_t layer);

  std::int64_t device_bytes() const;

 private:
  struct Setting;
  void plan_on_host(Setting& setting, std::size_t layer);

  CudaAttention& attention_;
  Problem problem_;
  StorageDType dtype_ = StorageDType::kBF16;
  std::vector<std::unique_ptr<Setting>> settings_;
  std::vector<Setting*> layers_;
  AttentionInput host_input_;  // for planning on the host
};

}  // namespace s2o
