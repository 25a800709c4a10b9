// Parts of S2O's rankings beyond the mean, on the CPU model of a grid, against their definition.
#include <gtest/gtest.h>

#include <cmath>
#include <vector>

#include "kernels/planning/s2o/cluster_ops.h"
#include "kernels/testing/planning_model.h"
#include "lib/methods/s2o/key_ranking.h"
#include "lib/testing/inputs.h"
#include "lib/testing/model_runner.h"

namespace s2o {
namespace {

using testing::Shape;
using testing::structured_input;

constexpr float kPoison = 1e9f;

std::int32_t moment_blocks(const Problem& problem) {
  return static_cast<std::int32_t>((problem.seqlen + kMomentBlock - 1) / kMomentBlock);
}
KernelDType kernel_type(const AttentionInput& input) {
  return input.dtype == StorageDType::kF16 ? KernelDType::kFp16 : KernelDType::kBf16;
}

std::vector<float> lse_on_model(const AttentionInput& input, PlanningVariant variant) {
  const Problem& problem = input.problem;
  const auto q = testing::to_16_bit(input.q, kernel_type(input));
  const auto k = testing::to_16_bit(input.k, kernel_type(input));
  const std::int32_t blocks = moment_blocks(problem);
  std::vector<std::uint16_t> means(
      static_cast<std::size_t>(problem.num_kv_heads * blocks * problem.head_dim));
  std::vector<std::uint16_t> variances(means.size());
  std::vector<float> lse(static_cast<std::size_t>(problem.num_q_heads * problem.seqlen), kPoison);
  const auto kernels = testing::model_planning_kernels(3, variant);
  kernels->run(MomentArgs{.x = k.data(),
                          .means = means.data(),
                          .variances = variances.data(),
                          .seqlen = problem.seqlen,
                          .num_heads = problem.num_kv_heads,
                          .num_blocks = blocks},
               Elements{kernel_type(input), problem.head_dim});
  kernels->run(LseArgs{.q = q.data(),
                       .means = means.data(),
                       .variances = variances.data(),
                       .lse = lse.data(),
                       .seqlen = problem.seqlen,
                       .num_q_heads = problem.num_q_heads,
                       .group_size = problem.group_size(),
                       .num_blocks = blocks,
                       .softmax_scale = problem.softmax_scale},
               Elements{kernel_type(input), problem.head_dim});
  return lse;
}

TEST(S2oRankingModel, normalisers_agree_with_the_cpu) {
  for (const StorageDType dtype : {StorageDType::kBF16, StorageDType::kF16}) {
    // Several steps of kLseColumns blocks only in the last.
    for (const Shape& shape :
         {Shape{700, 4, 2, 64}, Shape{129, 2, 1, 128}, Shape{1, 1, 1, 64}, Shape{4500, 1, 1, 64}}) {
      const AttentionInput input = structured_input(shape, "mixed", dtype);
      const std::vector<float> expected = estimate_lse(input);
      for (const PlanningVariant variant : {PlanningVariant::kSm80, PlanningVariant::kSm90}) {
        const std::vector<float> found = lse_on_model(input, variant);
        float worst = 0.0f;
        for (std::size_t i = 0; i < found.size(); ++i) {
          // Means and variances have 8 bits at least.
          EXPECT_NEAR(found[i], expected[i], 0.02f + 0.004f * std::abs(expected[i])) << i;
          worst = std::max(worst, std::abs(found[i] - expected[i]));
        }
        std::cout << "seqlen " << shape.seqlen << ": largest difference " << worst << "\n";
      }
    }
  }
}

TEST(S2oRankingModel, distances_of_values_agree_with_their_definition) {
  const AttentionInput input = structured_input(Shape{300, 2, 2, 128});
  const Problem& problem = input.problem;
  const auto v = testing::to_16_bit(input.v, KernelDType::kBf16);
  std::vector<float> found(static_cast<std::size_t>(problem.num_kv_heads * problem.seqlen),
                           kPoison);
  testing::model_planning_kernels(3)->run(MomentArgs{.x = v.data(),
                                                     .log_distances = found.data(),
                                                     .seqlen = problem.seqlen,
                                                     .num_heads = problem.num_kv_heads,
                                                     .num_blocks = moment_blocks(problem)},
                                          Elements{KernelDType::kBf16, problem.head_dim});
  for (int head = 0; head < problem.num_kv_heads; ++head) {
    for (std::int64_t t = 0; t < problem.seqlen; ++t) {
      const std::int64_t begin = t / kMomentBlock * kMomentBlock;
      const std::int64_t end = std::min<std::int64_t>(begin + kMomentBlock, problem.seqlen);
      double square = 0.0;
      for (int i = 0; i < problem.head_dim; ++i) {
        double mean = 0.0;
        for (std::int64_t x = begin; x < end; ++x) {
          mean += static_cast<double>(input.v_head(head)[x * problem.head_dim + i]);
        }
        mean /= static_cast<double>(end - begin);
        const double distance =
            static_cast<double>(input.v_head(head)[t * problem.head_dim + i]) - mean;
        square += distance * distance;
      }
      EXPECT_NEAR(found[static_cast<std::size_t>(head * problem.seqlen + t)],
                  0.5 * std::log(square), 1e-4);
    }
  }
}

TEST(S2oRankingModel, clusters_hold_all_queries_once) {
  const AttentionInput input = structured_input(Shape{400, 2, 1, 64});
  const Problem& problem = input.problem;
  const auto q = testing::to_16_bit(input.q, KernelDType::kBf16);
  const HistoryShape shape{.seqlen = problem.seqlen,
                           .segment_size = 150,
                           .num_segments = 3,
                           .num_kv_heads = 1,
                           .lists_per_kv_head = 2};
  std::vector<std::uint16_t> means(static_cast<std::size_t>(6 * kMaxClusters * 64));
  std::vector<float> weights(static_cast<std::size_t>(6 * kMaxClusters), kPoison);
  testing::model_planning_kernels(3)->run(ClusterArgs{.q = q.data(),
                                                      .means = means.data(),
                                                      .log2_weights = weights.data(),
                                                      .shape = shape,
                                                      .num_clusters = 20,
                                                      .softmax_scale = problem.softmax_scale},
                                          Elements{KernelDType::kBf16, problem.head_dim});
  for (int row = 2; row < 6; ++row) {  // the first segment has no history
    double total = 0.0;
    for (int c = 0; c < kMaxClusters; ++c) {
      const float weight = weights[static_cast<std::size_t>(row * kMaxClusters + c)];
      if (c >= 20) {
        EXPECT_EQ(weight, kNoWeight);
      }
      total += std::exp2(static_cast<double>(weight));
    }
    EXPECT_NEAR(total, row < 4 ? 150.0 : 100.0, 1e-3);
  }
}

}  // namespace
}  // namespace s2o
