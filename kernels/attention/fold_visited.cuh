// Which key slots a tile visited, as bits: a window of the slots at a time.
#pragma once

#include "kernels/attention/attention_kernels.h"
#include "kernels/attention/steps.cuh"

namespace s2o::device {

inline constexpr int kFoldColumns = 64;  // columns of one step
inline constexpr int kBitmapSlots = kFoldColumns * kMaxFoldBlock;

S2O_HOST_DEVICE constexpr std::uint32_t low_bits(int count) {
  return count >= 32 ? 0xffffffffu : (1u << count) - 1u;
}

struct SlotBits {
  std::uint32_t words[kBitmapSlots / 32 + 1];  // the last word is read, not used

  template <int kThreads>
  S2O_DEVICE void clear() {
    for (int word = thread_index(); word < kBitmapSlots / 32; word += kThreads) words[word] = 0;
  }
  S2O_DEVICE void set(std::int64_t bit) { atomic_or(&words[bit / 32], 1u << (bit % 32)); }
  // 32 of them, from `bit` on.
  S2O_DEVICE std::uint32_t at(int bit) const {
    const unsigned word = static_cast<unsigned>(bit) / 32;
    const std::uint64_t pair = static_cast<std::uint64_t>(words[word + 1]) << 32 | words[word];
    return static_cast<std::uint32_t>(pair >> static_cast<unsigned>(bit) % 32);
  }
};

// Calls visit(begin, count, is_run) for the executed part of every item of a tile: slots [begin, +
// count) of a run, entries of gather_indices of a gather.
template <class Visit>
S2O_DEVICE void for_executed_items(const AttentionKernelArgs& args, std::int32_t plan_tile,
                                   const Visit& visit) {
  std::int64_t stop_steps = args.stats[plan_tile].stop_steps;
  const std::int64_t end = tile_items_end(args.pass, plan_tile);
  for (std::int64_t i = load_global(args.pass.item_offsets + plan_tile); i < end; ++i) {
    const ItemWords item = load_item(args.pass.items + i);
    std::int64_t count = item.count;
    if (item.stoppable()) {
      const std::int64_t steps = ceil_div(item.count, args.block_n);
      const std::int64_t done = steps < stop_steps ? steps : stop_steps;
      stop_steps -= done;
      if (done < steps) count = done * args.block_n;
    }
    visit(item.begin, count, item.kind() == ItemKind::kRun);
  }
}

S2O_DEVICE std::int64_t executed_slot(const AttentionKernelArgs& args, std::int64_t entry,
                                      bool is_run) {
  return is_run ? entry : load_global(args.pass.gather_indices + entry);
}

// Sets `bits` to the slots in [first, end) that the tile visited. Called by the whole block.
template <int kThreads>
S2O_DEVICE void mark_visited(const AttentionKernelArgs& args, std::int32_t plan_tile,
                             std::int64_t first, std::int64_t end, SlotBits& bits) {
  sync_block(kThreads);  // everyone is done with the window before
  bits.clear<kThreads>();
  sync_block(kThreads);
  for_executed_items(args, plan_tile, [&](std::int64_t begin, std::int64_t count, bool is_run) {
    std::int64_t from = begin;
    std::int64_t to = begin + count;
    if (is_run) {  // only the part inside the window
      from = from < first ? first : from;
      to = to > end ? end : to;
    }
    constexpr int kAtOnce = 4;  // loads in flight
#pragma unroll 1
    for (std::int64_t entry = from + thread_index(); entry < to; entry += kAtOnce * kThreads) {
      std::int64_t bits_of[kAtOnce];
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) {
        const std::int64_t other = entry + i * kThreads;
        bits_of[i] = other < to ? executed_slot(args, other, is_run) - first : -1;
      }
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) {
        if (bits_of[i] >= 0 && bits_of[i] < end - first) bits.set(bits_of[i]);
      }
    }
  });
  sync_block(kThreads);
}

}  // namespace s2o::device
