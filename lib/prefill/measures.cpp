#include "lib/prefill/measures.h"

#include <algorithm>
#include <cmath>
#include <numeric>

namespace s2o {
namespace {

constexpr std::int64_t kFirstBucket = 1024;

double log_sum_exp(std::span<const float> logits) {
  const double largest = *std::max_element(logits.begin(), logits.end());
  double sum = 0.0;
  for (const float logit : logits) sum += std::exp(static_cast<double>(logit) - largest);
  return largest + std::log(sum);
}

}  // namespace

std::int64_t argmax(std::span<const float> logits) {
  return std::max_element(logits.begin(), logits.end()) - logits.begin();
}

LogitDivergence compare_logits(const std::vector<float>& logits, const std::vector<float>& dense,
                               std::int64_t vocab_size) {
  LogitDivergence result;
  const auto size = static_cast<std::size_t>(vocab_size);
  const std::size_t rows = dense.size() / size;
  for (std::size_t row = 0; row < rows; ++row) {
    const std::span<const float> a(logits.data() + row * size, size);
    const std::span<const float> b(dense.data() + row * size, size);
    const double a_normaliser = log_sum_exp(a);
    const double b_normaliser = log_sum_exp(b);
    for (std::size_t i = 0; i < size; ++i) {
      const double a_log = static_cast<double>(a[i]) - a_normaliser;
      const double b_log = static_cast<double>(b[i]) - b_normaliser;
      result.kl_mean += std::exp(b_log) * (b_log - a_log);
      const double difference = std::abs(static_cast<double>(a[i]) - static_cast<double>(b[i]));
      result.max_abs = std::max(result.max_abs, difference);
    }
    result.top1_agreement += argmax(a) == argmax(b) ? 1.0 : 0.0;
  }
  result.kl_mean /= static_cast<double>(rows);
  result.top1_agreement /= static_cast<double>(rows);
  return result;
}

std::int64_t count_correct(const std::vector<float>& logits, std::span<const std::int32_t> answer,
                           std::int64_t vocab_size) {
  std::int64_t correct = 0;
  const auto size = static_cast<std::size_t>(vocab_size);
  for (std::size_t i = 0; i < answer.size(); ++i) {
    correct += argmax({logits.data() + i * size, size}) == answer[i] ? 1 : 0;
  }
  return correct;
}

std::vector<LossBucket> bucket_losses(const std::vector<double>& losses) {
  std::vector<LossBucket> buckets;
  const auto count = static_cast<std::int64_t>(losses.size());
  for (std::int64_t begin = 0, end = kFirstBucket; begin < count; begin = end, end *= 2) {
    const std::int64_t last = std::min(end, count);
    const double sum = std::accumulate(losses.begin() + begin, losses.begin() + last, 0.0);
    buckets.push_back({begin, last, sum / static_cast<double>(last - begin)});
  }
  return buckets;
}

double mean_of(const std::vector<double>& values) {
  return std::accumulate(values.begin(), values.end(), 0.0) / static_cast<double>(values.size());
}

}  // namespace s2o
