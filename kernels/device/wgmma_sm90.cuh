// Warpgroup matrix products (sm_90a): 64 rows a warpgroup, fp32 accumulators in registers, B from a
// swizzled tile in shared memory, A from shared memory or registers. Asynchronous: accumulators and
// A registers must not be touched between the issue and the wait that covers it.
#pragma once

#include "kernels/device/layout.cuh"
#include "kernels/device/platform.cuh"

namespace s2o::device {

#if defined(__CUDACC__)

// Registers written before are seen by the products that follow.
S2O_DEVICE void warpgroup_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
S2O_DEVICE void warpgroup_commit() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}
template <int kGroupsLeft>
S2O_DEVICE void warpgroup_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kGroupsLeft) : "memory");
}
// Shared memory written by cp.async or stores, and seen by this thread, is seen by its products.
S2O_DEVICE void fence_async_proxy() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

// Keeps the compiler from moving uses of the registers across this point.
template <int kTiles>
S2O_DEVICE void pin_registers(float (&d)[kTiles][4]) {
#pragma unroll
  for (int j = 0; j < kTiles; ++j) {
#pragma unroll
    for (int e = 0; e < 4; ++e) asm volatile("" : "+f"(d[j][e])::"memory");
  }
}
// Says that the values are not needed any more: from here on they are undefined.
template <int kTiles>
S2O_DEVICE void forget_registers(float (&d)[kTiles][4]) {
#pragma unroll
  for (int j = 0; j < kTiles; ++j) {
#pragma unroll
    for (int e = 0; e < 4; ++e) asm volatile("" : "=f"(d[j][e]));
  }
}
template <int kSteps>
S2O_DEVICE void pin_registers(std::uint32_t (&a)[kSteps][4]) {
#pragma unroll
  for (int j = 0; j < kSteps; ++j) {
#pragma unroll
    for (int e = 0; e < 4; ++e) asm volatile("" : "+r"(a[j][e])::"memory");
  }
}

template <int kCount>
S2O_DEVICE void set_register_limit_up() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kCount));
}
template <int kCount>
S2O_DEVICE void set_register_limit_down() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kCount));
}

// An asm statement must spell out its operands; these macros end with this file.
// clang-format off
#define S2O_ACCUMULATORS_64 \
  "+f"(d[0][0]), "+f"(d[0][1]), "+f"(d[0][2]), "+f"(d[0][3]), \
  "+f"(d[1][0]), "+f"(d[1][1]), "+f"(d[1][2]), "+f"(d[1][3]), \
  "+f"(d[2][0]), "+f"(d[2][1]), "+f"(d[2][2]), "+f"(d[2][3]), \
  "+f"(d[3][0]), "+f"(d[3][1]), "+f"(d[3][2]), "+f"(d[3][3]), \
  "+f"(d[4][0]), "+f"(d[4][1]), "+f"(d[4][2]), "+f"(d[4][3]), \
  "+f"(d[5][0]), "+f"(d[5][1]), "+f"(d[5][2]), "+f"(d[5][3]), \
  "+f"(d[6][0]), "+f"(d[6][1]), "+f"(d[6][2]), "+f"(d[6][3]), \
  "+f"(d[7][0]), "+f"(d[7][1]), "+f"(d[7][2]), "+f"(d[7][3])
#define S2O_REGISTERS_64 \
  "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, " \
  "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define S2O_PRODUCT_SHARED_64(type) \
  asm volatile("{.reg .pred p; setp.ne.b32 p, %34, 0;\n" \
               "wgmma.mma_async.sync.aligned.m64n64k16.f32." type "." type " {" S2O_REGISTERS_64 "}, " \
               "%32, %33, p, 1, 1, 0, 0;}" \
               : S2O_ACCUMULATORS_64 : "l"(a), "l"(b), "r"(accumulate) : "memory")
#define S2O_PRODUCT_REGISTERS_64(type) \
  asm volatile("{.reg .pred p; setp.ne.b32 p, %37, 0;\n" \
               "wgmma.mma_async.sync.aligned.m64n64k16.f32." type "." type " {" S2O_REGISTERS_64 "}, " \
               "{%32, %33, %34, %35}, %36, p, 1, 1, 1;}" \
               : S2O_ACCUMULATORS_64 \
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(accumulate) : "memory")
#define S2O_ACCUMULATORS_128 \
  "+f"(d[0][0]), "+f"(d[0][1]), "+f"(d[0][2]), "+f"(d[0][3]), \
  "+f"(d[1][0]), "+f"(d[1][1]), "+f"(d[1][2]), "+f"(d[1][3]), \
  "+f"(d[2][0]), "+f"(d[2][1]), "+f"(d[2][2]), "+f"(d[2][3]), \
  "+f"(d[3][0]), "+f"(d[3][1]), "+f"(d[3][2]), "+f"(d[3][3]), \
  "+f"(d[4][0]), "+f"(d[4][1]), "+f"(d[4][2]), "+f"(d[4][3]), \
  "+f"(d[5][0]), "+f"(d[5][1]), "+f"(d[5][2]), "+f"(d[5][3]), \
  "+f"(d[6][0]), "+f"(d[6][1]), "+f"(d[6][2]), "+f"(d[6][3]), \
  "+f"(d[7][0]), "+f"(d[7][1]), "+f"(d[7][2]), "+f"(d[7][3]), \
  "+f"(d[8][0]), "+f"(d[8][1]), "+f"(d[8][2]), "+f"(d[8][3]), \
  "+f"(d[9][0]), "+f"(d[9][1]), "+f"(d[9][2]), "+f"(d[9][3]), \
  "+f"(d[10][0]), "+f"(d[10][1]), "+f"(d[10][2]), "+f"(d[10][3]), \
  "+f"(d[11][0]), "+f"(d[11][1]), "+f"(d[11][2]), "+f"(d[11][3]), \
  "+f"(d[12][0]), "+f"(d[12][1]), "+f"(d[12][2]), "+f"(d[12][3]), \
  "+f"(d[13][0]), "+f"(d[13][1]), "+f"(d[13][2]), "+f"(d[13][3]), \
  "+f"(d[14][0]), "+f"(d[14][1]), "+f"(d[14][2]), "+f"(d[14][3]), \
  "+f"(d[15][0]), "+f"(d[15][1]), "+f"(d[15][2]), "+f"(d[15][3])
#define S2O_REGISTERS_128 \
  "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, " \
  "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, " \
  "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, " \
  "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define S2O_PRODUCT_SHARED_128(type) \
  asm volatile("{.reg .pred p; setp.ne.b32 p, %66, 0;\n" \
               "wgmma.mma_async.sync.aligned.m64n128k16.f32." type "." type " {" S2O_REGISTERS_128 "}, " \
               "%64, %65, p, 1, 1, 0, 0;}" \
               : S2O_ACCUMULATORS_128 : "l"(a), "l"(b), "r"(accumulate) : "memory")
#define S2O_PRODUCT_REGISTERS_128(type) \
  asm volatile("{.reg .pred p; setp.ne.b32 p, %69, 0;\n" \
               "wgmma.mma_async.sync.aligned.m64n128k16.f32." type "." type " {" S2O_REGISTERS_128 "}, " \
               "{%64, %65, %66, %67}, %68, p, 1, 1, 1;}" \
               : S2O_ACCUMULATORS_128 \
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(accumulate) : "memory")
#define S2O_ACCUMULATORS_256 \
  S2O_ACCUMULATORS_128, \
  "+f"(d[16][0]), "+f"(d[16][1]), "+f"(d[16][2]), "+f"(d[16][3]), \
  "+f"(d[17][0]), "+f"(d[17][1]), "+f"(d[17][2]), "+f"(d[17][3]), \
  "+f"(d[18][0]), "+f"(d[18][1]), "+f"(d[18][2]), "+f"(d[18][3]), \
  "+f"(d[19][0]), "+f"(d[19][1]), "+f"(d[19][2]), "+f"(d[19][3]), \
  "+f"(d[20][0]), "+f"(d[20][1]), "+f"(d[20][2]), "+f"(d[20][3]), \
  "+f"(d[21][0]), "+f"(d[21][1]), "+f"(d[21][2]), "+f"(d[21][3]), \
  "+f"(d[22][0]), "+f"(d[22][1]), "+f"(d[22][2]), "+f"(d[22][3]), \
  "+f"(d[23][0]), "+f"(d[23][1]), "+f"(d[23][2]), "+f"(d[23][3]), \
  "+f"(d[24][0]), "+f"(d[24][1]), "+f"(d[24][2]), "+f"(d[24][3]), \
  "+f"(d[25][0]), "+f"(d[25][1]), "+f"(d[25][2]), "+f"(d[25][3]), \
  "+f"(d[26][0]), "+f"(d[26][1]), "+f"(d[26][2]), "+f"(d[26][3]), \
  "+f"(d[27][0]), "+f"(d[27][1]), "+f"(d[27][2]), "+f"(d[27][3]), \
  "+f"(d[28][0]), "+f"(d[28][1]), "+f"(d[28][2]), "+f"(d[28][3]), \
  "+f"(d[29][0]), "+f"(d[29][1]), "+f"(d[29][2]), "+f"(d[29][3]), \
  "+f"(d[30][0]), "+f"(d[30][1]), "+f"(d[30][2]), "+f"(d[30][3]), \
  "+f"(d[31][0]), "+f"(d[31][1]), "+f"(d[31][2]), "+f"(d[31][3])
#define S2O_REGISTERS_256 \
  S2O_REGISTERS_128 ", " \
  "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, " \
  "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95, " \
  "%96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111, " \
  "%112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127"
#define S2O_PRODUCT_SHARED_256(type) \
  asm volatile("{.reg .pred p; setp.ne.b32 p, %130, 0;\n" \
               "wgmma.mma_async.sync.aligned.m64n256k16.f32." type "." type " {" S2O_REGISTERS_256 "}, " \
               "%128, %129, p, 1, 1, 0, 0;}" \
               : S2O_ACCUMULATORS_256 : "l"(a), "l"(b), "r"(accumulate) : "memory")
// clang-format on

// d = a b^T (+ d): a [64, 16] and b [columns, 16], both with the contracted dimension along the
// row, given by descriptors.
template <class Element, int kTiles>
S2O_DEVICE void warpgroup_multiply(float (&d)[kTiles][4], std::uint64_t a, std::uint64_t b,
                                   int accumulate) {
  static_assert(kTiles == 8 || kTiles == 16 || kTiles == 32);
  if constexpr (kTiles == 8 && Element::kIsBf16) {
    S2O_PRODUCT_SHARED_64("bf16");
  } else if constexpr (kTiles == 8) {
    S2O_PRODUCT_SHARED_64("f16");
  } else if constexpr (kTiles == 16 && Element::kIsBf16) {
    S2O_PRODUCT_SHARED_128("bf16");
  } else if constexpr (kTiles == 16) {
    S2O_PRODUCT_SHARED_128("f16");
  } else if constexpr (Element::kIsBf16) {
    S2O_PRODUCT_SHARED_256("bf16");
  } else {
    S2O_PRODUCT_SHARED_256("f16");
  }
}

// d = a b (+ d): a [64, 16] in registers (layout of mma.m16n8k16 per warp), b [16, columns] given
// by an MN-major descriptor.
template <class Element, int kTiles>
S2O_DEVICE void warpgroup_multiply_transposed(float (&d)[kTiles][4], std::uint32_t (&a)[4],
                                              std::uint64_t b, int accumulate) {
  static_assert(kTiles == 8 || kTiles == 16);
  if constexpr (kTiles == 8 && Element::kIsBf16) {
    S2O_PRODUCT_REGISTERS_64("bf16");
  } else if constexpr (kTiles == 8) {
    S2O_PRODUCT_REGISTERS_64("f16");
  } else if constexpr (Element::kIsBf16) {
    S2O_PRODUCT_REGISTERS_128("bf16");
  } else {
    S2O_PRODUCT_REGISTERS_128("f16");
  }
}

#undef S2O_ACCUMULATORS_64
#undef S2O_ACCUMULATORS_128
#undef S2O_ACCUMULATORS_256
#undef S2O_REGISTERS_64
#undef S2O_REGISTERS_128
#undef S2O_REGISTERS_256
#undef S2O_PRODUCT_SHARED_64
#undef S2O_PRODUCT_SHARED_128
#undef S2O_PRODUCT_SHARED_256
#undef S2O_PRODUCT_REGISTERS_64
#undef S2O_PRODUCT_REGISTERS_128

#else

inline void warpgroup_fence() {}
inline void warpgroup_commit() { simt::warpgroup_commit(); }
template <int kGroupsLeft>
void warpgroup_wait() {
  simt::warpgroup_wait(kGroupsLeft);
}
inline void fence_async_proxy() {}
template <int kTiles>
void pin_registers(float (&)[kTiles][4]) {}
template <int kTiles>
void forget_registers(float (&)[kTiles][4]) {}
template <int kSteps>
void pin_registers(std::uint32_t (&)[kSteps][4]) {}
template <int kCount>
void set_register_limit_up() {}
template <int kCount>
void set_register_limit_down() {}

// A matrix descriptor as the hardware reads it (PTX ISA), not as layout.cuh builds it.
struct ModelDescriptor {
  std::uint32_t start, leading, stride;
  explicit ModelDescriptor(std::uint64_t bits)
      : start(static_cast<std::uint32_t>(bits & 0x3fff) << 4),
        leading(static_cast<std::uint32_t>((bits >> 16) & 0x3fff) << 4),
        stride(static_cast<std::uint32_t>((bits >> 32) & 0x3fff) << 4) {
    if ((bits >> 62) != 1 || ((bits >> 49) & 7) != 0) {
      throw std::runtime_error("simt: expected a descriptor with 128-byte swizzle, base offset 0");
    }
  }
  template <class Element>
  float read(std::uint32_t offset) const {
    std::uint32_t address = start + offset;
    address ^= ((address >> 7) & 7u) << 4;
    std::uint16_t bits;
    std::memcpy(&bits, simt::shared_base() + address, 2);
    return element_to_float<Element>(bits);
  }
  // Contracted dimension k along the row: groups of 8 rows, `stride` apart.
  template <class Element>
  float k_major(std::uint32_t row, std::uint32_t k) const {
    return read<Element>(row / 8 * stride + row % 8 * 128 + k * 2);
  }
  // Contracted dimension down the rows: groups of 8 rows `stride` apart, 64 columns a panel.
  template <class Element>
  float mn_major(std::uint32_t k, std::uint32_t column) const {
    return read<Element>(column / 64 * leading + k / 8 * stride + k % 8 * 128 + column % 64 * 2);
  }
};

struct ModelProduct {
  float* d;
  const std::uint32_t* a_registers;  // null: a_descriptor
  std::uint64_t a_descriptor, b;
  int accumulate, tiles;
};

// Fragments as the PTX ISA states them for wgmma: 16 rows a warp.
template <class Element>
void model_warpgroup_product(const std::vector<void*>& threads) {
  const auto product = [&threads](std::size_t t) { return static_cast<ModelProduct*>(threads[t]); };
  const ModelProduct first = *product(0);
  const auto columns = static_cast<std::uint32_t>(first.tiles * 8);
  const ModelDescriptor b(first.b);
  std::vector<float> a(64 * 16);
  std::vector<float> b_full(16 * columns);
  for (std::uint32_t k = 0; k < 16; ++k) {
    for (std::uint32_t n = 0; n < columns; ++n) {
      b_full[k * columns + n] =
          first.a_registers == nullptr ? b.k_major<Element>(n, k) : b.mn_major<Element>(k, n);
    }
  }
  if (first.a_registers == nullptr) {
    const ModelDescriptor source(first.a_descriptor);
    for (std::uint32_t r = 0; r < 64; ++r) {
      for (std::uint32_t k = 0; k < 16; ++k) a[r * 16 + k] = source.k_major<Element>(r, k);
    }
  } else {
    for (std::size_t t = 0; t < 128; ++t) {
      for (std::size_t i = 0; i < 8; ++i) {
        const std::size_t row = t / 32 * 16 + t % 32 / 4 + (i / 2 % 2 == 1 ? 8 : 0);
        const std::size_t k = t % 4 * 2 + i % 2 + (i >= 4 ? 8 : 0);
        const std::uint32_t word = product(t)->a_registers[i / 2];
        a[row * 16 + k] = i % 2 == 0 ? unpack_low<Element>(word) : unpack_high<Element>(word);
      }
    }
  }
  for (std::size_t t = 0; t < 128; ++t) {
    const ModelProduct* own = product(t);
    for (std::size_t i = 0; i < columns / 2; ++i) {
      const std::size_t row = t / 32 * 16 + t % 32 / 4 + (i / 2 % 2 == 1 ? 8 : 0);
      const std::size_t column = i / 4 * 8 + t % 4 * 2 + i % 2;
      float sum = own->accumulate != 0 ? own->d[i] : 0.0f;
      for (std::size_t k = 0; k < 16; ++k) sum += a[row * 16 + k] * b_full[k * columns + column];
      own->d[i] = sum;
    }
    delete product(t);
  }
}

template <class Element, int kTiles>
void warpgroup_multiply(float (&d)[kTiles][4], std::uint64_t a, std::uint64_t b, int accumulate) {
  auto* args = new ModelProduct{&d[0][0], nullptr, a, b, accumulate, kTiles};
  simt::warpgroup_product("wgmma.shared", args, model_warpgroup_product<Element>);
}
template <class Element, int kTiles>
void warpgroup_multiply_transposed(float (&d)[kTiles][4], std::uint32_t (&a)[4], std::uint64_t b,
                                   int accumulate) {
  auto* args = new ModelProduct{&d[0][0], a, 0, b, accumulate, kTiles};
  simt::warpgroup_product("wgmma.registers", args, model_warpgroup_product<Element>);
}

#endif

}  // namespace s2o::device
