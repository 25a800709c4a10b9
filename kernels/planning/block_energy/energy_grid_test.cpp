// Shared memory of the energies on warpgroups: how deep the ring is, and where none fits.
#include "kernels/planning/block_energy/energy_grid_sm90.cuh"

#include <gtest/gtest.h>

namespace s2o::device {
namespace {

BlockEnergyArgs args_of(std::int64_t seqlen, bool two_branches) {
  static const float kLift = 0.0f;
  return {.lifts = two_branches ? &kLift : nullptr,
          .seqlen = seqlen,
          .num_blocks = static_cast<std::int32_t>(seqlen / kEnergyBlock)};
}

TEST(EnergyGridSm90, two_blocks_share_a_multiprocessor_at_131072_tokens) {
  for (const bool two_branches : {false, true}) {
    const BlockEnergyArgs args = args_of(131072, two_branches);
    const int stages = energy_stages_sm90(args, 128);
    EXPECT_EQ(stages, two_branches ? 3 : 4);
    EXPECT_LE(2 * (energy_bytes_sm90(args, 128, stages) + 1024), 228 * 1024);
  }
}

TEST(EnergyGridSm90, long_sequences_leave_room_for_one_block_or_none) {
  const BlockEnergyArgs longest = args_of(2097152, false);
  EXPECT_GE(energy_stages_sm90(longest, 128), kEnergyMinStages);
  EXPECT_GE(energy_stages_sm90(args_of(1048576, true), 128), kEnergyMinStages);
  EXPECT_EQ(energy_stages_sm90(args_of(2097152, true), 128), 0);
}

TEST(EnergyGridSm90, ring_places_come_round_with_the_other_parity) {
  RingPlace place;
  for (int entry = 0; entry < 20; ++entry) {
    EXPECT_EQ(place.stage(), entry % 3);
    EXPECT_EQ(place.parity(), entry / 3 % 2);
    place.advance(3);
  }
}

}  // namespace
}  // namespace s2o::device
