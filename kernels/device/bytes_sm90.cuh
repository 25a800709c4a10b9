// Products of 8-bit operands on warpgroups (sm_90a): 64 rows by 128 columns, 32 contracted elements
// an instruction. Both operands run along the contracted dimension: rows of 128 bytes, swizzled as
// those of 16-bit tiles (layout.cuh).
//
// Sums of e4m3 products keep about 14 bits on these units: whoever sums for long adds them up
// elsewhere. Sums of integers are exact.
#pragma once

#include "kernels/common/e4m3.h"
#include "kernels/device/layout.cuh"
#include "kernels/device/platform.cuh"
#include "kernels/device/wgmma_sm90.cuh"

namespace s2o::device {

S2O_DEVICE std::int32_t larger(std::int32_t a, std::int32_t b) { return a > b ? a : b; }

#if defined(__CUDACC__)

// clang-format off
// d = a b^T (+ d) of signed 8-bit integers, 32-bit sums.
S2O_DEVICE void multiply_s8(std::uint32_t (&d)[16][4], std::uint64_t a, std::uint64_t b,
                            int accumulate) {
  asm volatile(
      "{.reg .pred p; setp.ne.b32 p, %66, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n128k32.s32.s8.s8 {"
      "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
      "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
      "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
      "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63}, "
      "%64, %65, p;}"
      :
        "+r"(d[0][0]), "+r"(d[0][1]), "+r"(d[0][2]), "+r"(d[0][3]),
        "+r"(d[1][0]), "+r"(d[1][1]), "+r"(d[1][2]), "+r"(d[1][3]),
        "+r"(d[2][0]), "+r"(d[2][1]), "+r"(d[2][2]), "+r"(d[2][3]),
        "+r"(d[3][0]), "+r"(d[3][1]), "+r"(d[3][2]), "+r"(d[3][3]),
        "+r"(d[4][0]), "+r"(d[4][1]), "+r"(d[4][2]), "+r"(d[4][3]),
        "+r"(d[5][0]), "+r"(d[5][1]), "+r"(d[5][2]), "+r"(d[5][3]),
        "+r"(d[6][0]), "+r"(d[6][1]), "+r"(d[6][2]), "+r"(d[6][3]),
        "+r"(d[7][0]), "+r"(d[7][1]), "+r"(d[7][2]), "+r"(d[7][3]),
        "+r"(d[8][0]), "+r"(d[8][1]), "+r"(d[8][2]), "+r"(d[8][3]),
        "+r"(d[9][0]), "+r"(d[9][1]), "+r"(d[9][2]), "+r"(d[9][3]),
        "+r"(d[10][0]), "+r"(d[10][1]), "+r"(d[10][2]), "+r"(d[10][3]),
        "+r"(d[11][0]), "+r"(d[11][1]), "+r"(d[11][2]), "+r"(d[11][3]),
        "+r"(d[12][0]), "+r"(d[12][1]), "+r"(d[12][2]), "+r"(d[12][3]),
        "+r"(d[13][0]), "+r"(d[13][1]), "+r"(d[13][2]), "+r"(d[13][3]),
        "+r"(d[14][0]), "+r"(d[14][1]), "+r"(d[14][2]), "+r"(d[14][3]),
        "+r"(d[15][0]), "+r"(d[15][1]), "+r"(d[15][2]), "+r"(d[15][3])
      : "l"(a), "l"(b), "r"(accumulate) : "memory");
}
// d = a b^T (+ d) of e4m3: a [64, 32] in registers (layout of mma.m16n8k32 per warp), b of 136 rows,
// whose last eight make `sums`.
S2O_DEVICE void multiply_e4m3_registers(float (&d)[16][4], float (&sums)[4],
                                        std::uint32_t (&a)[4], std::uint64_t b, int accumulate) {
  asm volatile(
      "{.reg .pred p; setp.ne.b32 p, %73, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n136k32.f32.e4m3.e4m3 {"
      "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
      "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
      "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
      "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63, "
      "%64, %65, %66, %67}, "
      "{%68, %69, %70, %71}, %72, p, 1, 1;}"
      :
        "+f"(d[0][0]), "+f"(d[0][1]), "+f"(d[0][2]), "+f"(d[0][3]),
        "+f"(d[1][0]), "+f"(d[1][1]), "+f"(d[1][2]), "+f"(d[1][3]),
        "+f"(d[2][0]), "+f"(d[2][1]), "+f"(d[2][2]), "+f"(d[2][3]),
        "+f"(d[3][0]), "+f"(d[3][1]), "+f"(d[3][2]), "+f"(d[3][3]),
        "+f"(d[4][0]), "+f"(d[4][1]), "+f"(d[4][2]), "+f"(d[4][3]),
        "+f"(d[5][0]), "+f"(d[5][1]), "+f"(d[5][2]), "+f"(d[5][3]),
        "+f"(d[6][0]), "+f"(d[6][1]), "+f"(d[6][2]), "+f"(d[6][3]),
        "+f"(d[7][0]), "+f"(d[7][1]), "+f"(d[7][2]), "+f"(d[7][3]),
        "+f"(d[8][0]), "+f"(d[8][1]), "+f"(d[8][2]), "+f"(d[8][3]),
        "+f"(d[9][0]), "+f"(d[9][1]), "+f"(d[9][2]), "+f"(d[9][3]),
        "+f"(d[10][0]), "+f"(d[10][1]), "+f"(d[10][2]), "+f"(d[10][3]),
        "+f"(d[11][0]), "+f"(d[11][1]), "+f"(d[11][2]), "+f"(d[11][3]),
        "+f"(d[12][0]), "+f"(d[12][1]), "+f"(d[12][2]), "+f"(d[12][3]),
        "+f"(d[13][0]), "+f"(d[13][1]), "+f"(d[13][2]), "+f"(d[13][3]),
        "+f"(d[14][0]), "+f"(d[14][1]), "+f"(d[14][2]), "+f"(d[14][3]),
        "+f"(d[15][0]), "+f"(d[15][1]), "+f"(d[15][2]), "+f"(d[15][3]),
        "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(accumulate) : "memory");
}
// clang-format on

// a b + c, which the compiler leaves as one instruction.
S2O_DEVICE std::uint32_t multiply_add(std::uint32_t a, std::uint32_t b, std::uint32_t c) {
  std::uint32_t d;
  asm("mad.lo.u32 %0, %1, %2, %3;" : "=r"(d) : "r"(a), "r"(b), "r"(c));
  return d;
}
// The upper bytes of two words in the lower half of one, whose other half is any; the lower halves
// of two.
S2O_DEVICE std::uint32_t upper_bytes(std::uint32_t a, std::uint32_t b) {
  return __byte_perm(a, b, 0x0073);
}
S2O_DEVICE std::uint32_t lower_halves(std::uint32_t a, std::uint32_t b) {
  return __byte_perm(a, b, 0x5410);
}
// The upper halves of two words; the first in the lower one.
S2O_DEVICE std::uint32_t upper_halves(std::uint32_t a, std::uint32_t b) {
  return __byte_perm(a, b, 0x7632);
}
// A pair in fp16, times two.
S2O_DEVICE std::uint32_t doubled_halves(std::uint32_t pair) {
  std::uint32_t result;
  asm("add.rn.f16x2 %0, %1, %1;" : "=r"(result) : "r"(pair));
  return result;
}
// Sum of a few pairs in fp16 that are not negative.
class SumOfHalves {
 public:
  S2O_DEVICE void add(std::uint32_t pair) {
    asm("add.rn.f16x2 %0, %0, %1;" : "+r"(halves_) : "r"(pair));
  }
  S2O_DEVICE float total() const { return unpack_low<Fp16>(halves_) + unpack_high<Fp16>(halves_); }

 private:
  std::uint32_t halves_ = 0;
};
S2O_DEVICE std::int32_t largest_of_three(std::int32_t a, std::int32_t b, std::int32_t c) {
  return __vimax3_s32(a, b, c);
}
S2O_DEVICE void store_shared_word(std::uint32_t address, std::uint32_t value) {
  asm volatile("st.shared.b32 [%0], %1;" ::"r"(address), "r"(value) : "memory");
}

#else

inline std::uint32_t multiply_add(std::uint32_t a, std::uint32_t b, std::uint32_t c) {
  return a * b + c;
}
inline std::uint32_t upper_bytes(std::uint32_t a, std::uint32_t b) {
  return a >> 24 | (b >> 24) << 8 | 0x80ff0000u;
}
inline std::uint32_t lower_halves(std::uint32_t a, std::uint32_t b) {
  return (a & 0xffffu) | b << 16;
}
inline std::uint32_t doubled_halves(std::uint32_t pair) {
  return pack_pair<Fp16>(2.0f * unpack_low<Fp16>(pair), 2.0f * unpack_high<Fp16>(pair));
}
inline std::uint32_t upper_halves(std::uint32_t a, std::uint32_t b) {
  return a >> 16 | (b & 0xffff0000u);
}
class SumOfHalves {
 public:
  void add(std::uint32_t pair) {
    halves_ = pack_pair<Fp16>(unpack_low<Fp16>(halves_) + unpack_low<Fp16>(pair),
                              unpack_high<Fp16>(halves_) + unpack_high<Fp16>(pair));
  }
  float total() const { return unpack_low<Fp16>(halves_) + unpack_high<Fp16>(halves_); }

 private:
  std::uint32_t halves_ = 0;
};
inline std::int32_t largest_of_three(std::int32_t a, std::int32_t b, std::int32_t c) {
  return larger(a, larger(b, c));
}
inline void store_shared_word(std::uint32_t address, std::uint32_t value) {
  std::memcpy(shared_pointer(address, 4), &value, 4);
}

struct ModelBytes {
  void* d;                           // [16][4] of the thread
  float* sums;                       // [4] of 8 more columns; null: of integers
  const std::uint32_t* a_registers;  // null: a_descriptor
  std::uint64_t a_descriptor, b;
  int accumulate;
};
// Byte k of row `row`, as the hardware reads a 128-byte-swizzled descriptor.
inline std::uint8_t model_byte(const ModelDescriptor& tile, std::uint32_t row, std::uint32_t k) {
  std::uint32_t address = tile.start + row / 8 * tile.stride + row % 8 * 128 + k;
  address ^= ((address >> 7) & 7u) << 4;
  return static_cast<std::uint8_t>(simt::shared_base()[address]);
}
template <class Sum>
void model_bytes_product(const std::vector<void*>& threads) {
  constexpr bool kIntegers = std::is_same_v<Sum, std::uint32_t>;
  using Value = std::conditional_t<kIntegers, std::int32_t, float>;
  const auto value = [](std::uint8_t byte) -> Value {
    if constexpr (kIntegers)
      return static_cast<std::int8_t>(byte);
    else
      return e4m3_to_float(byte);
  };
  const auto product = [&threads](std::size_t t) { return static_cast<ModelBytes*>(threads[t]); };
  const ModelBytes first = *product(0);
  const ModelDescriptor b_tile(first.b);
  const std::uint32_t columns = first.sums == nullptr ? 128 : 136;
  std::vector<Value> a(64 * 32), b(columns * 32);
  for (std::uint32_t n = 0; n < columns; ++n) {
    for (std::uint32_t k = 0; k < 32; ++k) b[n * 32 + k] = value(model_byte(b_tile, n, k));
  }
  if (first.a_registers == nullptr) {
    const ModelDescriptor a_tile(first.a_descriptor);
    for (std::uint32_t r = 0; r < 64; ++r) {
      for (std::uint32_t k = 0; k < 32; ++k) a[r * 32 + k] = value(model_byte(a_tile, r, k));
    }
  } else {
    for (std::size_t t = 0; t < 128; ++t) {
      for (std::size_t i = 0; i < 16; ++i) {
        const std::size_t row = t / 32 * 16 + t % 32 / 4 + (i / 4 % 2 == 1 ? 8 : 0);
        const std::size_t k = t % 4 * 4 + i % 4 + (i >= 8 ? 16 : 0);
        a[row * 32 + k] =
            value(static_cast<std::uint8_t>(product(t)->a_registers[i / 4] >> 8 * (i % 4) & 0xffu));
      }
    }
  }
  for (std::size_t t = 0; t < 128; ++t) {
    for (std::size_t i = 0; i < columns / 2; ++i) {
      const std::size_t row = t / 32 * 16 + t % 32 / 4 + (i / 2 % 2 == 1 ? 8 : 0);
      const std::size_t column = i / 4 * 8 + t % 4 * 2 + i % 2;
      Sum& sum = i < 64 ? static_cast<Sum*>(product(t)->d)[i]
                        : reinterpret_cast<Sum*>(product(t)->sums)[i - 64];
      if (first.accumulate == 0) sum = Sum{};
      for (std::size_t k = 0; k < 32; ++k) {
        sum += static_cast<Sum>(a[row * 32 + k] * b[column * 32 + k]);
      }
    }
    delete product(t);
  }
}
inline void multiply_s8(std::uint32_t (&d)[16][4], std::uint64_t a, std::uint64_t b,
                        int accumulate) {
  simt::warpgroup_product("wgmma.s8", new ModelBytes{&d[0][0], nullptr, nullptr, a, b, accumulate},
                          model_bytes_product<std::uint32_t>);
}
inline void multiply_e4m3_registers(float (&d)[16][4], float (&sums)[4], std::uint32_t (&a)[4],
                                    std::uint64_t b, int accumulate) {
  simt::warpgroup_product("wgmma.e4m3.registers",
                          new ModelBytes{&d[0][0], sums, a, 0, b, accumulate},
                          model_bytes_product<float>);
}

#endif

}  // namespace s2o::device
