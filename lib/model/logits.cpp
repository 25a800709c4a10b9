#include "lib/model/logits.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "kernels/common/parallel.h"
#include "lib/core/error.h"

namespace s2o {
namespace {

constexpr std::int64_t kLogitRows = 256;  // rows whose logits exist at a time

// Final norm and output projection of rows [rows, hidden_size], which are overwritten.
void project(const Model& model, std::vector<float>& x, std::int64_t rows, float* logits) {
  rms_norm_rows(x.data(), model.final_norm.data(), model.config.rms_norm_eps, rows,
                model.config.hidden_size, x.data());
  apply_linear(model.output, x.data(), rows, logits, /*accumulate=*/false);
}

void check_rows(const Model& model, const std::vector<float>& hidden, std::int64_t rows) {
  const std::int64_t found = static_cast<std::int64_t>(hidden.size());
  const std::int64_t size = model.config.hidden_size;
  if (rows >= 0 && found % size == 0 && found / size >= rows) return;
  throw InputError(fmt::format("{}: hidden states have {} elements, expected {} rows of {}",
                               model.config.name, found, rows, size));
}

// log(sum(exp(logits))) - logits[target]
double loss_of(const float* logits, std::int64_t size, std::int32_t target) {
  const float largest = *std::max_element(logits, logits + size);
  double sum = 0.0;
  for (std::int64_t i = 0; i < size; ++i) sum += std::exp(logits[i] - largest);
  return std::log(sum) + largest - logits[target];
}

}  // namespace

std::vector<float> compute_logits(const Model& model, const std::vector<float>& hidden,
                                  const std::vector<std::int64_t>& positions) {
  const std::int64_t size = model.config.hidden_size;
  const std::int64_t vocab = model.config.vocab_size;
  for (const std::int64_t position : positions) {
    if (position < 0) throw InputError(fmt::format("logits: position {} is negative", position));
    check_rows(model, hidden, position + 1);
  }
  const auto count = static_cast<std::int64_t>(positions.size());
  std::vector<float> logits(static_cast<std::size_t>(count * vocab));
  std::vector<float> x(static_cast<std::size_t>(std::min(kLogitRows, count) * size));
  for (std::int64_t first = 0; first < count; first += kLogitRows) {
    const std::int64_t rows = std::min(kLogitRows, count - first);
    for (std::int64_t i = 0; i < rows; ++i) {
      std::copy_n(hidden.data() + positions[first + i] * size, size, x.data() + i * size);
    }
    project(model, x, rows, logits.data() + first * vocab);
  }
  return logits;
}

std::vector<double> next_token_losses(const Model& model, const std::vector<float>& hidden,
                                      const std::vector<std::int32_t>& tokens) {
  const std::int64_t size = model.config.hidden_size;
  const std::int64_t vocab = model.config.vocab_size;
  const std::int64_t count = static_cast<std::int64_t>(tokens.size()) - 1;
  if (count < 1) {
    throw InputError(fmt::format("held-out loss: {} tokens, expected at least 2", tokens.size()));
  }
  check_rows(model, hidden, count + 1);
  std::vector<double> losses(static_cast<std::size_t>(count));
  std::vector<float> x(static_cast<std::size_t>(std::min(kLogitRows, count) * size));
  std::vector<float> logits(static_cast<std::size_t>(std::min(kLogitRows, count) * vocab));
  for (std::int64_t first = 0; first < count; first += kLogitRows) {
    const std::int64_t rows = std::min(kLogitRows, count - first);
    std::copy_n(hidden.data() + first * size, rows * size, x.data());
    project(model, x, rows, logits.data());
    parallel_for(rows, [&](std::int64_t i) {
      losses[first + i] = loss_of(logits.data() + i * vocab, vocab, tokens[first + i + 1]);
    });
  }
  return losses;
}

}  // namespace s2o
