// The contract of every attention kernel: causal prefill attention over a plan.
//
//   q    [num_q_heads, seqlen, head_dim]     post-RoPE
//   k, v [num_kv_heads, seqlen, head_dim]
//   out  [num_q_heads, seqlen, head_dim]     original token order, whatever the query order
//   lse  [num_q_heads, seqlen]               natural log of the softmax normaliser, original order
//
// logit(t, x) = softmax_scale * (q_t . k_x). Output row t is the softmax-weighted mean of the
// values of the keys that the plan lets row t visit, plus folded columns. A row that visits no key
// has out = 0 and lse = -infinity. No memory of size seqlen^2 is used.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "kernels/attention/quantise_rule.h"
#include "kernels/common/plan_view.h"
#include "kernels/common/problem.h"

namespace s2o {

// CPU reference (Eigen). `out` and `lse` are overwritten. `stats` has
// num_passes * num_plan_heads * num_q_tiles entries, or is null.
// `double` computes everything in fp64 from the same fp32 inputs.
void attention_ref(const Problem& problem, const PlanView& plan, const float* q, const float* k,
                   const float* v, float* out, float* lse, TileStats* stats);
void attention_ref(const Problem& problem, const PlanView& plan, const float* q, const float* k,
                   const float* v, double* out, double* lse, TileStats* stats);
// Attention of quantised Q, K and V with probabilities that are codes (quantise.h).
void attention_quantised_ref(const Problem& problem, const PlanView& plan, const float* q,
                             const float* k, const float* v, QuantiseRule rule, float* out,
                             float* lse, TileStats* stats);
// The one or, without a rule, the other.
void attention_ref(const Problem& problem, const PlanView& plan, const float* q, const float* k,
                   const float* v, const std::optional<QuantiseRule>& rule, float* out, float* lse,
                   TileStats* stats);

}  // namespace s2o
