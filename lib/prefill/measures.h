// What a prefill's logits and losses say beside those of dense attention.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace s2o {

struct LogitDivergence {
  double kl_mean = 0.0;         // mean over rows of KL(dense || method), nats
  double max_abs = 0.0;         // largest |logit - dense logit|
  double top1_agreement = 0.0;  // fraction of rows with the same largest logit
};

// Of rows [rows, vocab_size]; both have the same number of them, at least one.
LogitDivergence compare_logits(const std::vector<float>& logits, const std::vector<float>& dense,
                               std::int64_t vocab_size);

// Index of the largest logit, the lowest of equals.
std::int64_t argmax(std::span<const float> logits);

// Answer tokens that are the largest logit of their row: row i of [answer.size(), vocab_size]
// predicts answer[i], with every token before it given.
std::int64_t count_correct(const std::vector<float>& logits, std::span<const std::int32_t> answer,
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
