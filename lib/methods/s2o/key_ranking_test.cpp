#include "lib/methods/s2o/key_ranking.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstddef>

#include "lib/testing/inputs.h"

namespace s2o {
namespace {

TEST(KeyRanking, scores_are_mean_logits_of_the_segment_in_fp64) {
  const AttentionInput input = testing::structured_input({320, 4, 2, 64});
  for (const int num_heads : {1, 2}) {
    const std::vector<float> found = mean_query_scores(input, 2, num_heads, 256, 320, 256);
    ASSERT_EQ(found.size(), 256u);
    for (std::size_t x = 0; x < found.size(); ++x) {
      double sum = 0.0;
      for (int head = 2; head < 2 + num_heads; ++head) {
        for (std::int64_t t = 256; t < 320; ++t) {
          for (std::size_t i = 0; i < 64; ++i) {
            sum += static_cast<double>(input.q_head(head)[t * 64 + static_cast<std::int64_t>(i)]) *
                   static_cast<double>(input.k_head(1)[x * 64 + i]);
          }
        }
      }
      EXPECT_NEAR(found[x], sum / (64.0 * num_heads * std::sqrt(64.0)), 1e-4) << x;
    }
  }
}

}  // namespace
}  // namespace s2o
