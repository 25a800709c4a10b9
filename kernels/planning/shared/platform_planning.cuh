// Primitives that only planning kernels need, in the two halves of kernels/device/platform.cuh.
#pragma once

#include "kernels/device/platform.cuh"

namespace s2o::device {

#if defined(__CUDACC__)

S2O_DEVICE int num_threads() { return static_cast<int>(blockDim.x); }  // of a block
S2O_DEVICE std::uint32_t ballot(bool condition) { return __ballot_sync(0xffffffffu, condition); }
template <class T>
S2O_DEVICE T shuffle_up(T value, int delta) {
  return __shfl_up_sync(0xffffffffu, value, static_cast<unsigned>(delta));
}
template <class T>
S2O_DEVICE T shuffle_from(T value, int lane) {
  return __shfl_sync(0xffffffffu, value, lane);
}
S2O_DEVICE void atomic_count(std::uint32_t* address) { atomicAdd(address, 1u); }
// `value` plus that of the lane `delta` below, where there is one: two instructions, for the
// shuffle tells whether there is.
S2O_DEVICE std::uint32_t plus_lane_below(std::uint32_t value, int delta) {
  asm volatile(
      "{.reg .pred p; .reg .b32 below;\n"
      " shfl.sync.up.b32 below|p, %0, %1, 0, 0xffffffff;\n"
      " @p add.u32 %0, %0, below;}"
      : "+r"(value)
      : "r"(delta));
  return value;
}
// As opaque() of platform_cuda.cuh; what it returns is for store_global.
S2O_DEVICE std::int32_t* opaque(std::int32_t* pointer) {
  asm("" : "+l"(pointer));
  return pointer;
}
S2O_DEVICE void store_global(std::int32_t* target, std::int32_t value) {
  asm volatile("st.global.b32 [%0], %1;" ::"l"(__cvta_generic_to_global(target)), "r"(value)
               : "memory");
}
// Shifts by the low five bits of `count`.
S2O_DEVICE std::uint32_t shift_left_wrapped(std::uint32_t x, std::uint32_t count) {
  return __funnelshift_l(0u, x, count);
}
S2O_DEVICE std::uint32_t shift_right_wrapped(std::uint32_t x, std::uint32_t count) {
  return __funnelshift_r(x, 0u, count);
}
// `word` with its third byte replaced by the lowest of `byte`.
S2O_DEVICE std::uint32_t with_third_byte(std::uint32_t word, std::uint32_t byte) {
  return __byte_perm(word, byte, 0x3410);
}
// Byte `selector` % 16, below 8, of low and high; the bytes above the lowest are unspecified.
S2O_DEVICE std::uint32_t select_byte(std::uint32_t low, std::uint32_t high,
                                     std::uint32_t selector) {
  std::uint32_t bytes;
  asm("prmt.b32 %0, %1, %2, %3;" : "=r"(bytes) : "r"(low), "r"(high), "r"(selector));
  return bytes;
}

S2O_DEVICE float absolute(float value) { return fabsf(value); }
S2O_DEVICE float subtract(float a, float b) { return __fsub_rn(a, b); }
S2O_DEVICE float divide(float a, float b) { return __fdiv_rn(a, b); }
S2O_DEVICE float square_root(float x) { return __fsqrt_rn(x); }
S2O_DEVICE float log2_fast(float x) {
  float y;
  asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
S2O_DEVICE float exp_natural(float x) { return expf(x); }
S2O_DEVICE FloatPair load_shared_pair(const float* source) { return load_global_pair(source); }
S2O_DEVICE void store_shared_16(void* target, const Words4& words) {
  *static_cast<uint4*>(target) =
      make_uint4(words.word[0], words.word[1], words.word[2], words.word[3]);
}
// One instruction: the compiler splits an ordinary store where it sees fit.
S2O_DEVICE void store_global_16(void* target, const Words4& words) {
  asm volatile("st.global.v4.b32 [%0], {%1, %2, %3, %4};" ::"l"(__cvta_generic_to_global(target)),
               "r"(words.word[0]), "r"(words.word[1]), "r"(words.word[2]), "r"(words.word[3])
               : "memory");
}
// 16 bytes that the same block of threads may have written.
S2O_DEVICE Words4 load_written_16(const void* source) {
  Words4 words;
  asm volatile("ld.global.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(words.word[0]), "=r"(words.word[1]), "=r"(words.word[2]), "=r"(words.word[3])
               : "l"(__cvta_generic_to_global(source))
               : "memory");
  return words;
}
// 4 bytes that nobody on the device reads soon: they do not displace what the cache holds.
S2O_DEVICE void store_streaming(std::int32_t* target, std::int32_t value) { __stcs(target, value); }
S2O_DEVICE float half_to_float(std::uint16_t bits) {
  float value;
  asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(bits));
  return value;
}
S2O_DEVICE std::uint16_t load_half_bits(const std::uint16_t* source) {
  return __ldg(reinterpret_cast<const unsigned short*>(source));
}
// Of both halves of a pair of fp16 numbers; NaN where either is.
S2O_DEVICE std::uint32_t max_pairs(std::uint32_t a, std::uint32_t b) {
  std::uint32_t result;
  asm("max.NaN.f16x2 %0, %1, %2;" : "=r"(result) : "r"(a), "r"(b));
  return result;
}
S2O_DEVICE std::uint32_t min_pairs(std::uint32_t a, std::uint32_t b) {
  std::uint32_t result;
  asm("min.NaN.f16x2 %0, %1, %2;" : "=r"(result) : "r"(a), "r"(b));
  return result;
}

// Lanes whose low kBits of `value` are equal to this lane's: one vote per bit. Four instructions a
// bit; __match_any_sync takes as many turns as there are different values.
template <int kBits>
S2O_DEVICE std::uint32_t matching_lanes(std::uint32_t value) {
  std::uint32_t peers = 0xffffffffu;
#pragma unroll
  for (int bit = 0; bit < kBits; ++bit) {
    asm volatile(
        "{.reg .pred p; .reg .b32 b;\n"
        " and.b32 b, %1, %2;\n"
        " setp.ne.u32 p, b, 0;\n"
        " vote.sync.ballot.b32 b, p, 0xffffffff;\n"
        " @!p not.b32 b, b;\n"
        " and.b32 %0, %0, b;}"
        : "+r"(peers)
        : "r"(value), "r"(1u << bit));
  }
  return peers;
}

#else

inline int num_threads() { return simt::num_threads(); }
inline std::uint32_t ballot(bool condition) {
  struct Args {
    bool condition;
    std::uint32_t result;
  } args{condition, 0};
  simt::warp_collective("ballot", args, [](const std::vector<Args*>& lanes) {
    std::uint32_t bits = 0;
    for (std::size_t lane = 0; lane < lanes.size(); ++lane) {
      bits |= (lanes[lane]->condition ? 1u : 0u) << lane;
    }
    for (Args* lane : lanes) lane->result = bits;
  });
  return args.result;
}
template <int kBits>
std::uint32_t matching_lanes(std::uint32_t value) {
  std::uint32_t peers = 0xffffffffu;
  for (int bit = 0; bit < kBits; ++bit) {
    const bool set = (value >> bit & 1u) != 0;
    const std::uint32_t vote = ballot(set);
    peers &= set ? vote : ~vote;
  }
  return peers;
}
template <class T>
struct ModelShuffle {
  T value, result;
  int argument;
};
template <class T>
T shuffle_up(T value, int delta) {
  ModelShuffle<T> args{value, value, delta};
  simt::warp_collective("shfl.up", args, [](const std::vector<ModelShuffle<T>*>& lanes) {
    for (int lane = 0; lane < simt::kWarpLanes; ++lane) {
      ModelShuffle<T>& self = *lanes[static_cast<std::size_t>(lane)];
      if (lane < self.argument) continue;
      self.result = lanes[static_cast<std::size_t>(lane - self.argument)]->value;
    }
  });
  return args.result;
}
template <class T>
T shuffle_from(T value, int lane) {
  ModelShuffle<T> args{value, value, lane};
  simt::warp_collective("shfl.idx", args, [](const std::vector<ModelShuffle<T>*>& lanes) {
    for (ModelShuffle<T>* self : lanes) {
      self->result = lanes[static_cast<std::size_t>(self->argument % simt::kWarpLanes)]->value;
    }
  });
  return args.result;
}
inline void atomic_count(std::uint32_t* address) { ++*address; }
inline std::uint32_t plus_lane_below(std::uint32_t value, int delta) {
  const std::uint32_t below = shuffle_up(value, delta);
  return lane_index() < delta ? value : value + below;
}
inline std::int32_t* opaque(std::int32_t* pointer) { return pointer; }
inline void store_global(std::int32_t* target, std::int32_t value) { *target = value; }
inline std::uint32_t shift_left_wrapped(std::uint32_t x, std::uint32_t count) {
  return x << count % 32;
}
inline std::uint32_t shift_right_wrapped(std::uint32_t x, std::uint32_t count) {
  return x >> count % 32;
}
inline std::uint32_t with_third_byte(std::uint32_t word, std::uint32_t byte) {
  return (word & 0xff00ffffu) | (byte & 0xffu) << 16;
}
inline std::uint32_t select_byte(std::uint32_t low, std::uint32_t high, std::uint32_t selector) {
  const std::uint32_t byte = (selector % 8 < 4 ? low : high) >> 8 * (selector % 4) & 0xffu;
  return selector % 16 < 8 ? 0xa5a5a500u | byte : 0xa5a5a5a5u;
}

inline float absolute(float value) { return std::fabs(value); }
inline float subtract(float a, float b) { return a - b; }
inline float divide(float a, float b) { return a / b; }
inline float square_root(float x) { return std::sqrt(x); }
inline float log2_fast(float x) { return std::log2(x); }
inline float exp_natural(float x) { return std::exp(x); }
inline FloatPair load_shared_pair(const float* source) { return load_global_pair(source); }
inline void store_global_16(void* target, const Words4& words) {
  if (reinterpret_cast<std::uintptr_t>(target) % 16 != 0) {
    throw std::runtime_error("simt: 16-byte store to an unaligned address");
  }
  std::memcpy(target, &words, sizeof(words));
}
inline void store_shared_16(void* target, const Words4& words) { store_global_16(target, words); }
inline Words4 load_written_16(const void* source) { return load_global_16(source); }
inline void store_streaming(std::int32_t* target, std::int32_t value) { *target = value; }
inline float half_to_float(std::uint16_t bits) { return fp16_to_float(bits); }
inline std::uint16_t load_half_bits(const std::uint16_t* source) { return *source; }
inline float max_or_nan(float a, float b) { return a != a || b != b ? NAN : std::fmax(a, b); }
inline std::uint32_t max_pairs(std::uint32_t a, std::uint32_t b) {
  return pack_pair<Fp16>(max_or_nan(unpack_low<Fp16>(a), unpack_low<Fp16>(b)),
                         max_or_nan(unpack_high<Fp16>(a), unpack_high<Fp16>(b)));
}
inline std::uint32_t min_pairs(std::uint32_t a, std::uint32_t b) {
  return max_pairs(a ^ 0x80008000u, b ^ 0x80008000u) ^ 0x80008000u;
}

#endif

S2O_DEVICE bool is_finite(float x) { return absolute(x) < -kNegativeInfinity; }

// Lane q of a quad gets the sum of x[q] over the quad.
S2O_DEVICE float transposed_quad_sum(const float (&x)[4]) {
  const bool odd = lane_index() % 2 != 0;
  const bool upper = lane_index() % 4 >= 2;
  const float a = (odd ? x[1] : x[0]) + shuffle_xor(odd ? x[0] : x[1], 1);
  const float b = (odd ? x[3] : x[2]) + shuffle_xor(odd ? x[2] : x[3], 1);
  return (upper ? b : a) + shuffle_xor(upper ? a : b, 2);
}

// Sums over the 16 rows of an accumulator of 8 tiles of 8 columns. term(2 n + c) is what this lane
// adds to column c of its two in tile n. Lane l gets the sums of columns 2 l and 2 l + 1: in each
// turn it keeps one half of its columns and sends the other.
template <int kLeft, int kMask>
S2O_DEVICE void keep_half(float (&x)[8]) {
  const bool upper = (lane_index() & kMask) != 0;
#pragma unroll
  for (int i = 0; i < kLeft; ++i) {
    const float kept = upper ? x[i + kLeft] : x[i];
    const float sent = upper ? x[i] : x[i + kLeft];
    x[i] = kept + shuffle_xor(sent, kMask);
  }
}
template <class Term>
S2O_DEVICE void sum_over_rows(const Term& term, float (&sums)[2]) {
  const bool upper = (lane_index() & 16) != 0;
  float x[8];
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    const float low = term(i);
    const float high = term(i + 8);
    x[i] = (upper ? high : low) + shuffle_xor(upper ? low : high, 16);
  }
  keep_half<4, 8>(x);
  keep_half<2, 4>(x);
  sums[0] = x[0];
  sums[1] = x[1];
}

// Inclusive prefix sum over the lanes of a warp.
template <class T>
S2O_DEVICE T warp_prefix_sum(T value) {
  for (int delta = 1; delta < 32; delta *= 2) {
    const T before = shuffle_up(value, delta);
    if (lane_index() >= delta) value += before;
  }
  return value;
}

}  // namespace s2o::device
