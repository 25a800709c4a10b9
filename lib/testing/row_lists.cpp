#include "lib/testing/row_lists.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstddef>
#include <set>
#include <string>

#include "lib/testing/inputs.h"

namespace s2o::testing {

RowRankingSettings ranking_above(float floor) {
  return {.local_window = 128,
          .sink = 64,
          .floor = floor,
          .num_probes = 0,
          .least_mass = 0.0f,
          .reach_limit = 0.0f};
}
RowRankingSettings probing_ranking() {
  return {.local_window = 128,
          .sink = 64,
          .floor = 1e-3f,
          .num_probes = 6,
          .least_mass = 1e-4f,
          .reach_limit = 0.01f};
}

std::unique_ptr<Planner> row_planner_of(const AttentionInput& input,
                                        const RowRankingSettings& ranking) {
  return make_row_planner(
      input.problem,
      {.ranking = ranking, .block_n = 128, .kept_fraction = 1, .stop = {.tau = 0.01f}},
      {.l2_bytes = 1 << 20});
}

std::vector<std::int32_t> gathered_keys(const SparsePlan& plan, int head, int tile) {
  const PlanPass& pass = plan.passes[0];
  std::vector<std::int32_t> keys;
  const auto id = static_cast<std::size_t>(plan.tile_index(head, tile));
  for (std::int64_t i = pass.item_offsets[id]; i < pass.item_offsets[id + 1]; ++i) {
    const PlanItem& item = pass.items[static_cast<std::size_t>(i)];
    if (item.kind != ItemKind::kGather) continue;
    const auto begin = pass.gather_indices.begin() + item.begin;
    keys.insert(keys.end(), begin, begin + item.count);
  }
  return keys;
}

RowAgreement expect_row_agreement(const AttentionInput& input, const RowRankingSettings& settings,
                                  const SparsePlan& plan) {
  const RowRanking ranking(input, settings);
  RowAgreement total;
  for (int head = 0; head < input.problem.num_q_heads; ++head) {
    for (int tile = 0; tile < plan.header.num_q_tiles; ++tile) {
      const std::int64_t history = ranking.history_length(tile);
      const std::vector<std::int32_t> keys = gathered_keys(plan, head, tile);
      const std::string where = "head " + std::to_string(head) + ", tile " + std::to_string(tile);
      if (history == 0 || ranking.reach(head, tile) == kNothingFar) {
        std::vector<std::int32_t> sink(
            static_cast<std::size_t>(std::min<std::int64_t>(settings.sink, history)));
        for (std::size_t i = 0; i < sink.size(); ++i) sink[i] = static_cast<std::int32_t>(i);
        EXPECT_EQ(keys, sink) << where;
        total.sinks += history > 0 ? 1 : 0;
        continue;
      }
      const std::vector<float> weights = ranking.weights(head, tile);
      const std::vector<std::int32_t> reference = ranking.order(head, tile, history);
      const std::set<std::int32_t> expected(reference.begin(), reference.end());
      total.others += static_cast<std::int64_t>(reference.size());
      std::vector<bool> seen(static_cast<std::size_t>(history));
      int lowest = kRowClasses;
      for (std::size_t i = 0; i < keys.size(); ++i) {
        const std::int32_t key = keys[i];
        if (key < 0 || key >= history || seen[static_cast<std::size_t>(key)]) {
          ADD_FAILURE() << where << ": key " << key << " of " << history << " at " << i;
          return total;
        }
        seen[static_cast<std::size_t>(key)] = true;
        EXPECT_TRUE(ranking.is_ranked(head, tile, key)) << where << ", key " << key;
        const int c = ranking.class_of(head, weights[static_cast<std::size_t>(key)], key);
        EXPECT_LE(c, lowest + 2) << where << ", key " << key;
        lowest = std::min(lowest, c);
        total.others += expected.contains(key) ? -1 : 1;
      }
      for (std::int32_t key = 0; key < history; ++key) {
        if (seen[static_cast<std::size_t>(key)]) continue;
        if (!ranking.is_ranked(head, tile, key)) {
          ++total.skipped;
          continue;
        }
        EXPECT_LE(ranking.class_of(head, weights[static_cast<std::size_t>(key)], key), 1)
            << where << ", key " << key;
      }
      for (std::size_t i = 0; i < std::min(keys.size(), reference.size()) / 4; ++i) {
        total.weight += weights[static_cast<std::size_t>(keys[i])];
        total.expected_weight += weights[static_cast<std::size_t>(reference[i])];
      }
      total.keys += static_cast<std::int64_t>(keys.size());
      ++total.lists;
    }
  }
  return total;
}

AttentionInput input_of_many_reaches(std::int64_t seqlen, StorageDType dtype, int num_kv_heads,
                                     int group_size) {
  constexpr std::int64_t kCodes = 40;  // a dimension for each 128 tokens
  constexpr std::int64_t kHeadDim = 64;
  AttentionInput input = structured_input(
      Shape{seqlen, num_kv_heads * group_size, num_kv_heads, kHeadDim}, "mixed", dtype);
  for (std::int64_t t = 0; t < seqlen; ++t) {
    const std::int64_t own = t / 128;
    for (int head = 0; head < num_kv_heads; ++head) {
      float* const k = input.k.data() + (head * seqlen + t) * kHeadDim;
      std::fill(k, k + kCodes, 0.0f);
      k[own] = 8.0f;
    }
    for (int head = 0; head < num_kv_heads * group_size; ++head) {
      float* const q = input.q.data() + (head * seqlen + t) * kHeadDim;
      const int kind = head % 5;
      for (std::int64_t c = 0; c < kCodes; ++c) {
        const bool reads = kind == 0 ? c + 12 > own : kind == 1 ? c == own : c < 3;
        q[c] = kind >= 3 ? 0.0f : reads ? 8.0f : -8.0f;
      }
      if (kind >= 3) continue;
      for (std::int64_t d = kCodes; d < kHeadDim; ++d) q[d] *= 0.0625f;
    }
  }
  return input;
}

}  // namespace s2o::testing
