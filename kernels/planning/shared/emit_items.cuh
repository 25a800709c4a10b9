// From a bitmap of key blocks to the items of a tile (add_key_blocks of lib/plan/sparse_plan.cpp):
// adjacent blocks merge, and a run keeps one mask class.
#pragma once

#include <cstddef>

#include "kernels/common/plan_view.h"
#include "kernels/planning/shared/platform_planning.cuh"

namespace s2o::device {

// NOTE: as one store. Assigned as a struct, whose last byte is nobody's, the compiler writes the
// others one by one.
S2O_DEVICE void store_item(PlanItem* target, const PlanItem& item) {
  static_assert(sizeof(PlanItem) == 16 && offsetof(PlanItem, count) == 8 &&
                offsetof(PlanItem, kind) == 12 && offsetof(PlanItem, mask) == 13 &&
                offsetof(PlanItem, stoppable) == 14);
  const auto begin = static_cast<std::uint64_t>(item.begin);
  store_global_16(
      target, {{static_cast<std::uint32_t>(begin), static_cast<std::uint32_t>(begin >> 32),
                static_cast<std::uint32_t>(item.count),
                static_cast<std::uint32_t>(item.kind) | static_cast<std::uint32_t>(item.mask) << 8 |
                    (item.stoppable ? 1u << 16 : 0u)}});
}

S2O_DEVICE bool bit_of(const std::uint32_t* bits, int j) {
  return (bits[j / 32] >> (j % 32) & 1u) != 0;
}
// One lane of the warp.
S2O_DEVICE void set_bit(std::uint32_t* bits, int j) { bits[j / 32] |= 1u << (j % 32); }

struct TileItems {
  PlanItem* items;  // room for the tile
  int count;        // written so far; equal in all lanes
};

// One warp. Blocks [0, num_blocks) of `block` keys; those below num_past are wholly visible to
// every row of the tile. Keys end at `seqlen`.
S2O_DEVICE void emit_blocks(const std::uint32_t* bits, int num_blocks, int num_past, int block,
                            std::int64_t seqlen, TileItems& tile) {
  for (int first = 0; first < num_blocks; first += 32) {
    const int j = first + lane_index();
    const bool set = j < num_blocks && bit_of(bits, j);
    const bool starts = set && (j == 0 || j == num_past || !bit_of(bits, j - 1));
    const std::uint32_t all_starts = ballot(starts);
    if (starts) {
      const int limit = j < num_past && num_past < num_blocks ? num_past : num_blocks;
      int end = j + 1;
      while (end < limit && bit_of(bits, end)) {
        // Whole words of set bits are skipped at once.
        if (end % 32 == 0 && bits[end / 32] == 0xffffffffu && end + 32 <= limit) {
          end += 32;
        } else {
          ++end;
        }
      }
      const std::int64_t begin_key = static_cast<std::int64_t>(j) * block;
      std::int64_t end_key = static_cast<std::int64_t>(end) * block;
      if (end_key > seqlen) end_key = seqlen;
      PlanItem item;
      item.begin = begin_key;
      item.count = static_cast<std::int32_t>(end_key - begin_key);
      item.kind = ItemKind::kRun;
      item.mask = j < num_past ? MaskClass::kNone : MaskClass::kCausal;
      store_item(tile.items + tile.count + count_bits(all_starts & ((1u << lane_index()) - 1u)),
                 item);
    }
    tile.count += count_bits(all_starts);
  }
}

// Blocks wholly at or before position `first_position`.
S2O_DEVICE int past_blocks(std::int64_t first_position, int block) {
  return static_cast<int>((first_position + 1) / block);
}

}  // namespace s2o::device
