// SpargeAttn: pooled scores with a self-similarity gate, and an in-kernel skip of P V.
//
// Paper: arXiv 2502.18137; rules as in the official code (thu-ml/SpargeAttn, 2025-12).
// Faithful: key smoothing, both budgets (top-k of all key blocks, or a cross-out cdf), rounded
//   softmax and running sums at level A, dense rows and columns for blocks that are not similar, no
//   forced diagonal, the sink switch, the PV skip with its exempt last steps.
// Deviates: attention in the input's own precision, so an error here is the error of the selection
//   alone: int8 Q K^T and fp8/fp16 P V are out of scope. Diagonal tiles are masked per element (the
//   official "sage2" calls pass a constant "not causal"). Maps are per query head without copies of
//   K. Equal scores go to the lower index. Runs below 128 tokens are accepted.
//   pvthreshd 0 switches the skip off (upstream it would skip nearly everything). The
//   official tile depends on the GPU (64x128 on sm_90, else 128x64): here a parameter.
// Defaults: topk .5, simthreshd1 -.1 (gate off), pvthreshd 50: the recommended top-k call; no
//   Llama preset exists. topk counts all key blocks, so .5 visits about 75 % of the causal ones.
//   attention_sink is off, as there, where only the tuned module turns it on. Language models put
//   much of their attention on the first token, whose block a pooled key does not show: without
//   the switch their error is large at any density (results/real.md).
//
// NOTE: with 128x64 tiles rows may see no key at all: a tile whose only block is the second half of
//   its diagonal leaves its first 64 rows empty. Their output is 0 and their lse -infinity (the
//   contract of attention). With 64x128 tiles every block kept has a key that all rows see.
//
// Definition, per query head (r = rounding to the activation type):
//   1. k' = r(k - r(mean of k over all tokens)).
//   2. Per block of q and of k': pool = r(mean over real tokens); c = mean pairwise cosine of its
//      rows (unit rows in fp16); similar iff c > simthreshd1. A partial last block never is.
//   3. A_ij = r(r(pool_i . pool_j) / sqrt(d)); -inf where key block j is not similar or j is not
//      causal: j < (i + 1) block_m / block_n as reals. p_i = r(softmax(A_i)).
//   4. p_i sorted descending. cdf: #{running sum <= cdfthreshd}; top-k: floor(topk * key blocks);
//      at least 1 either way. A row of only -inf takes everything.
//   5. Those blocks OR every column of a key block that is not similar OR all of a query row that
//      is not similar OR column 0 with attention_sink, AND causal.
//   6. Ascending visits. A step adds nothing when the tile's maximum lies pvthreshd (log2 units)
//      below the running one, except in the last step (64x128) or the last two (128x64).
#include "lib/methods/sparge_attn/sparge_attn.h"

#include <Eigen/Core>
#include <algorithm>
#include <cmath>
#include <limits>

#include "kernels/common/bf16.h"
#include "kernels/common/parallel.h"
#include "lib/methods/common/device_planning.h"
#include "lib/methods/method.h"

namespace s2o {

float sparge_self_similarity(const float* x, std::int64_t num_rows, int head_dim, bool round_half) {
  Eigen::ArrayXf sum = Eigen::ArrayXf::Zero(head_dim);
  Eigen::ArrayXf unit(head_dim);
  for (std::int64_t t = 0; t < num_rows; ++t) {
    const Eigen::Map<const Eigen::ArrayXf> row(x + t * head_dim, head_dim);
    unit = row / std::sqrt(row.square().sum());
    if (round_half) unit = unit.unaryExpr([](float value) { return round_fp16(value); });
    sum += unit;
  }
  const auto rows = static_cast<float>(num_rows);
  return sum.square().sum() / (rows * rows);
}

std::int64_t sparge_causal_blocks(std::int64_t q_block, int block_m, int block_n,
                                  std::int64_t num_kv_blocks) {
  // The number of j with j * block_n < (q_block + 1) * block_m.
  return std::min(num_blocks((q_block + 1) * block_m, block_n), num_kv_blocks);
}

std::int64_t sparge_row_count(std::span<const float> sorted_probability, const SpargeBudget& budget,
                              const Rounder& stored) {
  std::int64_t count = 0;
  if (budget.cdfthreshd.has_value()) {
    count = cross_out_count(sorted_probability, static_cast<float>(*budget.cdfthreshd), stored);
  } else {
    // In fp32, as upstream: .29 of 100 blocks is 29, not 28.
    count = static_cast<std::int64_t>(static_cast<float>(budget.topk) *
                                      static_cast<float>(sorted_probability.size()));
  }
  return std::max<std::int64_t>(count, 1);
}

void sparge_select_row(std::span<float> scores, std::span<const std::uint8_t> key_similar,
                       bool query_similar, std::int64_t num_causal, const SpargeBudget& budget,
                       const Rounder& round, std::uint8_t* selected) {
  for (std::size_t j = 0; j < scores.size(); ++j) {
    if (key_similar[j] == 0 || static_cast<std::int64_t>(j) >= num_causal) {
      scores[j] = -std::numeric_limits<float>::infinity();
    }
  }
  const bool any_similar = softmax_row(scores);
  if (!query_similar || !any_similar) {
    std::fill_n(selected, num_causal, std::uint8_t{1});
    return;
  }
  round.apply(scores);
  const std::vector<std::int32_t> order = order_descending(scores);
  std::vector<float> sorted(scores.size());
  for (std::size_t n = 0; n < order.size(); ++n) {
    sorted[n] = scores[static_cast<std::size_t>(order[n])];
  }
  const std::int64_t count = sparge_row_count(sorted, budget, round);
  for (std::int64_t n = 0; n < std::min<std::int64_t>(count, std::ssize(order)); ++n) {
    const std::int32_t j = order[static_cast<std::size_t>(n)];
    if (j < num_causal) selected[j] = 1;
  }
  for (std::int64_t j = 0; j < num_causal; ++j) {
    if (key_similar[static_cast<std::size_t>(j)] == 0) selected[j] = 1;
  }
}

namespace {

// Pools and similarity flags of the blocks of one head.
struct PooledHead {
  std::vector<float> means;           // [num_blocks, head_dim]
  std::vector<std::uint8_t> similar;  // [num_blocks]
};

PooledHead pool_head(const float* x, const Problem& problem, int block, double simthreshd,
                     const Rounder& round, bool round_half) {
  PooledHead pooled;
  pooled.means =
      pooled_means(x, problem.seqlen, problem.head_dim, block, PoolDivisor::kRealTokens, round);
  pooled.similar.resize(static_cast<std::size_t>(num_blocks(problem.seqlen, block)), 0);
  // A partial last block keeps 0: upstream its padded rows are 0/0.
  for (std::int64_t b = 0; b < problem.seqlen / block; ++b) {
    const float similarity = sparge_self_similarity(x + b * block * problem.head_dim, block,
                                                    problem.head_dim, round_half);
    pooled.similar[static_cast<std::size_t>(b)] = similarity > static_cast<float>(simthreshd);
  }
  return pooled;
}

std::vector<float> smoothed_keys(const AttentionInput& input, int kv_head, const Rounder& round) {
  const Problem& problem = input.problem;
  const float* k = input.k_head(kv_head);
  std::vector<float> smoothed(k, k + problem.seqlen * problem.head_dim);
  Eigen::ArrayXd sum = Eigen::ArrayXd::Zero(problem.head_dim);
  for (std::int64_t t = 0; t < problem.seqlen; ++t) {
    sum +=
        Eigen::Map<const Eigen::ArrayXf>(k + t * problem.head_dim, problem.head_dim).cast<double>();
  }
  Eigen::ArrayXf mean = (sum / static_cast<double>(problem.seqlen)).cast<float>();
  round.apply(std::span(mean.data(), static_cast<std::size_t>(mean.size())));
  for (std::int64_t t = 0; t < problem.seqlen; ++t) {
    Eigen::Map<Eigen::ArrayXf>(smoothed.data() + t * problem.head_dim, problem.head_dim) -= mean;
  }
  round.apply(smoothed);
  return smoothed;
}

SpargeSettings settings_of(const ParamSet& params) {
  const bool wide = params.get_choice("tile") == "64x128";
  SpargeSettings settings = {.budget = {.topk = params.get_real("topk")},
                             .simthreshd = params.get_real("simthreshd1"),
                             .block_m = wide ? 64 : 128,
                             .block_n = wide ? 128 : 64,
                             .attention_sink = params.get_bool("attention_sink"),
                             .pv_skip_threshold = static_cast<float>(params.get_real("pvthreshd")),
                             .pv_skip_exempt = wide ? 1 : 2,
                             .fold = planned_fold(params, wide ? 128 : 64)};
  if (params.is_set("cdfthreshd")) settings.budget.cdfthreshd = params.get_real("cdfthreshd");
  return settings;
}

// How pools and similarities are rounded.
struct Rounding {
  Rounder round;
  bool halves_units;  // unit rows to fp16
};
Rounding rounding_of(const ParamSet& params, const AttentionInput& input) {
  return {make_rounder(params, input), params.get_choice("rounding") == "official"};
}

void select_head(const AttentionInput& input, int q_head, const PooledHead& keys,
                 const SpargeSettings& settings, const Rounding& rounding, BlockMask& mask) {
  const Problem& problem = input.problem;
  const PooledHead queries = pool_head(input.q_head(q_head), problem, settings.block_m,
                                       settings.simthreshd, rounding.round, rounding.halves_units);
  std::vector<float> scores(static_cast<std::size_t>(mask.num_q_blocks() * mask.num_kv_blocks()));
  rounded_scores(queries.means.data(), mask.num_q_blocks(), keys.means.data(), mask.num_kv_blocks(),
                 problem.head_dim, rounding.round, scores.data());
  scale_rounded(scores, problem.softmax_scale, rounding.round);
  for (std::int64_t i = 0; i < mask.num_q_blocks(); ++i) {
    sparge_select_row(
        std::span(scores.data() + i * mask.num_kv_blocks(),
                  static_cast<std::size_t>(mask.num_kv_blocks())),
        keys.similar, queries.similar[static_cast<std::size_t>(i)] != 0,
        sparge_causal_blocks(i, settings.block_m, settings.block_n, mask.num_kv_blocks()),
        settings.budget, rounding.round, mask.row(i));
    if (settings.attention_sink) mask.row(i)[0] = 1;
  }
}

class SpargeAttn final : public Method {
 public:
  const MethodInfo& info() const override {
    static const MethodInfo kInfo = {
        .name = "sparge_attn",
        .title = "SpargeAttn",
        .source = "arXiv 2502.18137",
        .summary = "pooled scores of self-similar blocks, top-k or cdf, with a skip of P V",
        .params = {ParamSpec::real("topk", 0.5, "share of all key blocks to rank in", 0.0, 1.0),
                   ParamSpec::optional_real(
                       "cdfthreshd", "share of estimated mass to keep; replaces topk", 0.0, 1.0),
                   ParamSpec::real("simthreshd1", -0.1,
                                   "blocks whose mean cosine is not above this are dense", -1.0,
                                   1.0),
                   ParamSpec::real("pvthreshd", 50.0,
                                   "skip P V of steps this far below the running maximum, log2 "
                                   "units; 0 never skips",
                                   0.0),
                   ParamSpec::choice("tile", "128x64", {"128x64", "64x128"},
                                     "query rows x keys; 64x128 is the official sm_90 shape"),
                   ParamSpec::boolean("attention_sink", false,
                                      "every query block visits the first key block"),
                   rounding_spec(), compensation_spec()},
        .knob = "topk",
        .knob_sweep = {0.45, 0.25, 0.1, 0.04, 0.015, 0.004},
        .full_budget = {.exists = true, .params = {{"topk", 1.0}}},
        .device = {.settings = {{{"topk", 0.3}},
                                {{"topk", 0.1}, {"attention_sink", true}},
                                {{"topk", 0.3}, {"tile", "64x128"}, {"simthreshd1", 0.3}},
                                {{"cdfthreshd", 0.9}, {"tile", "64x128"}, {"simthreshd1", 0.3}}},
                   .tie_share = 0.02},
    };
    return kInfo;
  }

  SparsePlan plan_cpu(const PlanContext& context, const ParamSet& params) const override {
    const AttentionInput& input = context.input;
    const Problem& problem = input.problem;
    const SpargeSettings settings = settings_of(params);
    const Rounding rounding = rounding_of(params, input);
    std::vector<PooledHead> keys(static_cast<std::size_t>(problem.num_kv_heads));
    parallel_for(problem.num_kv_heads, [&](std::int64_t h) {
      const std::vector<float> smoothed = smoothed_keys(input, static_cast<int>(h), rounding.round);
      keys[static_cast<std::size_t>(h)] =
          pool_head(smoothed.data(), problem, settings.block_n, settings.simthreshd, rounding.round,
                    rounding.halves_units);
    });
    std::vector<BlockMask> masks(static_cast<std::size_t>(problem.num_q_heads));
    parallel_for(problem.num_q_heads, [&](std::int64_t h) {
      BlockMask& mask = masks[static_cast<std::size_t>(h)];
      mask = BlockMask(num_blocks(problem.seqlen, settings.block_m),
                       num_blocks(problem.seqlen, settings.block_n));
      select_head(input, static_cast<int>(h),
                  keys[static_cast<std::size_t>(h / problem.group_size())], settings, rounding,
                  mask);
    });
    SparsePlan plan = plan_from_block_masks(problem, settings.block_m, settings.block_n, masks);
    plan.header.pv_skip_threshold = settings.pv_skip_threshold;
    plan.header.pv_skip_exempt = settings.pv_skip_exempt;
    apply_fold(settings.fold, problem, plan);
    return plan;
  }

  std::unique_ptr<Planner> device_planner(const DevicePlanningRequest& request) const override {
    if (!rounds_officially(request)) return nullptr;
    return sparge_attn_planner(request.problem, settings_of(request.params), request.limits);
  }
};

}  // namespace

const Method& method_sparge_attn() {
  static const SpargeAttn kMethod;
  return kMethod;
}

}  // namespace s2o
