// Attention in 8 bits: q and k as integers, so that logits keep a third of the error that e4m3
// leaves; v in e4m3, or in fp16 where a plan gathers keys. Host-safe.
//
// Definition, per KV head, with the orthonormal Hadamard matrix H (or the identity):
//   k'_x = (k_x - mean_x k) H      (or k_x H without smoothing)
//   k_x ~ key_scale * round(k'_x / key_scale),         key_scale = max |k'| / 127
//   v_x ~ value_scale * e4m3(v_x / value_scale),       value_scale = max |v| / 448
//   or value_scale * fp16(v_x / value_scale),          value_scale = max |v|  (has_wide_values)
// and per query row q'_t = q_t H ~ query_scale_t * round(q'_t / query_scale_t) with
// query_scale_t = max |q'_t| / 127. All zeros have the scales of a largest size of 1. Logits lose
// softmax_scale * q_t . mean k by smoothing, the same for all keys of a row: outputs stay, and the
// lse gets it back (lse_shift).
//
// Probabilities are codes: the bits of a number in e4m3 are eight times its logarithm in base 2, as
// a line between powers of two (N. Schraudolph, Neural Computation 11(4), 1999). With logits y in
// base 2,
//   p = e4m3 number of the bits max(floor(8 y) - 8 octave + kLargestCode, 0)
// where `octave` is the running maximum of y, rounded up so that floor(8 y) <= 8 octave. Such p lie
// between .92 and 1.06 times 2^(y - octave + kLogOfLargestCode), standard deviation .031; rounding
// exponentials to e4m3 has .026. The normaliser, the lse and gains of the early stop are sums of
// these p. Below 2^-15 of the largest they are 0.
//
// With values in fp16 probabilities are such numbers in fp16, between .96 and 1.02 times
// 2^(y - octave + kLogOfLargestWideCode), standard deviation .018, and 0 below 2^-14.75:
//   p = fp16 number of the bits max(floor(1024 (y - octave)) + kLargestWideCode, 0)
//
// A head whose largest |k'| is more than kLargestSpread times their root mean square is refused:
// one key would leave the others without bits. Real heads have about 5.
#pragma once

#include <vector>

#include "kernels/attention/quantise_rule.h"
#include "kernels/common/plan_view.h"
#include "kernels/common/problem.h"

namespace s2o {

inline constexpr float kLargestSpread = 16.0f;
inline constexpr int kLargestCode = 126;  // bits of 448
inline constexpr float kLogOfLargestCode = 8.75f;
inline constexpr int kLargestWideCode = 15104;            // bits of .875
inline constexpr float kLogOfLargestWideCode = -0.1925f;  // by the line -.25: .0575 above its mean
// Logits in base 2 per unit of the integer product that codes are made for: a key that is one such
// step of a thousand behind another then has no weight.
inline constexpr float kLargestLogitScale = 0.0625f;

// Values in fp16: plans with gathers, a key order or an early stop. Products in 8 bits would want
// gathered values transposed, which takes as long as they save (results/fp8.md).
bool has_wide_values(const PlanView& plan);

// The CPU reference: what the 8-bit numbers stand for, k without its mean where that was taken off.
struct QuantisedValues {
  std::vector<float> q;          // [num_q_heads, seqlen, head_dim], rotated like k
  std::vector<float> k;          // [num_kv_heads, seqlen, head_dim]
  std::vector<float> v;          // [num_kv_heads, seqlen, head_dim]
  std::vector<float> lse_shift;  // [num_q_heads, seqlen]
};
// UnsupportedError naming the head for keys that spread too far, values that are not finite and
// queries beyond kLargestLogitScale, and for a rotation of a head_dim that is no power of two.
QuantisedValues quantise_ref(const Problem& problem, const float* q, const float* k, const float* v,
                             QuantiseRule rule, bool wide_values);

// The UnsupportedError of a refused head, by what was found: the largest size of its numbers where
// that is not finite, a key's over the root mean square, the logit of a unit.
[[noreturn]] void refuse_size(const char* tensor, std::int64_t head, float largest);
[[noreturn]] void refuse_spread(std::int64_t head, double spread);
[[noreturn]] void refuse_logit_scale(std::int64_t head, float scale);

}  // namespace s2o
