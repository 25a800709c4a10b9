#include "lib/methods/common/last_queries.h"

#include <algorithm>
#include <limits>

namespace s2o {

LastQuerySoftmax last_query_softmax(const AttentionInput& input, int q_head,
                                    std::int64_t num_queries, std::int64_t num_keys, bool causal,
                                    ScaleRounding scale_rounding, const Rounder& round) {
  const Problem& problem = input.problem;
  LastQuerySoftmax result;
  result.num_queries = std::min(num_queries, problem.seqlen);
  result.first_query = problem.seqlen - result.num_queries;
  result.num_keys = num_keys;
  result.probability.resize(static_cast<std::size_t>(result.num_queries * num_keys));

  const float* first = input.q_head(q_head) + result.first_query * problem.head_dim;
  std::vector<float> q(first, first + result.num_queries * problem.head_dim);
  if (scale_rounding == ScaleRounding::kQuery) scale_rounded(q, problem.softmax_scale, round);
  rounded_scores(q.data(), result.num_queries, input.k_head(q_head / problem.group_size()),
                 num_keys, problem.head_dim, round, result.probability.data());
  if (scale_rounding == ScaleRounding::kLogit) {
    scale_rounded(result.probability, problem.softmax_scale, round);
  }
  for (std::int64_t r = 0; r < result.num_queries; ++r) {
    const std::span<float> row(result.probability.data() + r * num_keys,
                               static_cast<std::size_t>(num_keys));
    if (causal) {
      const std::int64_t visible = std::min(result.first_query + r + 1, num_keys);
      std::fill(row.begin() + visible, row.end(), -std::numeric_limits<float>::infinity());
    }
    softmax_row(row);
  }
  return result;
}

std::vector<float> mass_by_key(const LastQuerySoftmax& softmax) {
  std::vector<float> mass(static_cast<std::size_t>(softmax.num_keys), 0.0f);
  for (std::int64_t r = 0; r < softmax.num_queries; ++r) {
    const float* row = softmax.probability.data() + r * softmax.num_keys;
    for (std::int64_t x = 0; x < softmax.num_keys; ++x) mass[static_cast<std::size_t>(x)] += row[x];
  }
  return mass;
}

std::vector<float> mass_by_distance(const LastQuerySoftmax& softmax) {
  std::vector<float> mass(static_cast<std::size_t>(softmax.num_keys), 0.0f);
  for (std::int64_t r = 0; r < softmax.num_queries; ++r) {
    const std::int64_t position = softmax.first_query + r;
    const float* row = softmax.probability.data() + r * softmax.num_keys;
    float* by_distance = mass.data() + position;
    for (std::int64_t x = 0; x <= position; ++x) by_distance[-x] += row[x];
  }
  return mass;
}

}  // namespace s2o
