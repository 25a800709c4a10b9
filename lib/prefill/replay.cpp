#include "lib/prefill/replay.h"

#include <fmt/format.h>

#include <algorithm>

#include "lib/core/error.h"
#include "lib/prefill/replay_heads.h"

namespace s2o {
namespace {

// The first `seqlen` tokens of `num_heads` heads; head h comes from head source_of(h).
template <class SourceOf>
std::vector<float> take_heads(const std::vector<float>& source, std::int64_t source_seqlen,
                              std::int64_t head_dim, int num_heads, std::int64_t seqlen,
                              const SourceOf& source_of) {
  const std::int64_t size = seqlen * head_dim;
  std::vector<float> target(static_cast<std::size_t>(num_heads * size));
  for (int head = 0; head < num_heads; ++head) {
    std::copy_n(source.begin() + source_of(head) * source_seqlen * head_dim, size,
                target.begin() + head * size);
  }
  return target;
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
  const ReplayHeads heads = {config.num_q_heads, config.num_kv_heads, from.num_q_heads,
                             from.num_kv_heads};
  const auto q_source = [&heads](int head) { return heads.q_source(head); };
  const auto kv_source = [&heads](int head) { return heads.kv_source(head); };
  input.q = take_heads(capture.q, from.seqlen, from.head_dim, config.num_q_heads, seqlen, q_source);
  input.k =
      take_heads(capture.k, from.seqlen, from.head_dim, config.num_kv_heads, seqlen, kv_source);
  input.v =
      take_heads(capture.v, from.seqlen, from.head_dim, config.num_kv_heads, seqlen, kv_source);
  return input;
}

}  // namespace s2o
