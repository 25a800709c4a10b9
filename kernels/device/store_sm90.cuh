// What the end of a tile takes (sm_90): matrices from registers into shared memory, a logarithm.
#pragma once

#include "kernels/device/layout.cuh"
#include "kernels/device/platform.cuh"

namespace s2o::device {

#if defined(__CUDACC__)

// Four 8x8 matrices of 16-bit elements; lane l passes the address of row l % 8 of matrix l / 8, and
// of each matrix elements 2 (l % 4) and 2 (l % 4) + 1 of row l / 4.
S2O_DEVICE void store_matrix_x4(std::uint32_t row_address, const std::uint32_t (&r)[4]) {
  asm volatile(
      "stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(row_address),
      "r"(r[0]), "r"(r[1]), "r"(r[2]), "r"(r[3])
      : "memory");
}
S2O_DEVICE float log2_fast(float x) {  // absolute error 2^-22 near 1; of 0: -infinity
  float y;
  asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

#else

// Stated from the PTX ISA, not from layout.cuh.
inline void store_matrix_x4(std::uint32_t row_address, const std::uint32_t (&r)[4]) {
  struct Args {
    const std::uint32_t* r;
    std::uint16_t* row;
  } args{r, static_cast<std::uint16_t*>(shared_pointer(row_address, 16))};
  simt::warp_collective("stmatrix", args, [](const std::vector<Args*>& l) {
    for (std::size_t lane = 0; lane < 32; ++lane) {
      for (std::size_t m = 0; m < 4; ++m) {
        std::uint16_t* const pair = l[8 * m + lane / 4]->row + 2 * (lane % 4);
        pair[0] = static_cast<std::uint16_t>(l[lane]->r[m] & 0xffffu);
        pair[1] = static_cast<std::uint16_t>(l[lane]->r[m] >> 16);
      }
    }
  });
}
inline float log2_fast(float x) { return std::log2(x); }

#endif

}  // namespace s2o::device
