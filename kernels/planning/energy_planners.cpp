#include "kernels/planning/energy_planners.h"

#include <string>

#include "kernels/common/error.h"
#include "kernels/planning/block_energy/ops.h"
#include "kernels/planning/op.h"
#include "kernels/planning/pooled/ops.h"

namespace s2o {
namespace {

class EnergyPlanner : public TilePlanner {
 public:
  PlanningCost cost() const override {
    const double d = problem_.head_dim;
    const double rows = static_cast<double>(problem_.seqlen) * d;
    const double logits =
        0.5 * problem_.num_q_heads * static_cast<double>(problem_.seqlen) * num_blocks_;
    return {.flops = rows * problem_.num_kv_heads + 2.0 * logits * d,
            .bytes = 2.0 * rows * (problem_.num_q_heads + problem_.num_kv_heads)};
  }

 protected:
  EnergyPlanner(const Problem& problem, int pack, const PlannedFold& fold, const ItemRoom& room,
                std::int64_t l2_bytes)
      : TilePlanner(
            problem, kEnergyBlock, kEnergyBlock, pack, fold,
            [pack](int tile) {
              const std::int64_t end = (static_cast<std::int64_t>(tile) + 1) * kEnergyBlock;
              return max_items_of_row((end - 1) / pack / kEnergyBlock + 1);
            },
            room, l2_bytes),
        num_blocks_(static_cast<std::int32_t>((problem.seqlen + kEnergyBlock - 1) / kEnergyBlock)) {
    // What a block of threads holds per key block is in shared memory.
    constexpr std::int64_t kMaxBlocks = 16384;
    if (num_blocks_ > kMaxBlocks) {
      throw UnsupportedError("planning by energies: seqlen is " + std::to_string(problem.seqlen) +
                             ", supported are at most " +
                             std::to_string(kMaxBlocks * kEnergyBlock));
    }
    means_ = workspace_.add<std::uint16_t>(static_cast<std::int64_t>(problem.num_kv_heads) *
                                           num_blocks_ * problem.head_dim);
  }

  // What energy_rows must know of the method.
  virtual BlockEnergyArgs energy_rule() const = 0;

  void plan_all(const DeviceInput& input, PlanningKernels& kernels) const {
    kernels.clear(bad_row_.data(), bad_row_.size_bytes());
    kernels.run(PoolArgs{.x = input.k,
                         .means = means_.data(),
                         .seqlen = problem_.seqlen,
                         .block = kEnergyBlock,
                         .num_blocks = num_blocks_,
                         .num_heads = problem_.num_kv_heads},
                input.elements());
    plan_next(0, input, kernels);
  }

  void plan_tiles(const TileBatch& batch, const DeviceInput& input,
                  PlanningKernels& kernels) const override {
    BlockEnergyArgs args = energy_rule();
    args.q = input.q;
    args.means = means_.data();
    args.seqlen = problem_.seqlen;
    args.num_blocks = num_blocks_;
    args.num_plan_heads = header_.num_plan_heads;
    args.plan_heads_per_kv_head = header_.num_plan_heads / problem_.num_kv_heads;
    args.num_q_tiles = header_.num_q_tiles;
    args.first_tile = batch.first_tile;
    args.end_tile = batch.end_tile;
    args.pack = header_.pack;
    args.scale = problem_.softmax_scale;
    args.item_offsets = item_offsets_.data();
    args.items = items_.data();
    args.item_counts = item_counts_.data();
    args.bad_row = bad_row_.data();
    kernels.run(args, input.elements());
  }

  const std::int32_t num_blocks_;
  Workspace::Array<std::uint16_t> means_;
};

class FlashPrefillPlanner final : public EnergyPlanner {
 public:
  FlashPrefillPlanner(const Problem& problem, const FlashPrefillDeviceSettings& settings,
                      std::int64_t l2_bytes)
      : EnergyPlanner(problem, settings.packed ? problem.group_size() : 1, settings.fold,
                      settings.room, l2_bytes),
        settings_(settings) {}

  void plan(const DeviceInput& input, PlanningKernels& kernels) const override {
    plan_all(input, kernels);
  }

 private:
  BlockEnergyArgs energy_rule() const override {
    return {.rule = settings_.packed ? EnergyRule::kFlashPrefillV2 : EnergyRule::kFlashPrefillV1,
            .alpha = settings_.alpha,
            .sink_blocks = settings_.sink_blocks,
            .window_blocks = settings_.window_blocks,
            .last_tiles = settings_.last_tiles};
  }

  const FlashPrefillDeviceSettings settings_;
};

class RbsPlanner final : public EnergyPlanner {
 public:
  RbsPlanner(const Problem& problem, const RbsDeviceSettings& settings, std::int64_t l2_bytes)
      : EnergyPlanner(problem, /*pack=*/1, settings.fold, settings.room, l2_bytes),
        settings_(settings) {
    const std::int64_t count = static_cast<std::int64_t>(problem.num_kv_heads) * num_blocks_;
    radii_ = workspace_.add<float>(count);
    lifts_ = workspace_.add<float>(count);
  }

  void plan(const DeviceInput& input, PlanningKernels& kernels) const override {
    if (settings_.rescue) {
      kernels.run(BlockRadiusArgs{.k = input.k,
                                  .radii = radii_.data(),
                                  .lifts = lifts_.data(),
                                  .seqlen = problem_.seqlen,
                                  .num_kv_heads = problem_.num_kv_heads,
                                  .num_blocks = num_blocks_},
                  input.elements());
    }
    plan_all(input, kernels);
  }

 private:
  BlockEnergyArgs energy_rule() const override {
    return {.rule = EnergyRule::kRbs,
            .lifts = settings_.rescue ? lifts_.data() : nullptr,
            .alpha = settings_.alpha_base,
            .alpha_lifted = settings_.alpha_rescue,
            .sink_blocks = settings_.sink_blocks,
            .window_blocks = settings_.window_blocks,
            .last_tiles = settings_.last_tiles};
  }

  const RbsDeviceSettings settings_;
  Workspace::Array<float> radii_, lifts_;
};

}  // namespace

std::unique_ptr<Planner> make_flash_prefill_planner(const Problem& problem,
                                                    const FlashPrefillDeviceSettings& settings,
                                                    std::int64_t l2_bytes) {
  return std::make_unique<FlashPrefillPlanner>(problem, settings, l2_bytes);
}

std::unique_ptr<Planner> make_rbs_planner(const Problem& problem, const RbsDeviceSettings& settings,
                                          std::int64_t l2_bytes) {
  return std::make_unique<RbsPlanner>(problem, settings, l2_bytes);
}

}  // namespace s2o
