// One tile of the portable kernels: rows, loads, the two products, mask and output. Attention and
// folded columns share it.
#pragma once

#include "kernels/attention/rows.cuh"
#include "kernels/attention/traits_sm80.cuh"
#include "kernels/device/mma_sm80.cuh"
#include "kernels/device/online_softmax.cuh"

namespace s2o::device {

// q^2 enters a 16-bit product: this factor keeps it in the range of fp16 up to |q| = 4096.
inline constexpr float kSquareScale = 1.0f / 16.0f;

template <class Traits>
struct TileSm80 {
  static constexpr int kKeyTiles = Traits::kTileN / 8;
  static constexpr int kValueTiles = Traits::kHeadDim / 8;
  static constexpr int kRowTiles = Traits::kRowTiles;
  using Element = typename Traits::Element;

  float acc[kRowTiles][kValueTiles][4];
  // Running maximum and normaliser of this thread's rows. In shared memory, although no other
  // thread reads them: with 32 rows a warp and head_dim 128 the registers are full.
  RowPair* row_states;  // [kRowTiles, kThreads]

  S2O_DEVICE RowPair& rows(int t) {
    return row_states[t * Traits::kThreads + thread_index_again()];
  }

  // Row of the tile held as row `i` (0 or 1) of row tile `t` by `thread`.
  static S2O_DEVICE int row_of(int thread, int t, int i) {
    return warp_of(thread) * Traits::kRowsPerWarp + t * 16 +
           accumulator_position(lane_of(thread), 2 * i).row;
  }
  // First of the two neighbouring columns that this thread holds in every 8-column tile.
  static S2O_DEVICE int column_of(int thread) {
    return accumulator_position(lane_of(thread), 0).column;
  }

  S2O_DEVICE void start(RowPair* states) {
    row_states = states;
#pragma unroll
    for (int t = 0; t < kRowTiles; ++t) {
      rows(t) = empty_rows();
#pragma unroll
      for (int n = 0; n < kValueTiles; ++n) {
#pragma unroll
        for (int e = 0; e < 4; ++e) acc[t][n][e] = 0.0f;
      }
    }
  }

  // Goes on from (out, lse) of an earlier launch: exactly the state (m, l, acc) = (lse, 1, out).
  // `out` joins in store_row, scaled by then like everything of the start.
  S2O_DEVICE void resume(const float* lse, const std::int32_t* row_index) {
    const int thread = thread_index_again();
#pragma unroll
    for (int t = 0; t < kRowTiles; ++t) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const std::int32_t index = row_index[row_of(thread, t, i)];
        if (index < 0 || lse[index] == kNegativeInfinity) continue;
        rows(t).maximum[i] = lse[index] * kLog2E;
        rows(t).normaliser[i] = column_of(thread) == 0 ? 1.0f : 0.0f;  // one lane of the quad
      }
    }
  }

  // s += q k^T, raw. With kSquared, (kSquareScale q)^2 takes the place of q, element by element
  // (variance term of folded columns).
  template <bool kSquared>
  S2O_DEVICE void multiply_keys(std::uint32_t q, std::uint32_t k,
                                float (&s)[kRowTiles][kKeyTiles][4]) const {
    const int thread = thread_index_again();
    const MatrixPosition a_source = ldmatrix_a_source(lane_of(thread));
    const MatrixPosition b_source = ldmatrix_b_source(lane_of(thread));
    const std::uint32_t q_lane = swizzled_lane_address(
        q, warp_of(thread) * Traits::kRowsPerWarp + a_source.row, a_source.column);
    const std::uint32_t k_lane = swizzled_lane_address(k, b_source.row, b_source.column);
#pragma unroll
    for (int step = 0; step < Traits::kHeadDim / 16; ++step) {
      std::uint32_t a[kRowTiles][4];
#pragma unroll
      for (int t = 0; t < kRowTiles; ++t) {
        load_matrix_x4(a[t], swizzled_step_address(q_lane, Traits::kTileM, t * 16, 2 * step));
        if constexpr (kSquared) square(a[t]);
      }
#pragma unroll
      for (int n = 0; n < kKeyTiles / 2; ++n) {
        std::uint32_t b[4];
        load_matrix_x4(b, swizzled_step_address(k_lane, Traits::kTileN, n * 16, 2 * step));
#pragma unroll
        for (int t = 0; t < kRowTiles; ++t) {
          multiply_accumulate<Element>(s[t][2 * n], a[t], b[0], b[1]);
          multiply_accumulate<Element>(s[t][2 * n + 1], a[t], b[2], b[3]);
        }
      }
    }
  }

  static S2O_DEVICE void square(std::uint32_t (&a)[4]) {
    const std::uint32_t scale = pack_pair<Element>(kSquareScale, kSquareScale);
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      const std::uint32_t scaled = multiply_pair<Element>(a[e], scale);  // exact
      a[e] = multiply_pair<Element>(scaled, scaled);
    }
  }

  // acc = acc * correction. Once the largest keys have been seen there is rarely anything to do.
  S2O_DEVICE void rescale(int t, const float (&correction)[2]) {
    if (!any_lane(correction[0] != 1.0f || correction[1] != 1.0f)) return;
#pragma unroll
    for (int n = 0; n < kValueTiles; ++n) {
#pragma unroll
      for (int e = 0; e < 4; ++e) acc[t][n][e] *= correction[e / 2];
    }
  }

  // acc += p v. `p` is consumed.
  S2O_DEVICE void multiply_values(std::uint32_t v, float (&p)[kRowTiles][kKeyTiles][4]) {
    const MatrixPosition source = ldmatrix_b_transposed_source(lane_of(thread_index_again()));
    const std::uint32_t v_lane = swizzled_lane_address(v, source.row, source.column);
#pragma unroll
    for (int step = 0; step < Traits::kTileN / 16; ++step) {
#pragma unroll
      for (int term = 0; term < Traits::kPvTerms; ++term) {
        std::uint32_t a[kRowTiles][4];
#pragma unroll
        for (int t = 0; t < kRowTiles; ++t) {
          take_term(p[t][2 * step], a[t][0], a[t][1]);
          take_term(p[t][2 * step + 1], a[t][2], a[t][3]);
        }
#pragma unroll
        for (int n = 0; n < kValueTiles / 2; ++n) {
          std::uint32_t b[4];
          load_matrix_x4_transposed(
              b, swizzled_step_address(v_lane, Traits::kTileN, step * 16, 2 * n));
#pragma unroll
          for (int t = 0; t < kRowTiles; ++t) {
            multiply_accumulate<Element>(acc[t][2 * n], a[t], b[0], b[1]);
            multiply_accumulate<Element>(acc[t][2 * n + 1], a[t], b[2], b[3]);
          }
        }
      }
    }
  }

  // Rounds the 4 values of a fragment to 16 bits; with more than one term, the rest stays in `p`.
  static S2O_DEVICE void take_term(float (&p)[4], std::uint32_t& upper, std::uint32_t& lower) {
    upper = pack_pair<Element>(p[0], p[1]);
    lower = pack_pair<Element>(p[2], p[3]);
    if constexpr (Traits::kPvTerms > 1) {
      p[0] -= unpack_low<Element>(upper);
      p[1] -= unpack_high<Element>(upper);
      p[2] -= unpack_low<Element>(lower);
      p[3] -= unpack_high<Element>(lower);
    }
  }

  // Divides by the normaliser and writes rows and lse in original order (attention.h).
  S2O_DEVICE void store(const AttentionKernelArgs& args, const std::int32_t* row_index) {
    const int thread = thread_index_again();
    float lse[kRowTiles][2];
#pragma unroll
    for (int t = 0; t < kRowTiles; ++t) {
      const RowPair state = rows(t);
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const float maximum = state.maximum[i];
        const float normaliser = quad_sum(state.normaliser[i]);
        const bool empty = maximum == kNegativeInfinity;
        lse[t][i] = empty ? kNegativeInfinity : maximum * kLn2 + log_natural(normaliser);
        const std::int32_t index = row_index[row_of(thread, t, i)];
        if (index < 0) continue;
        const std::int64_t first =
            static_cast<std::int64_t>(index) * Traits::kHeadDim + column_of(thread);
        if (args.resume_out != nullptr && !empty) {
          add_resumed(args.resume_out + first, exp2_fast(args.lse[index] * kLog2E - maximum), t, i);
        }
        store_row(args, first, t, i, empty ? 0.0f : 1.0f / normaliser);
      }
    }
    sync_warp();  // every lane has read the lse of its rows
#pragma unroll
    for (int t = 0; t < kRowTiles; ++t) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const std::int32_t index = row_index[row_of(thread, t, i)];
        if (index >= 0 && column_of(thread) == 0) args.lse[index] = lse[t][i];
      }
    }
  }

  S2O_DEVICE void add_resumed(const float* out, float weight, int t, int i) {
#pragma unroll
    for (int n = 0; n < kValueTiles; ++n) {
      const FloatPair earlier = load_global_pair(out + n * 8);
      acc[t][n][2 * i] = fused(earlier.low, weight, acc[t][n][2 * i]);
      acc[t][n][2 * i + 1] = fused(earlier.high, weight, acc[t][n][2 * i + 1]);
    }
  }

  S2O_DEVICE void store_row(const AttentionKernelArgs& args, std::int64_t first, int t, int i,
                            float inverse) const {
    if (args.out_fp32 != nullptr) {
#pragma unroll
      for (int n = 0; n < kValueTiles; ++n) {
        store_global_pair(args.out_fp32 + first + n * 8, acc[t][n][2 * i] * inverse,
                          acc[t][n][2 * i + 1] * inverse);
      }
    } else {
      auto* const target = static_cast<std::uint32_t*>(args.out_16) + first / 2;
#pragma unroll
      for (int n = 0; n < kValueTiles; ++n) {
        target[n * 4] =
            pack_pair<Element>(acc[t][n][2 * i] * inverse, acc[t][n][2 * i + 1] * inverse);
      }
    }
  }
};

}  // namespace s2o::device
