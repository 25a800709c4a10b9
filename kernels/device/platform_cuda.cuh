// The CUDA half of platform.cuh: built-ins and single instructions.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace s2o::device {

// Tensor-map loads and warpgroup products see swizzled tiles by address bits: 1024-byte atoms.
extern __shared__ __align__(1024) unsigned char g_shared_memory[];

S2O_DEVICE int thread_index() { return static_cast<int>(threadIdx.x); }
// The same, read anew: what derives from it does not occupy registers before. For rare paths of
// loops that are short of registers.
S2O_DEVICE int thread_index_again() {
  int index;
  asm volatile("mov.u32 %0, %%tid.x;" : "=r"(index));
  return index;
}
S2O_DEVICE int block_index() { return static_cast<int>(blockIdx.x); }
S2O_DEVICE unsigned char* shared_memory() { return g_shared_memory; }
S2O_DEVICE std::uint32_t shared_address(const void* pointer) {
  return static_cast<std::uint32_t>(__cvta_generic_to_shared(pointer));
}

S2O_DEVICE void sync_block(int /*num_threads*/) { __syncthreads(); }
S2O_DEVICE void sync_warp() { __syncwarp(); }
// Barrier of a subset of the block's warps; `id` in [1, 15].
S2O_DEVICE void sync_named(int id, int num_threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(num_threads) : "memory");
}
S2O_DEVICE void arrive_named(int id, int num_threads) {
  asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(num_threads) : "memory");
}
// A condition on which all lanes agree. The vote tells the compiler so: around warpgroup products
// it would otherwise assume a divergent branch and run them one by one.
S2O_DEVICE bool agreed(bool condition) { return __any_sync(0xffffffffu, condition); }
S2O_DEVICE bool any_lane(bool condition) { return __any_sync(0xffffffffu, condition); }
// The value of lane 0.
S2O_DEVICE std::uint32_t first_lane(std::uint32_t value) {
  return __shfl_sync(0xffffffffu, value, 0);
}
// A value that is the same in all lanes, told to the compiler: branches on it need no care for
// lanes that part, and addresses derived from it need one register a warp.
S2O_DEVICE std::uint32_t uniform(std::uint32_t value) { return first_lane(value); }
template <class T>
S2O_DEVICE T shuffle_xor(T value, int lane_mask) {
  return __shfl_xor_sync(0xffffffffu, value, lane_mask);
}
// Over a warp, one instruction each.
S2O_DEVICE std::uint32_t warp_sum(std::uint32_t value) {
  return __reduce_add_sync(0xffffffffu, value);
}
S2O_DEVICE std::uint32_t warp_maximum(std::uint32_t value) {
  return __reduce_max_sync(0xffffffffu, value);
}

S2O_DEVICE float exp2_fast(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
S2O_DEVICE float log_natural(float x) { return logf(x); }
S2O_DEVICE float reciprocal_fast(float x) {  // 1 ulp; x normal
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
S2O_DEVICE float sqrt_fast(float x) {  // 1 ulp; x not negative
  float y;
  asm("sqrt.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
S2O_DEVICE float max_of(float a, float b) { return fmaxf(a, b); }
S2O_DEVICE float min_of(float a, float b) { return fminf(a, b); }
S2O_DEVICE std::uint32_t float_bits(float value) { return __float_as_uint(value); }
S2O_DEVICE float bits_float(std::uint32_t bits) { return __uint_as_float(bits); }
S2O_DEVICE float fused(float a, float b, float c) { return __fmaf_rn(a, b, c); }
S2O_DEVICE int atomic_add(int* address, int value) { return atomicAdd(address, value); }
// Shared or global memory; results do not depend on the order of threads.
S2O_DEVICE void atomic_add(std::uint32_t* address, std::uint32_t value) {
  atomicAdd(address, value);
}
S2O_DEVICE void atomic_max(std::uint32_t* address, std::uint32_t value) {
  atomicMax(address, value);
}
S2O_DEVICE void atomic_or(std::uint32_t* address, std::uint32_t bits) { atomicOr(address, bits); }
S2O_DEVICE int count_bits(std::uint32_t bits) { return __popc(bits); }
S2O_DEVICE int lowest_bit(std::uint32_t bits) { return __ffs(static_cast<int>(bits)) - 1; }

S2O_DEVICE std::uint32_t load_shared_2(std::uint32_t address) {
  std::uint32_t value;
  asm volatile("ld.shared.u16 %0, [%1];" : "=r"(value) : "r"(address) : "memory");
  return value;
}
S2O_DEVICE std::uint32_t load_shared(std::uint32_t address) {
  std::uint32_t value;
  asm volatile("ld.shared.u32 %0, [%1];" : "=r"(value) : "r"(address) : "memory");
  return value;
}
template <class T>
S2O_DEVICE T load_global(const T* pointer) {
  return __ldg(pointer);
}
// The same pointer, whose origin the compiler may not look through: so that an address made of it
// stays one multiply-add.
S2O_DEVICE const unsigned char* opaque(const unsigned char* pointer) {
  asm("" : "+l"(pointer));
  return pointer;
}
template <int kWords>
struct Words {
  std::uint32_t word[kWords];
};
using Words4 = Words<4>;
S2O_DEVICE Words4 load_shared_16(std::uint32_t address) {
  Words4 words;
  asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(words.word[0]), "=r"(words.word[1]), "=r"(words.word[2]), "=r"(words.word[3])
               : "r"(address)
               : "memory");
  return words;
}
// 1, 2 or 4 words at once, aligned like their size: from global memory that the kernel does not
// write; to any memory.
template <int kWords>
S2O_DEVICE Words<kWords> load_global_words(const void* pointer) {
  if constexpr (kWords == 4) {
    const uint4 value = __ldg(static_cast<const uint4*>(pointer));
    return {{value.x, value.y, value.z, value.w}};
  } else if constexpr (kWords == 2) {
    const uint2 value = __ldg(static_cast<const uint2*>(pointer));
    return {{value.x, value.y}};
  } else {
    return {{__ldg(static_cast<const std::uint32_t*>(pointer))}};
  }
}
S2O_DEVICE Words4 load_global_16(const void* pointer) { return load_global_words<4>(pointer); }
template <int kWords>
S2O_DEVICE void store_words(void* pointer, const Words<kWords>& words) {
  if constexpr (kWords == 4) {
    *static_cast<uint4*>(pointer) =
        make_uint4(words.word[0], words.word[1], words.word[2], words.word[3]);
  } else if constexpr (kWords == 2) {
    *static_cast<uint2*>(pointer) = make_uint2(words.word[0], words.word[1]);
  } else {
    *static_cast<std::uint32_t*>(pointer) = words.word[0];
  }
}
struct FloatPair {
  float low, high;
};
// NOTE: no read-only path: the kernel may write the same array.
S2O_DEVICE FloatPair load_global_pair(const float* source) {
  const float2 pair = *reinterpret_cast<const float2*>(source);
  return {pair.x, pair.y};
}
S2O_DEVICE void store_global_pair(float* target, float low, float high) {
  *reinterpret_cast<float2*>(target) = make_float2(low, high);
}

// Two fp32 values rounded to nearest even into one register, `low` in the low half.
template <class Element>
S2O_DEVICE std::uint32_t pack_pair(float low, float high) {
  std::uint32_t packed;
  if constexpr (Element::kIsBf16) {
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
  } else {
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
  }
  return packed;
}
// The same, where it stands: the compiler does not move it past other such instructions.
template <class Element>
S2O_DEVICE std::uint32_t pack_pair_here(float low, float high) {
  std::uint32_t packed;
  if constexpr (Element::kIsBf16) {
    asm volatile("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
  } else {
    asm volatile("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
  }
  return packed;
}
template <class Element>
S2O_DEVICE float unpack_low(std::uint32_t packed) {
  if constexpr (Element::kIsBf16) {
    return __uint_as_float(packed << 16);
  } else {
    float value;
    asm("{.reg .b16 lo, hi; mov.b32 {lo, hi}, %1; cvt.f32.f16 %0, lo;}"
        : "=f"(value)
        : "r"(packed));
    return value;
  }
}
template <class Element>
S2O_DEVICE float unpack_high(std::uint32_t packed) {
  if constexpr (Element::kIsBf16) {
    return __uint_as_float(packed & 0xffff0000u);
  } else {
    float value;
    asm("{.reg .b16 lo, hi; mov.b32 {lo, hi}, %1; cvt.f32.f16 %0, hi;}"
        : "=f"(value)
        : "r"(packed));
    return value;
  }
}

// Products of two pairs, rounded to nearest even.
template <class Element>
S2O_DEVICE std::uint32_t multiply_pair(std::uint32_t a, std::uint32_t b) {
  std::uint32_t product;
  if constexpr (Element::kIsBf16) {  // plus -0, which changes nothing: sm_80 has no product alone
    asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(product) : "r"(a), "r"(b), "r"(0x80008000u));
  } else {
    asm("mul.rn.f16x2 %0, %1, %2;" : "=r"(product) : "r"(a), "r"(b));
  }
  return product;
}
// Squares of two 16-bit elements, each the sum of two bf16 numbers, which have the range.
template <class Element>
S2O_DEVICE void square_pair(std::uint32_t pair, std::uint32_t& upper, std::uint32_t& rest) {
  if constexpr (Element::kIsBf16) {
    upper = multiply_pair<Bf16>(pair, pair);
    asm("fma.rn.bf16x2 %0, %1, %1, %2;" : "=r"(rest) : "r"(pair), "r"(upper ^ 0x80008000u));
  } else {
    const float low = unpack_low<Element>(pair);
    const float high = unpack_high<Element>(pair);
    upper = pack_pair<Bf16>(low * low, high * high);
    rest = pack_pair<Bf16>(__fmaf_rn(low, low, -unpack_low<Bf16>(upper)),
                           __fmaf_rn(high, high, -unpack_high<Bf16>(upper)));
  }
}

}  // namespace s2o::device
