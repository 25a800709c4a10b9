#include "lib/prefill/replay.h"

#include <fmt/format.h>

#include <algorithm>

#include "lib/core/error.h"

namespace s2o {
namespace {

// Heads of `target` from those of `source`, the first `target_problem.seqlen` tokens of each.
void copy_heads(const std::vector<float>& source, std::int64_t source_seqlen,
                std::int64_t source_heads, std::vector<float>& target, std::int64_t target_seqlen,
                std::int64_t target_heads, std::int64_t head_dim) {
  target.resize(static_cast<std::size_t>(target_heads * target_seqlen * head_dim));
  for (std::int64_t head = 0; head < target_heads; ++head) {
    std::copy_n(source.begin() + head % source_heads * source_seqlen * head_dim,
                target_seqlen * head_dim, target.begin() + head * target_seqlen * head_dim);
  }
}

}  // namespace

void check_replay(const ModelConfig& config, const std::vector<AttentionInput>& replay) {
  const int group_size = config.num_q_heads / config.num_kv_heads;
  for (const AttentionInput& input : replay) {
    const Problem& problem = input.problem;
    if (problem.head_dim != config.head_dim || problem.group_size() != group_size) {
      throw UnsupportedError(fmt::format(
          "replay {} layer {}: head_dim {} and {} query heads per KV head, expected {} and {} as "
          "of {}",
          input.name, input.layer, problem.head_dim, problem.group_size(), config.head_dim,
          group_size, config.name));
    }
    if (input.dtype != replay.front().dtype) {
      throw UnsupportedError(fmt::format("replay {} layer {}: its dtype is not that of the others",
                                         input.name, input.layer));
    }
  }
}

AttentionInput tile_replay(const AttentionInput& capture, const ModelConfig& config,
                           std::int64_t seqlen) {
  const Problem& from = capture.problem;
  if (from.seqlen < seqlen) {
    throw InputError(fmt::format("replay {} layer {}: {} tokens, expected at least {} (the prompt)",
                                 capture.name, capture.layer, from.seqlen, seqlen));
  }
  AttentionInput input{.name = capture.name, .layer = capture.layer, .dtype = capture.dtype};
  input.problem = from;
  input.problem.seqlen = seqlen;
  input.problem.num_q_heads = config.num_q_heads;
  input.problem.num_kv_heads = config.num_kv_heads;
  // Equal group sizes: query head h of KV head h / group repeats as its KV head does.
  copy_heads(capture.q, from.seqlen, from.num_q_heads, input.q, seqlen, config.num_q_heads,
             from.head_dim);
  copy_heads(capture.k, from.seqlen, from.num_kv_heads, input.k, seqlen, config.num_kv_heads,
             from.head_dim);
  copy_heads(capture.v, from.seqlen, from.num_kv_heads, input.v, seqlen, config.num_kv_heads,
             from.head_dim);
  return input;
}

}  // namespace s2o
