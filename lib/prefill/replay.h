// Attention on Q, K and V of a capture in place of the model's own: seeded weights have no
// attention structure, so their linear layers are timed together with recorded attention. Such a
// run is a composition of times; its output means nothing.
#pragma once

#include <cstdint>
#include <vector>

#include "lib/input/attention_input.h"
#include "lib/model/model_config.h"

namespace s2o {

// UnsupportedError naming the input where head_dim or the query heads per KV head differ from the
// model's, or the dtypes of the inputs differ.
void check_replay(const ModelConfig& config, const std::vector<AttentionInput>& replay);

// The first `seqlen` tokens with the heads of the model: KV head j is that of the capture with
// number j % num_kv_heads, and its query heads come with it. InputError when the capture is
// shorter.
AttentionInput tile_replay(const AttentionInput& capture, const ModelConfig& config,
                           std::int64_t seqlen);

}  // namespace s2o
