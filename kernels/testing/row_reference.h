// One output row straight from the definition of a plan, fp64. Shares no code with the kernels nor
// with attention_ref; cheap enough to sample rows of long sequences. Tests only.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/common/dtype.h"
#include "kernels/common/plan_view.h"
#include "kernels/common/problem.h"

namespace s2o::testing {

struct RowReference {
  std::vector<double> out;  // [head_dim]
  double lse = 0.0;         // -infinity for an empty row
};

// Values of one head as a test holds them.
struct RowInputs {
  const std::uint16_t* q;  // [num_q_heads, seqlen, head_dim], bits of `dtype`
  const std::uint16_t* k;  // [num_kv_heads, seqlen, head_dim]
  const std::uint16_t* v;
  KernelDType dtype;
};

// Row `position` of query head `q_head`, over all passes; `stats` say where tiles stopped. Plans
// with folded columns, packed heads or the PV skip are not covered.
RowReference reference_row(const Problem& problem, const PlanView& plan, const RowInputs& inputs,
                           const std::vector<TileStats>& stats, int q_head, std::int64_t position);

// The same row by plain attention in `dtype`, as a framework without a fused kernel computes it:
// the logits, the probabilities and the output are rounded to 16 bits, sums are fp32. What a kernel
// in that type may be wrong by.
std::vector<float> math_row(const Problem& problem, const PlanView& plan, const RowInputs& inputs,
                            const std::vector<TileStats>& stats, int q_head, std::int64_t position);

// What the stop rule sees of one row: p_blk / l_new of each stoppable step of `pass`, in visiting
// order, none skipped. Earlier passes count with the steps in `stats`.
std::vector<double> row_gains(const Problem& problem, const PlanView& plan, const RowInputs& inputs,
                              const std::vector<TileStats>& stats, int pass, int q_head,
                              std::int64_t position);

}  // namespace s2o::testing
