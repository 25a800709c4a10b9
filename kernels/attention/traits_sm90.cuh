// Tile shapes of the Hopper kernel, one constexpr table read by the kernel and its launcher, and
// what its warpgroups share.
#pragma once

#include <cstdint>

#include "kernels/attention/kernel_args.h"
#include "kernels/attention/steps.cuh"
#include "kernels/device/layout.cuh"
#include "kernels/device/mbarrier_sm90.cuh"
#include "kernels/device/online_softmax.cuh"

namespace s2o::device {

struct TuningSm90 {
  int stages;              // buffers of K and of V
  int producer_registers;  // per thread, after the warpgroups exchanged registers
  int consumer_registers;
};

// Measured reasons are of an H200, 32/8 heads, head_dim 128, bf16 (results/performance.md).
S2O_HOST_DEVICE constexpr TuningSm90 tuning_sm90(int head_dim, int tile_m, int tile_n) {
  TuningSm90 tuning{};
  // One K and V pair is 64 KiB at head_dim 128 and 128 keys: two pairs and two Q fill 192 of 227
  // KiB. Smaller tiles take more stages for the same bytes in flight, at most four.
  const int pair_bytes = 2 * tile_bytes(tile_n, head_dim);
  tuning.stages = pair_bytes >= 65536 ? 2 : 4;
  // The compiler gives three warpgroups 168 registers a thread, 504 together. A consumer holds 64
  // logits, 64 outputs and 32 packed probabilities; it spills below 208. The producer takes the
  // rest: its gathers at 131,072 tokens reached 497 TFLOP/s with 88 registers, 468 with 72, for
  // with few registers a copy waits until the one before has read its address. Smaller tiles leave
  // it more.
  const bool full = tile_m == 128 && tile_n == 128 && head_dim == 128;
  tuning.producer_registers = full ? 88 : 104;
  tuning.consumer_registers = full ? 208 : tile_m == 128 ? 200 : 240;
  return tuning;
}

// What consumers decide together while they walk a tile. One instance of the kernel for each: the
// code of the others would lie in the way (dense: 2 to 6 %).
enum class StepDecision : std::uint8_t { kNone, kEarlyStop, kPvSkip };

template <class Traits>
class ProducerSm90;
template <class Traits>
class ConsumerSm90;
template <class Traits>
struct TileDescription;

// What follows from the shape of a tile and the number of its buffers.
template <int kTileMValue, int kTileNValue, int kStagesValue, StepDecision kDecisionValue>
struct PipelineTraits {
  static constexpr StepDecision kDecision = kDecisionValue;
  static constexpr int kTileM = kTileMValue;
  static constexpr int kTileN = kTileNValue;
  static constexpr int kStages = kStagesValue;
  // Descriptions of steps are written before a buffer is free, and they and the tokens of gathered
  // keys outlive the K buffer that they came with: masks may be applied after it was given back,
  // and values follow a step later. kStages + 2 would do.
  static constexpr int kRing = 2 * kStages;
  static constexpr int kConsumerWarpgroups = kTileM / 64;
  static constexpr int kConsumerWarps = 4 * kConsumerWarpgroups;
  static constexpr int kProducerThreads = 128;
  static constexpr int kThreads = kProducerThreads + 128 * kConsumerWarpgroups;
  // Two warpgroups take turns at issuing products: the softmax of one runs under those of the
  // other.
  static constexpr bool kTurns = kConsumerWarpgroups == 2;
  // Arrivals that fill a buffer: each producer thread, and thread 0 once more for its bulk copies
  // and for what it wrote about the step.
  static constexpr int kFillArrivals = kProducerThreads + 1;

  static_assert(kTileM == 64 || kTileM == 128);
  static_assert(kTileN == 64 || kTileN == 128);
  static_assert(kTileM <= kProducerThreads && kTileN <= kProducerThreads,
                "one producer thread per row and per key index");
};

// A place in a ring of buffers: the number of those before it.
template <int kStages>
struct CountedPosition {
  unsigned count = 0;
  S2O_DEVICE unsigned stage() const { return count % kStages; }
  S2O_DEVICE int parity() const { return static_cast<int>(count / kStages % 2); }
  S2O_DEVICE unsigned ring() const { return count % (2 * kStages); }  // of what outlives K buffers
  S2O_DEVICE void advance() { ++count; }
};

// What a producer knows of its next tile: parts in the order in which it asks for them.
enum class Ahead : std::uint8_t { kNothing, kOrder, kSharedOrder, kTile, kPlaces, kItem };
struct NextTileSm90 {
  Ahead known = Ahead::kNothing;  // the last part asked for
  std::int32_t order = 0;         // thread 0: place in tile_order
  std::int32_t plan_tile = -1;    // -1: none is left
  std::int32_t plan_head = 0;
  std::int32_t position = 0;  // of this thread's row
  std::int64_t items_begin = 0;
  std::int32_t num_items = 0;
};

template <class ElementType, int kHeadDimValue, int kTileMValue, int kTileNValue,
          StepDecision kDecisionValue>
struct TraitsSm90
    : PipelineTraits<kTileMValue, kTileNValue,
                     tuning_sm90(kHeadDimValue, kTileMValue, kTileNValue).stages, kDecisionValue> {
  static constexpr const char* kName = "attention_sm90";
  using Args = AttentionKernelArgs;
  using Tile = TileDescription<TraitsSm90>;
  using Producer = ProducerSm90<TraitsSm90>;
  using NextTile = NextTileSm90;
  using Consumer = ConsumerSm90<TraitsSm90>;
  using Element = ElementType;
  static constexpr int kHeadDim = kHeadDimValue;
  static constexpr int kRowElements = kHeadDim;  // of q and k, in units of 16 bit
  static constexpr int kValueBytes = tile_bytes(kTileNValue, kHeadDim);
  static constexpr int kOnesBytes = 0;
  static constexpr bool kMayGather = true;
  // Where registers are short: copies in a cheaper order (RowCopier), thread indices read anew.
  static constexpr bool kEagerCopies = kDecisionValue == StepDecision::kEarlyStop;
  static constexpr bool kProducerRereads = false;
  static constexpr bool kConsumerRereads = false;
  static constexpr TuningSm90 kTuning = tuning_sm90(kHeadDim, kTileMValue, kTileNValue);
  static constexpr int kProducerRegisters = kTuning.producer_registers;
  static constexpr int kConsumerRegisters = kTuning.consumer_registers;
  struct Sums {};
  using Rows = RowPair;
  using Position = CountedPosition<TraitsSm90::kStages>;
  // Two places: a warp writes to the next but one after all have written to the next, which they do
  // once they have read this one. One word a lane that reads them: 0 beyond the last warp.
  using Posted = std::uint32_t[2][32];

  static_assert(kHeadDim == 64 || kHeadDim == 128);
};

// What consumers read of a step.
struct alignas(16) PublishedStep {
  std::int64_t begin;  // as in StepInfo
  std::int32_t count;
  std::uint32_t flags;  // annotated_flags, kStepStartsTile, kStepEndsLaunch
};

// About a tile of queries.
template <class Traits>
struct TileDescription {
  std::int32_t plan_tile;
  std::int32_t num_rows;        // rows of the tile that exist
  std::int32_t first_position;  // smallest position
  std::int32_t first_row;  // row of q of the first one, if all exist and follow each other; else -1
  std::int32_t total_plan_steps;                        // only with the PV skip
  float inverse_tau;                                    // 1 / max(tau, 1e-30) of the plan head
  alignas(16) std::int32_t source_row[Traits::kTileM];  // row of q to copy: row_index or any
  std::int32_t row_index[Traits::kTileM];     // row of q, out and lse, -1 beyond the last row
  std::int32_t row_position[Traits::kTileM];  // original position
};

// In shared memory of a block, behind what is the traits' own.
template <class Traits>
struct SharedSm90 : Traits::Sums {
  // Two tiles of queries: the next one is loaded, and its first keys too, while the last steps of
  // this one run. Swizzled by address bits: every buffer starts at a multiple of 1024.
  static constexpr int kQueryBuffers = 2;
  alignas(1024) unsigned char q[kQueryBuffers][tile_bytes(Traits::kTileM, Traits::kRowElements)];
  alignas(1024) unsigned char k[Traits::kStages][tile_bytes(Traits::kTileN, Traits::kRowElements)];
  alignas(1024) unsigned char v[Traits::kStages][Traits::kValueBytes + Traits::kOnesBytes];
  // Full: written by the producer. Empty: given back by the consumers, one arrival a warp.
  Barrier q_full[kQueryBuffers], q_empty[kQueryBuffers];
  Barrier k_full[Traits::kStages], k_empty[Traits::kStages];
  Barrier v_full[Traits::kStages], v_empty[Traits::kStages];
  Barrier all_posted;  // all consumer warps have put their part of one decision into `posted`
  Barrier open;        // no arrivals: waits for its parity 1 return at once

  PublishedStep steps[Traits::kRing];
  alignas(16)
      std::int32_t keys[Traits::kRing][Traits::kTileN];  // tokens, -1 beyond the end; not for runs
  typename Traits::Tile tiles[kQueryBuffers];            // valid between q_full and q_empty

  std::int32_t next_order;  // producer: place in tile_order
  // 1 + count of the tile if it had stopped when the keys of this place in the ring were given
  // back.
  std::int32_t stopped_tile[Traits::kRing];
  // What consumer warps put into one decision after another.
  typename Traits::Posted posted;
};

}  // namespace s2o::device
