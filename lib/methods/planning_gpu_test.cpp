// Plans made on a device: equal to the CPU method's up to near-ties, the same in every run, and
// executable.
#include <cuda_runtime.h>
#include <gtest/gtest.h>

#include <cstring>
#include <iostream>
#include <limits>
#include <optional>
#include <utility>

#include "kernels/common/device_input_copy.h"
#include "kernels/common/stream.h"
#include "lib/device/planned_attention.h"
#include "lib/planning/device_planner.h"
#include "lib/testing/agreement.h"
#include "lib/testing/device_runner.h"
#include "lib/testing/inputs.h"
#include "lib/testing/model_planning.h"
#include "lib/testing/model_runner.h"
#include "lib/testing/row_lists.h"
#include "lib/testing/s2o_orders.h"

namespace s2o {
namespace {

using nlohmann::ordered_json;
using testing::KernelResult;
using testing::S2oCase;
using testing::Shape;
using testing::structured_input;

// With each variant of the kernels that the device runs.
class PlanningGpuTest : public ::testing::TestWithParam<const char*> {
 protected:
  void SetUp() override {
    const std::string refusal = testing::device_refusal(GetParam());
    if (!refusal.empty()) GTEST_SKIP() << refusal;
    device_ = testing::device_with(GetParam());
    EXPECT_EQ(device_.planning == PlanningVariant::kSm90, GetParam() == std::string("sm90"));
    stream_.emplace();
    timer_.emplace(stream_->get());
  }

  void set_input(const AttentionInput& input) {
    const testing::DeviceInputs bits(input);
    copy_.emplace(input.problem, bits.dtype(), bits.rows().q, bits.rows().k, bits.rows().v);
  }
  void run_planner(DevicePlanner& planner) {
    planner.plan(copy_->input(), stream_->get(), device_.planning);
    stream_->synchronize();
  }
  SparsePlan fetch(DevicePlanner& planner) const {
    return fetch_device_plan(planner, device_.planning, copy_->input(), FetchedArrays::kAll,
                             stream_->get());
  }
  // Plans and runs, batch by batch, into poisoned outputs, and waits.
  KernelResult run_planned(DevicePlanner& planner, OutputType output = OutputType::kFp32) {
    AttentionBuffers buffers(copy_->input().problem, planner.device_plan().header, output);
    AttentionScratch scratch;
    const PreparedAttention attention(device_.info, device_.attention, copy_->input(),
                                      planner.device_plan(), buffers.output(), scratch);
    buffers.poison(stream_->get());
    timer_->begin(Phase::kPlanning);
    enqueue_planned(planner, device_.planning, copy_->input(), attention, stream_->get(), *timer_);
    timer_->end();
    stream_->synchronize();
    planner.check();
    EXPECT_GT(timer_->milliseconds(Phase::kPlanning), 0.0);
    EXPECT_GT(timer_->milliseconds(Phase::kAttention), 0.0);
    if (planner.num_batches() > 1) {
      EXPECT_THROW(attention.enqueue(stream_->get()), Error);
    }
    return {.out = buffers.read_out(copy_->input().dtype),
            .lse = buffers.read_lse(),
            .stats = buffers.read_stats()};
  }

  CudaDevice device_;
  std::optional<Stream> stream_;
  std::optional<PhaseTimer> timer_;
  std::optional<DeviceInputCopy> copy_;
};

INSTANTIATE_TEST_SUITE_P(Variants, PlanningGpuTest, ::testing::Values("sm80", "sm90"),
                         [](const auto& test) { return std::string(test.param); });

TEST_P(PlanningGpuTest, plans_of_every_method_agree_with_the_cpu_and_from_run_to_run) {
  for (const testing::AgreementInput& spec : testing::agreement_inputs()) {
    const AttentionInput input = structured_input(spec.shape, spec.pattern, spec.dtype);
    set_input(input);
    for (const Method* method : testing::planned_methods()) {
      for (const ordered_json& params : method->info().device.settings) {
        SCOPED_TRACE(method->info().name + " " + params.dump());
        auto program = testing::planner_of(*method, input, params);
        if (program == nullptr) continue;  // so short that the method is dense
        DevicePlanner planner(std::move(program));
        planner.prepare();
        if (!testing::plans_with(device_.planning, [&] { run_planner(planner); })) continue;
        planner.check();
        const SparsePlan plan = fetch(planner);
        testing::expect_agreement(*method, input, params, plan);
        run_planner(planner);
        const SparsePlan again = fetch(planner);
        EXPECT_EQ(plan.passes[0].item_offsets, again.passes[0].item_offsets);
        EXPECT_EQ(plan.passes[0].gather_indices, again.passes[0].gather_indices);
        ASSERT_EQ(plan.passes[0].items.size(), again.passes[0].items.size());
        for (std::size_t i = 0; i < plan.passes[0].items.size(); ++i) {
          ASSERT_EQ(plan.passes[0].items[i].begin, again.passes[0].items[i].begin);
          ASSERT_EQ(plan.passes[0].items[i].count, again.passes[0].items[i].count);
        }
      }
    }
  }
}

// Many steps of mean keys a tile; with louder keys later, energies beyond what the first lead to
// expect.
TEST_P(PlanningGpuTest, energies_of_long_tiles_agree_with_the_cpu) {
  for (const float factor : {1.0f, 64.0f}) {  // exact in 16 bits
    AttentionInput input = structured_input({30000, 4, 2, 128});
    for (int head = 0; head < 2; ++head) {
      for (std::size_t i = 12000; i < 30000; ++i) {
        for (std::size_t d = 0; d < 128; ++d) {
          input.k[(static_cast<std::size_t>(head) * 30000 + i) * 128 + d] *= factor;
        }
      }
    }
    set_input(input);
    const std::pair<const char*, ordered_json> cases[] = {
        {"flash_prefill", {{"alpha", 0.8}, {"last_tiles", 1}}},
        {"rbs", {{"alpha_base", 0.9}, {"last_tiles", 1}}}};
    for (const auto& [name, params] : cases) {
      DevicePlanner planner(testing::planner_of(find_method(name), input, params));
      planner.prepare();
      run_planner(planner);
      planner.check();
      testing::expect_agreement(find_method(name), input, params, fetch(planner));
    }
  }
}

TEST_P(PlanningGpuTest, tau_zero_over_a_device_plan_equals_dense) {
  for (const char* sharing : {"query_head", "kv_head"}) {
    const AttentionInput input = structured_input({3000, 4, 2, 128});
    set_input(input);
    DevicePlanner planner(
        testing::planner_of(find_method("s2o"), input,
                            {{"tau", 0.0}, {"segment_size", 256}, {"key_order_sharing", sharing}}));
    planner.prepare();
    EXPECT_LE(testing::relative_l2(run_planned(planner).out, testing::naive_dense(input).out),
              0.005);
  }
}

// A kernel that mistakes a tile of another batch for its own reads its tokens or writes its rows.
TEST_P(PlanningGpuTest, batches_that_share_memory_give_the_bytes_of_one) {
  const AttentionInput input = structured_input({5000, 4, 2, 128});
  set_input(input);
  const S2oCase all_settings[] = {{.segment_size = 128, .stop = {.tau = 0.01f}},
                                  {.segment_size = 256,
                                   .share_key_order_in_group = true,
                                   .query_guide = QueryGuide::kPrefixMeanKey,
                                   .stop = {.tau = 0.003f},
                                   .fold = {.kind = Compensation::kCentroid}},
                                  {.segment_size = 128,
                                   .local_window = 128,
                                   .stop = {.tau = 0.01f},
                                   .fold = {.kind = Compensation::kBlocksVariance}}};
  struct Result {
    KernelResult run;
    SparsePlan plan;
    int num_batches = 0;
    std::int64_t bytes = 0;
  };
  const auto run = [&](const S2oCase& settings, OutputType output) {
    DevicePlanner planner(settings.planner(input.problem));
    planner.prepare();
    KernelResult result = run_planned(planner, output);
    return Result{.run = std::move(result),
                  .plan = fetch(planner),
                  .num_batches = planner.num_batches(),
                  .bytes = planner.workspace_bytes()};
  };
  for (S2oCase settings : all_settings) {
    for (const OutputType output : {OutputType::kFp32, OutputType::kInput}) {
      settings.order_bytes_per_token = kListBytesPerToken;
      const Result whole = run(settings, output);
      ASSERT_EQ(whole.num_batches, 1);
      settings.order_bytes_per_token = 12;
      const Result batched = run(settings, output);
      EXPECT_GT(batched.num_batches, 2);
      EXPECT_LT(batched.bytes, whole.bytes);
      check_plan(input.problem, batched.plan);
      EXPECT_EQ(testing::compare_plans(input.problem, batched.plan, whole.plan).differing_tiles, 0);
      const auto same = [](const auto& a, const auto& b) {
        return a.size() == b.size() &&
               std::memcmp(a.data(), b.data(), a.size() * sizeof(a[0])) == 0;
      };
      EXPECT_TRUE(same(batched.run.out, whole.run.out));
      EXPECT_TRUE(same(batched.run.lse, whole.run.lse));
      EXPECT_TRUE(same(batched.run.stats, whole.run.stats));
    }
  }
}

TEST_P(PlanningGpuTest, batches_of_every_method_give_the_bytes_of_one) {
  const AttentionInput input = structured_input({9000, 4, 2, 128});
  set_input(input);
  for (const Method* method : testing::planned_methods()) {
    for (const ordered_json& params : testing::batched_settings(*method)) {
      SCOPED_TRACE(method->info().name + " " + params.dump());
      const auto run = [&](const PlannerLimits& limits) {
        DevicePlanner planner(testing::planner_of(*method, input, params, limits));
        planner.prepare();
        return run_planned(planner).out;
      };
      std::vector<float> whole;
      if (!testing::plans_with(device_.planning, [&] { whole = run({.l2_bytes = 1 << 20}); })) {
        continue;
      }
      for (const std::int64_t bytes : {0, 2}) {  // a tile a batch, or a few
        const std::vector<float> batched =
            run({.l2_bytes = 1 << 20, .list_bytes_per_token = bytes, .scratch_bytes = 1});
        EXPECT_EQ(std::memcmp(batched.data(), whole.data(), whole.size() * sizeof(float)), 0);
      }
    }
  }
}

TEST_P(PlanningGpuTest, scores_that_are_not_finite_are_an_error_that_names_head_and_segment) {
  AttentionInput input = structured_input({1000, 2, 1, 64});
  for (int i = 0; i < 64; ++i) input.q[(1000 + 300) * 64 + i] = 1e30f;  // head 1, segment 2
  for (int i = 0; i < 64; ++i) input.k[5 * 64 + i] = 1e30f;
  set_input(input);
  DevicePlanner planner(testing::planner_of(find_method("s2o"), input, {{"segment_size", 128}}));
  planner.prepare();
  run_planner(planner);
  try {
    planner.check();
    FAIL() << "no error";
  } catch (const Error& error) {
    EXPECT_NE(std::string(error.what()).find("segment"), std::string::npos) << error.what();
    EXPECT_NE(std::string(error.what()).find("head"), std::string::npos) << error.what();
  }
}

TEST_P(PlanningGpuTest, s2o_orders_agree_with_exact_scores_up_to_near_ties) {
  for (const StorageDType dtype : {StorageDType::kBF16, StorageDType::kF16}) {
    const AttentionInput input = structured_input({9000, 4, 2, 128}, "mixed", dtype);
    set_input(input);
    for (const int segment_size : {128, 1024}) {
      const S2oCase settings{.segment_size = segment_size,
                             .share_key_order_in_group = segment_size == 1024,
                             .local_window = 128};
      DevicePlanner planner(settings.planner(input.problem));
      planner.prepare();
      run_planner(planner);
      planner.check();
      const testing::S2oOrders orders(input.problem, settings, fetch(planner));
      const auto total = testing::compare_orders_with_cpu(input, settings, orders);
      EXPECT_TRUE(total.is_permutation);
      EXPECT_EQ(total.beyond, 0);
      std::cout << "segment " << segment_size << ": " << total.moved << " near-ties of "
                << total.slots << " slots\n";
    }
  }
}

TEST_P(PlanningGpuTest, lists_by_rows_agree_with_the_definition_and_from_run_to_run) {
  if (device_.planning != PlanningVariant::kSm90) GTEST_SKIP() << "ranking rows needs sm_90a";
  const auto expect_lists = [this](const AttentionInput& input,
                                   const RowRankingSettings& settings) {
    set_input(input);
    DevicePlanner planner(testing::row_planner_of(input, settings));
    planner.prepare();
    run_planner(planner);
    planner.check();
    const SparsePlan plan = fetch(planner);
    check_plan(input.problem, plan);
    const testing::RowAgreement total = testing::expect_row_agreement(input, settings, plan);
    std::cout << "lists " << total.lists << ", sinks " << total.sinks << ", keys " << total.keys
              << ", others " << total.others << ", weight " << total.weight / total.expected_weight
              << ", skipped " << total.skipped << "\n";
    EXPECT_LE(total.others, total.keys / 32);
    EXPECT_GE(total.weight, 0.99 * total.expected_weight);
    run_planner(planner);
    const SparsePlan again = fetch(planner);
    for (int head = 0; head < input.problem.num_q_heads; ++head) {
      for (int tile = 0; tile < plan.header.num_q_tiles; ++tile) {
        ASSERT_EQ(testing::gathered_keys(plan, head, tile),
                  testing::gathered_keys(again, head, tile));
      }
    }
  };
  for (const StorageDType dtype : {StorageDType::kBF16, StorageDType::kF16}) {
    // One to seven heads of a group: a block of threads takes two lists of a KV head.
    for (const Shape& shape :
         {Shape{1100, 2, 1, 64}, Shape{700, 5, 1, 128}, Shape{500, 3, 3, 64}, Shape{2500, 7, 1, 64},
          Shape{257, 2, 1, 128}, Shape{385, 1, 1, 64}, Shape{9000, 12, 2, 128}}) {
      expect_lists(structured_input(shape, "mixed", dtype), testing::ranking_above(1e-3f));
    }
    expect_lists(testing::input_of_many_reaches(5100, dtype), testing::probing_ranking());
  }
}

TEST_P(PlanningGpuTest, long_orders_are_permutations_like_those_of_the_cpu_model) {
  const AttentionInput input = structured_input({20500, 2, 1, 64}, "heavy_tail");
  set_input(input);
  const S2oCase settings{.segment_size = 4096};
  DevicePlanner planner(settings.planner(input.problem));
  planner.prepare();
  run_planner(planner);
  planner.check();
  const SparsePlan plan = fetch(planner);
  check_plan(input.problem, plan);
  const auto model = settings.planner(input.problem);
  const SparsePlan expected = testing::plan_on_model(*model, input).plan;
  // The sums of the product run in another order on tensor cores: a score may round otherwise.
  std::int64_t moved = 0;
  for (std::size_t i = 0; i < plan.passes[0].gather_indices.size(); ++i) {
    moved += plan.passes[0].gather_indices[i] != expected.passes[0].gather_indices[i] ? 1 : 0;
  }
  std::cout << moved << " of " << plan.passes[0].gather_indices.size()
            << " slots differ from the model\n";
}

}  // namespace
}  // namespace s2o
