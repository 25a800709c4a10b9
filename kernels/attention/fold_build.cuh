// Columns of touched blocks, built by matrix products: the sums of 16 columns start from those of
// their blocks and lose the visited rows (or start from nothing and gain the others), 16 listed
// rows at a time, by a product with a matrix of 0 and -1 (or 1). One column after the other would
// wait for its own rows; a product takes rows of any column. A warp has a slice of head_dim of
// every row and column, so that all have the same work and wait for no other.
#pragma once

#include "kernels/attention/fold_traits.cuh"
#include "kernels/device/cp_async.cuh"
#include "kernels/device/mma_sm80.cuh"

namespace s2o::device {

template <class Traits>
class FoldBuilder {
 public:
  S2O_DEVICE FoldBuilder(SharedFold<Traits>& shared, const BlockSumsView& sums, int thread)
      : s_(shared),
        sums_(sums),
        warp_(static_cast<unsigned>(warp_of(thread))),
        lane_(static_cast<unsigned>(lane_of(thread))),
        stage_(shared_address(shared.stages[warp_])) {}

  // Asks for the first of the `count` rows listed for a group. Every other request was waited for.
  S2O_DEVICE void request_first(int group, int count) {
    list_ = group * kFoldListRows;
#pragma unroll
    for (int stage = 0; stage < kFoldStages; ++stage) request(stage * kFoldRows, stage, count);
  }

  // Starts the sums of a group; its first column is of block `first_block`.
  S2O_DEVICE void start(int group, std::int64_t first_block) {
    // One address an array, constant distances from there.
    const std::int64_t first =
        (s_.first_row_of_set + first_block + static_cast<int>(lane_ / 4)) * Traits::kHeadDim +
        first_element();
    const float* const k = sums_.k + first;
    const float* const v = sums_.v + first;
    // Nobody reads squares without an array of them.
    const float* const squares = (sums_.k_squared != nullptr ? sums_.k_squared : sums_.k) + first;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const bool subtract = s_.sign[column_of(group, i)] == RowSign::kSubtract;
      sign_[i] = subtract ? pack_pair<Element>(-1.0f, -1.0f) : pack_pair<Element>(1.0f, 1.0f);
      if (subtract) {
#pragma unroll
        for (int tile = 0; tile < kTiles; ++tile) {
          const int distance = i * 8 * Traits::kHeadDim + tile * 8;
          start_pair(k_[tile], i, load_global_words<2>(k + distance));
          start_pair(v_[tile], i, load_global_words<2>(v + distance));
          start_pair(squares_[tile], i, load_global_words<2>(squares + distance));
        }
      } else {
#pragma unroll
        for (int tile = 0; tile < kTiles; ++tile) {
          start_pair(k_[tile], i, {});
          start_pair(v_[tile], i, {});
          start_pair(squares_[tile], i, {});
        }
      }
    }
  }

  // Adds the `count` rows that are on the way.
  S2O_DEVICE void add_rows(int count) {
#pragma unroll 1
    for (int row = 0; row < count; row += kFoldRows) {
      const int stage = row / kFoldRows % kFoldStages;
      copy_async_wait<kFoldStages - 1>();
      sync_warp();
      std::uint32_t a[4];
      signs(row, sign_, a);
      std::uint32_t b[kTiles][2];
      load_operand(stage_of(stage) + kStageBytes / 2, b);
#pragma unroll
      for (int tile = 0; tile < kTiles; ++tile) {
        multiply_accumulate<Element>(v_[tile], a, b[tile][0], b[tile][1]);
      }
      load_operand(stage_of(stage), b);
      sync_warp();  // before the stage is overwritten
      request(row + kFoldStages * kFoldRows, stage, count);
      add_keys(row, a, b);
    }
  }

  // Writes the columns of the group into the swizzled tiles.
  S2O_DEVICE void finish(int group, bool round_bf16) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int column = column_of(group, i);
      if (s_.sign[column] == RowSign::kNone) continue;
      const int remaining = s_.remaining[column];
      // swizzled_chunk_offset of the column and this warp's first chunk.
      const unsigned chunk = warp_ * kTiles;
      const unsigned place = chunk % 8 ^ lane_ / 4;
      const int target = (static_cast<int>(chunk / 8) * kFoldColumns + column) * kPanelRowBytes +
                         static_cast<int>(lane_ % 4 * 4);
#pragma unroll
      for (int tile = 0; tile < kTiles; ++tile) {
        RowSums<2> part;
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          part.k[e] = k_[tile][2 * i + e];
          part.v[e] = v_[tile][2 * i + e];
          part.k_squared[e] = squares_[tile][2 * i + e];
        }
        const auto result = part.template column<Element>(remaining, round_bf16);
        const int offset =
            target + static_cast<int>(place ^ static_cast<unsigned>(tile)) * kChunkBytes;
        store_words(s_.k + offset, result.k);
        store_words(s_.v + offset, result.v);
        store_words(s_.variance + offset, result.variance);
      }
    }
  }

 private:
  using Element = typename Traits::Element;
  static constexpr int kSlice = Traits::kFoldSlice;
  static constexpr int kTiles = kSlice / 8;                     // of 8 elements
  static constexpr unsigned kChunks = kSlice / kChunkElements;  // of a row
  static constexpr unsigned kRowBytes = 2 * kSlice;             // of a stage
  static constexpr int kStageBytes = Traits::kFoldStageBytes;

  // Accumulators 0 and 1 (i = 0), or 2 and 3 (i = 1), are of this column, ...
  S2O_DEVICE int column_of(int group, int i) const {
    return group * kFoldGroup + static_cast<int>(lane_ / 4) + 8 * i;
  }
  // ... this element in the first tile and the next.
  S2O_DEVICE int first_element() const { return static_cast<int>(warp_ * kSlice + lane_ % 4 * 2); }

  static S2O_DEVICE void start_pair(float (&sums)[4], int i, const Words<2>& words) {
    sums[2 * i] = bits_float(words.word[0]);
    sums[2 * i + 1] = bits_float(words.word[1]);
  }

  S2O_DEVICE std::uint32_t stage_of(int stage) const {
    return stage_ + static_cast<std::uint32_t>(stage * kStageBytes);
  }
  // Chunk of a row in a stage, such that neither copies nor fragments meet in a bank.
  static S2O_DEVICE std::uint32_t place_of(unsigned row, unsigned chunk) {
    return row * kRowBytes + (chunk ^ row / (8 / kChunks) % kChunks) * kChunkBytes;
  }

  // Requests rows [row, + kFoldRows) of the list as one group of copies, or none at its end.
  S2O_DEVICE void request(int row, int stage, int count) {
    if (row < count) {
      const unsigned chunk = lane_ % kChunks;
      const unsigned first = lane_ / kChunks;
      const std::int32_t* const tokens = s_.row_token + list_ + row + first;
      const unsigned element = warp_ * kSlice + chunk * kChunkElements;
#pragma unroll
      for (unsigned i = 0; i < kFoldRows; i += 32 / kChunks) {
        const std::int32_t token = tokens[i];
        const std::int64_t from =
            static_cast<std::int64_t>(token < 0 ? 0 : token) * Traits::kHeadDim + element;
        const std::uint32_t target = stage_of(stage) + place_of(first + i, chunk);
        copy_async_16(target, s_.rows.k + from, token >= 0);
        copy_async_16(target + kStageBytes / 2, s_.rows.v + from, token >= 0);
      }
    }
    copy_async_commit();
  }

  S2O_DEVICE void load_operand(std::uint32_t rows, std::uint32_t (&b)[kTiles][2]) const {
    const MatrixPosition source = ldmatrix_b_transposed_source(lane_);
#pragma unroll
    for (int tile = 0; tile < kTiles; tile += 2) {
      std::uint32_t words[4];
      load_matrix_x4_transposed(words,
                                rows + place_of(static_cast<unsigned>(source.row),
                                                static_cast<unsigned>(source.column + tile)));
      b[tile][0] = words[0];
      b[tile][1] = words[1];
      b[tile + 1][0] = words[2];
      b[tile + 1][1] = words[3];
    }
  }

  // The matrix of signs for the rows from `row` on, as first operand.
  S2O_DEVICE void signs(int row, const std::uint32_t (&sign)[2], std::uint32_t (&a)[4]) const {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const std::uint8_t* const columns = s_.row_column + list_ + row + lane_ % 4 * 2 + half * 8;
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const unsigned column = lane_ / 4 + 8 * static_cast<unsigned>(i);
        a[2 * half + i] = (columns[0] == column ? sign[i] & 0xffffu : 0u) |
                          (columns[1] == column ? sign[i] & 0xffff0000u : 0u);
      }
    }
  }

  // Keys and their squares. These may exceed fp16.
  S2O_DEVICE void add_keys(int row, std::uint32_t (&a)[4], const std::uint32_t (&k)[kTiles][2]) {
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile) {
      multiply_accumulate<Element>(k_[tile], a, k[tile][0], k[tile][1]);
    }
    if constexpr (!Element::kIsBf16) {
      const std::uint32_t bf16_sign[2] = {as_bf16(sign_[0]), as_bf16(sign_[1])};
      signs(row, bf16_sign, a);
    }
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile) {
      std::uint32_t upper[2];
      std::uint32_t rest[2];
#pragma unroll
      for (int r = 0; r < 2; ++r) square_pair<Element>(k[tile][r], upper[r], rest[r]);
      multiply_accumulate<Bf16>(squares_[tile], a, upper[0], upper[1]);
      multiply_accumulate<Bf16>(squares_[tile], a, rest[0], rest[1]);
    }
  }
  static S2O_DEVICE std::uint32_t as_bf16(std::uint32_t ones) {
    return (ones & 0x80008000u) | 0x3f803f80u;
  }

  SharedFold<Traits>& s_;
  const BlockSumsView& sums_;
  unsigned warp_, lane_;   // unsigned: divisions by constants are shifts
  std::uint32_t stage_;    // this warp's first
  int list_;               // first row of the group's list
  std::uint32_t sign_[2];  // of a column's rows, twice
  float k_[kTiles][4];
  float v_[kTiles][4];
  float squares_[kTiles][4];
};

}  // namespace s2o::device
