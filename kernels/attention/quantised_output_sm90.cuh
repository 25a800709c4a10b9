// Rows of a tile on their way out of a consumer warpgroup of the kernel over quantised input, and
// their sums in fp32 before.
#pragma once

#include "kernels/attention/consumer_base_sm90.cuh"
#include "kernels/attention/quantised_traits_sm90.cuh"

namespace s2o::device {

template <class Traits>
class QuantisedOutput : protected ConsumerBase<Traits> {
  using Base = ConsumerBase<Traits>;

 protected:
  using Base::acc_, Base::args_, Base::column_of, Base::give_back, Base::kQueryBuffers;
  using Base::kValueTiles, Base::last_description, Base::rows_, Base::s_, Base::stats_;
  using Base::thread, Base::tile_count_, Base::warpgroup_;
  static constexpr bool kWideValues = Traits::kWideValues;

  S2O_DEVICE QuantisedOutput(const QuantisedKernelArgs& args, SharedSm90<Traits>& shared)
      : Base(args, shared) {}

  // Asked for on rare paths alone: read anew, the index keeps no register there.
  S2O_DEVICE static int row_of(int i) {
    const int thread = thread_index_again() - Traits::kProducerThreads;
    return thread / 32 * 16 + accumulator_position(lane_of(thread), 2 * i).row;
  }
  // An lse in base 2, of logits as the kernel sees them.
  S2O_DEVICE static float resumed_logit(const QuantisedTile<Traits>& tile, int row, float lse) {
    return (lse - tile.lse_shift[row]) * kLog2E;
  }
  // Products of kSummedSteps steps move to sums in fp32; the next one starts afresh.
  S2O_DEVICE void sum_products() {
    if constexpr (kWideValues) return;
    if (unsummed_ < Traits::kSummedSteps) return;
    unsummed_ = 0;
    float* const place = &s_.sums[warpgroup_ * 4 + thread() / 32][0][thread() % 32][0];
#pragma unroll
    for (int n = 0; n < kValueTiles; ++n) {
      auto* const words = reinterpret_cast<Words4*>(place + n * 128);
      Words4 sums = has_sums_ ? *words : Words4{};
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        sums.word[e] = float_bits(fused(bits_float(sums.word[e]), sums_scale_[e / 2], acc_[n][e]));
      }
      *words = sums;
    }
    rows_.normaliser[0] += rows_.products[0][0];
    rows_.normaliser[1] += rows_.products[0][2];
    has_sums_ = true;
    sums_scale_[0] = sums_scale_[1] = 1.0f;
  }

  // Divides the rows of the tile before this one by their normaliser and writes them and lse in
  // original order (attention.h), then gives its queries back.
  S2O_DEVICE void store_tile() {
    const QuantisedTile<Traits>& tile = last_description();
    float inverse[2], lse[2];
    add_sums();
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const float normaliser = kWideValues ? quad_sum(rows_.normaliser[i])
                                           : rows_.normaliser[i] + rows_.products[0][2 * i];
      const bool empty = normaliser == 0.0f;
      lse[i] = empty ? kNegativeInfinity
                     : rows_.codes.logit_of_one(i) * kLn2 + tile.lse_shift[row_of(i)] +
                           log_natural(normaliser);
      inverse[i] = empty ? 0.0f : tile.value_scale / normaliser;
      const std::int32_t row = tile.row_index[row_of(i)];
      if (row < 0) continue;
      const std::int64_t first = static_cast<std::int64_t>(row) * Traits::kHeadDim + column_of();
      if (args_.resume_out != nullptr && !empty) {
        const float earlier = resumed_logit(tile, row_of(i), args_.lse[row]);
        add_resumed_row(args_.resume_out + first,
                        exp2_fast(earlier - rows_.codes.logit_of_one(i)) / tile.value_scale, i,
                        acc_);
      }
      if (args_.out_fp32 != nullptr) store_row(args_.out_fp32 + first, inverse[i], i, acc_);
    }
    if (args_.out_fp32 == nullptr) store_rows_16(tile, inverse);
    sync_warp();  // every lane has read the lse of its rows
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const std::int32_t row = tile.row_index[row_of(i)];
      if (row >= 0 && column_of() == 0) args_.lse[row] = lse[i];
    }
    if (warpgroup_ == 0 && thread() == 0) args_.stats[tile.plan_tile] = stats_;
    give_back(&s_.q_empty[(tile_count_ - 1) % kQueryBuffers]);
  }

  float sums_scale_[2];
  int unsummed_ = 0;  // e4m3: products with V in acc_
  bool has_sums_ = false;

 private:
  S2O_DEVICE void add_sums() {
    if constexpr (kWideValues) return;
    if (!has_sums_) return;
    const float* const place = &s_.sums[warpgroup_ * 4 + thread() / 32][0][thread() % 32][0];
#pragma unroll
    for (int n = 0; n < kValueTiles; ++n) {
      const Words4 sums = *reinterpret_cast<const Words4*>(place + n * 128);
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        acc_[n][e] = fused(bits_float(sums.word[e]), sums_scale_[e / 2], acc_[n][e]);
      }
    }
  }

  // Rows in 16 bit by way of the place of this warp's sums, which nobody needs any more: it then
  // writes whole rows instead of 16 bytes of each of eight.
  S2O_DEVICE void store_rows_16(const QuantisedTile<Traits>& tile, const float (&inverse)[2]) {
    constexpr int kChunks = Traits::kHeadDim / kChunkElements;
    constexpr int kRowsAtOnce = 32 / kChunks;
    const int lane = lane_of(thread_index_again());
    auto* const rows = reinterpret_cast<unsigned char*>(s_.sums[warpgroup_ * 4 + thread() / 32]);
    sync_warp();
    store_fragments_16<typename Traits::Output>(shared_address(rows), 16, lane, inverse, acc_);
    sync_warp();
    const int first_of_tile = row_of(0) - lane / 4;
    const int chunk = lane % kChunks;
#pragma unroll
    for (int i = 0; i < 16 / kRowsAtOnce; ++i) {
      const int row = lane / kChunks + i * kRowsAtOnce;
      const std::int32_t index = tile.row_index[first_of_tile + row];
      const Words4 words =
          load_shared_16(shared_address(rows + swizzled_chunk_offset(16, row, chunk)));
      if (index < 0) continue;
      store_words<4>(static_cast<std::uint16_t*>(args_.out_16) +
                         static_cast<std::int64_t>(index) * Traits::kHeadDim +
                         chunk * kChunkElements,
                     words);
    }
    sync_warp();  // before sums are written again
  }
};

}  // namespace s2o::device
