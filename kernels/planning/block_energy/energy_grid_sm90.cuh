// Blocks, shared memory and tensor map of the energies on warpgroups (energy_rows_sm90.cuh).
#pragma once

#include "kernels/device/layout.cuh"
#include "kernels/device/mbarrier_sm90.cuh"
#include "kernels/device/tma_sm90.cuh"
#include "kernels/planning/block_energy/ops.h"
#include "kernels/planning/launch.cuh"

namespace s2o::device {

inline constexpr int kEnergyConsumers = 2;  // warpgroups, a tile each
// And a warp that fills the ring. Two blocks of so few threads leave 96 registers to each thread; a
// warpgroup to fill would leave 80, too few for the product to be compiled.
inline constexpr int kEnergyThreadsSm90 = kEnergyConsumers * 128 + 32;
inline constexpr int kEnergyBlocksSm90 = 2;  // of a multiprocessor
inline constexpr int kEnergyKeys = 64;       // mean keys of a step
// The ring's entries are panels of 64 columns of the mean keys of a step.
inline constexpr int kEnergyPanelBytes = kEnergyKeys * kPanelRowBytes;
inline constexpr int kEnergyMinStages = 3;
inline constexpr int kEnergyMaxStages = 8;

// What a launch adds to BlockEnergyArgs.
struct EnergyGridSm90 {
  TensorMap means;  // [num_kv_heads, num_blocks, head_dim], boxes of kEnergyKeys rows
  std::int32_t num_stages = 0;
};

// In shared memory: the queries of the tiles, the stages, this, then of each tile and branch an
// energy for every block, rounded up to whole steps.
struct SharedEnergySm90 {
  Barrier full[kEnergyMaxStages];
  Barrier empty[kEnergyMaxStages];
  alignas(16) float row_norm[kEnergyConsumers][kEnergyBlock];
  float reference[kEnergyConsumers][2][4];  // of each branch and warp, log2
  float loudest[kEnergyConsumers][2][4];
  // Of both tiles; here because registers are short.
  std::int32_t first_tile;
  std::int32_t plan_head;
  std::int32_t kv_head;
  std::int32_t num_steps;      // of the tile with more
  std::int32_t energy_stride;  // energies of a tile and branch
};

inline int energy_bytes_sm90(const BlockEnergyArgs& args, int head_dim, int stages) {
  const int branches = args.lifts != nullptr ? 2 : 1;
  const int steps = ceil_div(args.num_blocks, kEnergyKeys);
  return kEnergyConsumers * tile_bytes(kEnergyBlock, head_dim) + stages * kEnergyPanelBytes +
         static_cast<int>(sizeof(SharedEnergySm90)) +
         kEnergyConsumers * branches * steps * kEnergyKeys * static_cast<int>(sizeof(float));
}
// Stages of the ring; 0: the energies leave no room for one.
inline int energy_stages_sm90(const BlockEnergyArgs& args, int head_dim) {
  // Of compute capability 9.0, where a block takes 1 KiB beside its own.
  constexpr int kBlockBytes = 227 * 1024;
  constexpr int kHalfBytes = (228 * 1024 - kEnergyBlocksSm90 * 1024) / kEnergyBlocksSm90;
  for (const int limit : {kHalfBytes, kBlockBytes}) {
    for (int stages = kEnergyMaxStages; stages >= kEnergyMinStages; --stages) {
      if (energy_bytes_sm90(args, head_dim, stages) <= limit) return stages;
    }
  }
  return 0;
}
inline int energy_blocks_sm90(const BlockEnergyArgs& args) {
  return args.num_plan_heads * ceil_div(args.end_tile - args.first_tile, kEnergyConsumers);
}
inline EnergyGridSm90 energy_grid_sm90(const BlockEnergyArgs& args, int head_dim,
                                       const AddedBy& by) {
  return {.means = by.tensor_map(
              mapped_heads(args.means, args.num_plan_heads / args.plan_heads_per_kv_head,
                           args.num_blocks, head_dim),
              kEnergyKeys),
          .num_stages = energy_stages_sm90(args, head_dim)};
}

// Entry by entry through a ring whose number of stages the launch chose; in one register.
class RingPlace {
 public:
  S2O_DEVICE int stage() const { return static_cast<int>(bits_ / 2); }
  S2O_DEVICE int parity() const { return static_cast<int>(bits_ % 2); }  // of the round
  S2O_DEVICE void advance(int num_stages) {
    bits_ += 2;
    if (stage() == num_stages) bits_ = (bits_ % 2) ^ 1;
  }

 private:
  unsigned bits_ = 0;
};

}  // namespace s2o::device
