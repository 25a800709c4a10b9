#include "kernels/testing/row_reference.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <stdexcept>

#include "kernels/common/bf16.h"

namespace s2o::testing {
namespace {

double value_of(std::uint16_t bits, KernelDType dtype) {
  return static_cast<double>(dtype == KernelDType::kBf16 ? bf16_to_float(bits)
                                                         : fp16_to_float(bits));
}

bool sees(const PlanView& plan, MaskClass mask, std::int64_t key, std::int64_t position) {
  if (mask == MaskClass::kNone) return true;
  if (key > position) return false;
  if (mask == MaskClass::kCausal) return true;
  return key < plan.window_sink || position - key < plan.window_size;
}

// One step of a row: the keys it sees, in visiting order.
struct RowStep {
  std::vector<std::int64_t> keys;
  bool stoppable = false;
};

// Steps of the row in one pass; stoppable ones beyond `max_stop_steps` are left out.
std::vector<RowStep> row_steps(const Problem& problem, const PlanView& plan, const PassView& pass,
                               std::int64_t max_stop_steps, int head, std::int64_t tile,
                               std::int64_t position) {
  std::vector<RowStep> steps;
  for (std::int64_t i = pass.item_offsets[tile]; i < pass.item_offsets[tile + 1]; ++i) {
    const PlanItem& item = pass.items[i];
    for (std::int64_t begin = 0; begin < item.count; begin += plan.block_n) {
      if (item.stoppable && max_stop_steps-- <= 0) break;
      RowStep step{.keys = {}, .stoppable = item.stoppable};
      const std::int64_t end = std::min<std::int64_t>(begin + plan.block_n, item.count);
      for (std::int64_t slot = item.begin + begin; slot < item.begin + end; ++slot) {
        std::int64_t key = slot;
        if (item.kind == ItemKind::kGather) {
          key = pass.gather_indices[slot];
        } else if (pass.key_order != nullptr) {
          key = pass.key_order[head * problem.seqlen + slot];
        }
        if (sees(plan, item.mask, key, position)) step.keys.push_back(key);
      }
      steps.push_back(std::move(step));
    }
  }
  return steps;
}

void check_covered(const PlanView& plan) {
  if (plan.pack != 1 || plan.fold.kind != Compensation::kNone || plan.pv_skip_threshold > 0.0f) {
    throw std::invalid_argument("row reference: plan part not covered");
  }
}

// Index of the tile that holds the row in a pass.
std::int64_t tile_of_row(const Problem& problem, const PlanView& plan, const PassView& pass,
                         int head, std::int64_t position) {
  std::int64_t slot = position;
  if (pass.query_order != nullptr) {
    const std::int32_t* order = pass.query_order + head * problem.seqlen;
    slot = std::find(order, order + problem.seqlen, static_cast<std::int32_t>(position)) - order;
  }
  return static_cast<std::int64_t>(head) * plan.num_q_tiles + slot / plan.block_m;
}

// Keys of the row in passes [0, num_passes), in visiting order.
std::vector<std::int64_t> visited_keys(const Problem& problem, const PlanView& plan,
                                       const std::vector<TileStats>& stats, int num_passes,
                                       int head, std::int64_t position) {
  const std::int64_t num_tiles = static_cast<std::int64_t>(plan.num_plan_heads) * plan.num_q_tiles;
  std::vector<std::int64_t> keys;
  for (int p = 0; p < num_passes; ++p) {
    const std::int64_t tile = tile_of_row(problem, plan, plan.passes[p], head, position);
    const auto index = static_cast<std::size_t>(p * num_tiles + tile);
    for (const RowStep& step :
         row_steps(problem, plan, plan.passes[p], stats[index].stop_steps, head, tile, position)) {
      keys.insert(keys.end(), step.keys.begin(), step.keys.end());
    }
  }
  return keys;
}

// Logits of one row against chosen keys.
class RowLogits {
 public:
  RowLogits(const Problem& problem, const RowInputs& inputs, int q_head, std::int64_t position)
      : problem_(problem), inputs_(inputs), kv_head_(q_head / problem.group_size()) {
    const std::uint16_t* bits = inputs.q + problem.row_offset(q_head, position);
    for (int c = 0; c < problem.head_dim; ++c) q_.push_back(value_of(bits[c], inputs.dtype));
  }
  double operator()(std::int64_t key) const {
    const std::uint16_t* k = inputs_.k + problem_.row_offset(kv_head_, key);
    double dot = 0.0;
    for (std::size_t c = 0; c < q_.size(); ++c) dot += q_[c] * value_of(k[c], inputs_.dtype);
    return dot * static_cast<double>(problem_.softmax_scale);
  }
  double value(std::int64_t key, int column) const {
    return value_of(inputs_.v[problem_.row_offset(kv_head_, key) + column], inputs_.dtype);
  }

 private:
  const Problem& problem_;
  const RowInputs& inputs_;
  int kv_head_;
  std::vector<double> q_;
};

// m and l of a softmax in progress.
struct RowSum {
  double maximum = -std::numeric_limits<double>::infinity();
  double sum = 0.0;

  // Adds exp(logit) of each; returns what they are relative to the new maximum.
  double add(const std::vector<double>& logits) {
    if (logits.empty()) return 0.0;
    const double largest = std::max(maximum, *std::max_element(logits.begin(), logits.end()));
    double step = 0.0;
    for (const double logit : logits) step += std::exp(logit - largest);
    sum = sum * std::exp(maximum - largest) + step;
    maximum = largest;
    return step;
  }
};

}  // namespace

RowReference reference_row(const Problem& problem, const PlanView& plan, const RowInputs& inputs,
                           const std::vector<TileStats>& stats, int q_head, std::int64_t position) {
  check_covered(plan);
  const RowLogits logit_of(problem, inputs, q_head, position);
  const auto keys = visited_keys(problem, plan, stats, plan.num_passes, q_head, position);
  std::vector<double> logits;
  for (const std::int64_t key : keys) logits.push_back(logit_of(key));
  RowSum state;
  state.add(logits);
  RowReference row;
  row.out.assign(static_cast<std::size_t>(problem.head_dim), 0.0);
  row.lse = -std::numeric_limits<double>::infinity();
  if (keys.empty()) return row;
  for (std::size_t i = 0; i < keys.size(); ++i) {
    const double weight = std::exp(logits[i] - state.maximum) / state.sum;
    for (int c = 0; c < problem.head_dim; ++c) {
      row.out[static_cast<std::size_t>(c)] += weight * logit_of.value(keys[i], c);
    }
  }
  row.lse = state.maximum + std::log(state.sum);
  return row;
}

std::vector<float> math_row(const Problem& problem, const PlanView& plan, const RowInputs& inputs,
                            const std::vector<TileStats>& stats, int q_head,
                            std::int64_t position) {
  check_covered(plan);
  const auto rounded = [&inputs](double value) {
    const auto single = static_cast<float>(value);
    return inputs.dtype == KernelDType::kBf16 ? round_bf16(single) : round_fp16(single);
  };
  const RowLogits logit_of(problem, inputs, q_head, position);
  const auto keys = visited_keys(problem, plan, stats, plan.num_passes, q_head, position);
  std::vector<double> logits;
  for (const std::int64_t key : keys) {
    logits.push_back(static_cast<double>(rounded(logit_of(key))));
  }
  RowSum state;
  state.add(logits);
  std::vector<float> out(static_cast<std::size_t>(problem.head_dim));
  for (std::size_t i = 0; i < keys.size(); ++i) {
    const float weight = rounded(std::exp(logits[i] - state.maximum) / state.sum);
    for (int c = 0; c < problem.head_dim; ++c) {
      out[static_cast<std::size_t>(c)] += weight * static_cast<float>(logit_of.value(keys[i], c));
    }
  }
  for (float& value : out) value = rounded(static_cast<double>(value));
  return out;
}

std::vector<double> row_gains(const Problem& problem, const PlanView& plan, const RowInputs& inputs,
                              const std::vector<TileStats>& stats, int pass, int q_head,
                              std::int64_t position) {
  check_covered(plan);
  const RowLogits logit_of(problem, inputs, q_head, position);
  const auto logits_of = [&logit_of](const std::vector<std::int64_t>& keys) {
    std::vector<double> logits;
    for (const std::int64_t key : keys) logits.push_back(logit_of(key));
    return logits;
  };
  RowSum state;
  state.add(logits_of(visited_keys(problem, plan, stats, pass, q_head, position)));
  const PassView& view = plan.passes[pass];
  const std::int64_t tile = tile_of_row(problem, plan, view, q_head, position);
  std::vector<double> gains;
  for (const RowStep& step : row_steps(
           problem, plan, view, std::numeric_limits<std::int64_t>::max(), q_head, tile, position)) {
    const double added = state.add(logits_of(step.keys));
    if (step.stoppable) gains.push_back(state.sum > 0.0 ? added / state.sum : 0.0);
  }
  return gains;
}

}  // namespace s2o::testing
