// What the consumer warpgroups of both Hopper kernels have in common: 64 query rows of the tile,
// their outputs, and the turns and counters of a walk over steps.
#pragma once

#include "kernels/attention/fragments_sm90.cuh"
#include "kernels/attention/gains_sm90.cuh"
#include "kernels/attention/traits_sm90.cuh"
#include "kernels/device/wgmma_sm90.cuh"

namespace s2o::device {

inline constexpr int kTurnBarrier = 2;   // named barriers 2, 3: turn of consumer warpgroup 0, 1
inline constexpr int kStoreBarrier = 4;  // 4, 5: the threads of consumer warpgroup 0, 1

template <class Traits>
class ConsumerBase {
 protected:
  using Tile = typename Traits::Tile;
  static constexpr int kTileN = Traits::kTileN;
  static constexpr int kValueTiles = Traits::kHeadDim / 8;
  static constexpr bool kEarlyStop = Traits::kDecision == StepDecision::kEarlyStop;
  static constexpr bool kPvSkip = Traits::kDecision == StepDecision::kPvSkip;
  static constexpr int kQueryBuffers = SharedSm90<Traits>::kQueryBuffers;

  S2O_DEVICE ConsumerBase(const typename Traits::Args& args, SharedSm90<Traits>& shared)
      : args_(args),
        s_(shared),
        warpgroup_(static_cast<int>(uniform(static_cast<std::uint32_t>(thread_index() / 128 - 1)))),
        thread_(thread_index() % 128) {}

  // In the warpgroup.
  S2O_DEVICE int thread() const {
    return Traits::kConsumerRereads ? thread_index_again() % 128 : thread_;
  }
  // Asked for on rare paths alone: read anew, the index keeps no register there.
  S2O_DEVICE static int column_of() {
    return accumulator_position(lane_of(thread_index_again()), 0).column;
  }

  S2O_DEVICE const Tile& description() const { return s_.tiles[tile_count_ % kQueryBuffers]; }
  S2O_DEVICE const Tile& last_description() const {
    return s_.tiles[(tile_count_ - 1) % kQueryBuffers];
  }

  // ---- buffers ----

  S2O_DEVICE void give_back(Barrier* empty) const {
    sync_warp();
    if (thread() % 32 == 0) barrier_arrive(empty);
  }
  // Waits for the next entry of the K pipeline, whose K buffer is then full; its flags.
  S2O_DEVICE std::uint32_t wait_step(int no_parity = 0) const {
    barrier_wait(&s_.k_full[keys_.stage()], keys_.parity() + no_parity);
    return load_shared(shared_address(&s_.steps[keys_.ring()].flags));
  }
  S2O_DEVICE void wait_values() const {
    barrier_wait(&s_.v_full[values_.stage()], values_.parity());
  }
  S2O_DEVICE void release_values() {
    give_back(&s_.v_empty[values_.stage()]);
    values_.advance();
  }
  S2O_DEVICE void drop_values() {
    wait_values();
    if constexpr (Traits::kMayGather) fence_async_proxy();  // as fence_gathered
    release_values();
  }
  // Before keys or values that came by cp.async are read, or given back for the copy engine.
  S2O_DEVICE static void fence_gathered(std::uint32_t flags) {
    if (Traits::kMayGather && (flags & kStepGathered) != 0) fence_async_proxy();
  }
  // Waits for the product of p and V; both are free then. V is given back `once`.
  template <class Probabilities>
  S2O_DEVICE void finish_values(Probabilities& p, bool once) {
    warpgroup_wait<0>();
    pin_outputs();
    pin_registers(p);
    if (once) release_values();
  }
  S2O_DEVICE void pin_outputs() {
    pin_registers(acc_);
    if constexpr (Traits::kOnesBytes > 0) pin_registers(rows_.products);
  }

  // ---- turns of the warpgroups ----

  S2O_DEVICE void take_turn() const {
    if constexpr (Traits::kTurns) sync_named(kTurnBarrier + warpgroup_, 256);
  }
  S2O_DEVICE void allow_other() const {
    if constexpr (Traits::kTurns) arrive_named(kTurnBarrier + 1 - warpgroup_, 256);
  }

  // ---- a tile ----

  S2O_DEVICE void wait_queries(int no_parity = 0) const {
    barrier_wait(&s_.q_full[tile_count_ % kQueryBuffers],
                 static_cast<int>(tile_count_ / kQueryBuffers % 2) + no_parity);
  }
  // The first step of a tile is there: so are its queries.
  S2O_DEVICE void enter_tile() {
    ++tile_count_;
    wait_queries();
    fence_async_proxy();  // Q may have come by cp.async
    stopped_ = 0;
    small_steps_ = 0;
  }
  S2O_DEVICE void clear_outputs() {
#pragma unroll
    for (int n = 0; n < kValueTiles; ++n) {
#pragma unroll
      for (int e = 0; e < 4; ++e) acc_[n][e] = 0.0f;
    }
  }

  S2O_DEVICE void count_step(std::uint32_t flags, bool skipped) {
    static_assert(StepInfo::kEndsPlanStep == 1u << 25 && kStepStoppable >> 16 == 0xff);
    const auto ends = static_cast<std::int32_t>(flags >> 25 & 1u);
    stats_.total_steps += ends;
    stats_.stop_steps += ends & static_cast<std::int32_t>(flags >> 16);
    if (skipped) stats_.pv_skipped += ends;
  }
  S2O_DEVICE bool may_skip_values() const {
    return description().total_plan_steps - stats_.total_steps - 1 >= args_.pv_skip_exempt;
  }

  const typename Traits::Args& args_;
  SharedSm90<Traits>& s_;
  const int warpgroup_;  // consumer warpgroup, from 0
  const int thread_;     // in the warpgroup
  float acc_[kValueTiles][4];
  typename Traits::Rows rows_;
  float plan_step_mass_[2] = {0.0f, 0.0f};
  TileStats stats_;
  float gain_unit_ = 0.0f;
  typename Traits::Position keys_;  // the next K buffer
  typename Traits::Position values_;
  unsigned decisions_ = 0;
  std::uint32_t stopped_ = 0;  // kStepStoppable once this tile has stopped
  unsigned tile_count_ = ~0u;  // tiles entered, less one
  int small_steps_ = 0;
};

}  // namespace s2o::device
