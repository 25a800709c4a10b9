#include "lib/prefill/measures.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "kernels/common/parallel.h"

namespace s2o {
namespace {

constexpr std::int64_t kFirstBucket = 1024;

double log_sum_exp(std::span<const float> logits) {
  const double largest = *std::max_element(logits.begin(), logits.end());
  double sum = 0.0;
  for (const float logit : logits) sum += std::exp(static_cast<double>(logit) - largest);
  return largest + std::log(sum);
}

struct RowDivergence {
  double kl = 0.0;
  double max_abs = 0.0;
  bool same_top = false;
};

RowDivergence compare_row(std::span<const float> logits, std::span<const float> dense) {
  RowDivergence row;
  const double normaliser = log_sum_exp(logits);
  const double dense_normaliser = log_sum_exp(dense);
  for (std::size_t i = 0; i < dense.size(); ++i) {
    const double log_p = static_cast<double>(dense[i]) - dense_normaliser;
    const double log_q = static_cast<double>(logits[i]) - normaliser;
    row.kl += std::exp(log_p) * (log_p - log_q);
    const double difference = static_cast<double>(logits[i]) - static_cast<double>(dense[i]);
    row.max_abs = std::max(row.max_abs, std::abs(difference));
  }
  row.same_top = argmax(logits) == argmax(dense);
  return row;
}

}  // namespace

std::int64_t argmax(std::span<const float> logits) {
  return std::max_element(logits.begin(), logits.end()) - logits.begin();
}

void LogitDivergence::add(std::span<const float> logits, std::span<const float> dense,
                          std::int64_t vocab_size) {
  const auto size = static_cast<std::size_t>(vocab_size);
  const std::size_t rows = dense.size() / size;
  std::vector<RowDivergence> found(rows);
  parallel_for(static_cast<std::int64_t>(rows), [&](std::int64_t row) {
    const std::size_t begin = static_cast<std::size_t>(row) * size;
    found[static_cast<std::size_t>(row)] =
        compare_row(logits.subspan(begin, size), dense.subspan(begin, size));
  });
  for (const RowDivergence& row : found) {
    kl_sum_ += row.kl;
    same_top_ += row.same_top ? 1.0 : 0.0;
    max_abs_ = std::max(max_abs_, row.max_abs);
  }
  num_rows_ += static_cast<std::int64_t>(rows);
}

std::int64_t count_correct(std::span<const float> logits, std::span<const std::int32_t> answer,
                           std::int64_t vocab_size) {
  std::int64_t correct = 0;
  const auto size = static_cast<std::size_t>(vocab_size);
  for (std::size_t i = 0; i < answer.size(); ++i) {
    correct += argmax(logits.subspan(i * size, size)) == answer[i] ? 1 : 0;
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
