// Hand-made inputs and views of plans for the tests of methods that select key blocks.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <set>
#include <string>
#include <vector>

#include "lib/core/random.h"
#include "lib/testing/inputs.h"
#include "lib/testing/selections.h"

namespace s2o::testing {

// Normal Q, K, V. Rows of Q have norms that differ by token, so that no per-token factor can be
// pulled out of a sum unnoticed; Q and K have means that change every 64 tokens, so that blocks
// differ.
inline AttentionInput random_input(const Shape& shape, std::uint64_t seed, double q_scale = 1.0,
                                   StorageDType dtype = StorageDType::kBF16) {
  AttentionInput input = zero_input(shape, dtype);
  const int d = shape.head_dim;
  const auto fill = [&](std::vector<float>& x, std::uint64_t stream, double scale, double spread,
                        double drift) {
    const CounterRandom noise(seed, 3 * stream);
    const CounterRandom norms(seed, 3 * stream + 1);
    const CounterRandom means(seed, 3 * stream + 2);
    for (std::size_t i = 0; i < x.size(); ++i) {
      const std::uint64_t row = i / static_cast<std::size_t>(d);
      const std::uint64_t axis = i % static_cast<std::size_t>(d);
      const double norm = scale * std::exp(spread * norms.normal(row));
      x[i] = static_cast<float>(norm *
                                (noise.normal(i) + drift * means.normal(row / 64 * 1024 + axis)));
    }
    round_to_dtype(x, dtype, "test");
  };
  fill(input.q, 1, q_scale, 0.4, 1.5);
  fill(input.k, 2, 1.0, 0.0, 1.5);
  fill(input.v, 3, 1.0, 0.0, 0.3);
  return input;
}

// Element `axis` of rows [begin, end) of every head.
inline void set_rows(AttentionInput& input, std::vector<float>& x, std::int64_t begin,
                     std::int64_t end, int axis, float value) {
  const int d = input.problem.head_dim;
  const auto heads = static_cast<std::int64_t>(x.size()) / (input.problem.seqlen * d);
  for (std::int64_t head = 0; head < heads; ++head) {
    for (std::int64_t t = begin; t < end; ++t) {
      x[static_cast<std::size_t>((head * input.problem.seqlen + t) * d + axis)] = value;
    }
  }
}
inline void set_q(AttentionInput& input, std::int64_t begin, std::int64_t end, int axis,
                  float value) {
  set_rows(input, input.q, begin, end, axis, value);
}
inline void set_k(AttentionInput& input, std::int64_t begin, std::int64_t end, int axis,
                  float value) {
  set_rows(input, input.k, begin, end, axis, value);
}

// How often the items of a tile visit each key slot. [seqlen]
inline std::vector<int> visited_slots(const Problem& problem, const SparsePlan& plan, int head,
                                      int tile) {
  std::vector<int> visits(static_cast<std::size_t>(problem.seqlen), 0);
  const PlanPass& pass = plan.passes.at(0);
  const auto index = static_cast<std::size_t>(plan.tile_index(head, tile));
  for (std::int64_t i = pass.item_offsets[index]; i < pass.item_offsets[index + 1]; ++i) {
    const PlanItem& item = pass.items[static_cast<std::size_t>(i)];
    EXPECT_EQ(item.kind, ItemKind::kRun);
    for (std::int64_t slot = item.begin; slot < item.begin + item.count; ++slot) {
      ++visits[static_cast<std::size_t>(slot)];
    }
  }
  return visits;
}

// The blocks that a tile visits. Fails the test when a block is visited in part.
inline std::vector<int> visited_blocks(const Problem& problem, const SparsePlan& plan, int head,
                                       int tile, int block = 128) {
  const std::vector<int> visits = visited_slots(problem, plan, head, tile);
  std::vector<int> blocks;
  for (std::int64_t first = 0; first < problem.seqlen; first += block) {
    const std::int64_t end = std::min<std::int64_t>(first + block, problem.seqlen);
    int sum = 0;
    for (std::int64_t slot = first; slot < end; ++slot)
      sum += visits[static_cast<std::size_t>(slot)];
    EXPECT_TRUE(sum == 0 || sum == end - first) << "head " << head << " tile " << tile << " visits "
                                                << sum << " keys of block " << first / block;
    if (sum > 0) blocks.push_back(static_cast<int>(first / block));
  }
  return blocks;
}

// Row top-cdf by its definition, fp64: blocks of the best scores until their softmax mass reaches
// the threshold, that one included. `open`: too close to the threshold to call.
struct CrossIn {
  std::set<int> blocks;
  bool open = false;
};
inline CrossIn cross_in_by_definition(const std::vector<double>& scores, double threshold) {
  CrossIn result;
  std::set<int> left;
  double total = 0.0;
  for (std::size_t j = 0; j < scores.size(); ++j) {
    left.insert(static_cast<int>(j));
    total += std::exp(scores[j]);
  }
  const auto score = [&](int j) { return scores[static_cast<std::size_t>(j)]; };
  double mass = 0.0;
  while (mass < threshold && !left.empty()) {
    const int best = *std::max_element(left.begin(), left.end(),
                                       [&](int a, int b) { return score(a) < score(b); });
    left.erase(best);
    result.blocks.insert(best);
    mass += std::exp(score(best)) / total;
    result.open = result.open || std::abs(mass - threshold) < 1e-5;
  }
  return result;
}

// Zero-padded mean of axis `axis` over rows [b * block, (b + 1) * block) of x [seqlen, head_dim].
inline double padded_mean(const float* x, const Problem& problem, std::int64_t b, int block,
                          int axis) {
  double sum = 0.0;
  for (std::int64_t t = b * block; t < std::min<std::int64_t>((b + 1) * block, problem.seqlen);
       ++t) {
    sum += x[t * problem.head_dim + axis];
  }
  return sum / block;
}

inline std::vector<int> block_range(int begin, int end) {
  std::vector<int> blocks;
  for (int b = begin; b < end; ++b) blocks.push_back(b);
  return blocks;
}

// Ragged lengths and GQA groups: the default plan is valid, gives every row a key and is the same
// twice; the full budget is dense attention.
inline void expect_method_agrees_with_dense(const std::string& name) {
  const Method& method = find_method(name);
  for (const std::int64_t seqlen : {1, 127, 129, 1000, 3000}) {
    for (const int kv_heads : {8, 2, 1}) {
      const AttentionInput input = random_input({seqlen, 8, kv_heads, 64}, 11);
      SCOPED_TRACE(name + " seqlen " + std::to_string(seqlen) + " kv heads " +
                   std::to_string(kv_heads));
      const DenseReference reference = dense_reference(input);
      const SparsePlan full = plan_of(name, input, method.info().full_budget.params);
      const Executed dense = execute(input, full);
      EXPECT_LE(relative_l2(dense.out, reference.out), 1e-5);

      const SparsePlan plan = plan_of(name, input, nlohmann::ordered_json::object());
      const Executed result = execute(input, plan);
      for (const float lse : result.lse) ASSERT_TRUE(std::isfinite(lse)) << "a row without a key";
      const Executed again = execute(input, plan_of(name, input, nlohmann::ordered_json::object()));
      EXPECT_EQ(result.out, again.out);
    }
  }
}

}  // namespace s2o::testing
