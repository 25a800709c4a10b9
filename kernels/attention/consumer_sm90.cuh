// A consumer warpgroup of the Hopper kernel: 64 query rows of the tile.
//
// Per step: S = Q K(j)^T is issued, then O += P V(j-1); the softmax of step j runs under the second
// product, and (ordered_issue) under both products of the other warpgroup. All warpgroups decide
// alike about the tile: gains and maxima meet in shared memory, counted by an mbarrier, and each
// warp sums them in the same order.
//
// Early stop: the gains of step j are reduced and posted while the warpgroup waits for its turn,
// and collected after the softmax of step j + 1, so that no warpgroup waits for the other. If the
// tile stops, the probabilities of step j + 1 are dropped: result and counters are those of a stop
// right after step j, and half a step of work per tile is lost.
#pragma once

#include "kernels/attention/kernel_args.h"
#include "kernels/attention/traits_sm90.cuh"
#include "kernels/device/online_softmax.cuh"
#include "kernels/device/wgmma_sm90.cuh"

namespace s2o::device {

inline constexpr int kOrderBarrier = 2;  // named barriers 2, 3: turn of consumer warpgroup 0, 1

template <class Traits>
class ConsumerSm90 {
 public:
  S2O_DEVICE ConsumerSm90(const AttentionKernelArgs& args, SharedSm90<Traits>& shared)
      : args_(args),
        s_(shared),
        warpgroup_(static_cast<int>(uniform(static_cast<std::uint32_t>(thread_index() / 128 - 1)))),
        thread_(thread_index() % 128) {}

  S2O_DEVICE void run() {
    if (warpgroup_ == 1) allow_other();  // warpgroup 0 begins
    for (tile_count_ = 0;; ++tile_count_) {
      const unsigned buffer = tile_count_ % kQueryBuffers;
      barrier_wait(&s_.q_full[buffer], static_cast<int>(tile_count_ / kQueryBuffers % 2));
      const auto plan_tile = static_cast<std::int32_t>(
          uniform(static_cast<std::uint32_t>(s_.tiles[buffer].plan_tile)));
      if (plan_tile < 0) return;
      fence_async_proxy();  // Q came by cp.async
      start_tile();
      visit_steps();
      store_tile(plan_tile);
    }
  }

 private:
  using Element = typename Traits::Element;
  static constexpr int kStages = Traits::kStages;
  static constexpr int kRing = Traits::kRing;
  static constexpr int kTileN = Traits::kTileN;
  static constexpr int kKeyTiles = kTileN / 8;
  static constexpr int kValueTiles = Traits::kHeadDim / 8;
  static constexpr bool kOrdered = Traits::kTuning.ordered_issue;
  static constexpr int kQueryBuffers = SharedSm90<Traits>::kQueryBuffers;

  S2O_DEVICE const TileDescription<Traits>& description() const {
    return s_.tiles[tile_count_ % kQueryBuffers];
  }

  // ---- buffers ----

  S2O_DEVICE void give_back(Barrier* empty) const {
    sync_warp();
    if (thread_ % 32 == 0) barrier_arrive(empty);
  }
  // Waits for the next entry of the K pipeline, whose K buffer is then full; its flags.
  S2O_DEVICE std::uint32_t wait_step() const {
    barrier_wait(&s_.k_full[k_count_ % kStages], static_cast<int>(k_count_ / kStages % 2));
    return load_shared(shared_address(&s_.steps[k_count_ % kRing].flags));
  }
  S2O_DEVICE void release_keys() {
    give_back(&s_.k_empty[k_count_ % kStages]);
    ++k_count_;
  }
  S2O_DEVICE void wait_values() const {
    barrier_wait(&s_.v_full[v_count_ % kStages], static_cast<int>(v_count_ / kStages % 2));
  }
  S2O_DEVICE void release_values() {
    give_back(&s_.v_empty[v_count_ % kStages]);
    ++v_count_;
  }

  // ---- turns of the warpgroups ----

  S2O_DEVICE void take_turn() const {
    if constexpr (kOrdered) sync_named(kOrderBarrier + warpgroup_, 256);
  }
  S2O_DEVICE void allow_other() const {
    if constexpr (kOrdered) arrive_named(kOrderBarrier + 1 - warpgroup_, 256);
  }

  // ---- a tile ----

  S2O_DEVICE int row_of(int i) const {
    return warpgroup_ * 64 + thread_ / 32 * 16 + accumulator_position(thread_ % 32, 2 * i).row;
  }
  S2O_DEVICE int column_of() const { return accumulator_position(thread_ % 32, 0).column; }

  S2O_DEVICE void start_tile() {
    rows_ = empty_rows();
    stats_ = {0, 0, 0, 0};
    row_exists_ = row_of(thread_ % 2) < description().num_rows;
    if (args_.resume_out != nullptr) {
      // Goes on from (out, lse) of an earlier launch: the state (m, l, acc) = (lse, 1, out); `out`
      // joins when the row is stored, scaled by then like everything of the start.
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const std::int32_t index = description().row_index[row_of(i)];
        if (index < 0) continue;
        const float lse = args_.lse[index];
        if (lse == kNegativeInfinity) continue;
        rows_.maximum[i] = lse * kLog2E;
        rows_.normaliser[i] = column_of() == 0 ? 1.0f : 0.0f;  // one lane of the quad
      }
    }
#pragma unroll
    for (int n = 0; n < kValueTiles; ++n) {
#pragma unroll
      for (int e = 0; e < 4; ++e) acc_[n][e] = 0.0f;
    }
  }

  // The assembler lets products run under other code only where every path to a wait issues the
  // same products. So there are two kinds of rounds: opening ones, after which probabilities wait
  // for their product with V, and overlapped ones, which begin and end that way.
  S2O_DEVICE void visit_steps() {
    float logits[kKeyTiles][4];
    std::uint32_t p[kTileN / 16][4];  // probabilities of the step before, packed
    float correction[2];
    bool left = false;
    stopped_ = 0;
    small_steps_ = 0;
    for (;;) {
      std::uint32_t flags = wait_step();
      if ((flags & kStepEndsTile) != 0) break;
      if ((flags & stopped_) != 0) {  // loaded before the producer knew
        drop_step();
        continue;
      }
      if ((flags & kStepGathered) != 0) fence_async_proxy();
      multiply_keys(logits);
      warpgroup_wait<0>();
      pin_registers(logits);
      if (!prepare_step(flags, logits)) {
        count_step(flags, true);
        drop_values();
        continue;
      }
      softmax(flags, logits, correction);
      count_step(flags, false);
      rescale(correction);
      pack(logits, p);
      std::uint32_t waiting = flags;  // of the step whose probabilities wait
      bool has_p = true;
      for (;;) {
        flags = wait_step();
        if ((flags & (stopped_ | kStepEndsTile)) != 0) break;
        if ((flags & kStepGathered) != 0) fence_async_proxy();
        if ((waiting & kStepDecides) != 0) post_gain();
        take_turn();
        multiply_keys(logits);
        wait_values();
        if ((waiting & kStepGathered) != 0) fence_async_proxy();
        multiply_values(p);
        allow_other();
        warpgroup_wait<1>();
        pin_registers(logits);
        if (!prepare_step(flags, logits)) {
          finish_values(p);
          count_step(flags, true);
          drop_values();
          has_p = false;
          break;
        }
        const RowPair before = rows_;
        softmax(flags, logits, correction);
        if ((waiting & kStepDecides) != 0) {
          decide();
          if ((flags & stopped_) != 0) {  // the decision came too late for this step
            rows_ = before;
            finish_values(p);
            drop_values();
            has_p = false;
            break;
          }
        }
        finish_values(p);
        count_step(flags, false);
        waiting = flags;
        rescale(correction);
        pack(logits, p);
      }
      if ((flags & kStepEndsTile) != 0) {
        leave_tile();
        left = true;
      }
      if (has_p) {
        wait_values();
        if ((waiting & kStepGathered) != 0) fence_async_proxy();
        multiply_values(p);
        finish_values(p);
      }
    }
    if (!left) leave_tile();
    release_keys();
  }
  // Waits for the product of p and V; both are free then.
  S2O_DEVICE void finish_values(std::uint32_t (&p)[kTileN / 16][4]) {
    warpgroup_wait<0>();
    pin_registers(acc_);
    pin_registers(p);
    release_values();
  }
  S2O_DEVICE void drop_values() {
    wait_values();
    release_values();
  }
  // Reads what the output needs of the tile's description, then lets the producer overwrite it.
  S2O_DEVICE void leave_tile() {
#pragma unroll
    for (int i = 0; i < 2; ++i) row_index_[i] = description().row_index[row_of(i)];
    give_back(&s_.q_empty[tile_count_ % kQueryBuffers]);
  }

  // Gives the K buffer back and masks the logits. False: the step adds nothing (PV skip).
  S2O_DEVICE bool prepare_step(std::uint32_t flags, float (&logits)[kKeyTiles][4]) {
    const unsigned ring = k_count_ % kRing;
    release_keys();  // NOTE: the step and its keys stay in their ring beyond that (kRing)
    if ((flags & (kStepMasked | kStepMaySkip)) == 0) [[likely]]
      return true;
    if ((flags & kStepMasked) != 0) mask_logits(flags, ring, logits);
    return (flags & kStepMaySkip) == 0 || !may_skip_values() || !step_adds_nothing(logits);
  }
  S2O_DEVICE void count_step(std::uint32_t flags, bool skipped) {
    static_assert(StepInfo::kEndsPlanStep == 1u << 25 && kStepStoppable >> 16 == 0xff);
    const auto ends = static_cast<std::int32_t>(flags >> 25 & 1u);
    stats_.total_steps += ends;
    stats_.stop_steps += ends & static_cast<std::int32_t>(flags >> 16);
    if (skipped) stats_.pv_skipped += ends;
  }

  // Collects the gain posted last and decides about the rest of the tile.
  S2O_DEVICE void decide() {
    small_steps_ = gain_is_small() ? small_steps_ + 1 : 0;
    const bool stop =
        small_steps_ >= args_.stop.patience && stats_.stop_steps >= args_.stop.min_steps;
    if (!agreed(stop)) return;
    stopped_ = kStepStoppable;
    if (warpgroup_ == 0 && thread_ == 0) {
      flag_store(&s_.stopped_tile, static_cast<std::int32_t>(tile_count_) + 1);
    }
  }

  S2O_DEVICE void drop_step() {
    release_keys();
    drop_values();
  }

  // ---- products ----

  // Descriptors: the low word moves through the tile, the high word is the same everywhere.
  S2O_DEVICE static std::uint64_t descriptor_at(std::uint64_t first, int bytes) {
    return (first & 0xffffffff00000000ull) |
           (static_cast<std::uint32_t>(first) + static_cast<std::uint32_t>(bytes / 16));
  }
  S2O_DEVICE void multiply_keys(float (&logits)[kKeyTiles][4]) const {
    const std::uint64_t q =
        warpgroup_descriptor(shared_address(s_.q[tile_count_ % kQueryBuffers]) +
                                 static_cast<std::uint32_t>(warpgroup_ * 64 * kPanelRowBytes),
                             16, 8 * kPanelRowBytes);
    const std::uint64_t k =
        warpgroup_descriptor(shared_address(s_.k[k_count_ % kStages]), 16, 8 * kPanelRowBytes);
    pin_registers(logits);
    warpgroup_fence();
#pragma unroll
    for (int step = 0; step < Traits::kHeadDim / 16; ++step) {
      const int in_panel = step % 4 * 32;  // 16 elements of a 128-byte row
      warpgroup_multiply<Element>(
          logits, descriptor_at(q, step / 4 * Traits::kTileM * kPanelRowBytes + in_panel),
          descriptor_at(k, step / 4 * kTileN * kPanelRowBytes + in_panel), step > 0 ? 1 : 0);
    }
    warpgroup_commit();
  }

  S2O_DEVICE void multiply_values(std::uint32_t (&p)[kTileN / 16][4]) {
    const std::uint64_t v = warpgroup_descriptor(shared_address(s_.v[v_count_ % kStages]),
                                                 kTileN * kPanelRowBytes, 8 * kPanelRowBytes);
    pin_registers(acc_);
    warpgroup_fence();
#pragma unroll
    for (int step = 0; step < kTileN / 16; ++step) {
      warpgroup_multiply_transposed<Element>(acc_, p[step],
                                             descriptor_at(v, step * 16 * kPanelRowBytes));
    }
    warpgroup_commit();
  }

  // ---- softmax ----

  S2O_DEVICE void mask_logits(std::uint32_t flags, unsigned ring,
                              float (&logits)[kKeyTiles][4]) const {
    const PublishedStep& step = s_.steps[ring];
    const bool contiguous = (flags & kStepGathered) == 0;
    const auto mask = static_cast<MaskClass>(flags >> 8 & 0xffu);
    const std::int32_t* const keys = s_.keys[ring] + column_of();
    const int first_token = static_cast<int>(step.begin) + column_of();
    const int valid_columns = step.count - column_of();
    const VisibleKeys visible[2] = {visible_keys(mask, description().row_position[row_of(0)],
                                                 args_.window_sink, args_.window_size),
                                    visible_keys(mask, description().row_position[row_of(1)],
                                                 args_.window_sink, args_.window_size)};
#pragma unroll
    for (int n = 0; n < kKeyTiles; ++n) {
#pragma unroll
      for (int c = 0; c < 2; ++c) {
        const int column = n * 8 + c;
        const std::int32_t token = column >= valid_columns ? -1
                                   : contiguous            ? first_token + column
                                                           : keys[column];
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          if (!visible[i].contains(token)) logits[n][2 * i + c] = kNegativeInfinity;
        }
      }
    }
  }

  S2O_DEVICE void softmax(std::uint32_t flags, float (&logits)[kKeyTiles][4],
                          float (&correction)[2]) {
    float step_sum[2];
    softmax_step(logits, args_.scale_log2, rows_, step_sum, correction);
    // A plan step may span several tile steps: its mass so far follows the maximum.
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const float before = (flags & StepInfo::kStartsPlanStep) != 0 ? 0.0f : plan_step_mass_[i];
      plan_step_mass_[i] = fused(before, correction[i], step_sum[i]);
    }
  }

  // Once the largest keys have been seen, maxima rarely move: then there is nothing to do.
  S2O_DEVICE void rescale(const float (&correction)[2]) {
    if (!any_lane(correction[0] != 1.0f || correction[1] != 1.0f)) return;
#pragma unroll
    for (int n = 0; n < kValueTiles; ++n) {
#pragma unroll
      for (int e = 0; e < 4; ++e) acc_[n][e] *= correction[e / 2];
    }
  }

  S2O_DEVICE static void pack(const float (&logits)[kKeyTiles][4],
                              std::uint32_t (&p)[kTileN / 16][4]) {
#pragma unroll
    for (int step = 0; step < kTileN / 16; ++step) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const float(&tile)[4] = logits[2 * step + e / 2];
        p[step][e] = pack_pair<Element>(tile[2 * (e % 2)], tile[2 * (e % 2) + 1]);
      }
    }
  }

  // ---- decisions of the whole tile ----

  // Posts this warp's value; `collect` of the same turn sees those of all consumer warps.
  S2O_DEVICE void post(float value) {
    sync_warp();  // every lane has read the values that lie in this place
    if (thread_ % 32 == 0) {
      s_.warp_value[reductions_ % 2][warpgroup_ * 4 + thread_ / 32] = value;
      barrier_arrive(&s_.reduced);
    }
  }
  // Waits for all warps. The values stay in place until this warp posts the value after the next.
  S2O_DEVICE const float* collect() {
    barrier_wait(&s_.reduced, reductions_ % 2);
    return s_.warp_value[reductions_++ % 2];
  }

  // gain = p_blk / l_new per row, reduced over the rows of this warp (s2o.md, step 5). Even lanes
  // of a quad gather the sums of its first row, odd lanes those of the second.
  S2O_DEVICE void post_gain() {
    const bool mean = args_.stop.reduce == StopReduce::kMean;
    const int mine = thread_ % 2;
    float mass = mine == 0 ? plan_step_mass_[0] : plan_step_mass_[1];
    float total = mine == 0 ? rows_.normaliser[0] : rows_.normaliser[1];
    mass += shuffle_xor(mine == 0 ? plan_step_mass_[1] : plan_step_mass_[0], 1);
    total += shuffle_xor(mine == 0 ? rows_.normaliser[1] : rows_.normaliser[0], 1);
    mass += shuffle_xor(mass, 2);
    total += shuffle_xor(total, 2);
    float reduced = row_exists_ ? mass * reciprocal_fast(max_of(total, 1e-37f)) : 0.0f;
    // Lane bit 1 is left out: the other half of the quad holds the same rows.
    if (mean) {
#pragma unroll
      for (int mask : {1, 4, 8, 16}) reduced += shuffle_xor(reduced, mask);
    } else {
#pragma unroll
      for (int mask : {1, 4, 8, 16}) reduced = max_of(reduced, shuffle_xor(reduced, mask));
    }
    post(reduced);
  }
  S2O_DEVICE bool gain_is_small() {
    const bool mean = args_.stop.reduce == StopReduce::kMean;
    const float* values = collect();
    float reduced = 0.0f;
    if (mean) {
      for (int warp = 0; warp < Traits::kConsumerWarps; ++warp) reduced += values[warp];
    } else {
      for (int warp = 0; warp < Traits::kConsumerWarps; ++warp)
        reduced = max_of(reduced, values[warp]);
    }
    return reduced < args_.stop.tau * (mean ? static_cast<float>(description().num_rows) : 1.0f);
  }

  S2O_DEVICE bool may_skip_values() const {
    return description().total_plan_steps - stats_.total_steps - 1 >= args_.pv_skip_exempt;
  }
  // Whether the step's maximum of every row lies the threshold below the running one (base 2).
  S2O_DEVICE bool step_adds_nothing(const float (&logits)[kKeyTiles][4]) {
    float excess = kNegativeInfinity;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const float step_maximum = row_maximum(logits, i) * args_.scale_log2;
      const float running = max_of(rows_.maximum[i], step_maximum);
      if (row_of(i) < description().num_rows && running != kNegativeInfinity) {
        excess = max_of(excess, step_maximum - running);
      }
    }
    for (int mask = 4; mask < 32; mask *= 2) excess = max_of(excess, shuffle_xor(excess, mask));
    post(excess);
    const float* values = collect();
    for (int warp = 0; warp < Traits::kConsumerWarps; ++warp) {
      excess = max_of(excess, values[warp]);
    }
    return excess + args_.pv_skip_threshold <= 0.0f;
  }

  // ---- output ----

  // Divides by the normaliser and writes rows and lse in original order (attention.h).
  S2O_DEVICE void store_tile(std::int32_t plan_tile) {
    float lse[2];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const float normaliser = quad_sum(rows_.normaliser[i]);
      const float maximum = rows_.maximum[i];
      const bool empty = maximum == kNegativeInfinity;
      lse[i] = empty ? kNegativeInfinity : maximum * kLn2 + log_natural(normaliser);
      if (row_index_[i] < 0) continue;
      const std::int64_t first =
          static_cast<std::int64_t>(row_index_[i]) * Traits::kHeadDim + column_of();
      if (args_.resume_out != nullptr && !empty) {
        const float earlier = args_.lse[row_index_[i]] * kLog2E;
        add_resumed(args_.resume_out + first, exp2_fast(earlier - maximum), i);
      }
      store_row(first, i, empty ? 0.0f : 1.0f / normaliser);
    }
    sync_warp();  // every lane has read the lse of its rows
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      if (row_index_[i] >= 0 && column_of() == 0) args_.lse[row_index_[i]] = lse[i];
    }
    if (warpgroup_ == 0 && thread_ == 0) args_.stats[plan_tile] = stats_;
  }

  S2O_DEVICE void add_resumed(const float* out, float weight, int i) {
#pragma unroll
    for (int n = 0; n < kValueTiles; ++n) {
      const FloatPair earlier = load_global_pair(out + n * 8);
      acc_[n][2 * i] = fused(earlier.low, weight, acc_[n][2 * i]);
      acc_[n][2 * i + 1] = fused(earlier.high, weight, acc_[n][2 * i + 1]);
    }
  }

  S2O_DEVICE void store_row(std::int64_t first, int i, float inverse) const {
    if (args_.out_fp32 != nullptr) {
#pragma unroll
      for (int n = 0; n < kValueTiles; ++n) {
        store_global_pair(args_.out_fp32 + first + n * 8, acc_[n][2 * i] * inverse,
                          acc_[n][2 * i + 1] * inverse);
      }
    } else {
      auto* const target = static_cast<std::uint32_t*>(args_.out_16) + first / 2;
#pragma unroll
      for (int n = 0; n < kValueTiles; ++n) {
        target[n * 4] = pack_pair<Element>(acc_[n][2 * i] * inverse, acc_[n][2 * i + 1] * inverse);
      }
    }
  }

  const AttentionKernelArgs& args_;
  SharedSm90<Traits>& s_;
  const int warpgroup_;  // consumer warpgroup, from 0
  const int thread_;     // in the warpgroup
  float acc_[kValueTiles][4];
  RowPair rows_;
  float plan_step_mass_[2] = {0.0f, 0.0f};
  TileStats stats_;
  unsigned k_count_ = 0;  // K pipeline entries consumed, ends of tiles included
  unsigned v_count_ = 0;
  unsigned reductions_ = 0;
  bool row_exists_ = true;     // the row whose gain this lane computes
  std::int32_t row_index_[2];  // after leave_tile
  std::uint32_t stopped_ = 0;  // kStepStoppable once this tile has stopped
  unsigned tile_count_ = 0;
  int small_steps_ = 0;
};

}  // namespace s2o::device
