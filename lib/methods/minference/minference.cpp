// MInference, vertical-slash pattern: token columns and 64-key windows, found from the last
// queries.
//
// Paper: arXiv 2407.02490; rules as in the official code (microsoft/MInference, 2025-08).
// Faithful: estimate from the last 64 positions (roundings at level A), 30 sink tokens and 100
// local
//   distances always kept, the window builder with its unaligned windows, windows before columns,
//   one selection per query head, the same budget for every head.
// Deviates: one pattern for all heads (no published Llama-3.1 configuration uses another at HEAD);
//   a slash budget below 100 keeps the smallest distances (the official survivors are arbitrary; so
//   a row always keeps itself); windows that lie wholly beyond the last token are not visited; the
//   attention itself scales fp32 logits (the official kernel rounds the pre-scaled q to bf16).
// Defaults: (512, 2048) for every head, the uniform Llama-3.1-8B configuration of 2025. Other
//   harnesses ran (1000, 6096) or tuned tables: state which. Budgets are capped at seqlen.
//
// Definition, per query head (N = seqlen, r = rounding to the activation type):
//   V = min(N, max(V, 30)), L = min(N, max(L, 50)).
//   1. P = softmax(r(r(q k^T) / sqrt(d))), causal, over the last min(last_q, N) queries.
//   2. v[x] = sum of P over those queries; the first 30 get +inf; columns = top V tokens.
//   3. s[o] = sum of P at distance o = query - key; o < 100 get +inf; distances = top L.
//   4. Tile [a, e), e = a + 64. Each kept distance o < e, from large to small, asks for the 64 keys
//      that end at t = max(e - o, 64), exclusive. A range grows while t <= its end + 64, by 64 keys
//      at a time and only when t lies beyond it; else a new range starts. Columns of the tile: kept
//      tokens below the end of the last range and inside no range; they all precede a.
//   5. The tile visits its ranges in steps of 64 keys from their own begin, then its columns.
#include "lib/methods/minference/minference.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "kernels/common/parallel.h"
#include "lib/methods/common/block_selection.h"
#include "lib/methods/common/device_planning.h"
#include "lib/methods/common/last_queries.h"
#include "lib/methods/method.h"

namespace s2o {
namespace {

constexpr std::int64_t kMinColumns = 30;
constexpr std::int64_t kMinDistances = 50;

// The `count` heaviest entries, the first `forced` ahead of all others.
std::vector<std::int32_t> top_with_forced(std::span<const float> mass, std::int64_t forced,
                                          std::int64_t count) {
  std::vector<float> score(mass.begin(), mass.end());
  std::fill_n(score.begin(), std::min<std::size_t>(static_cast<std::size_t>(forced), score.size()),
              std::numeric_limits<float>::infinity());
  return top_indices(score, count);
}

}  // namespace

std::vector<std::int32_t> minference_columns(std::span<const float> mass, std::int64_t count) {
  std::vector<std::int32_t> columns = top_with_forced(mass, kMinferenceSinkTokens, count);
  std::sort(columns.begin(), columns.end());
  return columns;
}

std::vector<std::int32_t> minference_distances(std::span<const float> mass, std::int64_t count) {
  std::vector<std::int32_t> distances = top_with_forced(mass, kMinferenceLocalDistances, count);
  std::sort(distances.rbegin(), distances.rend());
  return distances;
}

MinferenceTile minference_tile(std::int64_t begin, std::span<const std::int32_t> distances,
                               std::span<const std::int32_t> columns) {
  const std::int64_t end = begin + kMinferenceTile;
  MinferenceTile tile;
  for (const std::int32_t distance : distances) {
    if (distance >= end) continue;
    const std::int64_t stop = std::max<std::int64_t>(end - distance, kMinferenceTile);
    if (tile.ranges.empty() || stop > tile.ranges.back().end + kMinferenceTile) {
      tile.ranges.push_back({stop - kMinferenceTile, stop});
    } else if (stop > tile.ranges.back().end) {
      tile.ranges.back().end += kMinferenceTile;
    }
  }
  std::size_t range = 0;
  for (const std::int32_t column : columns) {
    while (range < tile.ranges.size() && column >= tile.ranges[range].end) ++range;
    if (range == tile.ranges.size()) break;
    if (column < tile.ranges[range].begin) tile.columns.push_back(column);
  }
  return tile;
}

namespace {

// Items of all tiles of one head; the gathers still count from the head's own first index.
struct HeadItems {
  std::vector<std::vector<PlanItem>> tiles;
  std::vector<std::int32_t> gather_indices;
};

void add_tile(const Problem& problem, const TileRows& rows, const MinferenceTile& selected,
              HeadItems& head, std::vector<PlanItem>& items) {
  const std::int64_t end_key = rows.last_position + 1;
  for (const MinferenceTile::Range& range : selected.ranges) {
    // Windows that every row of the tile sees need no mask.
    const std::int64_t past_windows =
        std::clamp<std::int64_t>((rows.first_position + 1 - range.begin) / kMinferenceTile, 0,
                                 (range.end - range.begin) / kMinferenceTile);
    const std::int64_t past_end = range.begin + past_windows * kMinferenceTile;
    if (past_end > range.begin) {
      items.push_back({.begin = range.begin,
                       .count = static_cast<std::int32_t>(past_end - range.begin),
                       .kind = ItemKind::kRun,
                       .mask = MaskClass::kNone});
    }
    const std::int64_t cut_end = std::min({range.end, end_key, problem.seqlen});
    if (cut_end > past_end) {
      items.push_back({.begin = past_end,
                       .count = static_cast<std::int32_t>(cut_end - past_end),
                       .kind = ItemKind::kRun,
                       .mask = MaskClass::kCausal});
    }
  }
  if (selected.columns.empty()) return;
  items.push_back({.begin = static_cast<std::int64_t>(head.gather_indices.size()),
                   .count = static_cast<std::int32_t>(selected.columns.size()),
                   .kind = ItemKind::kGather,
                   .mask = MaskClass::kNone});
  head.gather_indices.insert(head.gather_indices.end(), selected.columns.begin(),
                             selected.columns.end());
}

SparsePlan join_heads(const Problem& problem, const std::vector<HeadItems>& heads) {
  SparsePlan plan(problem, kMinferenceTile, kMinferenceTile);
  PlanBuilder builder(plan);
  std::vector<std::int32_t>& gathers = plan.passes[0].gather_indices;
  for (int h = 0; h < plan.header.num_plan_heads; ++h) {
    const HeadItems& head = heads[static_cast<std::size_t>(h)];
    for (int t = 0; t < plan.header.num_q_tiles; ++t) {
      for (PlanItem item : head.tiles[static_cast<std::size_t>(t)]) {
        if (item.kind == ItemKind::kGather) item.begin += static_cast<std::int64_t>(gathers.size());
        builder.add(h, t, item);
      }
    }
    gathers.insert(gathers.end(), head.gather_indices.begin(), head.gather_indices.end());
  }
  builder.finish(plan.passes[0]);
  return plan;
}

// budget * scale, rounded down, inside [least, seqlen].
std::int64_t scaled_budget(std::int64_t budget, double scale, std::int64_t least,
                           std::int64_t seqlen) {
  const double scaled = std::min(std::floor(static_cast<double>(budget) * scale), 0x1p40);
  return std::min(seqlen, std::max(static_cast<std::int64_t>(scaled), least));
}

MinferenceSettings settings_of(const ParamSet& params, std::int64_t seqlen) {
  const double scale = params.get_real("budget_scale");
  return {
      .num_columns = scaled_budget(params.get_int("vertical_size"), scale, kMinColumns, seqlen),
      .num_distances = scaled_budget(params.get_int("slash_size"), scale, kMinDistances, seqlen),
      .last_queries = std::min(params.get_int("last_q"), seqlen)};
}

class Minference final : public Method {
 public:
  const MethodInfo& info() const override {
    static const MethodInfo kInfo = {
        .name = "minference",
        .title = "MInference",
        .source = "arXiv 2407.02490",
        .summary = "token columns and 64-key windows from the attention of the last queries",
        .params = {ParamSpec::integer("vertical_size", 512, "columns kept per head, tokens", 1),
                   ParamSpec::integer("slash_size", 2048, "distances kept per head, tokens", 1),
                   ParamSpec::real("budget_scale", 1.0,
                                   "factor on both budgets (upstream minference_ratio)", 0.0),
                   ParamSpec::integer("last_q", 64, "last queries that estimate, tokens", 1),
                   rounding_spec()},
        .knob = "budget_scale",
        .knob_sweep = {8.0, 3.0, 1.0, 0.5, 0.2, 0.1, 0.05},
        .full_budget = {.exists = true, .params = {{"budget_scale", 1e9}}},
        .device = {.settings = {{{"vertical_size", 60}, {"slash_size", 150}},
                                {{"vertical_size", 200}, {"slash_size", 400}, {"last_q", 100}},
                                {{"vertical_size", 30}, {"slash_size", 60}, {"last_q", 1}}},
                   .tie_share = 0.01},
    };
    return kInfo;
  }

  SparsePlan plan_cpu(const PlanContext& context, const ParamSet& params) const override {
    const AttentionInput& input = context.input;
    const Problem& problem = input.problem;
    const Rounder round = make_rounder(params, input);
    const MinferenceSettings settings = settings_of(params, problem.seqlen);

    const PlanView header = SparsePlan(problem, kMinferenceTile, kMinferenceTile).header;
    std::vector<HeadItems> heads(static_cast<std::size_t>(problem.num_q_heads));
    parallel_for(problem.num_q_heads, [&](std::int64_t h) {
      const LastQuerySoftmax softmax =
          last_query_softmax(input, static_cast<int>(h), settings.last_queries, problem.seqlen,
                             /*causal=*/true, ScaleRounding::kLogit, round);
      const auto columns = minference_columns(mass_by_key(softmax), settings.num_columns);
      const auto distances =
          minference_distances(mass_by_distance(softmax), settings.num_distances);
      HeadItems& head = heads[static_cast<std::size_t>(h)];
      head.tiles.resize(static_cast<std::size_t>(header.num_q_tiles));
      for (int t = 0; t < header.num_q_tiles; ++t) {
        const TileRows rows = tile_rows(problem, header, t);
        add_tile(problem, rows, minference_tile(rows.first_position, distances, columns), head,
                 head.tiles[static_cast<std::size_t>(t)]);
      }
    });
    return join_heads(problem, heads);
  }

  std::unique_ptr<Planner> device_planner(const DevicePlanningRequest& request) const override {
    const MinferenceSettings settings = settings_of(request.params, request.problem.seqlen);
    if (!rounds_officially(request) || !minference_plans_on_device(settings)) return nullptr;
    return minference_planner(request.problem, settings, request.limits);
  }
};

}  // namespace

const Method& method_minference() {
  static const Minference kMethod;
  return kMethod;
}

}  // namespace s2o
