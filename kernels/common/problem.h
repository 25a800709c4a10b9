// The shape of one attention problem: one sequence, causal prefill, grouped-query attention.
#pragma once

#include <cstdint>

namespace s2o {

struct Problem {
  std::int64_t seqlen = 0;
  int num_q_heads = 0;
  int num_kv_heads = 0;
  int head_dim = 0;
  float softmax_scale = 0.0f;  // 1/sqrt(head_dim) unless an input says otherwise

  // Query heads that share one KV head; q head h reads KV head h / group_size().
  int group_size() const { return num_q_heads / num_kv_heads; }
  // Offset, in elements, of token `token` of head `head` in a head-major tensor.
  std::int64_t row_offset(int head, std::int64_t token) const {
    return (static_cast<std::int64_t>(head) * seqlen + token) * head_dim;
  }
  // Unmasked query-key pairs of one head.
  std::int64_t causal_pairs() const { return seqlen * (seqlen + 1) / 2; }
};

}  // namespace s2o
