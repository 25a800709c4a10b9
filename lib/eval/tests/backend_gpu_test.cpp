// The CUDA backend on a device: what it measures agrees with the CPU backend, and a kernel that
// fails costs one run.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstdlib>

#include "kernels/testing/device_fault.h"
#include "lib/core/error.h"
#include "lib/eval/backend.h"
#include "lib/testing/device_runner.h"
#include "lib/testing/plan_cases.h"

namespace s2o {
namespace {

using testing::PlanCase;
using testing::PlanKind;
using testing::Shape;

constexpr TimingConfig kTiming{.warmup = 1, .repeats = 3, .cpu_repeats = 1};

class CudaBackendTest : public ::testing::TestWithParam<std::string> {
 protected:
  void SetUp() override {
    const std::string refusal = testing::device_refusal(GetParam());
    if (!refusal.empty()) GTEST_SKIP() << "attention_" << GetParam() << ": " << refusal;
    cuda_ = make_backend({.kind = DeviceKind::kCuda}, GetParam());
    cpu_ = make_backend({.kind = DeviceKind::kCpu});
  }

  // Input and dense reference on both backends.
  void start(const Shape& shape) {
    input_ = testing::structured_input(shape);
    const SparsePlan dense = testing::make_plan({PlanKind::kDense, shape, 128, 128}, input_, 1);
    for (Backend* backend : {cuda_.get(), cpu_.get()}) {
      backend->set_input(input_);
      AttentionRun run;
      backend->run_reference(dense, kTiming, run);
    }
  }
  AttentionRun run(Backend& backend, PlanKind kind) {
    const SparsePlan plan = testing::make_plan({kind, shape(), 128, 128}, input_, 1);
    AttentionRun result;
    backend.run(plan, kTiming, result);
    return result;
  }
  Shape shape() const {
    const Problem& p = input_.problem;
    return {p.seqlen, p.num_q_heads, p.num_kv_heads, p.head_dim};
  }

  std::unique_ptr<Backend> cuda_, cpu_;
  AttentionInput input_;
};
INSTANTIATE_TEST_SUITE_P(kernels, CudaBackendTest, ::testing::Values("sm80", "sm90"),
                         [](const auto& test) { return test.param; });

TEST_P(CudaBackendTest, reference_is_fp32_accurate) {
  start({1000, 4, 1, 128});
  // Right after run_reference the output is the accurate one.
  EXPECT_LE(testing::relative_l2(cuda_->out(), cpu_->reference().out), 3e-6);
  EXPECT_LE(testing::relative_l2(cuda_->reference().lse, cpu_->reference().lse), 1e-6);
  for (const ErrorSums& head : cuda_->error_sums()) {
    EXPECT_EQ(head.error, 0.0);
    EXPECT_EQ(head.nonfinite, 0);
  }
}

TEST_P(CudaBackendTest, error_sums_on_the_device_are_those_of_the_definition) {
  start({1000, 4, 1, 128});
  // What the reference on the device is, to the bit.
  const std::vector<float> reference = cuda_->out();
  const AttentionRun result = run(*cuda_, PlanKind::kBlocks);
  EXPECT_EQ(result.attention_ms.size(), 3u);
  EXPECT_GT(result.workspace_bytes, 0);
  const std::vector<ErrorSums> actual = cuda_->error_sums();
  const std::vector<ErrorSums> expected =
      error_sums_ref(4, 1000 * 128, cuda_->out().data(), reference.data());
  ASSERT_EQ(actual.size(), expected.size());
  for (std::size_t head = 0; head < actual.size(); ++head) {
    EXPECT_NEAR(actual[head].error / expected[head].error, 1.0, 1e-12);
    EXPECT_NEAR(actual[head].reference / expected[head].reference, 1.0, 1e-12);
    EXPECT_NEAR(actual[head].output / expected[head].output, 1.0, 1e-12);
    EXPECT_NEAR(actual[head].dot / expected[head].dot, 1.0, 1e-12);
    EXPECT_EQ(actual[head].max_abs_error, expected[head].max_abs_error);
    EXPECT_EQ(actual[head].nonfinite, 0);
  }
}

TEST_P(CudaBackendTest, errors_and_work_agree_with_the_cpu) {
  start({1000, 4, 1, 64});
  for (const PlanKind kind : {PlanKind::kBlocks, PlanKind::kKeyOrder, PlanKind::kFoldVariance}) {
    const AttentionRun on_cuda = run(*cuda_, kind);
    const AttentionRun on_cpu = run(*cpu_, kind);
    ErrorSums cuda_total, cpu_total;
    for (const ErrorSums& head : cuda_->error_sums()) cuda_total += head;
    for (const ErrorSums& head : cpu_->error_sums()) cpu_total += head;
    const double cuda_error = std::sqrt(cuda_total.error / cuda_total.reference);
    const double cpu_error = std::sqrt(cpu_total.error / cpu_total.reference);
    EXPECT_NEAR(cuda_error, cpu_error, 4e-3 + 0.01 * cpu_error) << testing::plan_kind_name(kind);
    for (std::size_t i = 0; i < on_cpu.stats.size(); ++i) {
      EXPECT_EQ(on_cuda.stats[i].total_steps, on_cpu.stats[i].total_steps);
    }
  }
}

// In a process of its own, which a kernel that faults takes the device from.
TEST_P(CudaBackendTest, failing_kernel_is_an_error_of_its_run_and_loses_the_device) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  EXPECT_EXIT(
      {
        start({1000, 4, 1, 64});
        run(*cuda_, PlanKind::kS2o);
        const bool was_there = cuda_->lost().empty();
        testing::launch_failing_kernel(/*device=*/0);
        bool failed = false;
        try {
          run(*cuda_, PlanKind::kS2o);
        } catch (const CudaError&) {
          failed = true;
        }
        const bool told = cuda_->lost().find("is lost to this process") != std::string::npos;
        std::exit(was_there && failed && told ? 0 : 1);
      },
      ::testing::ExitedWithCode(0), "");
}

TEST_P(CudaBackendTest, fp32_inputs_are_refused) {
  AttentionInput input = testing::structured_input({128, 2, 1, 64}, "mixed", StorageDType::kF32);
  try {
    cuda_->set_input(input);
    FAIL();
  } catch (const UnsupportedError& error) {
    EXPECT_THAT(error.what(), ::testing::HasSubstr("dtype is fp32, supported are bf16 and fp16"));
  }
}

TEST_P(CudaBackendTest, context_names_the_device) {
  const nlohmann::ordered_json context = cuda_->context();
  EXPECT_NE(context["device"], "");
  EXPECT_NE(context["driver"], "");
  EXPECT_TRUE(context["sm_clock_mhz"].is_null() || context["sm_clock_mhz"] > 100.0);
}

}  // namespace
}  // namespace s2o
