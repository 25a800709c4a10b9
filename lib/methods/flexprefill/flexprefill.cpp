// FlexPrefill: per head, either block columns and diagonals from the last queries, or pooled
// scores.
//
// Paper: arXiv 2502.20766 (ICLR 2025); rules as in the official code (ByteDance-Seed/FlexPrefill,
//   2025-05).
// Faithful: last block_size positions as representatives, both mass targets with the literal 128,
//   raise-then-cut, divergence test without epsilon, the pooled top-cdf over all rows of a head at
//   once (the crossing block is dropped), forced column 0 and diagonal, dense fallback.
// Deviates: equal scores go to the lower index (undefined upstream); no max_budget, no interleaved
//   GQA layout; running sums do not drift (see block_selection.h).
// Defaults: gamma .95, tau .1, min_budget 1024, block 128 (Llama-3.1-8B on RULER and
// InfiniteBench).
//   min_budget holds for columns and diagonals each, so density has a floor of about 16 * 2 / T.
//
// Definition, per query head (N = seqlen, B = block, T = ceil(N / B), b = ceil(min_budget / B)):
//   Dense when N <= max(2B, bB).
//   1. Q' = r(q / sqrt(d)) of the last B positions; P = softmax(r(Q' k^T)), causal.
//   2. v[x] = mean over Q' of P; s[c] = (1/B) sum of P at distance N-1-c.
//   3. n = 1 + #{prefix sums of the sorted mass <= gamma} for v and s; counts
//      beta = min(max(floor(n / 128) + 1, b), T).
//   4. V_j = mass of v in block j; Z_t = mass of s[tB .. tB+B), block diagonal T-1-t.
//   5. E = softmax over all blocks of r(mean Q' . mean k_j); J = sqrt(JSD(E, V)). The head is query
//      aware iff J < tau; then both counts are b.
//   6. Blocks: top columns by V and top diagonals by Z, V_0 and Z_{T-1} set to +inf, and (0, 0).
//   7. Query-aware heads also: A_ij = r(r(mean q_i / sqrt(d)) . mean k_j), causal row softmax; all
//      T^2 entries sorted together; those with running sum <= gamma T.

#include "lib/methods/flexprefill/flexprefill.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>

#include "kernels/common/parallel.h"
#include "lib/core/log.h"
#include "lib/methods/common/device_planning.h"
#include "lib/methods/common/last_queries.h"
#include "lib/methods/method.h"

namespace s2o {

std::int64_t flexprefill_token_count(std::span<const float> mass, double gamma) {
  std::vector<float> sorted(mass.begin(), mass.end());
  std::sort(sorted.begin(), sorted.end(), std::greater<>());
  return 1 + cross_out_count(sorted, static_cast<float>(gamma));
}

std::int64_t flexprefill_block_count(std::int64_t num_tokens, std::int64_t min_blocks,
                                     std::int64_t max_blocks) {
  return std::min(std::max(num_tokens / 128 + 1, min_blocks), max_blocks);
}

std::vector<float> flexprefill_column_mass(std::span<const float> mass_by_key, int block) {
  const auto seqlen = static_cast<std::int64_t>(mass_by_key.size());
  std::vector<float> columns(static_cast<std::size_t>(num_blocks(seqlen, block)), 0.0f);
  for (std::int64_t x = 0; x < seqlen; ++x) {
    columns[static_cast<std::size_t>(x / block)] += mass_by_key[static_cast<std::size_t>(x)];
  }
  return columns;
}

std::vector<float> flexprefill_diagonal_mass(std::span<const float> mass_by_distance, int block) {
  const auto seqlen = static_cast<std::int64_t>(mass_by_distance.size());
  std::vector<float> diagonals(static_cast<std::size_t>(num_blocks(seqlen, block)), 0.0f);
  // NOTE: bins start at the largest distance, so with a ragged seqlen they do not line up with the
  // block diagonals they stand for.
  for (std::int64_t c = 0; c < seqlen; ++c) {
    diagonals[static_cast<std::size_t>(c / block)] +=
        mass_by_distance[static_cast<std::size_t>(seqlen - 1 - c)];
  }
  return diagonals;
}

double flexprefill_js_distance(std::span<const float> estimated, std::span<const float> observed) {
  double divergence = 0.0;
  for (std::size_t j = 0; j < estimated.size(); ++j) {
    const double e = estimated[j];
    const double v = observed[j];
    const double m = 0.5 * (e + v);
    divergence += 0.5 * (e * std::log(e / m) + v * std::log(v / m));
  }
  return std::sqrt(divergence);
}

void flexprefill_select_vertical_slash(std::span<const float> column_mass,
                                       std::span<const float> diagonal_mass,
                                       std::int64_t num_columns, std::int64_t num_diagonals,
                                       BlockMask& mask) {
  const std::int64_t blocks = mask.num_kv_blocks();
  std::vector<float> columns(column_mass.begin(), column_mass.end());
  std::vector<float> diagonals(diagonal_mass.begin(), diagonal_mass.end());
  columns.front() = std::numeric_limits<float>::infinity();
  diagonals.back() = std::numeric_limits<float>::infinity();
  for (const std::int32_t j : top_indices(columns, num_columns)) {
    for (std::int64_t i = j; i < blocks; ++i) mask.set(i, j);
  }
  for (const std::int32_t t : top_indices(diagonals, num_diagonals)) {
    const std::int64_t diagonal = blocks - 1 - t;
    for (std::int64_t i = diagonal; i < blocks; ++i) mask.set(i, i - diagonal);
  }
  mask.set(0, 0);
}

void flexprefill_select_query_aware(std::span<const float> probability, double gamma,
                                    BlockMask& mask) {
  const std::int64_t blocks = mask.num_kv_blocks();
  std::vector<float> causal;
  std::vector<std::int64_t> flat_index;
  for (std::int64_t i = 0; i < blocks; ++i) {
    for (std::int64_t j = 0; j <= i; ++j) {
      causal.push_back(probability[static_cast<std::size_t>(i * blocks + j)]);
      flat_index.push_back(i * blocks + j);
    }
  }
  const std::vector<std::int32_t> order = order_descending(causal);
  std::vector<float> sorted(causal.size());
  for (std::size_t n = 0; n < order.size(); ++n) {
    sorted[n] = causal[static_cast<std::size_t>(order[n])];
  }
  const std::int64_t kept =
      cross_out_count(sorted, static_cast<float>(gamma * static_cast<double>(blocks)));
  for (std::int64_t n = 0; n < kept; ++n) {
    const std::int64_t index =
        flat_index[static_cast<std::size_t>(order[static_cast<std::size_t>(n)])];
    mask.set(index / blocks, index % blocks);
  }
}

namespace {

// E of step 5. key_means [T, head_dim]
std::vector<float> pooled_last_query_softmax(const AttentionInput& input, int q_head,
                                             const std::vector<float>& key_means,
                                             const FlexPrefillSettings& settings,
                                             const Rounder& round) {
  const Problem& problem = input.problem;
  const int head_dim = problem.head_dim;
  const float* first = input.q_head(q_head) + (problem.seqlen - settings.block) * head_dim;
  std::vector<float> q(first, first + static_cast<std::int64_t>(settings.block) * head_dim);
  scale_rounded(q, problem.softmax_scale, round);
  const std::vector<float> mean =
      pooled_means(q.data(), settings.block, head_dim, settings.block, PoolDivisor::kBlock, round);
  std::vector<float> scores(key_means.size() / static_cast<std::size_t>(head_dim));
  rounded_scores(mean.data(), 1, key_means.data(), static_cast<std::int64_t>(scores.size()),
                 head_dim, round, scores.data());
  softmax_row(scores);
  return scores;
}

// Row softmaxes of step 7, [T, T].
std::vector<float> pooled_block_softmax(const AttentionInput& input, int q_head,
                                        const std::vector<float>& key_means,
                                        const FlexPrefillSettings& settings, const Rounder& round) {
  const Problem& problem = input.problem;
  const std::int64_t blocks = num_blocks(problem.seqlen, settings.block);
  std::vector<float> q_means = pooled_means(input.q_head(q_head), problem.seqlen, problem.head_dim,
                                            settings.block, PoolDivisor::kBlock, round);
  // The last mean was taken over zeros too; undone after its rounding, as upstream.
  const std::int64_t real = problem.seqlen - (blocks - 1) * settings.block;
  scale_rounded(std::span(q_means).last(static_cast<std::size_t>(problem.head_dim)),
                static_cast<float>(settings.block) / static_cast<float>(real), round);
  scale_rounded(q_means, problem.softmax_scale, round);
  std::vector<float> scores(static_cast<std::size_t>(blocks * blocks));
  rounded_scores(q_means.data(), blocks, key_means.data(), blocks, problem.head_dim, round,
                 scores.data());
  for (std::int64_t i = 0; i < blocks; ++i) {
    const std::span<float> row(scores.data() + i * blocks, static_cast<std::size_t>(blocks));
    std::fill(row.begin() + i + 1, row.end(), -std::numeric_limits<float>::infinity());
    softmax_row(row);
  }
  return scores;
}

void select_head(const AttentionInput& input, int q_head, const FlexPrefillSettings& settings,
                 const Rounder& round, BlockMask& mask) {
  const Problem& problem = input.problem;
  const LastQuerySoftmax softmax = last_query_softmax(
      input, q_head, settings.block, problem.seqlen, /*causal=*/true, ScaleRounding::kQuery, round);
  const float per_query = 1.0f / static_cast<float>(settings.block);
  std::vector<float> by_key = mass_by_key(softmax);
  std::vector<float> by_distance = mass_by_distance(softmax);
  for (float& mass : by_key) mass *= per_query;
  for (float& mass : by_distance) mass *= per_query;
  const std::vector<float> columns = flexprefill_column_mass(by_key, settings.block);

  const std::vector<float> key_means =
      pooled_means(input.k_head(q_head / problem.group_size()), problem.seqlen, problem.head_dim,
                   settings.block, PoolDivisor::kRealTokens, round);
  const std::vector<float> estimated =
      pooled_last_query_softmax(input, q_head, key_means, settings, round);
  // NaN < tau is false: such a head stays vertical-slash.
  const bool query_aware = flexprefill_js_distance(estimated, columns) < settings.tau;

  const std::int64_t most = mask.num_kv_blocks();
  std::int64_t num_columns = std::min(settings.min_blocks, most);
  std::int64_t num_diagonals = num_columns;
  if (!query_aware) {
    num_columns = flexprefill_block_count(flexprefill_token_count(by_key, settings.gamma),
                                          settings.min_blocks, most);
    num_diagonals = flexprefill_block_count(flexprefill_token_count(by_distance, settings.gamma),
                                            settings.min_blocks, most);
  }
  flexprefill_select_vertical_slash(columns, flexprefill_diagonal_mass(by_distance, settings.block),
                                    num_columns, num_diagonals, mask);
  if (query_aware) {
    flexprefill_select_query_aware(pooled_block_softmax(input, q_head, key_means, settings, round),
                                   settings.gamma, mask);
  }
}

FlexPrefillSettings settings_of(const ParamSet& params, std::int64_t seqlen) {
  const auto block = static_cast<int>(params.get_int("block_size"));
  const std::int64_t min_blocks = num_blocks(params.get_int("min_budget"), block);
  return {.block = block,
          .gamma = params.get_real("gamma"),
          .tau = params.get_real("tau"),
          .min_blocks = min_blocks,
          .dense = seqlen <= block * std::max<std::int64_t>(2, min_blocks),
          .fold = planned_fold(params, block)};
}

class FlexPrefill final : public Method {
 public:
  const MethodInfo& info() const override {
    static const MethodInfo kInfo = {
        .name = "flexprefill",
        .title = "FlexPrefill",
        .source = "arXiv 2502.20766",
        .summary = "block columns and diagonals, or pooled blocks, chosen per head",
        .params = {ParamSpec::real("gamma", 0.95, "share of attention mass to keep", 0.0, 1.0),
                   ParamSpec::real("tau", 0.1,
                                   "a head whose pooled estimate is closer than this is query "
                                   "aware; 0 switches that off",
                                   0.0, 1.0),
                   ParamSpec::integer("min_budget", 1024,
                                      "least columns and least diagonals, tokens each", 1, 0x1p40),
                   ParamSpec::integer_of("block_size", 128, {16, 32, 64, 128}, "tokens"),
                   rounding_spec(), compensation_spec()},
        .knob = "gamma",
        .knob_sweep = {0.999, 0.995, 0.98, 0.95, 0.9, 0.8, 0.6, 0.3},
        .full_budget = {.exists = true, .params = {{"min_budget", std::int64_t{1} << 40}}},
        .device = {.settings = {{{"min_budget", 200}},
                                {{"min_budget", 200}, {"tau", 1.0}, {"gamma", 0.7}},
                                {{"min_budget", 200}, {"tau", 0.0}, {"gamma", 0.6}},
                                {{"block_size", 64},
                                 {"min_budget", 1},
                                 {"tau", 0.5},
                                 {"compensation", "blocks"}}},
                   .tie_share = 0.01},
    };
    return kInfo;
  }

  SparsePlan plan_cpu(const PlanContext& context, const ParamSet& params) const override {
    const AttentionInput& input = context.input;
    const Problem& problem = input.problem;
    const FlexPrefillSettings settings = settings_of(params, problem.seqlen);
    const Rounder round = make_rounder(params, input);
    const std::int64_t blocks = num_blocks(problem.seqlen, settings.block);
    if (settings.dense) {
      log_info("flexprefill: {}: dense fallback, {} tokens are within the minimum budget",
               input.name, problem.seqlen);
    }
    std::vector<BlockMask> masks(static_cast<std::size_t>(problem.num_q_heads));
    parallel_for(problem.num_q_heads, [&](std::int64_t h) {
      BlockMask& mask = masks[static_cast<std::size_t>(h)];
      mask = BlockMask(blocks, blocks);
      if (settings.dense) {
        mask.fill();
      } else {
        select_head(input, static_cast<int>(h), settings, round, mask);
      }
    });
    SparsePlan plan = plan_from_block_masks(problem, settings.block, settings.block, masks);
    apply_fold(settings.fold, problem, plan);
    return plan;
  }

  std::unique_ptr<Planner> device_planner(const DevicePlanningRequest& request) const override {
    const FlexPrefillSettings settings = settings_of(request.params, request.problem.seqlen);
    if (!rounds_officially(request) || !flexprefill_plans_on_device(request.problem, settings)) {
      return nullptr;
    }
    return flexprefill_planner(request.problem, settings, request.limits);
  }
};

}  // namespace

const Method& method_flexprefill() {
  static const FlexPrefill kMethod;
  return kMethod;
}

}  // namespace s2o
