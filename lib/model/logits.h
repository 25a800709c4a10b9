// What comes after the last layer: final norm, output projection, loss.
#pragma once

#include <cstdint>
#include <vector>

#include "lib/model/weights.h"

namespace s2o {

// Logits of the given rows of `hidden` [seqlen, hidden_size] (the residual stream after the last
// layer, as Prefill::hidden()): [positions.size(), vocab_size], fp32. Positions outside the rows
// are InputErrors.
std::vector<float> compute_logits(const Model& model, const std::vector<float>& hidden,
                                  const std::vector<std::int64_t>& positions);

// Natural-log loss of predicting tokens[i + 1] from row i: [tokens.size() - 1], nats. `hidden` has
// one row per token. Logits exist for a fixed number of rows at a time.
std::vector<double> next_token_losses(const Model& model, const std::vector<float>& hidden,
                                      const std::vector<std::int32_t>& tokens);

}  // namespace s2o
