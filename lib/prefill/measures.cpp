#include "lib/prefill/measures.h"

#include <Eigen/Core>
#include <algorithm>
#include <cmath>
#include <numeric>

#include "kernels/common/parallel.h"

namespace s2o {
namespace {

constexpr std::int64_t kFirstBucket = 1024;

struct RowDivergence {
  double kl = 0.0;
  double max_abs = 0.0;
  bool same_top = false;
};

using Row = Eigen::Map<const Eigen::ArrayXf>;

// exp(x - largest), and its sum.
double shifted_exp(const Row& x, float largest, Eigen::ArrayXf& terms) {
  terms = (x - largest).exp();
  return terms.cast<double>().sum();
}

// With p of dense and d = dense - logits: sum(p d) - (log sum exp of dense - that of logits). A
// thousand rows of a large vocabulary are hundreds of millions of terms: in vectors, fp32 but for
// the sums.
RowDivergence compare_row(std::span<const float> logits, std::span<const float> dense) {
  const Row other(logits.data(), static_cast<Eigen::Index>(logits.size()));
  const Row reference(dense.data(), static_cast<Eigen::Index>(dense.size()));
  const float largest = other.maxCoeff();
  const float reference_largest = reference.maxCoeff();
  Eigen::ArrayXf terms;
  const double sum = shifted_exp(other, largest, terms);
  const double reference_sum = shifted_exp(reference, reference_largest, terms);
  const Eigen::ArrayXf difference = reference - other;
  const double mean_difference =
      (terms.cast<double>() * difference.cast<double>()).sum() / reference_sum;
  const double normalisers = std::log(reference_sum / sum) +
                             static_cast<double>(reference_largest) - static_cast<double>(largest);
  return {.kl = mean_difference - normalisers,
          .max_abs = difference.abs().maxCoeff(),
          .same_top = argmax(logits) == argmax(dense)};
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
