// Q, K, V of one layer, validated: every shape error dies here, never in a kernel.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "kernels/common/problem.h"

namespace s2o {

// Precision in which Q, K and V are stored before attention reads them.
enum class StorageDType { kF32, kBF16, kF16 };
std::string_view storage_dtype_name(StorageDType dtype);  // "fp32", "bf16", "fp16"
// ConfigError "<path>: ..." for any other name.
StorageDType parse_storage_dtype(const std::string& name, const std::string& path);

struct AttentionInput {
  std::string name;  // "tiny-llama/war_and_peace", "dump/layer0", "synthetic/stripes"
  int layer = 0;
  StorageDType dtype = StorageDType::kBF16;
  Problem problem;
  // Values are representable in `dtype`; held as fp32 for the CPU.
  std::vector<float> q;  // [num_q_heads, seqlen, head_dim]
  std::vector<float> k;  // [num_kv_heads, seqlen, head_dim]
  std::vector<float> v;  // [num_kv_heads, seqlen, head_dim]

  const float* q_head(int q_head) const { return q.data() + problem.row_offset(q_head, 0); }
  const float* k_head(int kv_head) const { return k.data() + problem.row_offset(kv_head, 0); }
  const float* v_head(int kv_head) const { return v.data() + problem.row_offset(kv_head, 0); }
};

// Query heads [first, first + count) of a layer: all of some KV heads, or some of one.
struct HeadRange {
  int first = 0;
  int count = 0;

  bool operator==(const HeadRange&) const = default;
};

// The problem of these heads alone, and its first KV head in `problem`. Error where they take whole
// KV heads and a part of another.
Problem head_slice(const Problem& problem, const HeadRange& q_heads);
int first_kv_head(const Problem& problem, const HeadRange& q_heads);
// A copy of what these heads read.
AttentionInput head_slice(const AttentionInput& input, const HeadRange& q_heads);

// Rounds every element to the dtype (no-op for kF32). A finite value that overflows is an
// InputError.
void round_to_dtype(std::vector<float>& values, StorageDType dtype, const std::string& what);

// Checks shapes, sizes and divisibility and fills problem.softmax_scale = 1/sqrt(head_dim).
// Throws InputError naming the input, the tensor and the index of the first NaN or infinity
// unless `allow_nonfinite`.
void validate_attention_input(AttentionInput& input, bool allow_nonfinite);

}  // namespace s2o
