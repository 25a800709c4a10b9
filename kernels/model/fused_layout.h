// Where heads lie in the fused projection of a layer, and which elements one thread rotates. The
// same arithmetic in kernels and in tests on the host.
#pragma once

#include <cstdint>

#include "kernels/common/host_device.h"

namespace s2o {

enum class HeadKind : std::uint8_t { kQuery, kKey, kValue };

struct FusedHead {
  HeadKind kind = HeadKind::kQuery;
  int head = 0;  // among the heads of its kind
};

// One row of the fused projection: all query heads, then all key heads, then all value heads.
struct FusedLayout {
  int num_q_heads = 0;
  int num_kv_heads = 0;
  int head_dim = 0;

  S2O_ANYWHERE constexpr int num_heads() const { return num_q_heads + 2 * num_kv_heads; }
  S2O_ANYWHERE constexpr std::int64_t width() const {
    return static_cast<std::int64_t>(num_heads()) * head_dim;
  }
  // `index` in [0, num_heads()), in the order of a row.
  S2O_ANYWHERE constexpr FusedHead head_at(int index) const {
    if (index < num_q_heads) return {HeadKind::kQuery, index};
    index -= num_q_heads;
    if (index < num_kv_heads) return {HeadKind::kKey, index};
    return {HeadKind::kValue, index - num_kv_heads};
  }
};

// A rotary lane holds kLaneElements / 2 neighbours of the first half of a head, and their partners
// in the second half: 8 bytes each.
inline constexpr int kLaneElements = 8;

struct RotaryLane {
  int first = 0;   // element of its first pair; partners begin at `second`
  int second = 0;  // first + head_dim / 2
};
S2O_ANYWHERE constexpr int rotary_lanes(int head_dim) { return head_dim / kLaneElements; }
S2O_ANYWHERE constexpr RotaryLane rotary_lane(int lane, int head_dim) {
  const int first = lane * (kLaneElements / 2);
  return {first, first + head_dim / 2};
}

// Element of token `token` of head `head` in a [heads, seqlen, head_dim] tensor.
S2O_ANYWHERE constexpr std::int64_t head_major_offset(int head, std::int64_t seqlen,
                                                      std::int64_t token, int head_dim) {
  return (static_cast<std::int64_t>(head) * seqlen + token) * head_dim;
}

}  // namespace s2o
