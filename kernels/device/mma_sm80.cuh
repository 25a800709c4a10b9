// Warp-wide matrix instructions (sm_80): ldmatrix and mma.m16n8k16 with fp32 accumulation.
#pragma once

#include "kernels/device/layout.cuh"
#include "kernels/device/platform.cuh"

namespace s2o::device {

#if defined(__CUDACC__)

// Four 8x8 matrices of 16-bit elements; lane l passes the address of row l % 8 of matrix l / 8.
S2O_DEVICE void load_matrix_x4(std::uint32_t (&r)[4], std::uint32_t row_address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(row_address)
               : "memory");
}
S2O_DEVICE void load_matrix_x4_transposed(std::uint32_t (&r)[4], std::uint32_t row_address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(row_address)
               : "memory");
}

// d += a b: a is 16x16, b is 16x8 given by its two registers.
template <class Element>
S2O_DEVICE void multiply_accumulate(float (&d)[4], const std::uint32_t (&a)[4], std::uint32_t b0,
                                    std::uint32_t b1) {
  if constexpr (Element::kIsBf16) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, "
        "{%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  } else {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, "
        "{%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  }
}

#else

// Stated from the PTX ISA's tables of fragments, not from layout.cuh.
inline void model_load_matrix(std::uint32_t (&r)[4], std::uint32_t row_address, bool transposed) {
  struct Args {
    std::uint32_t* r;
    const std::uint16_t* row;
  } args{r, static_cast<const std::uint16_t*>(shared_pointer(row_address, 16))};
  simt::warp_collective(
      transposed ? "ldmatrix.trans" : "ldmatrix", args, [transposed](const std::vector<Args*>& l) {
        for (std::size_t lane = 0; lane < 32; ++lane) {
          for (std::size_t m = 0; m < 4; ++m) {
            std::uint32_t packed = 0;
            for (std::size_t half = 0; half < 2; ++half) {
              const std::size_t i = transposed ? 2 * (lane % 4) + half : lane / 4;
              const std::size_t j = transposed ? lane / 4 : 2 * (lane % 4) + half;
              packed |= static_cast<std::uint32_t>(l[8 * m + i]->row[j]) << (16 * half);
            }
            l[lane]->r[m] = packed;
          }
        }
      });
}
inline void load_matrix_x4(std::uint32_t (&r)[4], std::uint32_t row_address) {
  model_load_matrix(r, row_address, false);
}
inline void load_matrix_x4_transposed(std::uint32_t (&r)[4], std::uint32_t row_address) {
  model_load_matrix(r, row_address, true);
}

template <class Element>
void multiply_accumulate(float (&d)[4], const std::uint32_t (&a)[4], std::uint32_t b0,
                         std::uint32_t b1) {
  struct Args {
    float* d;
    const std::uint32_t* a;
    std::uint32_t b[2];
  } args{d, a, {b0, b1}};
  simt::warp_collective("mma.m16n8k16", args, [](const std::vector<Args*>& lanes) {
    float a_full[16][16];
    float b_full[16][8];
    for (std::size_t lane = 0; lane < 32; ++lane) {
      const std::size_t group = lane / 4;
      const std::size_t in_group = lane % 4;
      for (std::size_t i = 0; i < 8; ++i) {  // element i of A, two per register
        const std::size_t row = group + ((i / 2) % 2 == 1 ? 8 : 0);
        const std::size_t column = in_group * 2 + (i & 1) + (i >= 4 ? 8 : 0);
        const std::uint32_t word = lanes[lane]->a[i / 2];
        a_full[row][column] = i % 2 == 0 ? unpack_low<Element>(word) : unpack_high<Element>(word);
      }
      for (std::size_t i = 0; i < 4; ++i) {
        const std::size_t row = in_group * 2 + (i & 1) + (i >= 2 ? 8 : 0);
        const std::uint32_t word = lanes[lane]->b[i / 2];
        b_full[row][group] = i % 2 == 0 ? unpack_low<Element>(word) : unpack_high<Element>(word);
      }
    }
    for (std::size_t lane = 0; lane < 32; ++lane) {
      for (std::size_t i = 0; i < 4; ++i) {
        const std::size_t row = lane / 4 + (i >= 2 ? 8 : 0);
        const std::size_t column = (lane % 4) * 2 + (i & 1);
        float sum = lanes[lane]->d[i];
        for (std::size_t k = 0; k < 16; ++k) sum += a_full[row][k] * b_full[k][column];
        lanes[lane]->d[i] = sum;
      }
    }
  });
}

#endif

}  // namespace s2o::device
