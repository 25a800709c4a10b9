#include "kernels/planning/minference/ops.h"
#include "lib/methods/common/last_query_arrays.h"
#include "lib/methods/minference/minference.h"

namespace s2o {
namespace {

// Every tile has room for all columns of its head.
constexpr std::int64_t kMaxKeptColumns = 8192;

class MinferencePlanner final : public TilePlanner {
 public:
  MinferencePlanner(const Problem& problem, const MinferenceSettings& settings,
                    const PlannerLimits& limits)
      : TilePlanner(
            problem, kWindow, kWindow, /*pack=*/1, {},
            [&settings](int tile) { return max_window_items(tile, settings.num_distances); },
            limits),
        settings_(settings),
        last_queries_(workspace_, problem, settings.last_queries, problem.seqlen,
                      /*by_distance=*/true) {
    const std::int64_t heads = problem.num_q_heads;
    columns_ = workspace_.add<std::int32_t>(heads * settings.num_columns);
    distances_ = workspace_.add<std::int32_t>(heads * settings.num_distances);
    gather_indices_ = workspace_.add<std::int32_t>(num_tiles() * settings.num_columns);
  }

  PlanningCost cost() const override {
    const double d = problem_.head_dim;
    const auto seqlen = static_cast<double>(problem_.seqlen);
    const double heads = problem_.num_q_heads;
    // The product of the last queries twice; keys twice, masses out and in.
    return {
        .flops = 2.0 * 2.0 * static_cast<double>(settings_.last_queries) * seqlen * d * heads,
        .bytes = 2.0 * 2.0 * seqlen * d * problem_.num_kv_heads + 4.0 * 4.0 * seqlen * heads +
                 static_cast<double>(num_tiles()) * static_cast<double>(4 * settings_.num_columns)};
  }

 private:
  void prepare(const DeviceInput& input, PlanningKernels& kernels) const override {
    kernels.run(last_queries_.args(input, bad_row_.data(), header_.num_q_tiles), input.elements());
    kernels.run(TopEntryArgs{.mass = last_queries_.mass.data(),
                             .entries = columns_.data(),
                             .seqlen = problem_.seqlen,
                             .num_heads = problem_.num_q_heads,
                             .forced = kMinferenceSinkTokens,
                             .count = static_cast<std::int32_t>(settings_.num_columns)},
                input.elements());
    kernels.run(TopEntryArgs{.mass = last_queries_.distance_mass.data(),
                             .entries = distances_.data(),
                             .seqlen = problem_.seqlen,
                             .num_heads = problem_.num_q_heads,
                             .forced = kMinferenceLocalDistances,
                             .count = static_cast<std::int32_t>(settings_.num_distances),
                             .descending = true},
                input.elements());
  }

  void plan_tiles(const TileBatch& batch, const DeviceInput& input,
                  PlanningKernels& kernels) const override {
    kernels.run(WindowArgs{.distances = distances_.data(),
                           .columns = columns_.data(),
                           .seqlen = problem_.seqlen,
                           .num_heads = problem_.num_q_heads,
                           .num_tiles = header_.num_q_tiles,
                           .first_tile = batch.first_tile,
                           .end_tile = batch.end_tile,
                           .num_distances = static_cast<std::int32_t>(settings_.num_distances),
                           .num_columns = static_cast<std::int32_t>(settings_.num_columns),
                           .item_offsets = item_offsets_.data(),
                           .items = items_.data(),
                           .item_counts = item_counts_.data(),
                           .gather_indices = gather_indices_.data()},
                input.elements());
  }

  const MinferenceSettings settings_;
  const LastQueryArrays last_queries_;
  Workspace::Array<std::int32_t> columns_, distances_;
};

}  // namespace

bool minference_plans_on_device(const MinferenceSettings& settings) {
  return settings.last_queries <= kLastQueries && settings.num_columns <= kMaxKeptColumns;
}

std::unique_ptr<Planner> minference_planner(const Problem& problem,
                                            const MinferenceSettings& settings,
                                            const PlannerLimits& limits) {
  return std::make_unique<MinferencePlanner>(problem, settings, limits);
}

}  // namespace s2o
