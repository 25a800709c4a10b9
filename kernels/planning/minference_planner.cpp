#include "kernels/planning/minference_planner.h"

#include <algorithm>
#include <string>

#include "kernels/common/error.h"
#include "kernels/planning/last_queries/ops.h"
#include "kernels/planning/minference/ops.h"
#include "kernels/planning/op.h"

namespace s2o {
namespace {

class MinferencePlanner final : public TilePlanner {
 public:
  MinferencePlanner(const Problem& problem, const MinferenceDeviceSettings& settings,
                    std::int64_t l2_bytes)
      : TilePlanner(
            problem, kWindow, kWindow, /*pack=*/1, {},
            [&settings](int tile) { return max_window_items(tile, settings.num_distances); },
            settings.room, l2_bytes),
        settings_(settings),
        num_chunks_(
            static_cast<std::int32_t>((problem.seqlen + kLastQueryChunk - 1) / kLastQueryChunk)) {
    const std::int64_t heads = problem.num_q_heads;
    largest_ = workspace_.add<float>(heads * (num_chunks_ + 1) * kLastQueries);
    normalisers_ = workspace_.add<float>(heads * (num_chunks_ + 1) * kLastQueries);
    mass_ = workspace_.add<float>(heads * problem.seqlen);
    distance_mass_ = workspace_.add<float>(heads * problem.seqlen);
    chunk_diagonals_ = workspace_.add<float>(heads * num_chunks_ * kLastQueryDiagonals);
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

  void plan(const DeviceInput& input, PlanningKernels& kernels) const override {
    kernels.clear(bad_row_.data(), bad_row_.size_bytes());
    kernels.run(LastQueryArgs{.q = input.q,
                              .k = input.k,
                              .seqlen = problem_.seqlen,
                              .num_keys = problem_.seqlen,
                              .num_queries = static_cast<std::int32_t>(settings_.last_queries),
                              .num_q_heads = problem_.num_q_heads,
                              .group_size = problem_.group_size(),
                              .num_chunks = num_chunks_,
                              .scale = problem_.softmax_scale,
                              .causal = true,
                              .largest = largest_.data(),
                              .normalisers = normalisers_.data(),
                              .mass = mass_.data(),
                              .distance_mass = distance_mass_.data(),
                              .chunk_diagonals = chunk_diagonals_.data(),
                              .bad_row = bad_row_.data(),
                              .rows_per_head = header_.num_q_tiles},
                input.elements());
    kernels.run(TopEntryArgs{.mass = mass_.data(),
                             .entries = columns_.data(),
                             .seqlen = problem_.seqlen,
                             .num_heads = problem_.num_q_heads,
                             .forced = settings_.sink_tokens,
                             .count = static_cast<std::int32_t>(settings_.num_columns)},
                input.elements());
    kernels.run(TopEntryArgs{.mass = distance_mass_.data(),
                             .entries = distances_.data(),
                             .seqlen = problem_.seqlen,
                             .num_heads = problem_.num_q_heads,
                             .forced = settings_.local_distances,
                             .count = static_cast<std::int32_t>(settings_.num_distances),
                             .descending = true},
                input.elements());
    plan_next(0, input, kernels);
  }

 private:
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

  const MinferenceDeviceSettings settings_;
  const std::int32_t num_chunks_;
  Workspace::Array<float> largest_, normalisers_, mass_, distance_mass_, chunk_diagonals_;
  Workspace::Array<std::int32_t> columns_, distances_;
};

}  // namespace

std::unique_ptr<Planner> make_minference_planner(const Problem& problem,
                                                 const MinferenceDeviceSettings& settings,
                                                 std::int64_t l2_bytes) {
  const auto check = [](const char* name, std::int64_t value, std::int64_t most) {
    if (value >= 1 && value <= most) return;
    throw UnsupportedError("planning of minference: " + std::string(name) + " is " +
                           std::to_string(value) + ", supported on the device are 1 to " +
                           std::to_string(most));
  };
  check("num_columns", settings.num_columns, std::min(kMaxKeptColumns, problem.seqlen));
  check("num_distances", settings.num_distances, problem.seqlen);
  check("last_queries", settings.last_queries,
        std::min<std::int64_t>(kLastQueries, problem.seqlen));
  return std::make_unique<MinferencePlanner>(problem, settings, l2_bytes);
}

}  // namespace s2o
