#include <algorithm>

#include "kernels/planning/flexprefill/ops.h"
#include "kernels/planning/pooled/ops.h"
#include "lib/methods/common/device_planning.h"
#include "lib/methods/common/last_query_arrays.h"
#include "lib/methods/flexprefill/flexprefill.h"

namespace s2o {
namespace {

// Block probabilities of several heads are in memory together within this many bytes.
constexpr std::int64_t kProbabilityBytes = std::int64_t{1} << 29;

// The rows of a head are cut together: no batches. kMaxFlexBlocks bounds the items.
PlannerLimits without_batches(PlannerLimits limits) {
  limits.list_bytes_per_token = std::int64_t{1} << 20;
  return limits;
}

class FlexPrefillPlanner final : public TilePlanner {
 public:
  FlexPrefillPlanner(const Problem& problem, const FlexPrefillSettings& settings,
                     const PlannerLimits& limits)
      : TilePlanner(
            problem, settings.block, settings.block, /*pack=*/1, settings.fold,
            [](int tile) { return max_items_of_row(tile + 1); }, without_batches(limits)),
        settings_(settings),
        num_blocks_(ceil_div<std::int32_t>(problem.seqlen, settings.block)),
        row_stride_(ceil_div<std::int32_t>(num_blocks_, 64) * 64) {
    if (settings.dense) return;
    const std::int64_t heads = problem.num_q_heads;
    const std::int64_t blocks = num_blocks_;
    last_queries_ = LastQueryArrays(workspace_, problem, settings.block, problem.seqlen,
                                    /*by_distance=*/true);
    key_means_ = workspace_.add<std::uint16_t>(problem.num_kv_heads * blocks * problem.head_dim);
    query_aware_ = workspace_.add<std::int32_t>(heads);
    bits_ = workspace_.add<std::uint32_t>(2 * heads * num_words());
    if (settings.tau <= 0.0) return;  // no head is query aware
    const std::int64_t group = problem.group_size();
    const std::int64_t group_bytes = group * blocks * (4 * blocks + 2 * row_stride_);
    groups_at_once_ = static_cast<std::int32_t>(std::clamp<std::int64_t>(
        (limits.scratch_bytes > 0 ? limits.scratch_bytes : kProbabilityBytes) / group_bytes, 1,
        problem.num_kv_heads));
    const std::int64_t rows = groups_at_once_ * group * blocks;
    query_means_ = workspace_.add<std::uint16_t>(heads * blocks * problem.head_dim);
    scores_ = workspace_.add<std::uint16_t>(rows * row_stride_);
    probabilities_ = workspace_.add<float>(rows * blocks);
    row_ties_ = workspace_.add<std::int32_t>(rows);
    cuts_ = workspace_.add<FlexCut>(groups_at_once_ * group);
  }

  PlanningCost cost() const override {
    if (settings_.dense) return {};
    const double d = problem_.head_dim;
    const auto seqlen = static_cast<double>(problem_.seqlen);
    const double heads = problem_.num_q_heads;
    const double keys = seqlen * d * problem_.num_kv_heads;
    PlanningCost cost{.flops = 2.0 * 2.0 * settings_.block * seqlen * d * heads,
                      // Keys for both passes of the product and for the means; masses out and in.
                      .bytes = 3.0 * 2.0 * keys + 4.0 * 4.0 * seqlen * heads};
    if (settings_.tau > 0.0) {  // queries are pooled whether or not a head is query aware
      const double pairs = 0.5 * heads * num_blocks_ * num_blocks_;
      cost.flops += seqlen * d * heads + 2.0 * pairs * d;
      cost.bytes += 2.0 * seqlen * d * heads + 2.0 * 2.0 * pairs;
    }
    return cost;
  }

 private:
  void plan_tiles(const TileBatch&, const DeviceInput& input,
                  PlanningKernels& kernels) const override {
    FlexRowArgs rows{.query_aware = query_aware_.data(),
                     .column_bits = bits_.data(),
                     .diagonal_bits = diagonal_bits(),
                     .num_heads = problem_.num_q_heads,
                     .num_blocks = num_blocks_,
                     .row_stride = row_stride_,
                     .block = settings_.block,
                     .seqlen = problem_.seqlen,
                     .target = static_cast<float>(settings_.gamma * num_blocks_),
                     .dense = settings_.dense,
                     .item_offsets = item_offsets_.data(),
                     .items = items_.data(),
                     .item_counts = item_counts_.data(),
                     .bad_row = bad_row_.data()};
    if (!settings_.dense) plan_heads(input, kernels);
    if (settings_.dense || settings_.tau <= 0.0) {
      kernels.run(rows, input.elements());
      return;
    }
    pool_queries(input, kernels);
    rows.scores = scores_.data();
    rows.probabilities = probabilities_.data();
    rows.cuts = cuts_.data();
    rows.row_ties = row_ties_.data();
    for (std::int32_t group = 0; group < problem_.num_kv_heads; group += groups_at_once_) {
      plan_rows(group, rows, input, kernels);
    }
  }

  std::int64_t num_words() const { return ceil_div<std::int32_t>(num_blocks_, 32); }
  std::uint32_t* diagonal_bits() const {
    return bits_.data() == nullptr ? nullptr : bits_.data() + problem_.num_q_heads * num_words();
  }

  void plan_heads(const DeviceInput& input, PlanningKernels& kernels) const {
    kernels.clear(bits_.data(), bits_.size_bytes());
    LastQueryArgs last_queries = last_queries_.args(input, bad_row_.data(), header_.num_q_tiles);
    last_queries.scales_queries = true;
    last_queries.mass_factor = 1.0f / static_cast<float>(settings_.block);
    kernels.run(last_queries, input.elements());
    kernels.run(PoolArgs{.x = input.k,
                         .means = key_means_.data(),
                         .seqlen = problem_.seqlen,
                         .block = settings_.block,
                         .num_blocks = num_blocks_,
                         .num_heads = problem_.num_kv_heads},
                input.elements());
    kernels.run(FlexHeadArgs{.q = input.q,
                             .key_means = key_means_.data(),
                             .mass = last_queries_.mass.data(),
                             .distance_mass = last_queries_.distance_mass.data(),
                             .query_aware = query_aware_.data(),
                             .column_bits = bits_.data(),
                             .diagonal_bits = diagonal_bits(),
                             .seqlen = problem_.seqlen,
                             .num_heads = problem_.num_q_heads,
                             .group_size = problem_.group_size(),
                             .block = settings_.block,
                             .num_blocks = num_blocks_,
                             .min_blocks = static_cast<std::int32_t>(
                                 std::min<std::int64_t>(settings_.min_blocks, num_blocks_)),
                             .gamma = static_cast<float>(settings_.gamma),
                             .tau = settings_.tau,
                             .scale = problem_.softmax_scale},
                input.elements());
  }

  void pool_queries(const DeviceInput& input, PlanningKernels& kernels) const {
    kernels.run(PoolArgs{.x = input.q,
                         .means = query_means_.data(),
                         .seqlen = problem_.seqlen,
                         .block = settings_.block,
                         .num_blocks = num_blocks_,
                         .num_heads = problem_.num_q_heads,
                         .divide_by_block = true},
                input.elements());
    const std::int64_t last = problem_.seqlen - (num_blocks_ - std::int64_t{1}) * settings_.block;
    kernels.run(
        FlexMeanArgs{.means = query_means_.data(),
                     .num_heads = problem_.num_q_heads,
                     .num_blocks = num_blocks_,
                     .last_factor = static_cast<float>(settings_.block) / static_cast<float>(last),
                     .scale = problem_.softmax_scale},
        input.elements());
  }

  void plan_rows(std::int32_t first_group, FlexRowArgs rows, const DeviceInput& input,
                 PlanningKernels& kernels) const {
    const std::int32_t groups = std::min(groups_at_once_, problem_.num_kv_heads - first_group);
    rows.first_head = first_group * problem_.group_size();
    rows.num_heads = groups * problem_.group_size();
    const std::int64_t per_head = std::int64_t{num_blocks_} * problem_.head_dim;
    kernels.run(BlockScoreArgs{.q = query_means_.data() + rows.first_head * per_head,
                               .k = key_means_.data() + first_group * per_head,
                               .scores = scores_.data(),
                               .num_heads = rows.num_heads,
                               .heads_per_k = problem_.group_size(),
                               .num_q_blocks = num_blocks_,
                               .num_kv_blocks = num_blocks_,
                               .num_rows = num_blocks_,
                               .row_stride = row_stride_,
                               .block_m = settings_.block,
                               .block_n = settings_.block,
                               .scale = 1.0f},
                input.elements());
    kernels.run(FlexCutArgs{rows}, input.elements());
    kernels.run(rows, input.elements());
  }

  const FlexPrefillSettings settings_;
  const std::int32_t num_blocks_;
  const std::int32_t row_stride_;
  std::int32_t groups_at_once_ = 1;
  LastQueryArrays last_queries_;
  Workspace::Array<std::uint16_t> key_means_, query_means_, scores_;
  Workspace::Array<std::int32_t> query_aware_, row_ties_;
  Workspace::Array<std::uint32_t> bits_;  // of columns, then of diagonals
  Workspace::Array<float> probabilities_;
  Workspace::Array<FlexCut> cuts_;
};

}  // namespace

bool flexprefill_plans_on_device(const Problem& problem, const FlexPrefillSettings& settings) {
  return is_device_block(settings.block) &&
         ceil_div<std::int32_t>(problem.seqlen, settings.block) <= kMaxFlexBlocks;
}

std::unique_ptr<Planner> flexprefill_planner(const Problem& problem,
                                             const FlexPrefillSettings& settings,
                                             const PlannerLimits& limits) {
  return std::make_unique<FlexPrefillPlanner>(problem, settings, limits);
}

}  // namespace s2o
