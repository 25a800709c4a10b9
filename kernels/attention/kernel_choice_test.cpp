#include "kernels/attention/kernel_choice.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "kernels/common/error.h"
#include "kernels/common/kernel_registry.h"

namespace s2o {
namespace {

using ::testing::HasSubstr;

constexpr Problem kProblem{
    .seqlen = 4096, .num_q_heads = 8, .num_kv_heads = 2, .head_dim = 128, .softmax_scale = 0.1f};
PlanView plan_of(int block_m, int block_n) {
  PlanView plan;
  plan.block_m = block_m;
  plan.block_n = block_n;
  plan.num_plan_heads = 8;
  plan.num_q_tiles = 4096 / block_m;
  return plan;
}

TEST(ChooseTile, dense_runs_on_the_wide_tile_of_each_kernel) {
  EXPECT_EQ(choose_tile(AttentionKernel::kSm80, kProblem, plan_of(128, 128), false),
            (TileShape{128, 64, 1}));
  EXPECT_EQ(choose_tile(AttentionKernel::kSm90, kProblem, plan_of(128, 128), false),
            (TileShape{128, 128, 1}));
  EXPECT_EQ(choose_tile(AttentionKernel::kSm90, kProblem, plan_of(64, 192), false),
            (TileShape{64, 64, 1}));
}

TEST(ChooseTile, pv_skip_needs_whole_plan_steps) {
  PlanView plan = plan_of(64, 128);
  plan.pv_skip_threshold = 50.0f;
  EXPECT_EQ(choose_tile(AttentionKernel::kSm80, kProblem, plan, false), (TileShape{64, 128, 1}));
  plan.block_n = 256;
  EXPECT_THROW(choose_tile(AttentionKernel::kSm80, kProblem, plan, false), UnsupportedError);
}

TEST(ChooseTile, fp32_accuracy_is_an_instance_of_sm80) {
  EXPECT_EQ(choose_tile(AttentionKernel::kSm80, kProblem, plan_of(64, 64), true),
            (TileShape{64, 64, 3}));
  EXPECT_THROW(choose_tile(AttentionKernel::kSm80, kProblem, plan_of(128, 64), true),
               UnsupportedError);
  EXPECT_THROW(choose_tile(AttentionKernel::kSm90, kProblem, plan_of(64, 64), true),
               UnsupportedError);
}

std::string message_of(const Problem& problem, const PlanView& plan) {
  try {
    choose_tile(AttentionKernel::kSm90, problem, plan, false);
  } catch (const UnsupportedError& error) {
    return error.what();
  }
  return "";
}

TEST(ChooseTile, rare_head_dims_run_on_the_portable_kernel_in_steps_of_64_keys) {
  Problem problem = kProblem;
  for (const int head_dim : {96, 256}) {
    problem.head_dim = head_dim;
    EXPECT_EQ(kernel_with_head_dim(AttentionKernel::kSm90, head_dim), AttentionKernel::kSm80);
    EXPECT_EQ(choose_tile(AttentionKernel::kSm80, problem, plan_of(128, 128), false),
              (TileShape{128, 64, 1}));
    PlanView plan = plan_of(128, 128);
    plan.pv_skip_threshold = 50.0f;
    EXPECT_THROW(choose_tile(AttentionKernel::kSm80, problem, plan, false), UnsupportedError);
    plan = plan_of(128, 128);
    plan.fold.kind = Compensation::kCentroid;
    EXPECT_THROW(choose_tile(AttentionKernel::kSm80, problem, plan, false), UnsupportedError);
  }
  EXPECT_EQ(kernel_with_head_dim(AttentionKernel::kSm90, 128), AttentionKernel::kSm90);
}

TEST(ChooseTile, messages_say_found_and_supported) {
  EXPECT_EQ(message_of(kProblem, plan_of(96, 128)),
            "attention_sm90: block_m is 96, supported are 64 and 128");
  EXPECT_EQ(message_of(kProblem, plan_of(128, 32)),
            "attention_sm90: block_n is 32, supported are multiples of 64");
  Problem problem = kProblem;
  problem.head_dim = 96;
  EXPECT_EQ(message_of(problem, plan_of(128, 128)),
            "attention_sm90: head_dim is 96, supported are 64 and 128");
  problem = kProblem;
  problem.softmax_scale = 0.0f;
  EXPECT_THAT(message_of(problem, plan_of(128, 128)), HasSubstr("softmax_scale is 0"));
  problem = kProblem;
  problem.seqlen = std::int64_t{1} << 28;
  EXPECT_THAT(message_of(problem, plan_of(128, 128)), HasSubstr("are 2147483648 rows"));
  PlanView plan = plan_of(128, 128);
  plan.pack = 3;
  EXPECT_THAT(message_of(kProblem, plan), HasSubstr("pack is 3"));
  plan = plan_of(128, 128);
  plan.fold = {.kind = Compensation::kBlocks, .fold_block = 4096};
  EXPECT_THAT(message_of(kProblem, plan), HasSubstr("fold_block is 4096"));
}

TEST(KernelRegistry, lists_kernels_and_says_what_a_device_lacks) {
  const std::vector<KernelInfo>& kernels = all_kernels();
  ASSERT_EQ(kernels.size(), 5u);
  EXPECT_EQ(kernels[1].name, "attention_sm80");
  DeviceInfo device{.index = 0, .name = "A100", .compute_capability = 80};
  EXPECT_EQ(kernel_refusal(kernels[1], device), "");
  EXPECT_EQ(kernel_refusal(kernels[2], device), "needs sm_90, device 0 (A100) is sm_80");
  EXPECT_EQ(choose_kernel("planning", device, "").name, "planning_sm80");
  EXPECT_THROW(choose_kernel("planning", device, "sm90"), UnsupportedError);
  EXPECT_THROW(choose_kernel("planning", device, "sm70"), UnsupportedError);
  device.compute_capability = 90;
  EXPECT_EQ(choose_kernel("attention", device, "").name, "attention_sm90");
  EXPECT_EQ(choose_kernel("planning", device, "").name, "planning_sm90");
  EXPECT_EQ(choose_kernel("planning", device, "sm80").name, "planning_sm80");
  device.compute_capability = 75;
  EXPECT_EQ(kernel_refusal(kernels[1], device), "needs sm_80 or newer, device 0 (A100) is sm_75");
  device.compute_capability = 120;
  EXPECT_EQ(kernel_refusal(kernels[1], device), "");
}

}  // namespace
}  // namespace s2o
