// What a prefill's logits and losses say beside those of dense attention.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace s2o {

// Divergence of logits from those of dense attention, gathered from chunks of rows.
class LogitDivergence {
 public:
  // Rows [rows, vocab_size]; both have the same number of them.
  void add(std::span<const float> logits, std::span<const float> dense, std::int64_t vocab_size);

  std::int64_t num_rows() const { return num_rows_; }
  // Means over all rows so far, of which there is at least one.
  double kl_mean() const {
    return kl_sum_ / static_cast<double>(num_rows_);
  }  // nats, KL(dense || .)
  double top1_agreement() const { return same_top_ / static_cast<double>(num_rows_); }
  double max_abs() const { return max_abs_; }  // largest |logit - dense logit|

 private:
  std::int64_t num_rows_ = 0;
  double kl_sum_ = 0.0;
  double same_top_ = 0.0;  // rows with the same largest logit
  double max_abs_ = 0.0;
};

// Index of the largest logit, the lowest of equals.
std::int64_t argmax(std::span<const float> logits);

// Answer tokens that are the largest logit of their row: row i of [answer.size(), vocab_size]
// predicts answer[i], with every token before it given.
std::int64_t count_correct(std::span<const float> logits, std::span<const std::int32_t> answer,
                           std::int64_t vocab_size);

// Mean loss of predictions made at positions [begin, end).
struct LossBucket {
  std::int64_t begin = 0;
  std::int64_t end = 0;
  double loss = 0.0;  // nats per token
};

// Positions below 1,024, then up to every further power of two, the last bucket cut at the end.
std::vector<LossBucket> bucket_losses(const std::vector<double>& losses);

double mean_of(const std::vector<double>& values);

}  // namespace s2o
