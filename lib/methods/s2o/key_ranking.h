// Scores that rank the history of a segment (the paper): key x gets the logit that the segment's
// mean query gives it, scale qbar . k_x.
#pragma once

#include <cstdint>
#include <vector>

#include "lib/input/attention_input.h"

namespace s2o {

// What the order of a history knows of the segment's queries: their mean, or all of them in low
// precision (lib/methods/s2o/row_ranking.h).
enum class Ranking { kMean, kRows };

// Scores of keys [0, num_keys) for the queries [begin, end) of `num_heads` query heads from
// `first_q_head` on, which share a KV head.
std::vector<float> mean_query_scores(const AttentionInput& input, int first_q_head, int num_heads,
                                     std::int64_t begin, std::int64_t end, std::int64_t num_keys);

}  // namespace s2o
