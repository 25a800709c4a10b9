// Launchers of the element-wise kernels of a transformer layer. Host-safe. Pointers are device
// pointers; 16-bit arrays are bf16 unless said otherwise. All are bound by memory: each reads and
// writes every array once. Nothing is allocated; CudaError when a launch is refused.
//
// The residual stream is fp32: sums over dozens of layers lose nothing, and the products read
// bf16. Biases are added by the kernel that reads the product's output.
#pragma once

#include <cstdint>

#include "kernels/common/cuda_stream.h"
#include "kernels/common/dtype.h"
#include "kernels/model/fused_layout.h"

namespace s2o {

struct EmbedArgs {
  const std::int32_t* tokens = nullptr;  // [rows], inside the vocabulary
  const std::uint16_t* table = nullptr;  // [vocab_size, hidden_size]
  float* residual = nullptr;             // [rows, hidden_size]
  std::int64_t rows = 0;
  int hidden_size = 0;  // a multiple of 8
};
void launch_embed(const EmbedArgs& args, CudaStream stream);

// residual[r] += delta[r] + delta_bias, then out[r] = residual[r] / rms(residual[r]) * weight.
struct NormArgs {
  float* residual = nullptr;             // [rows, hidden_size]
  const std::uint16_t* delta = nullptr;  // [rows, hidden_size], may be null: nothing is added
  const float* delta_bias = nullptr;     // [hidden_size], may be null
  const float* weight = nullptr;         // [hidden_size], null: no output
  std::uint16_t* out = nullptr;          // [rows, hidden_size]
  // [rows]: rows of the residual stream that are normalised; null: in order. Only without delta.
  const std::int64_t* row_indices = nullptr;
  std::int64_t rows = 0;
  int hidden_size = 0;  // a multiple of 8, at most kMaxNormSize
  float eps = 0.0f;
  // Lowered to bad_key + r for a row r that is not finite. May be null.
  unsigned long long* first_bad = nullptr;
  unsigned long long bad_key = 0;
};
inline constexpr int kMaxNormSize = 16384;
void launch_add_rms_norm(const NormArgs& args, CudaStream stream);

// From the fused projection of rows [first_row, first_row + rows) of a sequence to those rows of
// q, k and v: bias, RMSNorm of query and key heads, rotation to the row's position.
struct SplitHeadsArgs {
  const std::uint16_t* fused = nullptr;  // [rows, layout.width()]
  const float* bias = nullptr;           // [layout.width()], may be null
  const float* q_norm = nullptr;         // [head_dim], may be null
  const float* k_norm = nullptr;         // [head_dim], may be null
  float eps = 0.0f;
  const float* rope = nullptr;  // [seqlen, head_dim / 2, 2]: cosine and sine
  std::uint16_t* q = nullptr;   // [num_q_heads, seqlen, head_dim], 16-bit of `dtype`
  std::uint16_t* k = nullptr;   // [num_kv_heads, seqlen, head_dim], 16-bit of `dtype`
  std::uint16_t* v = nullptr;   // [num_kv_heads, seqlen, head_dim], 16-bit of `dtype`
  FusedLayout layout;           // head_dim 64, 96, 128 or 256
  std::int64_t seqlen = 0;
  std::int64_t first_row = 0;
  std::int64_t rows = 0;
};
void launch_split_heads(const SplitHeadsArgs& args, KernelDType dtype, CudaStream stream);

// rope[p, i] = scale * (cos, sin)(p * inverse_frequencies[i]): the angle in fp32 as the models' own
// code takes it, its functions correctly rounded.
struct RopeTableArgs {
  const float* inverse_frequencies = nullptr;  // [num_frequencies], radians per position
  int num_frequencies = 0;                     // head_dim / 2
  float scale = 1.0f;
  std::int64_t seqlen = 0;
  float* rope = nullptr;  // [seqlen, num_frequencies, 2]
};
void launch_rope_table(const RopeTableArgs& args, CudaStream stream);

// Rows [first_row, first_row + rows) of the attention output, heads side by side.
struct JoinHeadsArgs {
  const std::uint16_t* heads = nullptr;  // [num_heads, seqlen, head_dim], 16-bit of `dtype`
  std::uint16_t* out = nullptr;          // [rows, num_heads * head_dim]
  int num_heads = 0;
  int head_dim = 0;  // a multiple of 8
  std::int64_t seqlen = 0;
  std::int64_t first_row = 0;
  std::int64_t rows = 0;
};
void launch_join_heads(const JoinHeadsArgs& args, KernelDType dtype, CudaStream stream);

// out = silu(gate) * up
struct SwigluArgs {
  const std::uint16_t* gate_up = nullptr;  // [rows, 2 * intermediate_size]: gate, then up
  const float* bias = nullptr;             // [2 * intermediate_size], may be null
  std::uint16_t* out = nullptr;            // [rows, intermediate_size]
  std::int64_t rows = 0;
  int intermediate_size = 0;  // a multiple of 8
};
void launch_swiglu(const SwigluArgs& args, CudaStream stream);

// The two parts of a next-token loss: log_sums[r] = log(sum(exp(logits[r]))), nats, and
// target_logits[r], -infinity where the target is not among these tokens of the vocabulary.
struct LossArgs {
  const float* logits = nullptr;          // [rows, stride], vocab_size of each are used
  const std::int32_t* targets = nullptr;  // [rows]
  int first_token = 0;                    // column 0 is this token
  double* log_sums = nullptr;             // [rows]
  float* target_logits = nullptr;         // [rows]
  std::int64_t rows = 0;
  std::int64_t stride = 0;
  int vocab_size = 0;
};
void launch_losses(const LossArgs& args, CudaStream stream);

// Normal random numbers that depend on (seed, matrix, index) alone. `out` is a block of a matrix:
// its element i has the index first + i / width * stride + i % width.
struct RandomArgs {
  std::uint16_t* out = nullptr;  // [count]
  std::int64_t count = 0;        // even
  std::int64_t first = 0;        // even, as width and stride
  std::int64_t width = 0;        // 0: all in a row
  std::int64_t stride = 0;
  std::uint64_t seed = 0;
  std::uint64_t matrix = 0;
  float deviation = 0.0f;
};
void launch_random_normal(const RandomArgs& args, CudaStream stream);

// Rounds to bf16; nearest even.
void launch_fp32_to_bf16(const float* source, std::uint16_t* target, std::int64_t count,
                         CudaStream stream);
void launch_fp16_to_bf16(const std::uint16_t* source, std::uint16_t* target, std::int64_t count,
                         CudaStream stream);

}  // namespace s2o
