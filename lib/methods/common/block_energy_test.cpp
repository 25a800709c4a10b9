#include "lib/methods/common/block_energy.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

namespace s2o {
namespace {

using ::testing::ElementsAre;

LogitMatrix matrix(std::initializer_list<std::initializer_list<float>> rows) {
  LogitMatrix result(static_cast<Eigen::Index>(rows.size()),
                     static_cast<Eigen::Index>(rows.begin()->size()));
  Eigen::Index r = 0;
  for (const auto& row : rows) {
    Eigen::Index c = 0;
    for (const float x : row) result(r, c++) = x;
    ++r;
  }
  return result;
}

std::vector<std::uint8_t> kept(const std::vector<float>& energies, float alpha) {
  std::vector<std::uint8_t> selected(energies.size(), 0);
  select_by_energy(energies, alpha, selected.data());
  return selected;
}

std::vector<std::uint8_t> forced(const ForcedBlocks& rule, int first, int last, bool is_last_tile) {
  std::vector<std::uint8_t> selected(8, 0);
  force_blocks(rule, first, last, is_last_tile, selected.data());
  return selected;
}

// Trap 22.3: one maximum per tile. With a row softmax both blocks would have energy near 1.
TEST(TileEnergies, quiet_row_has_almost_no_vote) {
  const std::vector<std::int32_t> row_blocks = {2, 2};
  const std::vector<float> energies = tile_energies(matrix({{10, 0}, {-10, 5}}), row_blocks, 2);
  EXPECT_NEAR(energies[0], 1.0f, 1e-6f);
  EXPECT_NEAR(energies[1], std::exp(-5.0f) + std::exp(-10.0f), 1e-6f);
  EXPECT_THAT(kept(energies, 0.1f), ElementsAre(1, 0));
}

TEST(TileEnergies, rows_that_take_no_part_count_in_neither_maximum_nor_sum) {
  const std::vector<std::int32_t> row_blocks = {1, 2, 0};
  const std::vector<float> energies =
      tile_energies(matrix({{1, 99}, {2, 0}, {99, 99}}), row_blocks, 2);
  EXPECT_NEAR(energies[0], std::exp(-1.0f) + 1.0f, 1e-6f);
  EXPECT_NEAR(energies[1], std::exp(-2.0f), 1e-6f);
}

TEST(TileEnergies, rows_that_see_more_than_the_candidates_are_cut) {
  const std::vector<std::int32_t> row_blocks = {3};
  EXPECT_THAT(tile_energies(matrix({{0, 0, 50}}), row_blocks, 2), ElementsAre(1.0f, 1.0f));
  EXPECT_TRUE(tile_energies(matrix({{0, 0, 50}}), row_blocks, 0).empty());
}

// Trap 22.12: energies are powers of e of the scaled logit. In base 2 the second block would have
// 0.177 of the first and stay.
TEST(TileEnergies, base_is_e) {
  const std::vector<std::int32_t> row_blocks = {2};
  EXPECT_THAT(kept(tile_energies(matrix({{0, -2.5f}}), row_blocks, 2), 0.1f), ElementsAre(1, 0));
  EXPECT_THAT(kept(tile_energies(matrix({{0, -2.2f}}), row_blocks, 2), 0.1f), ElementsAre(1, 1));
}

TEST(TileEnergies, huge_logits_stay_finite) {
  const std::vector<std::int32_t> row_blocks = {2};
  const std::vector<float> energies = tile_energies(matrix({{3e4f, 2e4f}}), row_blocks, 2);
  EXPECT_EQ(energies[0], 1.0f);
  EXPECT_LT(energies[1], 1e-30f);
}

TEST(SelectByEnergy, alpha_zero_keeps_all_and_alpha_one_the_loudest) {
  const std::vector<float> energies = {0.0f, 3.0f, 2.9f, 3.0f};
  EXPECT_THAT(kept(energies, 0.0f), ElementsAre(1, 1, 1, 1));
  EXPECT_THAT(kept(energies, 1.0f), ElementsAre(0, 1, 0, 1));
  EXPECT_THAT(kept(energies, 0.95f), ElementsAre(0, 1, 1, 1));
}

// Trap 22.5: a loud sink block raises the cut for everybody, though it is forced anyway.
TEST(SelectByEnergy, maximum_runs_over_forced_blocks_too) {
  std::vector<std::uint8_t> selected(4, 0);
  const std::vector<float> energies = {100.0f, 5.0f, 4.0f, 1.0f};
  select_by_energy(energies, 0.1f, selected.data());
  force_blocks({.sink_blocks = 1, .window_blocks = 1}, 3, 3, false, selected.data());
  EXPECT_THAT(selected, ElementsAre(1, 0, 0, 1));
}

TEST(ForceBlocks, sink_window_and_tail) {
  EXPECT_THAT(forced({2, 3, 1}, 6, 6, false), ElementsAre(1, 1, 0, 0, 1, 1, 1, 0));
  EXPECT_THAT(forced({0, 1, 1}, 6, 6, false), ElementsAre(0, 0, 0, 0, 0, 0, 1, 0));
  EXPECT_THAT(forced({0, 1, 1}, 6, 6, true), ElementsAre(1, 1, 1, 1, 1, 1, 1, 0));
  // Nothing beyond the last row, however large the sink.
  EXPECT_THAT(forced({5, 1, 0}, 1, 1, false), ElementsAre(1, 1, 0, 0, 0, 0, 0, 0));
  // A tile that straddles blocks 4 and 5 counts its window from block 4.
  EXPECT_THAT(forced({0, 2, 0}, 4, 5, false), ElementsAre(0, 0, 0, 1, 1, 1, 0, 0));
  // window 0 leaves the diagonal to the energies.
  EXPECT_THAT(forced({0, 0, 0}, 4, 4, false), ElementsAre(0, 0, 0, 0, 0, 0, 0, 0));
}

// Trap 22.4: bounds that differ. Tiles of 32 positions (four heads a group), blocks of 128 keys.
TEST(EnergyBounds, scoring_v1_and_scoring_v2_differ) {
  EXPECT_EQ(v2_row_blocks(127, 128), 1);  // sees the first key of block 0 only
  EXPECT_EQ(v2_row_blocks(128, 128), 2);
  EXPECT_EQ(v1_row_blocks(126, 128), 0);  // does not see the last key of block 0
  EXPECT_EQ(v1_row_blocks(127, 128), 1);
  EXPECT_EQ(v1_row_blocks(254, 128), 1);
  EXPECT_EQ(v2_candidates(126, 128), 0);
  EXPECT_EQ(v2_candidates(127, 128), 1);
  EXPECT_EQ(v2_candidates(159, 128), 1);
}

TEST(Quantile, interpolates_between_order_statistics) {
  EXPECT_FLOAT_EQ(quantile_linear({5, 1, 4, 2, 3}, 0.5), 3.0f);
  EXPECT_FLOAT_EQ(quantile_linear({5, 1, 4, 2, 3}, 0.9), 4.6f);
  EXPECT_FLOAT_EQ(quantile_linear({4, 1}, 0.5), 2.5f);
  EXPECT_FLOAT_EQ(quantile_linear({7}, 0.9), 7.0f);
}

TEST(RadiusWeights, clip_between_median_and_ninetieth_percentile) {
  const std::vector<float> weights = radius_weights({1, 2, 3, 4, 5});
  EXPECT_FLOAT_EQ(weights[1], 0.0f);
  EXPECT_FLOAT_EQ(weights[2], 0.0f);
  EXPECT_FLOAT_EQ(weights[3], 0.625f);
  EXPECT_FLOAT_EQ(weights[4], 1.0f);
  EXPECT_FLOAT_EQ(radius_lifts({1, 2, 3, 4, 5})[3], 2.5f);
}

TEST(RadiusWeights, equal_quantiles_mark_only_what_exceeds_them) {
  std::vector<float> radii(20, 2.0f);
  radii[7] = 2.5f;
  const std::vector<float> weights = radius_weights(radii);
  EXPECT_EQ(weights[0], 0.0f);
  EXPECT_EQ(weights[7], 1.0f);
  EXPECT_TRUE(radius_weights({}).empty());
}

// Trap 22.15: the quantiles see the whole prompt, so later blocks change the weight of earlier
// ones.
TEST(RadiusWeights, later_blocks_change_earlier_weights) {
  EXPECT_FLOAT_EQ(radius_weights({1, 2, 3})[1], 0.0f);
  EXPECT_GT(radius_weights({1, 2, 3, 0.5f, 0.5f, 0.5f})[1], 0.3f);
}

TEST(BlockRadii, largest_distance_from_the_mean_of_complete_blocks) {
  // Block 0: keys (0, 0), (4, 0); block 1: (1, 1), (1, 1); then one key of an incomplete block.
  const std::vector<float> keys = {0, 0, 4, 0, 1, 1, 1, 1, 9, 9};
  EXPECT_THAT(block_radii(keys.data(), 5, 2, 2), ElementsAre(2.0f, 0.0f));
  EXPECT_TRUE(block_radii(keys.data(), 1, 2, 2).empty());
}

}  // namespace
}  // namespace s2o
