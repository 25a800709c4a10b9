#include "lib/prefill/measures.h"

#include <gtest/gtest.h>

#include <cmath>

namespace s2o {
namespace {

LogitDivergence compare(const std::vector<float>& logits, const std::vector<float>& dense,
                        std::int64_t vocab_size) {
  LogitDivergence divergence;
  divergence.add(logits, dense, vocab_size);
  return divergence;
}

TEST(logit_divergence, equal_logits_do_not_diverge) {
  const std::vector<float> logits = {1.0f, -2.0f, 0.5f, 3.0f, 3.0f, -1.0f};
  const LogitDivergence divergence = compare(logits, logits, 3);
  EXPECT_EQ(divergence.kl_mean(), 0.0);
  EXPECT_EQ(divergence.max_abs(), 0.0);
  EXPECT_EQ(divergence.top1_agreement(), 1.0);
}

// KL((1/2, 1/2) || (3/4, 1/4)) = log 2 - (log 3) / 2, worked out by hand; second row agrees.
TEST(logit_divergence, two_rows_by_hand) {
  const std::vector<float> dense = {0.0f, 0.0f, 1.0f, 2.0f};
  const std::vector<float> other = {std::log(3.0f), 0.0f, 1.0f, 2.0f};
  const LogitDivergence divergence = compare(other, dense, 2);
  EXPECT_NEAR(divergence.kl_mean(), (std::log(2.0) - 0.5 * std::log(3.0)) / 2.0, 1e-7);
  EXPECT_NEAR(divergence.max_abs(), std::log(3.0), 1e-6);
  EXPECT_EQ(divergence.top1_agreement(), 1.0);  // of equal logits the first one counts
}

TEST(logit_divergence, a_shift_of_all_logits_is_no_divergence) {
  const std::vector<float> dense = {0.25f, -1.5f, 4.0f};
  const std::vector<float> other = {100.25f, 98.5f, 104.0f};
  EXPECT_NEAR(compare(other, dense, 3).kl_mean(), 0.0, 1e-9);
  EXPECT_NEAR(compare(other, dense, 3).max_abs(), 100.0, 1e-9);
}

TEST(logit_divergence, chunks_add_up_to_the_whole) {
  std::vector<float> dense(30), other(30);
  for (std::size_t i = 0; i < dense.size(); ++i) {
    dense[i] = std::sin(static_cast<float>(i));
    other[i] = dense[i] + 0.1f * std::cos(static_cast<float>(3 * i));
  }
  const LogitDivergence whole = compare(other, dense, 5);
  LogitDivergence chunks;
  chunks.add(std::span(other).first(10), std::span(dense).first(10), 5);
  chunks.add(std::span(other).subspan(10), std::span(dense).subspan(10), 5);
  EXPECT_EQ(chunks.num_rows(), 6);
  EXPECT_NEAR(chunks.kl_mean(), whole.kl_mean(), 1e-12);
  EXPECT_EQ(chunks.max_abs(), whole.max_abs());
  EXPECT_EQ(chunks.top1_agreement(), whole.top1_agreement());
}

TEST(count_correct, counts_rows_whose_best_token_is_the_answer) {
  const std::vector<float> logits = {0.0f, 1.0f, 5.0f, 2.0f, 1.0f, 1.0f};
  EXPECT_EQ(count_correct(logits, std::vector<std::int32_t>{1, 0, 0}, 2), 3);
  EXPECT_EQ(count_correct(logits, std::vector<std::int32_t>{0, 0, 1}, 2), 1);
}

TEST(bucket_losses, buckets_cover_all_positions_and_average_to_the_mean) {
  for (const std::size_t count : {1u, 1023u, 1024u, 1025u, 2048u, 5000u}) {
    std::vector<double> losses(count);
    for (std::size_t i = 0; i < count; ++i) losses[i] = 2.0 + std::sin(static_cast<double>(i));
    double sum = 0.0;
    std::int64_t next = 0;
    for (const LossBucket& bucket : bucket_losses(losses)) {
      EXPECT_EQ(bucket.begin, next);
      EXPECT_GT(bucket.end, bucket.begin);
      next = bucket.end;
      sum += bucket.loss * static_cast<double>(bucket.end - bucket.begin);
    }
    EXPECT_EQ(next, static_cast<std::int64_t>(count));
    EXPECT_NEAR(sum / static_cast<double>(count), mean_of(losses), 1e-12) << count;
  }
  const std::vector<LossBucket> buckets = bucket_losses(std::vector<double>(5000, 1.0));
  ASSERT_EQ(buckets.size(), 4u);
  EXPECT_EQ(buckets[0].end, 1024);
  EXPECT_EQ(buckets[1].end, 2048);
  EXPECT_EQ(buckets[3].begin, 4096);
  EXPECT_EQ(buckets[3].end, 5000);
}

}  // namespace
}  // namespace s2o
