// Shapes of the Hopper kernel over quantised input (quantise.h): head_dim 128, steps of 128 keys.
#pragma once

#include <cstdint>

#include "kernels/attention/attention_quantised.h"
#include "kernels/attention/steps.cuh"
#include "kernels/attention/traits_sm90.cuh"
#include "kernels/device/layout.cuh"
#include "kernels/device/mbarrier_sm90.cuh"

namespace s2o::device {

// Values: e4m3, transposed, for keys in the order of tokens (`kWide` false), or fp16 in rows, which
// gathers can take as they come (has_wide_values).
template <class Out, bool kWide, int kTileMValue, StepDecision kDecisionValue>
struct QuantisedTraits {
  using Output = Out;  // 16-bit type of the output
  static constexpr bool kWideValues = kWide;
  static constexpr StepDecision kDecision = kDecisionValue;
  static constexpr int kHeadDim = 128;
  static constexpr int kTileM = kTileMValue;
  static constexpr int kTileN = 128;
  // A row of q or k in units of 16 bit: what copies and panels count.
  static constexpr int kRowElements = kHeadDim / 2;
  static constexpr int kKeyBytes = kTileN * kHeadDim;
  static constexpr int kValueBytes = (kWide ? 2 : 1) * kTileN * kHeadDim;
  static constexpr int kStages = 3;  // of 33 KiB beside 64 of sums, or of 48 beside 32 of rows
  static constexpr int kPackedSteps = kWide ? kTileN / 16 : kTileN / 32;  // products of P and V
  // Products with V that are summed in registers before they move to sums in fp32. The units keep
  // some 13 bits below the largest term: 32,768 keys of equal weight summed there lose a third.
  static constexpr int kSummedSteps = 4;
  // The normaliser is then a product of P with ones. With values in fp16 lanes add it up, whose
  // instructions find room beside products that take twice as long; gains of the early stop want
  // the sums of a step before its product is there, too.
  static constexpr int kOnesBytes = kWide ? 0 : 8 * kTileN;
  // Descriptions of steps outlive the K buffer that they came with: the mask is applied after the
  // buffer was given back, and the next one is written before a buffer is free. kStages + 2 would
  // do.
  static constexpr int kRing = 2 * kStages;
  static constexpr int kConsumerWarpgroups = kTileM / 64;
  static constexpr int kConsumerWarps = 4 * kConsumerWarpgroups;
  static constexpr int kProducerThreads = 128;
  static constexpr int kThreads = kProducerThreads + 128 * kConsumerWarpgroups;
  // Arrivals that fill a buffer: each producer thread, and thread 0 once more for its bulk copies
  // and for what it wrote about the step.
  static constexpr int kFillArrivals = kProducerThreads + 1;
  // A consumer holds 64 logits or 32 codes, 64 outputs and 16 or 32 packed probabilities; the
  // producer takes the rest of 504 for its gathers.
  static constexpr int kProducerRegisters = kWide ? 88 : 72;
  static constexpr int kConsumerRegisters = kTileM == 64 ? 240 : kWide ? 208 : 216;
  // Two warpgroups take turns at multiplying keys, so that one makes exponentials while the other
  // waits for its products.
  static constexpr bool kTurns = kConsumerWarpgroups == 2;

  static_assert(kTileM == 64 || kTileM == 128);
  static_assert(kWide || kDecision != StepDecision::kEarlyStop);
  static_assert(kProducerRegisters + kConsumerWarpgroups * kConsumerRegisters <= 504);
};

// What consumers read of a step.
struct alignas(16) QuantisedStep {
  std::int64_t begin;  // as in StepInfo
  std::int32_t count;
  std::uint32_t flags;  // annotated_flags, kStepStartsTile, kStepEndsLaunch
};

// About a tile of queries.
template <class Traits>
struct QuantisedTile {
  std::int32_t plan_tile;
  std::int32_t num_rows;                                // rows of the tile that exist
  std::int32_t first_position;                          // smallest position
  std::int32_t total_plan_steps;                        // only with the PV skip
  alignas(16) std::int32_t source_row[Traits::kTileM];  // row of q to copy: row_index or any
  std::int32_t row_index[Traits::kTileM];     // row of q, out and lse, -1 beyond the last row
  std::int32_t row_position[Traits::kTileM];  // original position
  float logit_scale[Traits::kTileM];
  float lse_shift[Traits::kTileM];
  float value_scale;
  float inverse_tau;  // 1 / max(tau, 1e-30) of the plan head
};

template <class Traits>
struct QuantisedShared {
  // Rows on their way out, 16 of each warp. Where values are e4m3 also outputs so far in fp32, as
  // the threads hold them.
  static constexpr int kSumTiles = Traits::kHeadDim / (Traits::kWideValues ? 16 : 8);
  alignas(1024) float sums[Traits::kConsumerWarps][kSumTiles][32][4];
  // Two tiles of queries: the next one is loaded, and its first keys too, while the last steps of
  // this one run. Swizzled by address bits: every buffer starts at a multiple of 1024.
  static constexpr int kQueryBuffers = 2;
  alignas(1024) unsigned char q[kQueryBuffers][Traits::kTileM * Traits::kHeadDim];
  alignas(1024) unsigned char k[Traits::kStages][Traits::kKeyBytes];
  alignas(1024) unsigned char v[Traits::kStages][Traits::kValueBytes + Traits::kOnesBytes];
  // Full: written by the producer. Empty: given back by the consumers, one arrival a warp.
  Barrier q_full[kQueryBuffers], q_empty[kQueryBuffers];
  Barrier k_full[Traits::kStages], k_empty[Traits::kStages];
  Barrier v_full[Traits::kStages], v_empty[Traits::kStages];
  Barrier reduced;  // all consumer warps have put their part of one decision into `reduction`

  QuantisedStep steps[Traits::kRing];
  alignas(16)
      std::int32_t keys[Traits::kRing][Traits::kTileN];  // tokens, -1 beyond the end; not for runs
  QuantisedTile<Traits> tiles[kQueryBuffers];            // valid between q_full and q_empty

  std::int32_t next_order;  // producer: place in tile_order
  // 1 + count of the tile if it had stopped when the keys of this place in the ring were given
  // back.
  std::int32_t stopped_tile[Traits::kRing];
  // Sum or maximum over the consumer warps, of one decision after another; 0 before its first.
  static constexpr unsigned kReductions = 4;
  std::uint32_t reduction[kReductions];
};

}  // namespace s2o::device
