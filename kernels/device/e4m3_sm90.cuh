// Products of e4m3 operands on warpgroups (sm_90a) with fp16 accumulators, 64 rows by 128 or
// 64 columns, and what surrounds them: conversion, plain bulk copies, maxima of packed fp16.
//
// Operands lie in shared memory without swizzle: core matrices of 8 rows by 16 bytes, 128
// consecutive bytes each, so that a tile that was packed that way comes by one bulk copy and needs
// no tensor map.
#pragma once

#include "kernels/common/e4m3.h"
#include "kernels/device/mbarrier_sm90.cuh"
#include "kernels/device/platform.cuh"
#include "kernels/device/wgmma_sm90.cuh"

namespace s2o::device {

// Packed tiles of `rows` rows: chunk c (16 columns) of row r begins at
// c * rows * 16 + r * 16 bytes. A descriptor of the tile's first 32 columns:
S2O_HOST_DEVICE constexpr std::uint64_t packed_descriptor(std::uint32_t address, int rows) {
  return static_cast<std::uint64_t>((address & 0x3ffffu) >> 4) |
         static_cast<std::uint64_t>(static_cast<std::uint32_t>(rows * 16) >> 4) << 16 |
         static_cast<std::uint64_t>(128u >> 4) << 32;
}

// Two fp16 accumulators a register: d[j][i] holds columns 8 j + 2 (lane % 4) and the next of row
// lane / 4 + 8 i of the warp's 16.
using HalfAccumulators = std::uint32_t[16][2];

#if defined(__CUDACC__)

// Both rounded to nearest even, saturating; `low` in the low byte of 16 bits.
S2O_DEVICE std::uint32_t pack_e4m3(float low, float high) {
  std::uint16_t packed;
  asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(packed) : "f"(high), "f"(low));
  return packed;
}
// The value of the low byte.
S2O_DEVICE float unpack_e4m3(std::uint32_t packed) {
  std::uint32_t halves;
  asm("cvt.rn.f16x2.e4m3x2 %0, %1;" : "=r"(halves) : "h"(static_cast<std::uint16_t>(packed)));
  return unpack_low<Fp16>(halves);
}

// `bytes` consecutive bytes, a multiple of 16 as both addresses, which complete on `barrier`.
S2O_DEVICE void load_bytes_async(std::uint32_t target, const void* source, int bytes,
                                 Barrier* barrier) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::
          "r"(target),
      "l"(__cvta_generic_to_global(source)), "r"(bytes), "r"(shared_address(barrier))
      : "memory");
}

S2O_DEVICE void pin_registers(HalfAccumulators& d) {
#pragma unroll
  for (int j = 0; j < 16; ++j) asm volatile("" : "+r"(d[j][0]), "+r"(d[j][1])::"memory");
}

// Maximum of three pairs of signed 16-bit numbers: one instruction.
S2O_DEVICE std::uint32_t max_of_pairs(std::uint32_t a, std::uint32_t b, std::uint32_t c) {
  return __vimax3_s16x2(a, b, c);
}
S2O_DEVICE std::uint32_t max_of_pairs(std::uint32_t a, std::uint32_t b) { return __vmaxs2(a, b); }

// clang-format off
// d = a b^T (+ d) over 32 columns.
S2O_DEVICE void multiply_e4m3(HalfAccumulators& d, std::uint64_t a, std::uint64_t b,
                              int accumulate) {
  asm volatile(
      "{.reg .pred p; setp.ne.b32 p, %34, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n128k32.f16.e4m3.e4m3 {"
      "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
      "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31}, "
      "%32, %33, p, 1, 1;}"
      : "+r"(d[0][0]), "+r"(d[0][1]), "+r"(d[1][0]), "+r"(d[1][1]),
        "+r"(d[2][0]), "+r"(d[2][1]), "+r"(d[3][0]), "+r"(d[3][1]),
        "+r"(d[4][0]), "+r"(d[4][1]), "+r"(d[5][0]), "+r"(d[5][1]),
        "+r"(d[6][0]), "+r"(d[6][1]), "+r"(d[7][0]), "+r"(d[7][1]),
        "+r"(d[8][0]), "+r"(d[8][1]), "+r"(d[9][0]), "+r"(d[9][1]),
        "+r"(d[10][0]), "+r"(d[10][1]), "+r"(d[11][0]), "+r"(d[11][1]),
        "+r"(d[12][0]), "+r"(d[12][1]), "+r"(d[13][0]), "+r"(d[13][1]),
        "+r"(d[14][0]), "+r"(d[14][1]), "+r"(d[15][0]), "+r"(d[15][1])
      : "l"(a), "l"(b), "r"(accumulate) : "memory");
}
// The same for 64 columns.
S2O_DEVICE void multiply_e4m3(std::uint32_t (&d)[8][2], std::uint64_t a, std::uint64_t b,
                              int accumulate) {
  asm volatile(
      "{.reg .pred p; setp.ne.b32 p, %18, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n64k32.f16.e4m3.e4m3 {"
      "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15}, "
      "%16, %17, p, 1, 1;}"
      : "+r"(d[0][0]), "+r"(d[0][1]), "+r"(d[1][0]), "+r"(d[1][1]),
        "+r"(d[2][0]), "+r"(d[2][1]), "+r"(d[3][0]), "+r"(d[3][1]),
        "+r"(d[4][0]), "+r"(d[4][1]), "+r"(d[5][0]), "+r"(d[5][1]),
        "+r"(d[6][0]), "+r"(d[6][1]), "+r"(d[7][0]), "+r"(d[7][1])
      : "l"(a), "l"(b), "r"(accumulate) : "memory");
}
// clang-format on
S2O_DEVICE void pin_registers(std::uint32_t (&d)[8][2]) {
#pragma unroll
  for (int j = 0; j < 8; ++j) asm volatile("" : "+r"(d[j][0]), "+r"(d[j][1])::"memory");
}

#else

inline std::uint32_t pack_e4m3(float low, float high) {
  return static_cast<std::uint32_t>(float_to_e4m3(low)) |
         static_cast<std::uint32_t>(float_to_e4m3(high)) << 8;
}
inline float unpack_e4m3(std::uint32_t packed) {
  return e4m3_to_float(static_cast<std::uint8_t>(packed & 0xffu));
}

inline void load_bytes_async(std::uint32_t target, const void* source, int bytes,
                             Barrier* barrier) {
  void* const place = shared_pointer(target, 16);
  check_alignment(source, 16);
  if (bytes % 16 != 0) throw std::runtime_error("simt: bulk copy of an odd number of bytes");
  std::memset(place, 0x7f, static_cast<std::size_t>(bytes));
  simt::bulk_copy(barrier, bytes,
                  [=] { std::memcpy(place, source, static_cast<std::size_t>(bytes)); });
}

inline void pin_registers(HalfAccumulators&) {}

inline std::uint32_t max_of_pairs(std::uint32_t a, std::uint32_t b) {
  const auto half = [](std::uint32_t x, std::uint32_t y) {
    const auto s = static_cast<std::int16_t>(x & 0xffffu);
    const auto t = static_cast<std::int16_t>(y & 0xffffu);
    return static_cast<std::uint32_t>(static_cast<std::uint16_t>(s > t ? s : t));
  };
  return half(a, b) | half(a >> 16, b >> 16) << 16;
}
inline std::uint32_t max_of_pairs(std::uint32_t a, std::uint32_t b, std::uint32_t c) {
  return max_of_pairs(max_of_pairs(a, b), c);
}

inline void pin_registers(std::uint32_t (&)[8][2]) {}

struct ModelE4m3Product {
  std::uint32_t (*d)[2];  // [tiles]
  std::size_t tiles;      // of 8 columns
  std::uint64_t a, b;
  int accumulate;
};
// Element (row, column) of an operand without swizzle, as the hardware reads it (PTX ISA).
inline float model_packed_element(std::uint64_t bits, std::uint32_t row, std::uint32_t column) {
  if ((bits >> 62) != 0) throw std::runtime_error("simt: expected a descriptor without swizzle");
  const std::uint32_t start = static_cast<std::uint32_t>(bits & 0x3fff) << 4;
  const std::uint32_t leading = static_cast<std::uint32_t>((bits >> 16) & 0x3fff) << 4;
  const std::uint32_t stride = static_cast<std::uint32_t>((bits >> 32) & 0x3fff) << 4;
  const std::uint32_t address =
      start + column / 16 * leading + row / 8 * stride + row % 8 * 16 + column % 16;
  return e4m3_to_float(
      static_cast<std::uint8_t>(static_cast<unsigned char>(simt::shared_base()[address])));
}
inline void model_e4m3_product(const std::vector<void*>& threads) {
  const auto product = [&threads](std::size_t t) {
    return static_cast<ModelE4m3Product*>(threads[t]);
  };
  const ModelE4m3Product first = *product(0);
  std::vector<float> a(64 * 32);
  const auto columns = static_cast<std::uint32_t>(first.tiles * 8);
  std::vector<float> b(columns * 32);
  for (std::uint32_t k = 0; k < 32; ++k) {
    for (std::uint32_t r = 0; r < 64; ++r) a[r * 32 + k] = model_packed_element(first.a, r, k);
    for (std::uint32_t n = 0; n < columns; ++n) b[n * 32 + k] = model_packed_element(first.b, n, k);
  }
  for (std::size_t t = 0; t < 128; ++t) {
    ModelE4m3Product* const own = product(t);
    for (std::size_t j = 0; j < first.tiles; ++j) {
      for (std::size_t i = 0; i < 2; ++i) {
        const std::size_t row = t / 32 * 16 + t % 32 / 4 + 8 * i;
        std::uint32_t& word = own->d[j][i];
        float sum[2];
        for (std::size_t c = 0; c < 2; ++c) {
          const std::size_t column = j * 8 + t % 4 * 2 + c;
          const auto old = static_cast<std::uint16_t>(word >> 16 * c & 0xffffu);
          sum[c] = own->accumulate != 0 ? fp16_to_float(old) : 0.0f;
          for (std::size_t k = 0; k < 32; ++k) sum[c] += a[row * 32 + k] * b[column * 32 + k];
        }
        word = pack_pair<Fp16>(sum[0], sum[1]);
      }
    }
    delete own;
  }
}
inline void multiply_e4m3(HalfAccumulators& d, std::uint64_t a, std::uint64_t b, int accumulate) {
  simt::warpgroup_product("wgmma.e4m3", new ModelE4m3Product{d, 16, a, b, accumulate},
                          model_e4m3_product);
}
inline void multiply_e4m3(std::uint32_t (&d)[8][2], std::uint64_t a, std::uint64_t b,
                          int accumulate) {
  simt::warpgroup_product("wgmma.e4m3.n64", new ModelE4m3Product{d, 8, a, b, accumulate},
                          model_e4m3_product);
}

#endif

}  // namespace s2o::device
