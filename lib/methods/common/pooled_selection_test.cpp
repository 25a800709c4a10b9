#include "lib/methods/common/pooled_selection.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "lib/core/error.h"

namespace s2o {
namespace {

using ::testing::ElementsAre;

std::vector<std::uint8_t> cross_in(const std::vector<float>& probability, double threshold) {
  std::vector<std::uint8_t> selected(probability.size(), 0);
  select_cross_in(probability, threshold, selected.data());
  return selected;
}

// Trap 13.2: the item that crosses the threshold is kept. (The micro-test of the specification.)
TEST(SelectCrossIn, crossing_item_is_kept) {
  const std::vector<float> p = {0.5f, 0.25f, 0.125f, 0.125f};
  EXPECT_THAT(cross_in(p, 0.75), ElementsAre(1, 1, 0, 0));
  EXPECT_THAT(cross_in(p, 0.8), ElementsAre(1, 1, 1, 0));
  EXPECT_THAT(cross_in(p, 0.5), ElementsAre(1, 0, 0, 0));
}

TEST(SelectCrossIn, order_is_by_probability_then_index) {
  EXPECT_THAT(cross_in({0.125f, 0.25f, 0.125f, 0.5f}, 0.7), ElementsAre(0, 1, 0, 1));
  EXPECT_THAT(cross_in({0.25f, 0.25f, 0.25f, 0.25f}, 0.5), ElementsAre(1, 1, 0, 0));
}

// The second micro-test: a row without mass (first segment) selects nothing by itself.
TEST(SelectCrossIn, unreachable_threshold_selects_nothing) {
  EXPECT_THAT(cross_in({0, 0, 0}, 0.1), ElementsAre(0, 0, 0));
  EXPECT_THAT(cross_in({0.5f, 0.25f, 0.2499f}, 0.99999), ElementsAre(0, 0, 0));
}

// Trap 13.16: threshold 1 means "all", even where the running sum misses 1 by rounding.
TEST(SelectCrossIn, threshold_one_selects_all) {
  EXPECT_THAT(cross_in({0.5f, 0.25f, 0.2499f}, 1.0), ElementsAre(1, 1, 1));
  EXPECT_THAT(cross_in({0, 0, 0}, 1.0), ElementsAre(1, 1, 1));
}

// Equal scores must stay equal wherever they stand and however the buffer is aligned: otherwise
// ties would go by address instead of by index.
TEST(SoftmaxRow, equal_scores_have_equal_probabilities) {
  for (std::size_t offset = 0; offset < 8; ++offset) {
    std::vector<float> buffer(offset + 203, -31.7f);
    const std::span<float> row = std::span(buffer).subspan(offset);
    row[77] = 0.3f;
    ASSERT_TRUE(softmax_row(row));
    for (std::size_t j = 0; j < row.size(); ++j) {
      ASSERT_EQ(row[j], j == 77 ? row[77] : row[0]) << "offset " << offset << " index " << j;
    }
  }
}

// Trap 13.3: the softmax runs over the allowed blocks alone; the rest has no mass and no vote.
TEST(SelectPooledRow, mass_base_is_the_allowed_blocks) {
  const std::vector<float> scores = {0.0f, 1.0f, 0.0f, 50.0f};
  std::vector<std::uint8_t> selected(4, 0);
  select_pooled_row(scores, 3, 0.5, selected.data());
  EXPECT_THAT(selected, ElementsAre(0, 1, 0, 0));  // e / (e + 2) = 0.58
  select_pooled_row(scores, 3, 0.7, selected.data());
  EXPECT_THAT(selected, ElementsAre(1, 1, 0, 0));
  selected.assign(4, 0);
  select_pooled_row(scores, 0, 0.9, selected.data());
  EXPECT_THAT(selected, ElementsAre(0, 0, 0, 0));
}

// Trap 13.17: a partial last block is divided by the block size, as if padded with zeros.
TEST(PooledScores, partial_block_shrinks) {
  const std::vector<float> ones(5, 1.0f);  // blocks of 4: one full, one with a single row
  const std::vector<float> scores = pooled_scores(ones.data(), ones.data(), 5, 1, 4, 2.0f, {});
  EXPECT_THAT(scores, ElementsAre(2.0f, 0.5f, 0.5f, 0.125f));
}

TEST(PooledScores, official_level_rounds_means_products_and_scaled_scores) {
  // Mean 1 + 1/256 lies between two bf16 values (1 and 1 + 1/128) and rounds to even: 1.
  const std::vector<float> x = {1.0f, 1.0f + 1.0f / 128.0f};
  const Rounder bf16(StorageDType::kBF16);
  EXPECT_THAT(pooled_scores(x.data(), x.data(), 2, 1, 2, 1.0f, bf16), ElementsAre(1.0f));
  EXPECT_GT(pooled_scores(x.data(), x.data(), 2, 1, 2, 1.0f, {})[0], 1.007f);
  // r(3 * 3) = 9, then r(9 * 0.7) = 6.3125 in bf16 (step 1/32); fp32 gives 6.3.
  const std::vector<float> three = {3.0f};
  EXPECT_THAT(pooled_scores(three.data(), three.data(), 1, 1, 1, 0.7f, bf16), ElementsAre(6.3125f));
}

TEST(OrderInsideSegments, sorts_each_complete_segment_with_ties_by_token) {
  const std::vector<float> mass = {1, 3, 3, 0, 5, 5, 5, 6};
  EXPECT_THAT(order_inside_segments(mass, 10, 4), ElementsAre(1, 2, 0, 3, 7, 4, 5, 6, 8, 9));
  EXPECT_EQ(complete_segments_end(10, 4), 8);
  EXPECT_EQ(complete_segments_end(3, 4), 0);
  EXPECT_THAT(order_inside_segments({}, 3, 4), ElementsAre(0, 1, 2));
}

// Trap 13.15: the sink is where token 0 went, not storage block 0.
TEST(BlockOfTokenZero, follows_the_permutation) {
  const std::vector<std::int32_t> order = {2, 3, 1, 0, 4, 5};
  EXPECT_EQ(block_of_token_zero(order, 2), 1);
  EXPECT_EQ(block_of_token_zero(order, 4), 0);
}

TEST(GatherRows, copies_rows_in_storage_order) {
  const std::vector<float> x = {1, 2, 3, 4, 5, 6};
  const std::vector<std::int32_t> order = {2, 0, 1};
  EXPECT_THAT(gather_rows(x.data(), order, 2), ElementsAre(5, 6, 1, 2, 3, 4));
}

}  // namespace
}  // namespace s2o
