// The other half of platform.cuh: the same names on the CPU model of a grid, for tests.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <stdexcept>
#include <vector>

#include "kernels/common/bf16.h"
#include "kernels/testing/simt.h"

namespace s2o::device {

inline int thread_index() { return simt::thread_index(); }
inline int thread_index_again() { return simt::thread_index(); }
inline int block_index() { return simt::block_index(); }
inline unsigned char* shared_memory() {
  return reinterpret_cast<unsigned char*>(simt::shared_base());
}
inline std::uint32_t shared_address(const void* pointer) { return simt::shared_offset(pointer); }
// The byte at a shared-memory address, which must be a multiple of `alignment`.
inline void* shared_pointer(std::uint32_t address, std::uint32_t alignment) {
  if (address % alignment != 0) throw std::runtime_error("simt: unaligned shared-memory address");
  return simt::shared_base() + address;
}

inline void sync_block(int num_threads) { simt::barrier_sync(0, num_threads); }
inline void sync_warp() {
  int unused = 0;
  simt::warp_collective("syncwarp", unused, [](const std::vector<int*>&) {});
}
inline void sync_named(int id, int num_threads) { simt::barrier_sync(id, num_threads); }
inline void arrive_named(int id, int num_threads) { simt::barrier_arrive(id, num_threads); }
inline bool any_lane(bool condition) {
  simt::warp_collective("vote", condition, [](const std::vector<bool*>& lanes) {
    bool any = false;
    for (const bool* lane : lanes) any = any || *lane;
    for (bool* lane : lanes) *lane = any;
  });
  return condition;
}
inline std::uint32_t uniform(std::uint32_t value) {
  simt::warp_collective("uniform", value, [](const std::vector<std::uint32_t*>& lanes) {
    for (const std::uint32_t* lane : lanes) {
      if (*lane != *lanes[0]) throw std::runtime_error("simt: lanes do not agree");
    }
  });
  return value;
}
inline bool agreed(bool condition) {
  simt::warp_collective("vote", condition, [](const std::vector<bool*>& lanes) {
    for (const bool* lane : lanes) {
      if (*lane != *lanes[0]) throw std::runtime_error("simt: lanes do not agree");
    }
  });
  return condition;
}
template <class T>
T shuffle_xor(T value, int lane_mask) {
  struct Args {
    T value, result;
    int lane_mask;
  } args{value, value, lane_mask};
  simt::warp_collective("shfl.xor", args, [](const std::vector<Args*>& lanes) {
    for (std::size_t lane = 0; lane < lanes.size(); ++lane) {
      const auto source = lane ^ static_cast<std::size_t>(lanes[lane]->lane_mask);
      lanes[lane]->result = lanes[source]->value;
    }
  });
  return args.result;
}
inline std::uint32_t first_lane(std::uint32_t value) {
  simt::warp_collective("shfl.first", value, [](const std::vector<std::uint32_t*>& lanes) {
    for (std::uint32_t* lane : lanes) *lane = *lanes[0];
  });
  return value;
}
inline std::uint32_t warp_sum(std::uint32_t value) {
  simt::warp_collective("redux.add", value, [](const std::vector<std::uint32_t*>& lanes) {
    std::uint32_t sum = 0;
    for (const std::uint32_t* lane : lanes) sum += *lane;
    for (std::uint32_t* lane : lanes) *lane = sum;
  });
  return value;
}
inline std::uint32_t warp_maximum(std::uint32_t value) {
  simt::warp_collective("redux.max", value, [](const std::vector<std::uint32_t*>& lanes) {
    std::uint32_t largest = 0;
    for (const std::uint32_t* lane : lanes) largest = *lane > largest ? *lane : largest;
    for (std::uint32_t* lane : lanes) *lane = largest;
  });
  return value;
}

inline float exp2_fast(float x) { return std::exp2(x); }
inline float log_natural(float x) { return std::log(x); }
inline float reciprocal_fast(float x) { return 1.0f / x; }
inline float sqrt_fast(float x) { return std::sqrt(x); }
inline float max_of(float a, float b) { return std::fmax(a, b); }
inline float min_of(float a, float b) { return std::fmin(a, b); }
inline std::uint32_t float_bits(float value) { return std::bit_cast<std::uint32_t>(value); }
inline float bits_float(std::uint32_t bits) { return std::bit_cast<float>(bits); }
inline float fused(float a, float b, float c) { return std::fma(a, b, c); }
inline int atomic_add(int* address, int value) {
  const int old = *address;
  *address += value;
  return old;
}
inline void atomic_add(std::uint32_t* address, std::uint32_t value) { *address += value; }
inline void atomic_max(std::uint32_t* address, std::uint32_t value) {
  *address = *address < value ? value : *address;
}
inline void atomic_or(std::uint32_t* address, std::uint32_t bits) { *address |= bits; }
inline int count_bits(std::uint32_t bits) { return __builtin_popcount(bits); }
inline int lowest_bit(std::uint32_t bits) { return __builtin_ctz(bits); }

inline std::uint32_t load_shared_2(std::uint32_t address) {
  std::uint16_t value;
  std::memcpy(&value, shared_pointer(address, 2), sizeof(value));
  return value;
}
inline std::uint32_t load_shared(std::uint32_t address) {
  std::uint32_t value;
  std::memcpy(&value, shared_pointer(address, 4), sizeof(value));
  return value;
}
template <class T>
T load_global(const T* pointer) {
  return *pointer;
}
inline const unsigned char* opaque(const unsigned char* pointer) { return pointer; }
template <int kWords>
struct Words {
  std::uint32_t word[kWords];
};
using Words4 = Words<4>;
inline Words4 load_shared_16(std::uint32_t address) {
  Words4 value;
  std::memcpy(&value, shared_pointer(address, 16), sizeof(value));
  return value;
}
inline void check_alignment(const void* pointer, std::size_t bytes) {
  if (reinterpret_cast<std::uintptr_t>(pointer) % bytes != 0) {
    throw std::runtime_error("simt: unaligned access of " + std::to_string(bytes) + " bytes");
  }
}
template <int kWords>
Words<kWords> load_global_words(const void* pointer) {
  Words<kWords> words;
  check_alignment(pointer, sizeof(words));
  std::memcpy(&words, pointer, sizeof(words));
  return words;
}
inline Words4 load_global_16(const void* pointer) { return load_global_words<4>(pointer); }
template <int kWords>
void store_words(void* pointer, const Words<kWords>& words) {
  check_alignment(pointer, sizeof(words));
  std::memcpy(pointer, &words, sizeof(words));
}
struct FloatPair {
  float low, high;
};
inline FloatPair load_global_pair(const float* source) { return {source[0], source[1]}; }
inline void store_global_pair(float* target, float low, float high) {
  target[0] = low;
  target[1] = high;
}

template <class Element>
float element_to_float(std::uint16_t bits) {
  return Element::kIsBf16 ? bf16_to_float(bits) : fp16_to_float(bits);
}
template <class Element>
std::uint16_t float_to_element(float value) {
  return Element::kIsBf16 ? float_to_bf16(value) : float_to_fp16(value);
}
template <class Element>
std::uint32_t pack_pair(float low, float high) {
  return static_cast<std::uint32_t>(float_to_element<Element>(low)) |
         (static_cast<std::uint32_t>(float_to_element<Element>(high)) << 16);
}
template <class Element>
std::uint32_t pack_pair_here(float low, float high) {
  return pack_pair<Element>(low, high);
}
template <class Element>
float unpack_low(std::uint32_t packed) {
  return element_to_float<Element>(static_cast<std::uint16_t>(packed & 0xffffu));
}
template <class Element>
float unpack_high(std::uint32_t packed) {
  return element_to_float<Element>(static_cast<std::uint16_t>(packed >> 16));
}

template <class Element>
std::uint32_t multiply_pair(std::uint32_t a, std::uint32_t b) {
  return pack_pair<Element>(unpack_low<Element>(a) * unpack_low<Element>(b),
                            unpack_high<Element>(a) * unpack_high<Element>(b));
}
template <class Element>
void square_pair(std::uint32_t pair, std::uint32_t& upper, std::uint32_t& rest) {
  const float low = unpack_low<Element>(pair);
  const float high = unpack_high<Element>(pair);
  upper = pack_pair<Bf16>(low * low, high * high);
  rest = pack_pair<Bf16>(std::fma(low, low, -unpack_low<Bf16>(upper)),
                         std::fma(high, high, -unpack_high<Bf16>(upper)));
}

}  // namespace s2o::device
