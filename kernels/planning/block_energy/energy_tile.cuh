// What the two kernels of energies share (energy_rows.cuh, energy_rows_sm90.cuh): which queries a
// tile has, which mean keys they meet, and the items once the blocks to keep are known.
#pragma once

#include "kernels/planning/block_energy/ops.h"
#include "kernels/planning/shared/emit_items.cuh"

namespace s2o::device {

// From sums relative to one reference, in log2, to those relative to a larger one.
S2O_DEVICE float reference_scale(float reference, float larger) {
  return reference == kNegativeInfinity ? 0.0f : exp2_fast(reference - larger);
}

class EnergyTile {
 public:
  S2O_DEVICE EnergyTile(const BlockEnergyArgs& args, int plan_head, int tile)
      : args_(args), plan_head_(plan_head), tile_(tile) {}

  S2O_DEVICE int plan_head() const { return plan_head_; }
  S2O_DEVICE int kv_head() const { return plan_head_ / args_.plan_heads_per_kv_head; }
  // Found anew where they are needed: a loop over mean keys has no registers for them.
  S2O_DEVICE std::int64_t first_slot() const {
    return static_cast<std::int64_t>(tile_) * kEnergyBlock;
  }
  S2O_DEVICE std::int64_t end_slot() const {
    const std::int64_t end = args_.seqlen * args_.pack;
    return first_slot() + kEnergyBlock < end ? first_slot() + kEnergyBlock : end;
  }
  S2O_DEVICE std::int64_t first_position() const { return first_slot() / args_.pack; }
  S2O_DEVICE std::int64_t last_position() const { return (end_slot() - 1) / args_.pack; }
  S2O_DEVICE int last_block() const { return static_cast<int>(last_position() / kEnergyBlock); }
  // One of the last tiles, which keep every block.
  S2O_DEVICE bool is_dense() const { return tile_ >= args_.num_q_tiles - args_.last_tiles; }

  // Mean keys that get an energy.
  S2O_DEVICE int num_candidates() const {
    if (is_dense()) return 0;
    switch (args_.rule) {
      case BlockEnergyRule::kFlashPrefillV2:
        return static_cast<int>((last_position() + 1) / kEnergyBlock);
      case BlockEnergyRule::kFlashPrefillV1:
        return tile_ + 1;
      case BlockEnergyRule::kRbs:
        break;
    }
    return tile_;
  }
  // Row `row` of the tile takes part in the blocks below this.
  S2O_DEVICE int row_blocks(int row) const {
    const std::int64_t slot = first_slot() + row;
    switch (args_.rule) {
      case BlockEnergyRule::kFlashPrefillV2:
        return slot < end_slot() ? static_cast<int>(slot / args_.pack / kEnergyBlock) + 1 : 0;
      case BlockEnergyRule::kFlashPrefillV1:  // rows beyond the sequence are zero queries
        return static_cast<int>((slot + 1) / kEnergyBlock);
      case BlockEnergyRule::kRbs:
        break;
    }
    return slot < end_slot() ? tile_ : 0;
  }
  // The same from the other side: rows [first_row(block), end_row()) take part in a candidate.
  S2O_DEVICE int first_row(int block) const {
    std::int64_t slot = 0;
    switch (args_.rule) {
      case BlockEnergyRule::kFlashPrefillV2:
        slot = static_cast<std::int64_t>(block) * kEnergyBlock * args_.pack;
        break;
      case BlockEnergyRule::kFlashPrefillV1:
        slot = static_cast<std::int64_t>(block + 1) * kEnergyBlock - 1;
        break;
      case BlockEnergyRule::kRbs:
        break;
    }
    return slot <= first_slot() ? 0 : static_cast<int>(slot - first_slot());
  }
  S2O_DEVICE int end_row() const {
    if (args_.rule == BlockEnergyRule::kFlashPrefillV1) return kEnergyBlock;
    return static_cast<int>(end_slot() - first_slot());
  }

  S2O_DEVICE void report_bad() const {
    atomic_max(args_.bad_row, ~static_cast<std::uint32_t>(plan_head_ * args_.num_q_tiles + tile_));
  }

  // Adds the forced blocks to the bits [0, last_block()], then writes the items; one warp.
  S2O_DEVICE void finish(std::uint32_t* bits) const {
    const int last = last_block();
    const int first_block = static_cast<int>(first_position() / kEnergyBlock);
    int window_begin = first_block - args_.window_blocks + 1;
    if (is_dense() || window_begin < 0) window_begin = 0;
    const int sink_end = min_of(args_.sink_blocks, last + 1);
    for (int word = lane_index(); word <= last / 32; word += 32) {
      bits[word] |= range_bits(word, 0, sink_end) | range_bits(word, window_begin, last + 1);
    }
    sync_warp();
    const std::int64_t tile = static_cast<std::int64_t>(plan_head_) * args_.num_q_tiles + tile_;
    TileItems items = {args_.items + load_global(args_.item_offsets + tile), 0};
    emit_blocks(bits, last + 1, past_blocks(first_position(), kEnergyBlock), kEnergyBlock,
                args_.seqlen, items);
    if (lane_index() == 0) args_.item_counts[tile] = items.count;
  }

 private:
  // Bits of blocks [begin, end) in a word of the bitmap.
  static S2O_DEVICE std::uint32_t range_bits(int word, int begin, int end) {
    const int from = begin - word * 32 < 0 ? 0 : begin - word * 32;
    const int to = end - word * 32 > 32 ? 32 : end - word * 32;
    if (from >= to) return 0;
    const std::uint32_t below_end = to == 32 ? 0xffffffffu : (1u << to) - 1u;
    return below_end & ~((1u << from) - 1u);
  }

  const BlockEnergyArgs& args_;
  int plan_head_;
  int tile_;
};

}  // namespace s2o::device
