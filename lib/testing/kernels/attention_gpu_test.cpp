// The attention kernels on a CUDA device, against the fp64 reference on the same 16-bit inputs:
// every plan part, edges of shapes, both element types, early stops, repeatability.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <functional>
#include <iostream>
#include <map>

#include "kernels/attention/prepared_attention.h"
#include "kernels/common/device_buffer.h"
#include "kernels/common/device_input_copy.h"
#include "kernels/common/device_plan_copy.h"
#include "kernels/common/stream.h"
#include "lib/testing/device_runner.h"
#include "lib/testing/head_taus.h"
#include "lib/testing/stop_check.h"

namespace s2o {
namespace {

using testing::Comparison;
using testing::device_with;
using testing::DeviceInputs;
using ::testing::HasSubstr;
using testing::KernelResult;
using testing::PlanCase;
using testing::PlanKind;
using testing::Shape;
using testing::StopCheck;

#define S2O_SKIP_WITHOUT(variant)                                                     \
  if (const std::string refusal = testing::device_refusal(variant); !refusal.empty()) \
  GTEST_SKIP() << "attention_" << (variant) << ": " << refusal

struct Case {
  PlanCase plan_case;
  StorageDType dtype = StorageDType::kBF16;
};

std::string name_of(const Case& c) {
  return testing::plan_case_name(c.plan_case) + (c.dtype == StorageDType::kF16 ? "_fp16" : "");
}

bool folds(PlanKind kind) {
  return kind == PlanKind::kFoldCentroid || kind == PlanKind::kFoldBlocks ||
         kind == PlanKind::kFoldVariance;
}
bool row_reference_covers(PlanKind kind) {
  return !folds(kind) && kind != PlanKind::kPacked && kind != PlanKind::kPvSkip;
}

// GQA 1, 4 and 8; every edge of a tile.
std::vector<Case> cases_of(PlanKind kind) {
  std::vector<Case> list;
  for (const int head_dim : {64, 128}) {
    for (const Shape& shape :
         {Shape{1, 4, 4, head_dim}, Shape{127, 8, 2, head_dim}, Shape{128, 8, 1, head_dim},
          Shape{129, 4, 4, head_dim}, Shape{1000, 8, 2, head_dim}, Shape{4096, 8, 1, head_dim},
          Shape{5000, 4, 1, head_dim}}) {
      list.push_back({{kind, shape, 128, 128}});
    }
    for (const int block_m : {64, 128}) {
      for (const int block_n : {64, 128}) {
        list.push_back({{kind, {1000, 4, 1, head_dim}, block_m, block_n}, StorageDType::kF16});
      }
    }
    list.push_back({{kind, {1000, 4, 1, head_dim}, 64, 64}});
    list.push_back({{kind, {1000, 4, 1, head_dim}, 64, 128}});
    list.push_back({{kind, {1000, 4, 1, head_dim}, 128, 64}});
    if (kind != PlanKind::kPvSkip) list.push_back({{kind, {1000, 4, 1, head_dim}, 128, 256}});
  }
  if (folds(kind)) return list;
  for (const int head_dim : {96, 256}) {
    list.push_back({{kind, {1000, 4, 1, head_dim}, 128, 64}});
    list.push_back({{kind, {1000, 4, 1, head_dim}, 64, 64}, StorageDType::kF16});
    if (kind != PlanKind::kPvSkip) list.push_back({{kind, {4096, 8, 1, head_dim}, 128, 128}});
  }
  return list;
}

// What a case is judged by; the reference is shared by the kernels that run in this process.
struct Expectation {
  AttentionInput input;
  SparsePlan plan;
  KernelResult result;
};
const Expectation& expectation(const Case& c) {
  static std::map<std::string, Expectation> cache;
  const auto found = cache.find(name_of(c));
  if (found != cache.end()) return found->second;
  AttentionInput input = testing::structured_input(c.plan_case.shape, "mixed", c.dtype);
  SparsePlan plan = testing::make_plan(c.plan_case, input, 1);
  check_plan(input.problem, plan);
  KernelResult result = testing::reference_result(input, plan);
  return cache
      .emplace(name_of(c), Expectation{std::move(input), std::move(plan), std::move(result)})
      .first->second;
}

bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}
bool same_stats(const std::vector<TileStats>& a, const std::vector<TileStats>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(TileStats)) == 0;
}

struct KindOnKernel {
  PlanKind kind;
  std::string variant;
};

class GpuPlans : public ::testing::TestWithParam<KindOnKernel> {
 protected:
  struct Totals {
    int cases = 0;
    std::int64_t stoppable_tiles = 0;
    std::int64_t near_ties = 0;
    double worst_error = 0.0;
    double worst_lse = 0.0;
    std::string worst_case;
  };

  void run_case(const Case& c) {
    const Expectation& expected = expectation(c);
    const CudaDevice& device = device_with(GetParam().variant);
    KernelResult actual = testing::run_on_device(device, expected.input, expected.plan);
    const KernelResult again = testing::run_on_device(device, expected.input, expected.plan);
    EXPECT_TRUE(same_bits(actual.out, again.out)) << "two runs give different outputs";
    EXPECT_TRUE(same_bits(actual.lse, again.lse)) << "two runs give different lse";
    EXPECT_TRUE(same_stats(actual.stats, again.stats)) << "two runs do different work";

    KernelResult wanted = expected.result;
    if (row_reference_covers(GetParam().kind)) judge_stops(expected, actual, wanted);
    const Comparison comparison = testing::compare(expected.input, actual, wanted);
    // P is rounded to 8 (bf16) or 11 (fp16) bits of mantissa; folds round mean keys and values too.
    const bool bf16 = c.dtype == StorageDType::kBF16;
    const double limit = folds(GetParam().kind) ? (bf16 ? 8e-3 : 1e-3) : (bf16 ? 4e-3 : 5e-4);
    const double lse_limit = folds(GetParam().kind) ? (bf16 ? 8e-3 : 1e-3) : 5e-5;
    EXPECT_LE(comparison.out_relative_l2, limit) << comparison.worst;
    EXPECT_LE(comparison.lse_max_error, lse_limit);
    EXPECT_EQ(comparison.empty_mismatches, 0);
    EXPECT_EQ(comparison.stat_mismatches, 0);
    ++totals_.cases;
    if (!(comparison.out_relative_l2 <= totals_.worst_error)) {
      totals_.worst_error = comparison.out_relative_l2;
      totals_.worst_case = name_of(c);
    }
    totals_.worst_lse = std::max(totals_.worst_lse, comparison.lse_max_error);
  }

  void judge_stops(const Expectation& expected, KernelResult& actual, KernelResult& wanted) {
    const DeviceInputs bits(expected.input);
    const PlanPointers pointers(expected.plan);
    const StopCheck stops = testing::check_stops(expected.input.problem, pointers.view(),
                                                 bits.rows(), actual.stats, wanted.stats);
    EXPECT_EQ(stops.disagreements, 0) << stops.worst;
    testing::drop_rows(stops.affected_rows, expected.input.problem.head_dim, actual, wanted);
    totals_.stoppable_tiles += stops.stoppable_tiles;
    totals_.near_ties += stops.near_ties;
  }

  Totals totals_;
};

TEST_P(GpuPlans, agree_with_fp64_reference) {
  S2O_SKIP_WITHOUT(GetParam().variant);
  for (const Case& c : cases_of(GetParam().kind)) {
    SCOPED_TRACE(name_of(c));
    run_case(c);
  }
  std::cout << GetParam().variant << " " << testing::plan_kind_name(GetParam().kind) << ": "
            << totals_.cases << " cases, worst relative L2 " << totals_.worst_error << " ("
            << totals_.worst_case << "), worst lse error " << totals_.worst_lse;
  if (totals_.stoppable_tiles > 0) {
    std::cout << ", " << totals_.near_ties << " near-ties in " << totals_.stoppable_tiles
              << " tiles that may stop";
  }
  std::cout << "\n";
}

std::vector<KindOnKernel> kinds_on_kernels() {
  std::vector<KindOnKernel> list;
  for (const PlanKind kind : testing::all_plan_kinds()) {
    for (const char* variant : {"sm80", "sm90"}) list.push_back({kind, variant});
  }
  return list;
}
INSTANTIATE_TEST_SUITE_P(kinds, GpuPlans, ::testing::ValuesIn(kinds_on_kernels()),
                         [](const auto& test) {
                           return testing::plan_kind_name(test.param.kind) + "_" +
                                  test.param.variant;
                         });

// What runs under compute-sanitizer: every plan part on a few tiles.
class GpuSmall : public GpuPlans {};

TEST_P(GpuSmall, agree_with_fp64_reference) {
  S2O_SKIP_WITHOUT(GetParam().variant);
  for (const Case& c : {Case{{GetParam().kind, {300, 2, 1, 64}, 64, 64}},
                        Case{{GetParam().kind, {333, 2, 1, 128}, 128, 128}}}) {
    SCOPED_TRACE(name_of(c));
    run_case(c);
  }
}
INSTANTIATE_TEST_SUITE_P(kinds, GpuSmall, ::testing::ValuesIn(kinds_on_kernels()),
                         [](const auto& test) {
                           return testing::plan_kind_name(test.param.kind) + "_" +
                                  test.param.variant;
                         });

class GpuKernel : public ::testing::TestWithParam<std::string> {};
INSTANTIATE_TEST_SUITE_P(kernels, GpuKernel, ::testing::Values("sm80", "sm90"),
                         [](const auto& test) { return test.param; });

// Every key is visited, in another order.
TEST_P(GpuKernel, s2o_with_tau_zero_equals_dense) {
  S2O_SKIP_WITHOUT(GetParam());
  const Shape shape{1000, 4, 1, 128};
  const Expectation& s2o = expectation({{PlanKind::kS2o, shape, 128, 128}});
  const Expectation& dense = expectation({{PlanKind::kDense, shape, 128, 128}});
  SparsePlan plan = s2o.plan;
  plan.header.stop.tau = 0.0f;
  const KernelResult actual = testing::run_on_device(device_with(GetParam()), s2o.input, plan);
  KernelResult wanted = dense.result;
  wanted.stats = testing::reference_result(s2o.input, plan).stats;
  const Comparison comparison = testing::compare(s2o.input, actual, wanted);
  EXPECT_LE(comparison.out_relative_l2, 4e-3) << comparison.worst;
  EXPECT_LE(comparison.lse_max_error, 5e-5);
  EXPECT_EQ(comparison.stop_mismatches, 0);
}

TEST_P(GpuKernel, heads_with_a_tau_each_are_those_of_launches_apart) {
  S2O_SKIP_WITHOUT(GetParam());
  for (const PlanKind kind : {PlanKind::kS2o, PlanKind::kS2oPatience, PlanKind::kS2oTwoPasses}) {
    SCOPED_TRACE(testing::plan_kind_name(kind));
    testing::expect_heads_as_with_one_tau(
        kind, [](const AttentionInput& input, const SparsePlan& plan) {
          return testing::run_on_device(device_with(GetParam()), input, plan);
        });
  }
}

// Rows of a plan, spread over heads and positions.
std::vector<std::pair<int, std::int64_t>> sample_rows(const Problem& problem, int count) {
  std::vector<std::pair<int, std::int64_t>> rows = {{0, 0}, {0, problem.seqlen - 1}};
  for (int i = 0; i < count; ++i) {
    rows.emplace_back(i % problem.num_q_heads, (i * 7919LL + 63) % problem.seqlen);
  }
  return rows;
}

struct SampledErrors {
  double kernel = 0.0;
  double math = 0.0;
};

// Relative L2 of sampled rows against fp64: of `out`, and of plain attention in the same type.
SampledErrors sampled_errors(const AttentionInput& input, const SparsePlan& plan,
                             const KernelResult& result, int count) {
  const DeviceInputs bits(input);
  const PlanPointers pointers(plan);
  const Problem& problem = input.problem;
  const auto d = static_cast<std::size_t>(problem.head_dim);
  double norm = 0.0;
  SampledErrors errors;
  for (const auto& [head, position] : sample_rows(problem, count)) {
    const testing::RowReference exact =
        testing::reference_row(problem, pointers.view(), bits.rows(), result.stats, head, position);
    const std::vector<float> math =
        testing::math_row(problem, pointers.view(), bits.rows(), result.stats, head, position);
    const float* row = result.out.data() + problem.row_offset(head, position);
    for (std::size_t c = 0; c < d; ++c) {
      const auto square = [](double x) { return x * x; };
      errors.kernel += square(static_cast<double>(row[c]) - exact.out[c]);
      errors.math += square(static_cast<double>(math[c]) - exact.out[c]);
      norm += square(exact.out[c]);
    }
  }
  errors.kernel = std::sqrt(errors.kernel / norm);
  errors.math = std::sqrt(errors.math / norm);
  return errors;
}

void expect_no_worse_than_math(const std::string& variant, const AttentionInput& input,
                               const SparsePlan& plan, const std::string& what) {
  for (const OutputType output : {OutputType::kFp32, OutputType::kInput}) {
    const KernelResult result =
        testing::run_on_device(device_with(variant), input, plan, {.output = output});
    const SampledErrors errors = sampled_errors(input, plan, result, 60);
    EXPECT_LE(errors.kernel, 2.0 * errors.math) << what;
    std::cout << variant << " " << what
              << (output == OutputType::kFp32 ? ", fp32 output" : ", 16-bit output")
              << ": error against fp64 " << errors.kernel << ", of math attention " << errors.math
              << "\n";
  }
}

TEST_P(GpuKernel, error_is_at_most_twice_that_of_math_attention) {
  S2O_SKIP_WITHOUT(GetParam());
  for (const StorageDType dtype : {StorageDType::kBF16, StorageDType::kF16}) {
    for (const PlanKind kind : {PlanKind::kDense, PlanKind::kBlocks, PlanKind::kS2o}) {
      const Case c{{kind, {4096, 8, 2, 128}, 128, 128}, dtype};
      const AttentionInput input = testing::structured_input(c.plan_case.shape, "mixed", dtype);
      const SparsePlan plan = testing::make_plan(c.plan_case, input, 1);
      expect_no_worse_than_math(GetParam(), input, plan, name_of(c));
    }
  }
}

// Beyond 16-bit tile counts and into 64-bit offsets of scores; rows are sampled.
TEST_P(GpuKernel, long_sequences_agree) {
  S2O_SKIP_WITHOUT(GetParam());
  for (const std::int64_t seqlen : {65537LL, 131072LL}) {
    const Shape shape{seqlen, 2, 1, 128};
    const AttentionInput input = testing::structured_input(shape);
    for (const PlanKind kind : {PlanKind::kDense, PlanKind::kBlocks}) {
      const PlanCase plan_case{kind, shape, 128, 128};
      const SparsePlan plan = testing::make_plan(plan_case, input, 1);
      expect_no_worse_than_math(GetParam(), input, plan, testing::plan_case_name(plan_case));
    }
  }
}

TEST(GpuAccuracy, fp32_instance_reaches_fp32) {
  S2O_SKIP_WITHOUT("sm80");
  for (const StorageDType dtype : {StorageDType::kBF16, StorageDType::kF16}) {
    for (const int head_dim : {64, 96, 128, 256}) {
      const Case c{{PlanKind::kDense, {1000, 4, 1, head_dim}, 64, 64}, dtype};
      const Expectation& expected = expectation(c);
      const KernelResult actual = testing::run_on_device(device_with("sm80"), expected.input,
                                                         expected.plan, {.fp32_accuracy = true});
      const Comparison comparison = testing::compare(expected.input, actual, expected.result);
      EXPECT_LE(comparison.out_relative_l2, 3e-6) << name_of(c) << ": " << comparison.worst;
      // A logit is a sum over head_dim.
      EXPECT_LE(comparison.lse_max_error, head_dim <= 128 ? 1e-5 : 2e-5) << name_of(c);
      std::cout << "fp32 accuracy, " << name_of(c) << ": relative L2 " << comparison.out_relative_l2
                << "\n";
    }
  }
}

// What is refused before anything runs, by message.
template <class ErrorType>
std::string message_of(const std::function<void()>& body) {
  try {
    body();
  } catch (const ErrorType& error) {
    return error.what();
  }
  return "no such error";
}

TEST_P(GpuKernel, unsupported_head_dim_is_named) {
  S2O_SKIP_WITHOUT(GetParam());
  const AttentionInput input = testing::structured_input({128, 2, 1, 32});
  SparsePlan plan = testing::make_plan({PlanKind::kDense, {128, 2, 1, 32}, 128, 128}, input, 1);
  EXPECT_THAT(message_of<UnsupportedError>(
                  [&] { testing::run_on_device(device_with(GetParam()), input, plan); }),
              HasSubstr("head_dim is 32, supported are 64, 96, 128 and 256"));
}

TEST_P(GpuKernel, index_out_of_range_names_head_tile_and_index) {
  S2O_SKIP_WITHOUT(GetParam());
  const PlanCase plan_case{PlanKind::kS2o, {1000, 4, 1, 64}, 128, 128};
  const AttentionInput input = testing::structured_input(plan_case.shape);
  SparsePlan plan = testing::make_plan(plan_case, input, 1);
  plan.passes[0].gather_indices[0] = 1000;
  const std::string message =
      message_of<Error>([&] { testing::run_on_device(device_with(GetParam()), input, plan); });
  EXPECT_THAT(message, HasSubstr("head 0 tile"));
  EXPECT_THAT(message, HasSubstr("key 1000"));
}

// Parts that do not belong together are refused on the host, before anything is enqueued.
TEST_P(GpuKernel, parts_that_do_not_fit_are_refused_by_name) {
  S2O_SKIP_WITHOUT(GetParam());
  const CudaDevice& device = device_with(GetParam());
  const Expectation& expected = expectation({{PlanKind::kDense, {1000, 4, 1, 64}, 128, 128}});
  const Expectation& other = expectation({{PlanKind::kDense, {4096, 8, 1, 64}, 128, 128}});
  const DeviceInputs bits(expected.input);
  const DeviceInputCopy input(expected.input.problem, bits.dtype(), bits.rows().q, bits.rows().k,
                              bits.rows().v);
  const DevicePlanCopy plan(expected.input.problem, PlanPointers(expected.plan).view(), 1 << 20);
  const DevicePlanCopy other_plan(other.input.problem, PlanPointers(other.plan).view(), 1 << 20);
  AttentionBuffers buffers(expected.input.problem, plan.plan().header, OutputType::kFp32);
  AttentionScratch scratch;
  const auto prepare = [&](const DevicePlan& device_plan, const AttentionOutput& output) {
    PreparedAttention(device.info, device.attention, input.input(), device_plan, output, scratch);
  };
  EXPECT_NO_THROW(prepare(plan.plan(), buffers.output()));
  EXPECT_THAT(message_of<Error>([&] { prepare(other_plan.plan(), buffers.output()); }),
              HasSubstr("8 plan heads x pack 1 do not give 4 query heads"));
  AttentionOutput output = buffers.output();
  output.out_fp32 = nullptr;
  EXPECT_THAT(message_of<Error>([&] { prepare(plan.plan(), output); }),
              HasSubstr("one of out_fp32 and out_16"));
}

// Scratch that a later plan needed more of serves an earlier one as before.
TEST_P(GpuKernel, plans_share_scratch_memory_that_grows) {
  S2O_SKIP_WITHOUT(GetParam());
  const CudaDevice& device = device_with(GetParam());
  const Expectation& small = expectation({{PlanKind::kFoldVariance, {1000, 4, 1, 64}, 128, 128}});
  const Expectation& large = expectation({{PlanKind::kFoldVariance, {4096, 8, 1, 64}, 128, 128}});
  const KernelResult wanted = testing::run_on_device(device, small.input, small.plan);
  const DeviceInputs bits(small.input);
  const DeviceInputs large_bits(large.input);
  const DeviceInputCopy input(small.input.problem, bits.dtype(), bits.rows().q, bits.rows().k,
                              bits.rows().v);
  const DeviceInputCopy large_input(large.input.problem, large_bits.dtype(), large_bits.rows().q,
                                    large_bits.rows().k, large_bits.rows().v);
  const DevicePlanCopy plan(small.input.problem, PlanPointers(small.plan).view(), 1 << 20);
  const DevicePlanCopy large_plan(large.input.problem, PlanPointers(large.plan).view(), 1 << 20);
  AttentionBuffers buffers(small.input.problem, plan.plan().header, OutputType::kFp32);
  AttentionBuffers large_buffers(large.input.problem, large_plan.plan().header, OutputType::kInput);
  AttentionScratch scratch;
  const Stream stream;
  const PreparedAttention attention(device.info, device.attention, input.input(), plan.plan(),
                                    buffers.output(), scratch);
  const PreparedAttention large_attention(device.info, device.attention, large_input.input(),
                                          large_plan.plan(), large_buffers.output(), scratch);
  buffers.poison(stream.get());
  large_attention.enqueue(stream.get());
  attention.enqueue(stream.get());
  stream.synchronize();
  EXPECT_TRUE(same_bits(buffers.read_out(bits.dtype()), wanted.out));
  EXPECT_TRUE(same_bits(buffers.read_lse(), wanted.lse));
  EXPECT_TRUE(same_stats(buffers.read_stats(), wanted.stats));
}

TEST(GpuMemory, too_large_a_buffer_says_needed_and_free) {
  S2O_SKIP_WITHOUT("sm80");
  EXPECT_THAT(
      message_of<UnsupportedError>(
          [] { DeviceBuffer<float>().resize(std::size_t{1} << 40, "test buffer"); }),
      ::testing::MatchesRegex(
          "test buffer: needs 4398046511104 bytes of device memory, [0-9]+ of [0-9]+ are free"));
  // The failure leaves the device usable.
  DeviceBuffer<float> small;
  small.resize(1024, "small");
  EXPECT_NE(small.data(), nullptr);
}

}  // namespace
}  // namespace s2o
