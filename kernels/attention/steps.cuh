// From the items of a plan tile to the kernel's steps, in visiting order.
//
// A plan step is block_n keys of one item (the last may be shorter); the kernel cuts it into tile
// steps of kTileN keys. Decisions (early stop, counters) belong to the end of a plan step.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/common/plan_view.h"
#include "kernels/device/platform.cuh"

namespace s2o::device {

// The properties of a step share one register: bytes 0 to 2 as the last word of PlanItem holds
// them, then two bits of its own.
struct StepInfo {
  std::int64_t begin;   // first key slot, or first entry of gather_indices
  std::int32_t count;   // keys of the step, 1 .. kTileN; 0 = no step left
  std::int32_t item;    // index of the item in its tile
  std::uint32_t flags;  // kind, mask, stoppable; kStartsPlanStep, kEndsPlanStep

  static constexpr std::uint32_t kStartsPlanStep = 1u << 24;
  static constexpr std::uint32_t kEndsPlanStep = 1u << 25;

  S2O_HOST_DEVICE ItemKind kind() const { return static_cast<ItemKind>(flags & 0xffu); }
  S2O_HOST_DEVICE MaskClass mask() const { return static_cast<MaskClass>(flags >> 8 & 0xffu); }
  S2O_HOST_DEVICE bool stoppable() const { return (flags & 0xff0000u) != 0; }
  S2O_HOST_DEVICE bool starts_plan_step() const { return (flags & kStartsPlanStep) != 0; }
  S2O_HOST_DEVICE bool ends_plan_step() const { return (flags & kEndsPlanStep) != 0; }
};

// Facts about a step that its consumers need, in the free bits of its flags.
inline constexpr std::uint32_t kStepStoppable = 0xff0000u;
inline constexpr std::uint32_t kStepMasked = 1u << 26;      // some key may be invisible to some row
inline constexpr std::uint32_t kStepGathered = 1u << 27;    // keys are not consecutive tokens
inline constexpr std::uint32_t kStepMaySkip = 1u << 28;     // the PV skip applies
inline constexpr std::uint32_t kStepDecides = 1u << 29;     // the early stop decides after it
inline constexpr std::uint32_t kStepStartsTile = 1u << 30;  // the first of its tile
inline constexpr std::uint32_t kStepEndsLaunch = 1u << 31;  // no step: no tile is left

// How the keys of a step are found.
enum class KeySource : std::uint8_t { kContiguous, kKeyOrder, kGather };

S2O_DEVICE KeySource key_source(const StepInfo& step, const PassView& pass) {
  if (step.kind() == ItemKind::kGather) return KeySource::kGather;
  return pass.key_order == nullptr ? KeySource::kContiguous : KeySource::kKeyOrder;
}

// Token of key `i` of the step, or -1 beyond its end. `plan_head` selects the key order.
S2O_DEVICE std::int32_t step_token(const StepInfo& step, const PassView& pass, std::int64_t seqlen,
                                   int plan_head, int i) {
  if (i >= step.count) return -1;
  const std::int64_t slot = step.begin + i;
  switch (key_source(step, pass)) {
    case KeySource::kGather:
      return load_global(pass.gather_indices + slot);
    case KeySource::kKeyOrder:
      return load_global(pass.key_order + plan_head * seqlen + slot);
    case KeySource::kContiguous:
      break;
  }
  return static_cast<std::int32_t>(slot);
}

// Every key of a contiguous step lies at or before every row of the tile: nothing to mask.
S2O_DEVICE bool step_is_past(const StepInfo& step, const PassView& pass, int first_position) {
  return step.mask() == MaskClass::kCausal && key_source(step, pass) == KeySource::kContiguous &&
         step.begin + step.count - 1 <= first_position;
}

template <int kTileN>
S2O_DEVICE std::uint32_t annotated_flags(const StepInfo& step, const PassView& pass,
                                         int first_position, bool may_skip, bool may_stop) {
  const bool open = step.count == kTileN &&
                    (step.mask() == MaskClass::kNone || step_is_past(step, pass, first_position));
  const bool gathered = key_source(step, pass) != KeySource::kContiguous;
  const bool ends = step.ends_plan_step();
  return step.flags | (open ? 0u : kStepMasked) | (gathered ? kStepGathered : 0u) |
         (may_skip && ends ? kStepMaySkip : 0u) |
         (may_stop && step.stoppable() && ends ? kStepDecides : 0u);
}

// Visible keys of one row under a mask class, as bounds on the token, so that the test of an
// element has no branches: 0 <= token <= last, and token < sink or token > window_before.
struct VisibleKeys {
  std::int32_t last;
  std::int32_t sink;
  std::int32_t window_before;

  S2O_HOST_DEVICE bool contains(std::int32_t token) const {
    return (static_cast<std::uint32_t>(token) <= static_cast<std::uint32_t>(last)) &
           ((token < sink) | (token > window_before));
  }
};
S2O_HOST_DEVICE VisibleKeys visible_keys(MaskClass mask, std::int32_t position,
                                         std::int32_t window_sink, std::int32_t window_size) {
  constexpr std::int32_t kEveryToken = 0x7fffffff;
  return {mask == MaskClass::kNone ? kEveryToken : position,
          mask == MaskClass::kWindow ? window_sink : kEveryToken, position - window_size};
}

// The columns of an accumulator row that a lane holds are 0, 1, 8, 9, 16, ... after its first
// (layout.cuh); bit 2 n + c of a word stands for column 8 n + c of them. Those below `limit`:
S2O_HOST_DEVICE constexpr std::uint32_t lane_columns_below(int limit) {
  const unsigned columns = limit < 0 ? 0u : static_cast<unsigned>(limit);
  const unsigned rest = columns % 8;
  const unsigned count = columns / 8 * 2 + (rest < 2 ? rest : 2);
  return count >= 32 ? 0xffffffffu : (1u << count) - 1u;
}
// The columns that see their key, where column i holds token first + i if i < count, else nothing:
// without a window, and with one.
S2O_HOST_DEVICE constexpr std::uint32_t causal_lane_columns(std::int32_t last, std::int32_t first,
                                                            int count) {
  const int to_last = last - first;
  return lane_columns_below(to_last < count ? to_last + 1 : count);
}
S2O_HOST_DEVICE constexpr std::uint32_t visible_lane_columns(const VisibleKeys& visible,
                                                             std::int32_t first, int count) {
  const int hidden = visible.window_before < first ? 0 : visible.window_before - first + 1;
  return causal_lane_columns(visible.last, first, count) &
         (lane_columns_below(visible.sink - first) | ~lane_columns_below(hidden));
}

// A PlanItem as it lies in memory. Arrays of items start at a multiple of 16 bytes.
struct alignas(16) ItemWords {
  std::int64_t begin;
  std::int32_t count;
  std::uint32_t flags;  // as in StepInfo; the last byte may hold anything

  S2O_HOST_DEVICE ItemKind kind() const { return static_cast<ItemKind>(flags & 0xffu); }
  S2O_HOST_DEVICE bool stoppable() const { return (flags & 0xff0000u) != 0; }
};
static_assert(sizeof(ItemWords) == sizeof(PlanItem) && offsetof(PlanItem, count) == 8 &&
              offsetof(PlanItem, kind) == 12 && offsetof(PlanItem, mask) == 13 &&
              offsetof(PlanItem, stoppable) == 14);

// One load instead of one per field.
S2O_DEVICE ItemWords load_item(const PlanItem* source) {
  const Words4 words = load_global_16(source);
  return {static_cast<std::int64_t>(words.word[0]) | static_cast<std::int64_t>(words.word[1]) << 32,
          static_cast<std::int32_t>(words.word[2]), words.word[3]};
}

// One past the last item of a tile.
S2O_DEVICE std::int64_t tile_items_end(const PassView& pass, std::int64_t tile) {
  if (pass.item_counts == nullptr) return load_global(pass.item_offsets + tile + 1);
  return load_global(pass.item_offsets + tile) + load_global(pass.item_counts + tile);
}

// Walks the items of one tile. The item after the current one is requested one item early, so that
// a walk over many short items does not wait for memory; `Fetch` decides how:
//   item(const PlanItem*)                       loads one item now
//   request(ItemWords& target, const PlanItem*)   may complete any time before the next call
struct StepWalker {
  ItemWords current;
  ItemWords ahead;  // item index + 1, if it exists
  const PlanItem* items;
  std::int32_t num_items;
  std::int32_t index;    // of `current`; -1 before the first
  std::int32_t offset;   // keys of `current` already handed out
  std::int32_t in_step;  // of these, keys of the plan step that is not complete; 0 between two
  bool stopped;          // stoppable items are skipped from now on

  S2O_DEVICE void start(const PassView& pass, std::int64_t tile) {
    start(pass, load_global(pass.item_offsets + tile), tile_items_end(pass, tile));
  }
  S2O_DEVICE void start(const PassView& pass, std::int64_t begin, std::int64_t end) {
    num_items = static_cast<std::int32_t>(end - begin);
    items = pass.items + begin;
    restart_after(-1);
    stopped = false;
  }

  // Goes on with the item after `item`.
  S2O_DEVICE void restart_after(int item) {
    index = item;
    offset = 0;
    in_step = 0;
    current.count = 0;
    ahead.count = -1;  // not requested
  }

  template <int kTileN, class Fetch>
  S2O_DEVICE StepInfo next(int block_n, const Fetch& fetch) {
    bool moved = false;
    while (offset >= current.count || (stopped && current.stoppable())) {
      ++index;
      if (index >= num_items) {
        index = num_items;
        current.count = 0;
        offset = 0;
        return {0, 0, index, 0};
      }
      // Only a request of an earlier call is known to have arrived.
      current = moved || ahead.count < 0 ? fetch.item(items + index) : ahead;
      offset = 0;
      in_step = 0;
      moved = true;
    }
    if (moved && index + 1 < num_items) fetch.request(ahead, items + index + 1);
    const int count = min_of(kTileN, current.count - offset);
    const bool starts = in_step == 0;
    offset += count;
    in_step += kTileN;  // which divides block_n
    const bool ends = in_step >= block_n || offset >= current.count;
    if (ends) in_step = 0;
    return {current.begin + offset - count, count, index,
            (current.flags & 0xffffffu) | (starts ? StepInfo::kStartsPlanStep : 0u) |
                (ends ? StepInfo::kEndsPlanStep : 0u)};
  }
};

// Both loads and requests read the item at once: for a walker that lives in registers, where the
// compiler lets the request fly until it is used.
struct FetchNow {
  S2O_DEVICE ItemWords item(const PlanItem* source) const { return load_item(source); }
  S2O_DEVICE void request(ItemWords& target, const PlanItem* source) const {
    target = load_item(source);
  }
};

}  // namespace s2o::device
