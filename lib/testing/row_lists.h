// Lists of the ranking by rows against its definition (lib/methods/s2o/row_ranking.h). Tests only.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "lib/input/attention_input.h"
#include "lib/methods/s2o/row_planner.h"
#include "lib/methods/s2o/row_ranking.h"
#include "lib/plan/sparse_plan.h"

namespace s2o::testing {

// Whole histories.
RowRankingSettings ranking_above(float floor);
// Whose probes tell what heads need.
RowRankingSettings probing_ranking();

// With lists as long as the histories.
std::unique_ptr<Planner> row_planner_of(const AttentionInput& input,
                                        const RowRankingSettings& ranking);

// Keys that a tile gathers.
std::vector<std::int32_t> gathered_keys(const SparsePlan& plan, int head, int tile);

struct RowAgreement {
  std::int64_t keys = 0;     // in lists
  std::int64_t others = 0;   // that the definition's list lacks, or holds alone
  std::int64_t skipped = 0;  // out of a head's reach
  std::int64_t lists = 0;
  std::int64_t sinks = 0;  // lists that hold the sink alone
  // Weight of the first quarters of lists, and of as many keys of the definition's.
  double weight = 0.0;
  double expected_weight = 0.0;
};
// Reports what cannot be explained by rounding: weights are rounded often on the way, so that a key
// may be one class beside the definition's, and keys of the lowest class may come or go.
RowAgreement expect_row_agreement(const AttentionInput& input, const RowRankingSettings& settings,
                                  const SparsePlan& plan);

// Query heads that read, in this order and then again: the last 1,500 tokens; their own tile; the
// first 384 tokens; everything; everything. Up to 5,120 tokens.
AttentionInput input_of_many_reaches(std::int64_t seqlen, StorageDType dtype, int num_kv_heads = 1,
                                     int group_size = 5);

}  // namespace s2o::testing
