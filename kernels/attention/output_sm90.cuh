// Rows of a tile on their way out of a consumer warpgroup of the kernel over 16-bit input.
#pragma once

#include "kernels/attention/consumer_base_sm90.cuh"
#include "kernels/device/store_sm90.cuh"

namespace s2o::device {

template <class Traits>
class OutputSm90 : protected ConsumerBase<Traits> {
  using Base = ConsumerBase<Traits>;

 protected:
  using Base::acc_, Base::args_, Base::column_of, Base::give_back, Base::kQueryBuffers;
  using Base::last_description, Base::rows_, Base::s_, Base::stats_, Base::thread_;
  using Base::tile_count_, Base::warpgroup_;
  using Element = typename Traits::Element;

  S2O_DEVICE OutputSm90(const AttentionKernelArgs& args, SharedSm90<Traits>& shared)
      : Base(args, shared) {}

  // Asked for on rare paths alone: read anew, the index keeps no register there.
  S2O_DEVICE static int row_of(int i) {
    const unsigned thread = static_cast<unsigned>(thread_index_again()) - Traits::kProducerThreads;
    return static_cast<int>(thread / 32 * 16 + thread % 32 / 4) + 8 * i;
  }

  // Divides the rows of the tile before this one by their normaliser and writes them and lse in
  // original order (attention.h), and gives its queries back. `met`: the warps of this warpgroup
  // have met since its last product with keys.
  S2O_DEVICE void store_tile(bool met) {
    const TileDescription<Traits>& tile = last_description();
    float inverse[2], lse[2];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const float normaliser = quad_sum(rows_.normaliser[i]);
      lse[i] = (rows_.maximum[i] + log2_fast(normaliser)) * kLn2;  // -inf if nothing was visited
      inverse[i] = normaliser > 0.0f ? reciprocal_fast(normaliser) : 0.0f;
    }
    const std::int32_t rows[2] = {tile.row_index[row_of(0)], tile.row_index[row_of(1)]};
    if (args_.resume_out != nullptr) join_resumed_rows(rows);
    sync_warp();  // every lane has read the lse of its rows
    if (column_of() == 0) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        if (rows[i] >= 0) args_.lse[rows[i]] = lse[i];
      }
    }
    if (warpgroup_ == 0 && thread_ == 0) args_.stats[tile.plan_tile] = stats_;
    if (args_.out_fp32 != nullptr) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        if (rows[i] >= 0) store_row(args_.out_fp32 + first_of_lane(rows[i]), inverse[i], i, acc_);
      }
      give_back_queries();
    } else {
      if (!met) sync_named(kStoreBarrier + warpgroup_, 128);
      store_rows_16(tile, inverse);
    }
  }

 private:
  // Of the last tile, and its description with them.
  S2O_DEVICE void give_back_queries() const {
    give_back(&s_.q_empty[(tile_count_ - 1) % kQueryBuffers]);
  }
  S2O_DEVICE static std::int64_t first_of_lane(std::int32_t row) {
    return static_cast<std::int64_t>(row) * Traits::kHeadDim + column_of();
  }
  S2O_DEVICE void join_resumed_rows(const std::int32_t (&rows)[2]) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const std::int32_t row = rows[i];
      if (row < 0 || rows_.maximum[i] == kNegativeInfinity) continue;
      const float earlier = args_.lse[row] * kLog2E;
      add_resumed_row(args_.resume_out + first_of_lane(row), exp2_fast(earlier - rows_.maximum[i]),
                      i, acc_);
    }
  }

  // Rows in 16 bit by way of the tile's own queries, which nobody reads any more: a warp then
  // writes whole rows instead of 16 bytes of each of eight.
  S2O_DEVICE void store_rows_16(const TileDescription<Traits>& tile, const float (&inverse)[2]) {
    constexpr unsigned kChunks = Traits::kHeadDim / kChunkElements;
    constexpr int kRowsAtOnce = 32 / kChunks;
    constexpr int kPasses = 16 / kRowsAtOnce;
    const unsigned thread = static_cast<unsigned>(thread_index_again()) - Traits::kProducerThreads;
    const unsigned lane = thread % 32;
    const unsigned warp_row = thread / 32 * 16;
    const std::uint32_t rows =
        shared_address(s_.q[(tile_count_ - 1) % kQueryBuffers]) + warp_row * kPanelRowBytes;
    store_fragments_16<Element>(rows, Traits::kTileM, static_cast<int>(lane), inverse, acc_);
    sync_warp();
    const unsigned row = lane / kChunks;
    const unsigned chunk = lane % kChunks;
    // Rows of later passes differ in other bits of the address than this one's.
    const std::uint32_t source = rows + chunk / 8 * (Traits::kTileM * kPanelRowBytes) +
                                 row * kPanelRowBytes + ((chunk % 8) ^ row) * kChunkBytes;
    const auto words_of = [&](int pass) {
      const unsigned added = static_cast<unsigned>(pass * kRowsAtOnce);
      return load_shared_16((source ^ (added % 8 * kChunkBytes)) + added * kPanelRowBytes);
    };
    auto* const out = static_cast<std::uint16_t*>(args_.out_16) + chunk * kChunkElements;
    if (tile.first_row >= 0) {
      std::uint16_t* const target =
          out + static_cast<std::int64_t>(tile.first_row + static_cast<int>(warp_row + row)) *
                    Traits::kHeadDim;
      Words4 words[kPasses];
#pragma unroll
      for (int pass = 0; pass < kPasses; ++pass) words[pass] = words_of(pass);
      fence_async_proxy();  // the next queries may come by the copy engine
      give_back_queries();
#pragma unroll
      for (int pass = 0; pass < kPasses; ++pass) {
        store_words<4>(target + pass * kRowsAtOnce * Traits::kHeadDim, words[pass]);
      }
      return;
    }
#pragma unroll 1
    for (int pass = 0; pass < kPasses; ++pass) {
      const std::int32_t index =
          tile.row_index[static_cast<int>(warp_row + row) + pass * kRowsAtOnce];
      const Words4 words = words_of(pass);
      if (index < 0) continue;
      store_words<4>(out + static_cast<std::int64_t>(index) * Traits::kHeadDim, words);
    }
    fence_async_proxy();
    give_back_queries();
  }
};

}  // namespace s2o::device
