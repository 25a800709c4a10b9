#include "lib/report/heatmap.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <filesystem>

#include "lib/core/error.h"
#include "lib/core/random.h"
#include "lib/report/bitmap_font.h"
#include "lib/testing/files.h"

namespace s2o {
namespace {

constexpr int kPixels = 64;
constexpr std::int64_t kSeqlen = 512;  // 8 tokens a pixel

// Two query heads on one KV head, normal values.
AttentionInput sample_input(std::int64_t seqlen) {
  AttentionInput input;
  input.name = "sample";
  input.problem = {seqlen, 2, 1, 32, 0.0f};
  const auto fill = [](std::vector<float>& values, std::int64_t count, std::uint64_t stream) {
    const CounterRandom random(1, stream);
    for (std::int64_t i = 0; i < count; ++i) {
      values.push_back(static_cast<float>(random.normal(static_cast<std::uint64_t>(i))));
    }
  };
  fill(input.q, 2 * seqlen * 32, 0);
  fill(input.k, seqlen * 32, 1);
  fill(input.v, seqlen * 32, 2);
  validate_attention_input(input, false);
  return input;
}

SparsePlan plan_of(const AttentionInput& input, const std::string& method,
                   const std::vector<std::pair<std::string, nlohmann::json>>& values = {}) {
  const Method& found = find_method(method);
  ParamSet params(found.info().params);
  for (const auto& [name, value] : values) params.set(found.info().params, name, value, method);
  return found.plan_cpu({input, {}}, params);
}

double visited_pairs(const PixelGrid& share) {
  const std::int64_t tokens = kSeqlen / share.rows;
  double pairs = 0.0;
  for (int row = 0; row < share.rows; ++row) {
    for (int column = 0; column <= row; ++column) {
      const double causal = row == column ? static_cast<double>(tokens * (tokens + 1) / 2)
                                          : static_cast<double>(tokens * tokens);
      pairs += share.at(row, column) * causal;
    }
  }
  return pairs;
}

TEST(VisitedShare, dense_plan_visits_everything_below_the_diagonal_and_nothing_above) {
  const AttentionInput input = sample_input(kSeqlen);
  const PixelGrid share = visited_share(execute_head(input, plan_of(input, "dense"), 1), kPixels);
  for (int row = 0; row < kPixels; ++row) {
    for (int column = 0; column < kPixels; ++column) {
      EXPECT_DOUBLE_EQ(share.at(row, column), column <= row ? 1.0 : kNoValue)
          << row << " " << column;
    }
  }
}

TEST(VisitedShare, window_plan_leaves_out_what_lies_before_the_window) {
  const AttentionInput input = sample_input(kSeqlen);
  const SparsePlan plan = plan_of(input, "streaming_llm", {{"sink", 8}, {"window", 64}});
  const PixelGrid share = visited_share(execute_head(input, plan, 0), kPixels);
  EXPECT_DOUBLE_EQ(share.at(40, 0), 1.0) << "sink";
  EXPECT_DOUBLE_EQ(share.at(40, 1), 0.0);
  EXPECT_DOUBLE_EQ(share.at(40, 31), 0.0);
  EXPECT_DOUBLE_EQ(share.at(40, 33), 1.0);
  EXPECT_GT(share.at(40, 32), 0.0) << "the window begins inside this pixel";
  EXPECT_LT(share.at(40, 32), 1.0);
}

TEST(VisitedShare, pairs_agree_with_the_work_counter_for_a_permuted_plan_with_a_stop) {
  const AttentionInput input = sample_input(kSeqlen);
  const SparsePlan plan = plan_of(input, "s2o", {{"segment_size", 128}, {"tau", 0.9}});
  const ExecutedHead head = execute_head(input, plan, 1);
  EXPECT_LT(head.work.compute_density(), 1.0) << "the stop must have an effect here";
  EXPECT_NEAR(visited_pairs(visited_share(head, kPixels)),
              static_cast<double>(head.work.visited_pairs), 1e-6);
}

TEST(VisitedShare, pairs_of_packed_tiles_are_those_of_the_head) {
  const AttentionInput input = sample_input(kSeqlen);
  const SparsePlan plan = plan_of(input, "flash_prefill");
  const ExecutedHead head = execute_head(input, plan, 1);
  EXPECT_NEAR(visited_pairs(visited_share(head, kPixels)),
              static_cast<double>(head.work.visited_pairs), 1e-6);
}

TEST(ExecuteHead, stop_steps_are_those_of_the_whole_plan) {
  const AttentionInput input = sample_input(kSeqlen);
  const SparsePlan plan = plan_of(input, "s2o", {{"segment_size", 128}, {"tau", 0.9}});
  std::vector<TileStats> stats(static_cast<std::size_t>(plan.num_tiles()) * plan.passes.size());
  std::vector<float> out(input.q.size()), lse(2 * kSeqlen);
  attention_ref(input.problem, PlanPointers(plan).view(), input.q.data(), input.k.data(),
                input.v.data(), out.data(), lse.data(), stats.data());
  const ExecutedHead head = execute_head(input, plan, 1);
  const int tiles = plan.header.num_q_tiles;
  for (int tile = 0; tile < tiles; ++tile) {
    EXPECT_EQ(head.stats[static_cast<std::size_t>(tile)].stop_steps,
              stats[static_cast<std::size_t>(plan.tile_index(1, tile))].stop_steps);
  }
}

TEST(PooledAttention, mass_of_each_row_of_pixels_is_one) {
  const AttentionInput input = sample_input(300);
  const std::vector<float> lse = dense_lse(input, 1);
  for (int pixels : {7, 64, 1000}) {
    const PixelGrid grid = pooled_attention(input, 1, lse, pixels);
    EXPECT_EQ(grid.rows, std::min(pixels, 300));
    for (int row = 0; row < grid.rows; ++row) {
      double mass = 0.0;
      for (int column = 0; column < grid.columns; ++column) {
        if (grid.at(row, column) != kNoValue) mass += grid.at(row, column);
      }
      EXPECT_NEAR(mass, 1.0, 1e-4) << pixels << " " << row;
    }
  }
}

TEST(DenseLse, agrees_with_dense_attention) {
  const AttentionInput input = sample_input(300);
  std::vector<float> out(input.q.size()), lse(600);
  const SparsePlan plan = plan_of(input, "dense");
  attention_ref(input.problem, PlanPointers(plan).view(), input.q.data(), input.k.data(),
                input.v.data(), out.data(), lse.data(), nullptr);
  const std::vector<float> own = dense_lse(input, 1);
  for (std::size_t i = 0; i < 300; ++i) EXPECT_NEAR(own[i], lse[300 + i], 1e-4) << i;
}

TEST(VisitingView, all_steps_of_a_row_hold_its_whole_mass) {
  const AttentionInput input = sample_input(kSeqlen);
  // Orders hold the steps that a walk to tau can reach: five at 0.2, here all.
  const SparsePlan plan = plan_of(input, "s2o", {{"segment_size", 128}, {"tau", 0.2}});
  const VisitingView view = visiting_view(execute_head(input, plan, 0), dense_lse(input, 0));
  ASSERT_EQ(view.mass.rows, 4);
  for (int tile = 0; tile < view.mass.rows; ++tile) {
    double mass = 0.0;
    int steps = 0;
    for (int step = 0; step < view.mass.columns; ++step) {
      if (view.mass.at(tile, step) == kNoValue) continue;
      mass += view.mass.at(tile, step);
      ++steps;
    }
    const auto t = static_cast<std::size_t>(tile);
    EXPECT_NEAR(mass, 1.0, 1e-4) << tile;
    EXPECT_EQ(steps, tile + 1);
    EXPECT_EQ(view.fixed[t], 1);
    EXPECT_GE(view.executed[t], view.fixed[t]);
    EXPECT_LE(view.executed[t], steps);
  }
}

class HeatmapFile : public ::testing::Test {
 protected:
  const testing_support::TempFolder folder_;  // tests run at the same time
  const std::filesystem::path path_ = folder_ / "heatmap.png";
};

TEST_F(HeatmapFile, png_of_a_dense_plan_has_a_full_triangle) {
  const AttentionInput input = sample_input(kSeqlen);
  const Method& dense = find_method("dense");
  const Heatmap heatmap =
      compute_heatmap(input, 0, {{"dense", &dense, ParamSet(dense.info().params)}}, kPixels);
  EXPECT_DOUBLE_EQ(heatmap.panels[0].compute_density, 1.0);
  draw_heatmap(heatmap, kPixels).write_png(path_);
  const Image image = Image::read_png(path_);
  const PanelPlace place = panel_place(1, kPixels);
  const Color visited = map_color(ColorMap::kShare, 1.0);
  const Color nothing = image.at(place.x + kPixels - 1, place.y);
  EXPECT_FALSE(nothing == visited);
  for (int y = 0; y < kPixels; ++y) {
    for (int x = 0; x < kPixels; ++x) {
      EXPECT_EQ(image.at(place.x + x, place.y + y), x <= y ? visited : nothing) << x << " " << y;
    }
  }
}

TEST_F(HeatmapFile, pixels_survive_the_file) {
  Image image(3, 2);
  image.set(2, 1, {1, 2, 3});
  image.set(9, 9, {1, 2, 3});
  image.write_png(path_);
  const Image read = Image::read_png(path_);
  EXPECT_EQ(read.width(), 3);
  EXPECT_EQ(read.height(), 2);
  EXPECT_EQ(read.at(2, 1), (Color{1, 2, 3}));
  EXPECT_EQ(read.at(0, 0), kWhite);
}

TEST_F(HeatmapFile, missing_file_and_missing_folder_are_errors) {
  EXPECT_THROW(Image::read_png("/nonexistent/x.png"), InputError);
  EXPECT_THROW(Image(1, 1).write_png("/nonexistent/x.png"), ConfigError);
}

TEST(ColorMaps, lightness_is_monotone) {
  const auto lightness = [](Color c) { return 0.299 * c.red + 0.587 * c.green + 0.114 * c.blue; };
  double mass = -1.0;
  double share = 256.0;
  for (double value = 0.0; value <= 1.0; value += 0.01) {
    const double next_mass = lightness(map_color(ColorMap::kMass, value));
    const double next_share = lightness(map_color(ColorMap::kShare, value));
    EXPECT_GE(next_mass, mass - 1.0) << value;
    EXPECT_LE(next_share, share) << value;
    mass = next_mass;
    share = next_share;
  }
  EXPECT_EQ(map_color(ColorMap::kMass, -3.0), map_color(ColorMap::kMass, 0.0));
  EXPECT_EQ(map_color(ColorMap::kShare, NAN), map_color(ColorMap::kShare, 0.0));
}

TEST(BitmapFont, every_printable_label_character_differs_from_the_box) {
  const auto box = glyph_rows('\x01');
  const std::string needed =
      "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789 .,:=+-_/()[]%";
  for (char c : needed) EXPECT_NE(glyph_rows(c), box) << c;
  EXPECT_EQ(glyph_rows('l')[0], 0b01100);
}

}  // namespace
}  // namespace s2o
