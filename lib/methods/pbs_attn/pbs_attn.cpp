// PBS-Attn, permuted block-sparse attention (arXiv 2510.21270, code xinghaow99/pbs-attn).
//
// Faithful: key ranking by the last queries without a causal mask, permutation inside complete
// segments and per query head, pooling with zero padding, rounding, row-wise top-cdf over earlier
// segments only, the own segment whole, and the block that holds token 0.
//
// Deviates: nothing is moved in memory, the kernels read keys through the order; threshold = 1
// selects all allowed blocks (the original needs the integer 1; its float 1.0 may select nothing);
// ties go to the lower index (the original: undefined); running sums are fp64, rounded to fp32
// before each comparison; masked logits are excluded (the original adds -1e6).
//
// Defaults: block_size 128, segment_size 256, threshold 0.9, as run on Llama-3.1-8B. Level A
// ("official") rounds products, scaled logits, pooled means and block scores to the activation
// type.
//
// Definition. Per query head; blocks of B tokens, segments of L (a multiple of B). Dense if N <= L.
//
// 1. P = softmax of r(r(q . k) * softmax_scale) for the last B queries over the keys of complete
//    segments, no causal mask; w[x] = mean of P[., x]. Inside each complete segment the keys are
//    stored by descending w; a trailing partial segment keeps its order.
//
// 2. qhat_i, khat_j = r(sum over the block / B), keys in storage order;
//    A[i, j] = r(r(qhat_i . khat_j) * softmax_scale) for storage blocks j in segments before that
//    of query block i; row softmax over those j.
//
// 3. Keep the blocks of row i in descending order until their sum reaches the threshold, that one
//    included, or none if it never does; then the block that holds original token 0, and the whole
//    own segment, the part after the diagonal included (causal by original position).
#include "lib/methods/pbs_attn/pbs_attn.h"

#include <fmt/format.h>

#include <algorithm>
#include <vector>

#include "kernels/common/parallel.h"
#include "lib/core/error.h"
#include "lib/methods/common/block_selection.h"
#include "lib/methods/common/device_planning.h"
#include "lib/methods/common/last_queries.h"
#include "lib/methods/common/pooled_selection.h"
#include "lib/methods/method.h"

namespace s2o {
namespace {

// Step 1: storage slot -> original token.
std::vector<std::int32_t> key_order_of(const AttentionInput& input, int q_head,
                                       const PbsSettings& settings, const Rounder& round) {
  const std::int64_t seqlen = input.problem.seqlen;
  const LastQuerySoftmax softmax = last_query_softmax(
      input, q_head, settings.block, complete_segments_end(seqlen, settings.segment),
      /*causal=*/false, ScaleRounding::kLogit, round);
  std::vector<float> mass = mass_by_key(softmax);
  for (float& w : mass) w /= static_cast<float>(softmax.num_queries);
  return order_inside_segments(mass, seqlen, settings.segment);
}

// Steps 2 and 3, own segment apart.
BlockMask select_earlier_blocks(const AttentionInput& input, int q_head,
                                std::span<const std::int32_t> order, const PbsSettings& settings,
                                const Rounder& round) {
  const Problem& problem = input.problem;
  const std::vector<float> keys =
      gather_rows(input.k_head(q_head / problem.group_size()), order, problem.head_dim);
  const std::vector<float> scores =
      pooled_scores(input.q_head(q_head), keys.data(), problem.seqlen, problem.head_dim,
                    settings.block, problem.softmax_scale, round);
  const std::int64_t count = num_blocks(problem.seqlen, settings.block);
  const std::int64_t segment_blocks = settings.segment / settings.block;
  const std::int64_t sink = block_of_token_zero(order, settings.block);
  BlockMask mask(count, count);
  for (std::int64_t i = 0; i < count; ++i) {
    const std::span<const float> row(scores.data() + i * count, static_cast<std::size_t>(count));
    const std::int64_t allowed = i / segment_blocks * segment_blocks;
    select_pooled_row(row, allowed, settings.threshold, mask.row(i));
    if (sink < allowed) mask.set(i, sink);
  }
  return mask;
}

void add_run(PlanBuilder& builder, int head, int tile, std::int64_t begin, std::int64_t end,
             MaskClass mask) {
  builder.add(head, tile,
              {.begin = begin,
               .count = static_cast<std::int32_t>(end - begin),
               .kind = ItemKind::kRun,
               .mask = mask});
}

// Earlier segments are wholly in the past: no mask. The own segment is visited to its end, since
// its causal keys may stand anywhere in it.
void add_tile(const Problem& problem, const PbsSettings& settings, const BlockMask& mask, int head,
              int tile, PlanBuilder& builder) {
  const std::int64_t own =
      static_cast<std::int64_t>(tile) * settings.block / settings.segment * settings.segment;
  const std::int64_t allowed = own / settings.block;
  for (std::int64_t b = 0; b < allowed; ++b) {
    if (!mask.at(tile, b)) continue;
    std::int64_t end = b + 1;
    while (end < allowed && mask.at(tile, end)) ++end;
    add_run(builder, head, tile, b * settings.block, end * settings.block, MaskClass::kNone);
    b = end;
  }
  add_run(builder, head, tile, own, std::min(own + settings.segment, problem.seqlen),
          MaskClass::kCausal);
}

PbsSettings settings_of(const ParamSet& params) {
  const auto block = static_cast<int>(params.get_int("block_size"));
  PbsSettings settings = {.block = block,
                          .segment = params.get_int("segment_size"),
                          .threshold = params.get_real("threshold"),
                          .fold = planned_fold(params, block)};
  // A storage block of the own segment may hold keys that some rows must not see.
  settings.fold.granularity = settings.segment;
  if (settings.segment % settings.block != 0) {
    throw ConfigError(fmt::format("segment_size: found {}, expected a multiple of block_size {}",
                                  settings.segment, settings.block));
  }
  return settings;
}

class PbsAttn final : public Method {
 public:
  const MethodInfo& info() const override {
    static const MethodInfo kInfo = {
        .name = "pbs_attn",
        .title = "PBS-Attn",
        .source = "PBS-Attn, arXiv 2510.21270",
        .summary = "keys permuted inside segments, then row-wise top-cdf over earlier segments",
        .params = {ParamSpec::real("threshold", 0.9,
                                   "share of the estimated mass in earlier segments to keep; 1 "
                                   "means all",
                                   0.0, 1.0),
                   ParamSpec::integer("segment_size", 256,
                                      "tokens that are permuted together, a multiple of block_size",
                                      16, 1 << 30),
                   pooled_block_size_spec(), rounding_spec(), compensation_spec()},
        .knob = "threshold",
        .knob_sweep = {0.995, 0.98, 0.95, 0.9, 0.75, 0.6, 0.3, 0.05},
        .full_budget = {.exists = true, .params = {{"threshold", 1.0}}},
        // Tokens of nearly equal mass change places, and with them blocks their members.
        .device =
            {.settings = {{{"threshold", 0.6}},
                          {{"threshold", 0.5}, {"segment_size", 512}, {"compensation", "blocks"}}},
             .tie_share = 0.02},
    };
    return kInfo;
  }

  void check(const ParamSet& params) const override { settings_of(params); }

  SparsePlan plan_cpu(const PlanContext& context, const ParamSet& params) const override {
    const AttentionInput& input = context.input;
    const Problem& problem = input.problem;
    const PbsSettings settings = settings_of(params);
    const Rounder round = make_rounder(params, input);
    SparsePlan plan(problem, settings.block, settings.block);
    PlanBuilder builder(plan);
    if (problem.seqlen <= settings.segment) {
      add_dense(problem, plan, builder);
    } else {
      std::vector<std::int32_t>& key_order = plan.passes[0].key_order;
      key_order.resize(static_cast<std::size_t>(problem.num_q_heads * problem.seqlen));
      parallel_for(problem.num_q_heads, [&](std::int64_t index) {
        const int head = static_cast<int>(index);
        const std::vector<std::int32_t> order = key_order_of(input, head, settings, round);
        const BlockMask mask = select_earlier_blocks(input, head, order, settings, round);
        std::copy(order.begin(), order.end(), key_order.begin() + index * problem.seqlen);
        for (int tile = 0; tile < plan.header.num_q_tiles; ++tile) {
          add_tile(problem, settings, mask, head, tile, builder);
        }
      });
    }
    builder.finish(plan.passes[0]);
    apply_fold(settings.fold, problem, plan);
    return plan;
  }

  std::unique_ptr<Planner> device_planner(const DevicePlanningRequest& request) const override {
    const PbsSettings settings = settings_of(request.params);
    if (!rounds_officially(request) || !pbs_attn_plans_on_device(request.problem, settings)) {
      return nullptr;
    }
    return pbs_attn_planner(request.problem, settings, request.limits);
  }

 private:
  static void add_dense(const Problem& problem, const SparsePlan& plan, PlanBuilder& builder) {
    for (int head = 0; head < plan.header.num_plan_heads; ++head) {
      for (int tile = 0; tile < plan.header.num_q_tiles; ++tile) {
        add_run(builder, head, tile, 0, tile_rows(problem, plan.header, tile).last_position + 1,
                MaskClass::kCausal);
      }
    }
  }
};

}  // namespace

const Method& method_pbs_attn() {
  static const PbsAttn kMethod;
  return kMethod;
}

}  // namespace s2o
