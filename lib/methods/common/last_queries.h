// Softmax of the last queries of a head over the keys, and its mass by key and by distance: the
// estimate that MInference, FlexPrefill and PBS-Attn share.
#pragma once

#include <cstdint>
#include <vector>

#include "lib/input/attention_input.h"
#include "lib/methods/common/block_selection.h"

namespace s2o {

// Where the softmax scale enters a rounded logit.
enum class ScaleRounding {
  kQuery,  // r(r(q * scale) . k), FlexPrefill
  kLogit,  // r(r(q . k) * scale), MInference and PBS-Attn
};

// The queries are the last positions of the sequence, not its last aligned block.
struct LastQuerySoftmax {
  std::int64_t first_query = 0;  // position; the last query is the last token
  std::int64_t num_queries = 0;
  std::int64_t num_keys = 0;
  std::vector<float> probability;  // [num_queries, num_keys], fp32
};

// Softmax over the first num_keys keys. `causal` hides the keys after each query.
LastQuerySoftmax last_query_softmax(const AttentionInput& input, int q_head,
                                    std::int64_t num_queries, std::int64_t num_keys, bool causal,
                                    ScaleRounding scale_rounding, const Rounder& round);

// Sum over the queries, by key. [num_keys]
std::vector<float> mass_by_key(const LastQuerySoftmax& softmax);

// Sum over the query-key pairs at each distance query - key; causal softmax over all keys only.
// [seqlen], index 0 is the main diagonal.
std::vector<float> mass_by_distance(const LastQuerySoftmax& softmax);

}  // namespace s2o
