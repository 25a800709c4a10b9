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

// Keys of the row in one pass, in visiting order.
std::vector<std::int64_t> visited_keys(const Problem& problem, const PlanView& plan,
                                       const PassView& pass, const TileStats& stats, int head,
                                       std::int64_t tile, std::int64_t position) {
  std::vector<std::int64_t> keys;
  std::int64_t stoppable_left = stats.stop_steps;
  for (std::int64_t i = pass.item_offsets[tile]; i < pass.item_offsets[tile + 1]; ++i) {
    const PlanItem& item = pass.items[i];
    std::int64_t count = item.count;
    if (item.stoppable) {
      const std::int64_t steps = (item.count + plan.block_n - 1) / plan.block_n;
      const std::int64_t done = std::min(steps, stoppable_left);
      stoppable_left -= done;
      count = std::min<std::int64_t>(count, done * plan.block_n);
    }
    for (std::int64_t j = 0; j < count; ++j) {
      std::int64_t key = item.begin + j;
      if (item.kind == ItemKind::kGather) {
        key = pass.gather_indices[key];
      } else if (pass.key_order != nullptr) {
        key = pass.key_order[head * problem.seqlen + key];
      }
      if (sees(plan, item.mask, key, position)) keys.push_back(key);
    }
  }
  return keys;
}

}  // namespace

RowReference reference_row(const Problem& problem, const PlanView& plan, const RowInputs& inputs,
                           const std::vector<TileStats>& stats, int q_head,
                           std::int64_t position) {
  if (plan.pack != 1 || plan.fold.kind != Compensation::kNone || plan.pv_skip_threshold > 0.0f) {
    throw std::invalid_argument("reference_row: plan part not covered");
  }
  const int d = problem.head_dim;
  const std::int64_t num_tiles =
      static_cast<std::int64_t>(plan.num_plan_heads) * plan.num_q_tiles;
  std::vector<std::int64_t> keys;
  for (int p = 0; p < plan.num_passes; ++p) {
    const PassView& pass = plan.passes[p];
    std::int64_t slot = position;
    if (pass.query_order != nullptr) {
      const std::int32_t* order = pass.query_order + q_head * problem.seqlen;
      slot = std::find(order, order + problem.seqlen, static_cast<std::int32_t>(position)) - order;
    }
    const std::int64_t tile = static_cast<std::int64_t>(q_head) * plan.num_q_tiles + slot / plan.block_m;
    const auto index = static_cast<std::size_t>(p * num_tiles + tile);
    const auto part =
        visited_keys(problem, plan, pass, stats[index], q_head, tile, position);
    keys.insert(keys.end(), part.begin(), part.end());
  }

  const std::uint16_t* q = inputs.q + problem.row_offset(q_head, position);
  const int kv_head = q_head / problem.group_size();
  std::vector<double> logits(keys.size());
  double largest = -std::numeric_limits<double>::infinity();
  for (std::size_t i = 0; i < keys.size(); ++i) {
    const std::uint16_t* k = inputs.k + problem.row_offset(kv_head, keys[i]);
    double dot = 0.0;
    for (int c = 0; c < d; ++c) dot += value_of(q[c], inputs.dtype) * value_of(k[c], inputs.dtype);
    logits[i] = dot * static_cast<double>(problem.softmax_scale);
    largest = std::max(largest, logits[i]);
  }
  RowReference row;
  row.out.assign(static_cast<std::size_t>(d), 0.0);
  row.lse = -std::numeric_limits<double>::infinity();
  if (keys.empty()) return row;
  double sum = 0.0;
  for (std::size_t i = 0; i < keys.size(); ++i) {
    const double weight = std::exp(logits[i] - largest);
    sum += weight;
    const std::uint16_t* v = inputs.v + problem.row_offset(kv_head, keys[i]);
    for (int c = 0; c < d; ++c) {
      row.out[static_cast<std::size_t>(c)] += weight * value_of(v[c], inputs.dtype);
    }
  }
  for (double& value : row.out) value /= sum;
  row.lse = largest + std::log(sum);
  return row;
}

}  // namespace s2o::testing
