// Planning of methods that keep the key blocks whose energy against a tile of queries is within a
// factor of the loudest.
#pragma once

#include "kernels/common/ceil_div.h"
#include "kernels/common/error.h"
#include "kernels/planning/block_energy/ops.h"
#include "kernels/planning/pooled/ops.h"
#include "lib/methods/common/device_planning.h"

namespace s2o {

class BlockEnergyPlanner : public TilePlanner {
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
  BlockEnergyPlanner(const Problem& problem, int pack, const PlannedFold& fold,
                     const PlannerLimits& limits)
      : TilePlanner(
            problem, kEnergyBlock, kEnergyBlock, pack, fold,
            [pack](int tile) {
              const std::int64_t end = (static_cast<std::int64_t>(tile) + 1) * kEnergyBlock;
              return max_items_of_row((end - 1) / pack / kEnergyBlock + 1);
            },
            limits),
        num_blocks_(ceil_div<std::int32_t>(problem.seqlen, kEnergyBlock)) {
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

  // What the operation must know of the method: its rule and forced blocks.
  virtual BlockEnergyArgs energy_rule() const = 0;

  void prepare(const DeviceInput& input, PlanningKernels& kernels) const override {
    kernels.run(PoolArgs{.x = input.k,
                         .means = means_.data(),
                         .seqlen = problem_.seqlen,
                         .block = kEnergyBlock,
                         .num_blocks = num_blocks_,
                         .num_heads = problem_.num_kv_heads},
                input.elements());
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

}  // namespace s2o
