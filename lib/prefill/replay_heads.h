// Which head of a capture stands in for a head of a model with more heads.
#pragma once

namespace s2o {

// Query heads of one KV head of the model take query heads of one KV head of the capture, so that
// who shares keys with whom stays as it was captured.
struct ReplayHeads {
  int num_q_heads = 0;  // of the model
  int num_kv_heads = 0;
  int capture_q_heads = 0;
  int capture_kv_heads = 0;

  constexpr int kv_source(int kv_head) const { return kv_head % capture_kv_heads; }
  constexpr int q_source(int q_head) const {
    const int group = num_q_heads / num_kv_heads;
    const int capture_group = capture_q_heads / capture_kv_heads;
    return kv_source(q_head / group) * capture_group + q_head % group % capture_group;
  }
};

}  // namespace s2o
