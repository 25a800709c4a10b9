// Hand-made inputs whose right mask is known on paper, and readers of plans. Header-only, tests
// only.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <set>
#include <string>
#include <vector>

#include "lib/core/random.h"
#include "lib/testing/inputs.h"

namespace s2o::testing {

// All of Q, K and V zero.
inline AttentionInput zero_input(const Shape& shape, StorageDType dtype = StorageDType::kBF16) {
  AttentionInput input;
  input.name = "test";
  input.dtype = dtype;
  input.problem = {.seqlen = shape.seqlen,
                   .num_q_heads = shape.num_q_heads,
                   .num_kv_heads = shape.num_kv_heads,
                   .head_dim = shape.head_dim};
  const auto size = [&](int heads) {
    return static_cast<std::size_t>(heads * shape.seqlen * shape.head_dim);
  };
  input.q.assign(size(shape.num_q_heads), 0.0f);
  input.k.assign(size(shape.num_kv_heads), 0.0f);
  input.v.assign(size(shape.num_kv_heads), 0.0f);
  validate_attention_input(input, false);
  return input;
}

// Zero Q and K; fp32 storage unless told otherwise, so that nothing is rounded.
inline AttentionInput blank_input(const Shape& shape, StorageDType dtype = StorageDType::kF32) {
  AttentionInput input = zero_input(shape, dtype);
  for (std::size_t i = 0; i < input.v.size(); ++i) {
    input.v[i] = static_cast<float>(CounterRandom(3, 0).normal(i));
  }
  return input;
}

inline float* q_row(AttentionInput& input, int q_head, std::int64_t token) {
  return input.q.data() + input.problem.row_offset(q_head, token);
}
inline float* k_row(AttentionInput& input, int kv_head, std::int64_t token) {
  return input.k.data() + input.problem.row_offset(kv_head, token);
}

// Every head: query t sees key t - distance with logit `logit` and every other key with logit 0,
// exactly (one dimension per token, so head_dim must be at least seqlen). Queries before `distance`
// see all their keys alike.
inline void set_slash(AttentionInput& input, std::int64_t distance, float logit) {
  const Problem& problem = input.problem;
  for (std::int64_t t = 0; t < problem.seqlen; ++t) {
    for (int h = 0; h < problem.num_kv_heads; ++h) k_row(input, h, t)[t] = 1.0f;
    if (t < distance) continue;
    for (int h = 0; h < problem.num_q_heads; ++h) {
      q_row(input, h, t)[t - distance] = logit / problem.softmax_scale;
    }
  }
}

// Keys [begin, end) of a KV head get logit `logit` for queries that have 1 in dimension `dim`.
inline void set_key_logit(AttentionInput& input, int kv_head, std::int64_t begin, std::int64_t end,
                          int dim, float logit) {
  for (std::int64_t x = begin; x < end; ++x) {
    k_row(input, kv_head, x)[dim] = logit / input.problem.softmax_scale;
  }
}
inline void set_query_dim(AttentionInput& input, int q_head, std::int64_t begin, std::int64_t end,
                          int dim) {
  for (std::int64_t t = begin; t < end; ++t) q_row(input, q_head, t)[dim] = 1.0f;
}

// A vertical stripe: every query of q_head sees key `token` with logit `logit`, through a dimension
// of its own.
inline void add_stripe(AttentionInput& input, int q_head, std::int64_t token, int dim,
                       float logit) {
  set_query_dim(input, q_head, 0, input.problem.seqlen, dim);
  set_key_logit(input, q_head / input.problem.group_size(), token, token + 1, dim, logit);
}

// bf16, head_dim 50 (a scale that is no bf16 value): all queries meet `first` with 1 * 100 and
// `second` with 3 * 33.5. Rounding the scaled query makes both logits 14.1875, rounding the scaled
// logit makes them 14.125 and 14.1875.
inline AttentionInput scale_rounding_input(std::int64_t first, std::int64_t second) {
  AttentionInput input = blank_input({1000, 1, 1, 50}, StorageDType::kBF16);
  for (std::int64_t t = 0; t < 1000; ++t) {
    q_row(input, 0, t)[0] = 1.0f;
    q_row(input, 0, t)[1] = 3.0f;
  }
  k_row(input, 0, first)[0] = 100.0f;
  k_row(input, 0, second)[1] = 33.5f;
  return input;
}

// A checked plan of a registered method.
inline SparsePlan plan_of(const std::string& method_name, const AttentionInput& input,
                          const nlohmann::ordered_json& params = nlohmann::ordered_json::object()) {
  const DenseReference none;  // a real method must not look at it
  const Method& method = find_method(method_name);
  SparsePlan plan =
      method.plan_cpu({.input = input, .reference = none}, settings_of(method, params));
  check_plan(input.problem, plan);
  return plan;
}

// Original tokens of all items of a tile in visiting order; masks are not applied.
inline std::vector<std::int64_t> visited_keys(const SparsePlan& plan, int head, int tile) {
  const PlanPass& pass = plan.passes[0];
  const auto index = static_cast<std::size_t>(plan.tile_index(head, tile));
  std::vector<std::int64_t> keys;
  for (std::int64_t i = pass.item_offsets[index]; i < pass.item_offsets[index + 1]; ++i) {
    const PlanItem& item = pass.items[static_cast<std::size_t>(i)];
    for (std::int64_t slot = item.begin; slot < item.begin + item.count; ++slot) {
      keys.push_back(
          item.kind == ItemKind::kRun ? slot : pass.gather_indices[static_cast<std::size_t>(slot)]);
    }
  }
  return keys;
}

// Key blocks with at least one visited key.
inline std::set<std::int64_t> visited_blocks(const SparsePlan& plan, int head, int tile) {
  std::set<std::int64_t> blocks;
  for (const std::int64_t key : visited_keys(plan, head, tile)) {
    blocks.insert(key / plan.header.block_n);
  }
  return blocks;
}

inline std::set<std::int64_t> blocks_below(std::int64_t end) {
  std::set<std::int64_t> blocks;
  for (std::int64_t b = 0; b < end; ++b) blocks.insert(b);
  return blocks;
}

inline bool same_plan(const SparsePlan& a, const SparsePlan& b) {
  const auto same_item = [](const PlanItem& x, const PlanItem& y) {
    return x.begin == y.begin && x.count == y.count && x.kind == y.kind && x.mask == y.mask &&
           x.stoppable == y.stoppable;
  };
  const PlanPass& pass = a.passes[0];
  const PlanPass& other = b.passes[0];
  return pass.item_offsets == other.item_offsets && pass.gather_indices == other.gather_indices &&
         pass.fold_end == other.fold_end &&
         std::equal(pass.items.begin(), pass.items.end(), other.items.begin(), other.items.end(),
                    same_item);
}

inline std::int64_t rows_without_keys(const Executed& executed) {
  return std::count(executed.lse.begin(), executed.lse.end(),
                    -std::numeric_limits<float>::infinity());
}

// Ragged lengths and all group sizes.
inline const std::vector<Shape>& ragged_shapes() {
  static const std::vector<Shape> kShapes = {{1, 4, 4, 64},    {127, 4, 1, 64},   {129, 8, 1, 64},
                                             {1000, 8, 2, 64}, {1500, 4, 1, 128}, {3000, 2, 2, 64}};
  return kShapes;
}

// Plan invariants (bounds, causality, no key twice), equal plans from two runs and, where the
// method guarantees it, a visible key for every row.
inline void expect_sound_plans(const std::string& method, const nlohmann::ordered_json& params,
                               bool every_row_has_a_key = true) {
  for (const Shape& shape : ragged_shapes()) {
    SCOPED_TRACE(method + " " + params.dump() + " at " + std::to_string(shape.seqlen) + " tokens");
    const AttentionInput input = structured_input(shape);
    const SparsePlan plan = plan_of(method, input, params);
    check_plan(input.problem, plan);
    EXPECT_TRUE(same_plan(plan, plan_of(method, input, params)));
    const Executed result = execute(input, plan);
    if (every_row_has_a_key) {
      EXPECT_EQ(rows_without_keys(result), 0);
    }
    for (const float value : result.out) ASSERT_TRUE(std::isfinite(value));
  }
}

}  // namespace s2o::testing
