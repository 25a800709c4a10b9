// Shapes of the Hopper kernel over quantised input (quantise.h): head_dim 128, steps of 128 keys.
#pragma once

#include <cstdint>
#include <type_traits>

#include "kernels/attention/attention_quantised.h"
#include "kernels/attention/quantised_fragments_sm90.cuh"
#include "kernels/attention/traits_sm90.cuh"

namespace s2o::device {

template <class Traits>
class QuantisedProducer;
template <class Traits>
class QuantisedConsumer;
template <class Traits>
struct QuantisedTile;

// As CountedPosition, for a number of stages that is no power of two.
template <int kStages>
struct StagePosition {
  int stage_ = 0;
  int parity_ = 0;
  S2O_DEVICE int stage() const { return stage_; }
  S2O_DEVICE int parity() const { return parity_; }
  S2O_DEVICE unsigned ring() const { return static_cast<unsigned>(stage_ + kStages * parity_); }
  S2O_DEVICE void advance() {
    if (++stage_ == kStages) {
      stage_ = 0;
      parity_ ^= 1;
    }
  }
};

struct NextQuantisedTile {
  Ahead known = Ahead::kNothing;  // as in NextTileSm90
  std::int32_t order = 0;
  std::int32_t plan_tile = -1;
  std::int32_t position = 0;
  std::int64_t items_begin = 0;
  std::int64_t items_end = 0;
};

// Of a lane's two rows.
template <class Codes>
struct QuantisedRows {
  CodeRows<Codes> codes;
  float normaliser[2];   // sum of probabilities: this lane's part, or up to the last sum_products
  float products[1][4];  // e4m3: sums of probabilities since, of the rows at 0 and 2
};

// Values: e4m3, transposed, for keys in the order of tokens (`kWide` false), or fp16 in rows, which
// gathers can take as they come (has_wide_values). Three stages of 33 KiB beside 64 of sums, or of
// 48 beside 32 of rows.
template <class Out, bool kWide, int kTileMValue, StepDecision kDecisionValue>
struct QuantisedTraits : PipelineTraits<kTileMValue, 128, 3, kDecisionValue> {
  static constexpr const char* kName = "attention_sm90, fp8";
  using Args = QuantisedKernelArgs;
  using Tile = QuantisedTile<QuantisedTraits>;
  using Producer = QuantisedProducer<QuantisedTraits>;
  using NextTile = NextQuantisedTile;
  using Consumer = QuantisedConsumer<QuantisedTraits>;
  using Output = Out;  // 16-bit type of the output
  static constexpr bool kWideValues = kWide;
  static constexpr int kHeadDim = 128;
  static constexpr int kRowElements = kHeadDim / 2;  // of q and k, in units of 16 bit
  static constexpr int kValueBytes = (kWide ? 2 : 1) * 128 * kHeadDim;
  static constexpr int kPackedSteps = kWide ? 128 / 16 : 128 / 32;  // products of P and V
  // Products with V that are summed in registers before they move to sums in fp32. The units keep
  // some 13 bits below the largest term: 32,768 keys of equal weight summed there lose a third.
  static constexpr int kSummedSteps = 4;
  // The normaliser is then a product of P with ones. With values in fp16 lanes add it up, whose
  // instructions find room beside products that take twice as long; gains of the early stop want
  // the sums of a step before its product is there, too.
  static constexpr int kOnesBytes = kWide ? 0 : 8 * 128;
  // A consumer holds 64 logits or 32 codes, 64 outputs and 16 or 32 packed probabilities; the
  // producer takes the rest of 504 for its gathers.
  static constexpr int kProducerRegisters = kWide ? 88 : 72;
  static constexpr int kConsumerRegisters = kTileMValue == 64 ? 240 : kWide ? 208 : 216;
  static constexpr bool kMayGather = kWide;
  static constexpr bool kEagerCopies = false;
  static constexpr bool kProducerRereads = true;
  static constexpr bool kConsumerRereads = kDecisionValue == StepDecision::kPvSkip;
  using Rows = QuantisedRows<std::conditional_t<kWide, Fp16Codes, E4m3Codes>>;
  using Position = StagePosition<3>;
  // Rows on their way out, 16 of each warp. Where values are e4m3 also outputs so far in fp32, as
  // the threads hold them.
  struct Sums {
    alignas(1024) float sums[kTileMValue / 16][kHeadDim / (kWide ? 16 : 8)][32][4];
  };
  // Sum or maximum over the consumer warps; 0 before the first.
  using Posted = std::uint32_t[4];

  static_assert(kWide || kDecisionValue != StepDecision::kEarlyStop);
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

}  // namespace s2o::device
