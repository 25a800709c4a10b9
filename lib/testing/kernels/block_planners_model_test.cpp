// Planners of methods that select blocks, on the CPU model of a grid, against plan_cpu. Rounding to
// 16 bits follows sums in another order, so a block at a row's cut may differ: near-ties, counted.
#include <gtest/gtest.h>

#include <iostream>
#include <limits>
#include <span>
#include <vector>

#include "kernels/planning/block_planners.h"
#include "kernels/planning/energy_planners.h"
#include "kernels/planning/xattention_planner.h"
#include "lib/methods/common/xattention_rules.h"
#include "lib/testing/inputs.h"
#include "lib/testing/model_planning.h"

namespace s2o {
namespace {

using nlohmann::ordered_json;
using testing::PlanDifference;
using testing::Shape;
using testing::structured_input;

SparsePlan cpu_plan(const char* name, const AttentionInput& input, const ordered_json& params) {
  const Method& method = find_method(name);
  const DenseReference none;
  return method.plan_cpu({.input = input, .reference = none}, testing::settings_of(method, params));
}

// At most `share` of the keys may differ.
void expect_near(const char* what, const AttentionInput& input, Planner& planner,
                 const SparsePlan& expected, double share,
                 PlanningVariant variant = PlanningVariant::kSm80) {
  const testing::ModelPlan model = testing::plan_on_model(planner, input, 1, variant);
  EXPECT_EQ(model.error_word, 0u) << what;
  check_plan(input.problem, model.plan);
  EXPECT_EQ(model.plan.passes[0].fold_end, expected.passes[0].fold_end) << what;
  const PlanDifference d = testing::compare_plans(input.problem, model.plan, expected);
  std::cout << what << ": " << d.tiles << " tiles, " << d.differing_tiles << " with near-ties; "
            << d.keys << " keys, " << d.extra_keys << " more, " << d.missing_keys << " fewer\n";
  EXPECT_LE(static_cast<double>(d.extra_keys + d.missing_keys), share * static_cast<double>(d.keys))
      << what;
  // Items are those of the CPU where the selection is.
  if (d.differing_tiles == 0) {
    EXPECT_EQ(model.plan.passes[0].item_offsets, expected.passes[0].item_offsets) << what;
  }
}

const Shape kShapes[] = {{2500, 4, 2, 64}, {1024, 2, 1, 128}, {130, 2, 1, 64}, {5, 1, 1, 64}};

TEST(BlockPlannersModel, mean_pooling_gives_the_cpu_plan) {
  for (const Shape& shape : kShapes) {
    const AttentionInput input = structured_input(shape);
    for (const double threshold : {0.5, 0.9, 1.0}) {
      for (const int block : {64, 128}) {
        const auto planner = make_mean_pooling_planner(
            input.problem, {.block = block, .threshold = static_cast<float>(threshold)}, 1 << 20);
        expect_near(
            "mean_pooling", input, *planner,
            cpu_plan("mean_pooling", input, {{"threshold", threshold}, {"block_size", block}}),
            0.005);
      }
    }
  }
}

TEST(BlockPlannersModel, mean_pooling_folds_like_the_cpu_plan) {
  const AttentionInput input = structured_input(kShapes[1], "mixed", StorageDType::kF16);
  const auto planner = make_mean_pooling_planner(
      input.problem,
      {.threshold = 0.8f, .fold = {.rule = {.kind = Compensation::kBlocks, .fold_block = 128}}},
      1 << 20);
  expect_near("mean_pooling fp16", input, *planner,
              cpu_plan("mean_pooling", input, {{"threshold", 0.8}, {"compensation", "blocks"}}),
              0.005);
}

TEST(BlockPlannersModel, sparge_attn_gives_the_cpu_plan) {
  for (const Shape& shape : kShapes) {
    const AttentionInput input = structured_input(shape);
    for (const bool wide : {false, true}) {
      for (const double similarity : {-0.1, 0.3}) {
        SpargeDeviceSettings settings{.block_m = wide ? 64 : 128,
                                      .block_n = wide ? 128 : 64,
                                      .similarity_threshold = static_cast<float>(similarity),
                                      .share = 0.3f};
        ordered_json params = {
            {"topk", 0.3}, {"simthreshd1", similarity}, {"tile", wide ? "64x128" : "128x64"}};
        const auto by_count = make_sparge_planner(input.problem, settings, 1 << 20);
        expect_near("sparge_attn topk", input, *by_count, cpu_plan("sparge_attn", input, params),
                    0.005);
        settings.by_mass = true;
        settings.share = 0.9f;
        params["cdfthreshd"] = 0.9;
        const auto by_mass = make_sparge_planner(input.problem, settings, 1 << 20);
        expect_near("sparge_attn cdf", input, *by_mass, cpu_plan("sparge_attn", input, params),
                    0.02);
        settings.attention_sink = true;
        params["attention_sink"] = true;
        const auto with_sink = make_sparge_planner(input.problem, settings, 1 << 20);
        expect_near("sparge_attn sink", input, *with_sink, cpu_plan("sparge_attn", input, params),
                    0.02);
      }
    }
  }
}

TEST(BlockPlannersModel, pbs_attn_gives_the_cpu_plan) {
  for (const Shape& shape : {Shape{2500, 2, 1, 64}, Shape{700, 2, 1, 128}}) {
    const AttentionInput input = structured_input(shape, "stripes");
    for (const int segment : {256, 512}) {
      for (const double threshold : {0.5, 1.0}) {
        const auto planner =
            make_pbs_planner(input.problem,
                             {.segment = segment,
                              .threshold = static_cast<float>(threshold),
                              .fold = {.rule = {.kind = Compensation::kBlocks, .fold_block = 128},
                                       .granularity = segment}},
                             1 << 20);
        // Tokens of nearly equal mass may change places, and with them blocks their members.
        expect_near(
            "pbs_attn", input, *planner,
            cpu_plan(
                "pbs_attn", input,
                {{"segment_size", segment}, {"threshold", threshold}, {"compensation", "blocks"}}),
            0.01);
      }
    }
  }
}

constexpr PlanningVariant kVariants[] = {PlanningVariant::kSm80, PlanningVariant::kSm90};

// The device and the CPU with the same settings.
void expect_flash_prefill_near(const AttentionInput& input, bool packed, double alpha) {
  const ordered_json params = {{"version", packed ? "v2" : "v1"},
                               {"alpha", alpha},
                               {"sink_blocks", 1},
                               {"window_blocks", 2},
                               {"last_tiles", 3}};
  const SparsePlan expected = cpu_plan("flash_prefill", input, params);
  for (const PlanningVariant variant : kVariants) {
    const auto planner = make_flash_prefill_planner(input.problem,
                                                    {.packed = packed,
                                                     .alpha = static_cast<float>(alpha),
                                                     .sink_blocks = 1,
                                                     .window_blocks = 2,
                                                     .last_tiles = 3,
                                                     .fold = {.rule = expected.header.fold}},
                                                    1 << 20);
    expect_near("flash_prefill", input, *planner, expected, 0.005, variant);
  }
}
void expect_rbs_near(const AttentionInput& input, bool rescue, double alpha_base,
                     double alpha_rescue) {
  const SparsePlan expected = cpu_plan("rbs", input,
                                       {{"alpha_base", alpha_base},
                                        {"rescue", rescue},
                                        {"alpha_rescue", alpha_rescue},
                                        {"window_blocks", 2}});
  for (const PlanningVariant variant : kVariants) {
    const auto planner = make_rbs_planner(input.problem,
                                          {.alpha_base = static_cast<float>(alpha_base),
                                           .rescue = rescue,
                                           .alpha_rescue = static_cast<float>(alpha_rescue),
                                           .window_blocks = 2},
                                          1 << 20);
    expect_near("rbs", input, *planner, expected, 0.005, variant);
  }
}

TEST(BlockPlannersModel, flash_prefill_gives_the_cpu_plan) {
  for (const Shape& shape : kShapes) {
    const AttentionInput input = structured_input(shape);
    for (const bool packed : {true, false}) {
      for (const double alpha : {0.0, 0.9, 0.98}) expect_flash_prefill_near(input, packed, alpha);
    }
  }
}

TEST(BlockPlannersModel, rbs_gives_the_cpu_plan) {
  for (const Shape& shape : kShapes) {
    const AttentionInput input = structured_input(shape, "stripes");
    for (const bool rescue : {true, false}) expect_rbs_near(input, rescue, 0.97, 0.9);
  }
}

// Three query heads a KV head: the rows of a tile begin at any head, and see other blocks.
TEST(BlockPlannersModel, energies_of_packed_rows_that_fill_no_whole_positions) {
  const AttentionInput input = structured_input({1500, 3, 1, 128}, "mixed", StorageDType::kF16);
  for (const double alpha : {0.9, 0.98}) expect_flash_prefill_near(input, true, alpha);
}

// More than two steps of 64 mean keys; the ring of the products wraps. With louder keys later, an
// energy is far beyond what the first keys of the tile lead to expect.
TEST(BlockPlannersModel, energies_of_long_tiles_whatever_their_references) {
  for (const float factor : {1.0f, 64.0f}) {  // exact in 16 bits
    AttentionInput input = structured_input({18000, 1, 1, 64});
    for (std::size_t i = std::size_t{70} * 128 * 64; i < input.k.size(); ++i) input.k[i] *= factor;
    expect_flash_prefill_near(input, false, 0.8);
    expect_rbs_near(input, true, 0.9, 0.8);
  }
}

TEST(BlockPlannersModel, energies_name_tiles_with_a_logit_that_is_not_finite) {
  constexpr float kHuge = 3e38f;
  for (const float value : {std::numeric_limits<float>::quiet_NaN(), kHuge, -kHuge}) {
    AttentionInput input = structured_input({1200, 2, 1, 64});
    input.q[static_cast<std::size_t>((1200 + 700) * 64)] = value;
    for (std::size_t i = 0; i < 128; ++i) input.k[i * 64] = 10.0f;  // the first block
    for (const PlanningVariant variant : kVariants) {
      const auto packed = make_flash_prefill_planner(input.problem, {.last_tiles = 0}, 1 << 20);
      const std::uint32_t bad = testing::plan_on_model(*packed, input, 1, variant).error_word;
      EXPECT_EQ(static_cast<std::int64_t>(~bad), 700 * 2 / 128) << value;
      for (const bool rescue : {true, false}) {
        const auto planner =
            make_rbs_planner(input.problem, {.rescue = rescue, .last_tiles = 0}, 1 << 20);
        const std::uint32_t bad_row =
            testing::plan_on_model(*planner, input, 1, variant).error_word;
        EXPECT_EQ(planner->row_name(static_cast<std::int64_t>(~bad_row)),
                  "query head 1, query tile 5")
            << value;
      }
    }
  }
}

// Rows at or beyond `chunk` follow the rule of later chunks.
SparsePlan xattention_plan(const AttentionInput& input, const XAttentionDeviceSettings& settings) {
  const Problem& problem = input.problem;
  const std::int64_t blocks = num_blocks(problem.seqlen, settings.block);
  const std::int64_t padded = num_blocks(problem.seqlen, settings.stride) * settings.stride;
  std::vector<BlockMask> masks;
  for (int head = 0; head < problem.num_q_heads; ++head) {
    const float* const k = input.k_head(head / problem.group_size());
    std::vector<float> keys(k, k + problem.seqlen * problem.head_dim);
    keys.resize(static_cast<std::size_t>(padded * problem.head_dim), 0.0f);
    std::vector<float> mass(static_cast<std::size_t>(blocks * blocks));
    xattention_block_mass(input, head, keys.data(), 0, blocks, settings.block, settings.stride,
                          Rounder(input.dtype), mass);
    BlockMask& mask = masks.emplace_back(blocks, blocks);
    for (std::int64_t i = 0; i < blocks; ++i) {
      xattention_select_row(std::span(mass.data() + i * blocks, static_cast<std::size_t>(blocks)),
                            i, settings.threshold, i < settings.chunk / settings.block,
                            mask.row(i));
    }
  }
  SparsePlan plan = plan_from_block_masks(problem, settings.block, settings.block, masks);
  if (settings.fold.rule.kind != Compensation::kNone) {
    set_compensation(settings.fold.rule.kind, problem, settings.block, plan);
  }
  return plan;
}

TEST(BlockPlannersModel, xattention_gives_the_cpu_plan) {
  for (const Shape& shape : {Shape{2100, 4, 2, 64}, Shape{1090, 2, 1, 128}, Shape{5, 1, 1, 64}}) {
    const AttentionInput input = structured_input(shape);
    for (const int stride : {4, 8, 16}) {
      for (const double threshold : {0.5, 0.9, 1.0}) {
        if (stride != 8 && threshold != 0.9) continue;
        // The first rows follow one rule, later rows the other.
        const XAttentionDeviceSettings settings{
            .stride = stride, .threshold = threshold, .chunk = 1024};
        const SparsePlan expected = xattention_plan(input, settings);
        for (const PlanningVariant variant : kVariants) {
          const auto planner = make_xattention_planner(input.problem, settings, 1 << 20);
          expect_near("xattention", input, *planner, expected, 0.01, variant);
        }
      }
    }
  }
}

TEST(BlockPlannersModel, xattention_in_small_strips_gives_the_cpu_plan) {
  const AttentionInput input =
      structured_input(Shape{2500, 2, 1, 64}, "stripes", StorageDType::kF16);
  const XAttentionDeviceSettings settings{
      .block = 64,
      .chunk = 512,
      .sum_bytes = 1,
      .fold = {.rule = {.kind = Compensation::kBlocks, .fold_block = 64}}};
  for (const PlanningVariant variant : kVariants) {
    const auto planner = make_xattention_planner(input.problem, settings, 1 << 20);
    expect_near("xattention in strips", input, *planner, xattention_plan(input, settings), 0.01,
                variant);
  }
}

TEST(BlockPlannersModel, xattention_names_rows_whose_mass_is_not_finite) {
  AttentionInput input = structured_input(Shape{600, 2, 1, 64});
  input.q[static_cast<std::size_t>((600 + 300) * 64)] = std::numeric_limits<float>::quiet_NaN();
  for (const PlanningVariant variant : kVariants) {
    const auto planner = make_xattention_planner(input.problem, {.chunk = 2048}, 1 << 20);
    const std::uint32_t bad = testing::plan_on_model(*planner, input, 1, variant).error_word;
    EXPECT_EQ(planner->row_name(static_cast<std::int64_t>(~bad)), "query head 1, query tile 2");
  }
}

// Batches that share memory for items.
void expect_same_in_batches(const char* what, const AttentionInput& input, Planner& whole,
                            Planner& batched, PlanningVariant variant = PlanningVariant::kSm80) {
  ASSERT_EQ(whole.num_batches(), 1) << what;
  EXPECT_GT(batched.num_batches(), 1) << what;
  EXPECT_LE(batched.workspace().bytes(), whole.workspace().bytes()) << what;
  const SparsePlan expected = testing::plan_on_model(whole, input, 1, variant).plan;
  const SparsePlan plan = testing::plan_on_model(batched, input, 3, variant).plan;
  check_plan(input.problem, plan);
  EXPECT_EQ(plan.passes[0].item_offsets, expected.passes[0].item_offsets) << what;
  EXPECT_EQ(plan.passes[0].key_order, expected.passes[0].key_order) << what;
  EXPECT_EQ(testing::compare_plans(input.problem, plan, expected).differing_tiles, 0) << what;
}

TEST(BlockPlannersModel, batches_that_share_memory_have_the_items_of_one) {
  const AttentionInput input = structured_input({2500, 2, 1, 64});
  const auto compare = [&](const char* what, const auto& make, auto settings,
                           PlanningVariant variant = PlanningVariant::kSm80) {
    const auto whole = make(input.problem, settings, 1 << 20);
    for (const std::int64_t bytes : {0, 1}) {  // a tile a batch, or a few
      settings.room.bytes_per_token = bytes;
      expect_same_in_batches(what, input, *whole, *make(input.problem, settings, 1 << 20), variant);
    }
  };
  compare("mean_pooling", make_mean_pooling_planner, MeanPoolingDeviceSettings{});
  compare("pbs_attn", make_pbs_planner, PbsDeviceSettings{});
  compare("sparge_attn", make_sparge_planner, SpargeDeviceSettings{});
  for (const PlanningVariant variant : {PlanningVariant::kSm80, PlanningVariant::kSm90}) {
    for (const bool packed : {false, true}) {
      compare("flash_prefill", make_flash_prefill_planner,
              FlashPrefillDeviceSettings{.packed = packed, .alpha = 0.8f, .last_tiles = 2},
              variant);
    }
    compare("rbs", make_rbs_planner, RbsDeviceSettings{.alpha_base = 0.8f}, variant);
  }
}

TEST(BlockPlannersModel, xattention_in_batches_has_the_items_of_one) {
  const AttentionInput input = structured_input({5300, 2, 1, 64});
  for (const PlanningVariant variant : {PlanningVariant::kSm80, PlanningVariant::kSm90}) {
    XAttentionDeviceSettings settings{.chunk = 2048};
    const auto whole = make_xattention_planner(input.problem, settings, 1 << 20);
    settings.item_bytes_per_token = 0;
    const auto batched = make_xattention_planner(input.problem, settings, 1 << 20);
    expect_same_in_batches("xattention", input, *whole, *batched, variant);
  }
}

}  // namespace
}  // namespace s2o
