#include <fmt/format.h>

#include <algorithm>
#include <optional>

#include "lib/core/error.h"
#include "lib/device/planned_method.h"
#include "lib/plan/work.h"
#include "lib/prefill/layer_attention.h"

namespace s2o {

// One of the streams that groups of heads take turns in.
struct LayerAttention::Lane {
  Stream stream;
  Event done;
  AttentionScratch scratch;
};

// A setting on some number of heads, with the memory of one plan.
struct LayerAttention::Setting {
  const Method* method = nullptr;
  ParamSet params;
  std::vector<ParamSet> head_params;  // as in HeadSetting
  Problem problem;                    // of these heads
  int number = 0;  // of those alike in one layer, which all need a plan of their own
  std::optional<PlannedMethod> planned;

  bool matches(const HeadSetting& heads, const Problem& of_heads, int of_number) const {
    return method == heads.method && number == of_number &&
           same_params(head_params, heads.head_params) &&
           problem.num_q_heads == of_heads.num_q_heads &&
           problem.num_kv_heads == of_heads.num_kv_heads &&
           params.to_json() == heads.params->to_json();
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
  if (!same) planning_scratch_.clear();
  settings_.clear();
  layers_.clear();
  last_.reset();
  problem_ = problem;
  dtype_ = dtype;
  const auto num_rows = static_cast<std::size_t>(problem.seqlen * problem.num_q_heads);
  out_.resize(num_rows * static_cast<std::size_t>(problem.head_dim), "output");
  lse_.resize(num_rows, "lse");
  for (std::size_t i = 0; i < layers.size(); ++i) {
    std::vector<Group>& groups = layers_.emplace_back();
    for (const HeadSetting& heads : heads_of(layers[i], static_cast<int>(i), problem)) {
      groups.push_back({heads.q_heads, find_setting(heads, groups, kept)});
    }
    if (planning_scratch_.size() < groups.size()) planning_scratch_.resize(groups.size());
    for (std::size_t g = 0; g < groups.size(); ++g) {
      planning_scratch_[g].reserve(
          static_cast<std::size_t>(groups[g].setting->planned->scratch_bytes()), "planning");
    }
  }
}

LayerAttention::Setting* LayerAttention::find_setting(const HeadSetting& heads,
                                                      const std::vector<Group>& before,
                                                      std::vector<std::unique_ptr<Setting>>& kept) {
  const Problem problem = head_slice(problem_, heads.q_heads);
  const auto number =
      static_cast<int>(std::count_if(before.begin(), before.end(), [&](const Group& group) {
        return group.setting->matches(heads, problem, group.setting->number);
      }));
  const auto matches = [&](const auto& setting) {
    return setting && setting->matches(heads, problem, number);
  };
  const auto known = std::find_if(settings_.begin(), settings_.end(), matches);
  if (known != settings_.end()) return known->get();
  const auto old = std::find_if(kept.begin(), kept.end(), matches);
  settings_.push_back(old == kept.end() ? make_setting(heads, problem, number) : std::move(*old));
  return settings_.back().get();
}

std::unique_ptr<LayerAttention::Setting> LayerAttention::make_setting(const HeadSetting& heads,
                                                                      const Problem& problem,
                                                                      int number) const {
  const MethodInfo& info = heads.method->info();
  if (info.is_oracle) {
    throw UnsupportedError(fmt::format(
        "{}: needs the dense output of every layer first, which a prefill does not have; run it "
        "with 's2o eval' on a capture",
        info.name));
  }
  auto setting = std::make_unique<Setting>();
  setting->method = heads.method;
  setting->params = *heads.params;
  setting->head_params = heads.head_params;
  setting->problem = problem;
  setting->number = number;
  setting->planned.emplace(device_, problem, dtype_, *heads.method, setting->params,
                           PlannerLimits{.l2_bytes = device_.info.l2_bytes}, heads.head_params,
                           /*owns_scratch=*/false);
  return setting;
}

AttentionOutput LayerAttention::output_of(const HeadRange& q_heads) {
  return {.out_16 = out_.data() + problem_.row_offset(q_heads.first, 0),
          .lse = lse_.data() + q_heads.first * problem_.seqlen};
}

void LayerAttention::enqueue(std::size_t layer, const DeviceInput& input, PhaseTimer& timer) {
  const std::vector<Group>& groups = layers_.at(layer);
  last_ = {.layer = layer, .input = input};
  for (std::size_t g = 0; g < groups.size(); ++g) {
    groups[g].setting->planned->use_scratch(planning_scratch_[g].data());
  }
  // Batches of plans, and 8-bit operands, lie in memory that the next group of heads takes.
  const bool in_turn = std::any_of(groups.begin(), groups.end(), [](const Group& group) {
    return group.setting->planned->num_batches() > 1 || group.setting->planned->quantises();
  });
  if (groups.size() == 1 || in_turn) {
    for (const Group& group : groups) {
      group.setting->planned->enqueue(head_slice(input, group.q_heads), output_of(group.q_heads),
                                      scratch_, stream_, &timer);
    }
    return;
  }
  // Groups of few heads do not fill a device: they run beside each other. Planning ends before
  // attention begins, so that both can be timed.
  while (lanes_.size() < std::min(groups.size(), kMaxLanes)) {
    lanes_.push_back(std::make_unique<Lane>());
  }
  timer.enter(Phase::kPlanning);
  in_lanes(groups, [&](const Group& group, Lane& lane) {
    group.setting->planned->plan(head_slice(input, group.q_heads), lane.scratch, lane.stream.get());
  });
  timer.enter(Phase::kAttention);
  in_lanes(groups, [&](const Group& group, Lane& lane) {
    group.setting->planned->attend(head_slice(input, group.q_heads), output_of(group.q_heads),
                                   lane.scratch, lane.stream.get());
  });
}

template <class Body>
void LayerAttention::in_lanes(const std::vector<Group>& groups, const Body& body) {
  fork_.record(stream_);
  for (const auto& lane : lanes_) fork_.hold(lane->stream.get());
  for (std::size_t i = 0; i < groups.size(); ++i) body(groups[i], *lanes_[i % lanes_.size()]);
  for (const auto& lane : lanes_) {
    lane->done.record(lane->stream);
    lane->done.hold(stream_);
  }
}

PrefillLayer LayerAttention::account() {
  if (!last_) throw Error("LayerAttention: no layer was enqueued");
  const auto& [layer, input] = *last_;
  PrefillLayer result;
  WorkCounts work;
  try {
    for (const Group& group : layers_.at(layer)) {
      PlannedMethod& planned = *group.setting->planned;
      // Q, K and V of the layer are still where it found them.
      work += planned.count(head_slice(input, group.q_heads), stream_).work;
      const bool is_first = &group == &layers_[layer].front();
      if (is_first) result.planner = planned.planner();
      if (result.planner != planned.planner()) result.planner = "mixed";
    }
  } catch (const InputError& error) {
    throw InputError(fmt::format("layer {}: {}", layer, error.what()));
  }
  result.compute_density = work.compute_density();
  result.pair_density = work.pair_density();
  return result;
}

const DeviceInput& LayerAttention::input() const {
  if (!last_) throw Error("LayerAttention: no layer was enqueued");
  return last_->input;
}

std::int64_t LayerAttention::device_bytes() const {
  std::int64_t bytes = 0;
  if (last_) {
    for (const Group& group : layers_[last_->layer]) {
      bytes += group.setting->planned->workspace_bytes();
    }
  }
  for (const auto& setting : settings_) bytes += setting->planned->plan_bytes();
  for (const DeviceBytes& scratch : planning_scratch_) {
    bytes += static_cast<std::int64_t>(scratch.bytes());
  }
  return bytes;
}

}  // namespace s2o
