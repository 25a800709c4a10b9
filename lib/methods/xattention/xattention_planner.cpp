#include <algorithm>
#include <numbers>
#include <vector>

#include "kernels/planning/xattention/ops.h"
#include "lib/methods/common/device_planning.h"
#include "lib/methods/xattention/xattention.h"

namespace s2o {
namespace {

// Partial sums of several tiles of rows are in memory together within this many bytes.
constexpr std::int64_t kSumBytes = std::int64_t{1} << 30;

class XAttentionPlanner final : public TilePlanner {
 public:
  XAttentionPlanner(const Problem& problem, const XAttentionSettings& settings,
                    const PlannerLimits& limits)
      : TilePlanner(
            problem, settings.block, settings.block, /*pack=*/1, settings.fold,
            [](int tile) { return max_items_of_row(tile + 1); }, limits,
            /*tile_group=*/kStrideRows / (settings.block / settings.stride)),
        settings_(settings),
        columns_per_block_(settings.block / settings.stride),
        num_rows_(ceil_div<std::int32_t>(problem.seqlen, settings.stride)),
        num_blocks_(ceil_div<std::int32_t>(problem.seqlen, settings.block)) {
    const std::int64_t sum_bytes = limits.scratch_bytes > 0 ? limits.scratch_bytes : kSumBytes;
    std::int64_t groups = 0;
    std::int64_t masses = 0;
    auto batch = batches().begin();
    for (std::int32_t first = 0; first < num_tiles_of_rows();) {
      if (blocks_before(first) >= batch->end_tile) ++batch;
      std::int32_t end = first + 1;
      while (blocks_before(end) < batch->end_tile && strip_bytes(first, end + 1) <= sum_bytes) {
        ++end;
      }
      groups = std::max(groups, stride_groups(first, end));
      masses =
          std::max(masses, static_cast<std::int64_t>(blocks_before(end) - blocks_before(first)));
      strips_.push_back({first, end});
      first = end;
    }
    const std::int64_t heads = problem.num_q_heads;
    references_ = workspace_.add<float>(heads * groups * kStrideRows);
    sums_ = workspace_.add<float>(heads * groups * kStrideRows * blocks_per_group());
    row_stride_ = ceil_div<std::int32_t>(num_blocks_, 64) * 64;
    masses_ = workspace_.add<std::uint16_t>(heads * masses * row_stride_);
  }

  PlanningCost cost() const override {
    const double d = problem_.head_dim;
    const auto seqlen = static_cast<double>(problem_.seqlen);
    const double heads = problem_.num_q_heads;
    const double pairs = 0.5 * num_rows_ * num_rows_ * heads;
    const double groups =
        heads * static_cast<double>(stride_groups(0, num_tiles_of_rows())) * kStrideRows;
    return {.flops = 2.0 * pairs * settings_.stride * d,
            // Queries and keys, then partial sums once out and once in, masses the same.
            .bytes = 2.0 * seqlen * d * (heads + problem_.num_kv_heads) +
                     2.0 * 4.0 * groups * (1.0 + blocks_per_group()) +
                     2.0 * num_blocks_ * num_blocks_ * heads};
  }

 private:
  // No strip is of two batches.
  void plan_tiles(const TileBatch& batch, const DeviceInput& input,
                  PlanningKernels& kernels) const override {
    for (const Strip& strip : strips_) {
      const std::int32_t first = blocks_before(strip.first_tile);
      if (first >= batch.first_tile && first < batch.end_tile) plan_strip(strip, input, kernels);
    }
  }

  struct Strip {
    std::int32_t first_tile;
    std::int32_t end_tile;
  };

  int blocks_per_group() const { return kStrideGroup / columns_per_block_; }
  std::int32_t num_tiles_of_rows() const { return ceil_div<std::int32_t>(num_rows_, kStrideRows); }
  std::int64_t strip_bytes(std::int32_t first, std::int32_t end) const {
    return problem_.num_q_heads * stride_groups(first, end) * kStrideRows *
           (1 + blocks_per_group()) * static_cast<std::int64_t>(sizeof(float));
  }
  // Blocks of queries whose reduced rows lie in tiles before `tile`.
  std::int32_t blocks_before(std::int32_t tile) const {
    return std::min(tile * (kStrideRows / columns_per_block_), num_blocks_);
  }

  void plan_strip(const Strip& strip, const DeviceInput& input, PlanningKernels& kernels) const {
    const std::int32_t end_row = std::min(strip.end_tile * kStrideRows, num_rows_);
    kernels.run(
        XAttentionSumArgs{
            .q = input.q,
            .k = input.k,
            .references = references_.data(),
            .sums = sums_.data(),
            .seqlen = problem_.seqlen,
            .num_q_heads = problem_.num_q_heads,
            .group_size = problem_.group_size(),
            .stride = settings_.stride,
            .columns_per_block = columns_per_block_,
            .num_rows = num_rows_,
            .first_tile = strip.first_tile,
            .end_tile = strip.end_tile,
            .num_chunks = ceil_div<std::int32_t>(end_row, kStrideChunkSteps * kStrideColumns),
            .scale_log2 = problem_.softmax_scale / static_cast<float>(settings_.stride) *
                          std::numbers::log2e_v<float>},
        input.elements());
    const std::int32_t first_block = blocks_before(strip.first_tile);
    const std::int32_t blocks = blocks_before(strip.end_tile) - first_block;
    kernels.run(XAttentionMassArgs{.references = references_.data(),
                                   .sums = sums_.data(),
                                   .mass = masses_.data(),
                                   .num_q_heads = problem_.num_q_heads,
                                   .columns_per_block = columns_per_block_,
                                   .num_rows = num_rows_,
                                   .first_tile = strip.first_tile,
                                   .end_tile = strip.end_tile,
                                   .first_block = first_block,
                                   .num_blocks = blocks,
                                   .row_stride = row_stride_},
                input.elements());
    kernels.run(XAttentionRowArgs{.rows = {.scores = masses_.data(),
                                           .num_heads = problem_.num_q_heads,
                                           .num_q_blocks = num_blocks_,
                                           .num_kv_blocks = num_blocks_,
                                           .first_row = first_block,
                                           .num_rows = blocks,
                                           .row_stride = row_stride_,
                                           .block_m = settings_.block,
                                           .block_n = settings_.block,
                                           .seqlen = problem_.seqlen,
                                           .item_offsets = item_offsets_.data(),
                                           .items = items_.data(),
                                           .item_counts = item_counts_.data(),
                                           .bad_row = bad_row_.data()},
                                  .mass_share = settings_.threshold,
                                  .first_chunk_blocks =
                                      static_cast<std::int32_t>(settings_.chunk / settings_.block)},
                input.elements());
  }

  const XAttentionSettings settings_;
  const std::int32_t columns_per_block_;
  const std::int32_t num_rows_;    // reduced
  const std::int32_t num_blocks_;  // of queries and of keys
  std::int32_t row_stride_ = 0;
  std::vector<Strip> strips_;
  Workspace::Array<float> references_, sums_;
  Workspace::Array<std::uint16_t> masses_;
};

}  // namespace

std::unique_ptr<Planner> xattention_planner(const Problem& problem,
                                            const XAttentionSettings& settings,
                                            const PlannerLimits& limits) {
  return std::make_unique<XAttentionPlanner>(problem, settings, limits);
}

}  // namespace s2o
