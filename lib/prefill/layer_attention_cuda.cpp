#include <fmt/format.h>

#include <algorithm>
#include <optional>

#include "lib/core/error.h"
#include "lib/device/planned_method.h"
#include "lib/prefill/layer_attention.h"

namespace s2o {

struct LayerAttention::Setting {
  const Method* method = nullptr;
  ParamSet params;
  std::optional<PlannedMethod> planned;

  bool matches(const LayerMethod& layer) const {
    return method == layer.method && params.to_json() == layer.params->to_json();
  }
};

LayerAttention::LayerAttention(const CudaDevice& device, CudaStream stream)
    : device_(device), stream_(stream) {}
LayerAttention::~LayerAttention() = default;

void LayerAttention::prepare(const Problem& problem, StorageDType dtype,
                             std::span<const LayerMethod> layers) {
  const bool same = problem_.seqlen == problem.seqlen && dtype_ == dtype;
  std::vector<std::unique_ptr<Setting>> kept;
  if (same) kept = std::move(settings_);
  settings_.clear();
  layers_.clear();
  last_.reset();
  problem_ = problem;
  dtype_ = dtype;
  const auto num_rows = static_cast<std::size_t>(problem.seqlen * problem.num_q_heads);
  out_.resize(num_rows * static_cast<std::size_t>(problem.head_dim), "output");
  lse_.resize(num_rows, "lse");
  for (const LayerMethod& layer : layers) {
    const auto matches = [&layer](const auto& setting) {
      return setting && setting->matches(layer);
    };
    auto known = std::find_if(settings_.begin(), settings_.end(), matches);
    if (known == settings_.end()) {
      const auto old = std::find_if(kept.begin(), kept.end(), matches);
      settings_.push_back(old == kept.end() ? std::make_unique<Setting>() : std::move(*old));
      known = settings_.end() - 1;
    }
    layers_.push_back(known->get());
    Setting& setting = **known;
    if (setting.planned) continue;
    if (layer.method->info().is_oracle) {
      throw UnsupportedError(fmt::format(
          "{}: needs the dense output of every layer first, which a prefill does not have; run it "
          "with 's2o eval' on a capture",
          layer.method->info().name));
    }
    setting.params = *layer.params;
    setting.planned.emplace(device_, problem, dtype, *layer.method, setting.params,
                            PlannerLimits{.l2_bytes = device_.info.l2_bytes});
    setting.method = layer.method;
  }
}

void LayerAttention::enqueue(std::size_t layer, const DeviceInput& input, PhaseTimer& timer) {
  layers_.at(layer)->planned->enqueue(input, {.out_16 = out_.data(), .lse = lse_.data()}, scratch_,
                                      stream_, &timer);
  last_ = {.layer = layer, .input = input};
}

PrefillLayer LayerAttention::account() {
  if (!last_) throw Error("LayerAttention: no layer was enqueued");
  const auto [layer, input] = *last_;
  PlannedMethod& planned = *layers_.at(layer)->planned;
  try {
    // Q, K and V of the layer are still where it found them.
    const WorkCounts work = planned.count(input, stream_).work;
    return {.planner = planned.planner(),
            .compute_density = work.compute_density(),
            .pair_density = work.pair_density()};
  } catch (const InputError& error) {
    throw InputError(fmt::format("layer {}: {}", layer, error.what()));
  }
}

std::int64_t LayerAttention::device_bytes() const {
  std::int64_t bytes = last_ ? layers_[last_->layer]->planned->workspace_bytes() : 0;
  for (const auto& setting : settings_) bytes += setting->planned->plan_bytes();
  return bytes;
}

}  // namespace s2o
