// A consumer warpgroup of the Hopper kernel: 64 query rows of the tile.
//
// Per step: S = Q K(j)^T is issued, then O += P V(j-1); the softmax of step j runs under the second
// product, and (kTurns) under both products of the other warpgroup. All warpgroups decide alike
// about the tile: gains and maxima meet in shared memory, counted by an mbarrier, and each warp
// sums them in the same order.
//
// Steps of all tiles of a block are one stream: the first S of a tile is issued beside the last P V
// of the tile before, whose output is stored while the products of the other warpgroup run. A tile
// of a few steps would otherwise wait for both ends of the pipeline.
//
// Early stop: the gains of step j are posted at the end of its round, found among the packing of
// its probabilities, and read in the next round behind its products: by then the other warpgroup,
// half a round later, has posted too, and nobody waits. The decision is found among the maxima of
// step j + 1. If the tile stops, that step is dropped before its exponentials: result and counters
// are those of a stop right after step j. Maxima are restored: relative to that of a dropped step,
// probabilities of steps to come could be too small for fp16. The producer learns of the stop with
// the next K buffer that it gets back.
//
// What lies between the products is one chain of waits that two warpgroups hardly hide: there, code
// of the early stop costs by its latency. It stands among instructions that do not need it.
//
// Gains are summed as integers in units of tau: one instruction sums a warp, one the warps, whose
// sums a lane each reads, and the order of summation does not matter. All lanes then know the
// decision, in uniform registers. Means and maxima take the same few instructions, and steps that
// nothing is decided after are summed and read like others: code to jump over would cost as much.
#pragma once

#include "kernels/attention/output_sm90.cuh"
#include "kernels/attention/products_sm90.cuh"
#include "kernels/device/mbarrier_test_sm90.cuh"
#include "kernels/device/online_softmax.cuh"

namespace s2o::device {

template <class Traits>
class ConsumerSm90 : OutputSm90<Traits> {
  using Base = OutputSm90<Traits>;
  using Base::acc_, Base::allow_other, Base::args_, Base::clear_outputs, Base::column_of;
  using Base::count_step, Base::decisions_, Base::description, Base::drop_values, Base::enter_tile;
  using Base::fence_gathered, Base::finish_values, Base::gain_unit_, Base::give_back;
  using Base::kEarlyStop, Base::kPvSkip, Base::kQueryBuffers, Base::kTileN, Base::keys_;
  using Base::may_skip_values, Base::plan_step_mass_, Base::row_of, Base::rows_, Base::s_;
  using Base::small_steps_, Base::stats_, Base::stopped_, Base::store_tile, Base::take_turn;
  using Base::thread_, Base::tile_count_, Base::values_, Base::wait_step, Base::wait_values;
  using Base::warpgroup_;

 public:
  S2O_DEVICE ConsumerSm90(const AttentionKernelArgs& args, SharedSm90<Traits>& shared)
      : Base(args, shared) {}

  S2O_DEVICE static void init_decisions(SharedSm90<Traits>& shared) {
    barrier_init(&shared.open, 1);
    for (std::int32_t& tile : shared.stopped_tile) tile = 0;
    if constexpr (Traits::kDecision != StepDecision::kNone) {
      for (std::uint32_t(&place)[32] : shared.posted) {
        for (std::uint32_t& value : place) value = 0;
      }
    }
  }

  S2O_DEVICE void run() {
    if (warpgroup_ == 1) allow_other();  // warpgroup 0 begins
    clear_outputs();
    visit_steps();
  }

 private:
  using Element = typename Traits::Element;
  static constexpr int kKeyTiles = kTileN / 8;

  // ---- buffers ----

  // Gives the K buffer back, with word of a stop.
  S2O_DEVICE void release_keys() {
    if constexpr (kEarlyStop) {
      if (stopped_ != 0) [[unlikely]] {
        wait_for_nothing();  // or else all of this would run, predicated, in every step
        if (thread_index_again() == Traits::kProducerThreads) {
          s_.stopped_tile[keys_.ring()] = static_cast<std::int32_t>(tile_count_) + 1;
        }
      }
    }
    give_back(&s_.k_empty[keys_.stage()]);
    keys_.advance();
  }
  // A loop that ends at once, which the assembler moves neither waits for products nor shuffles
  // over.
  S2O_DEVICE void wait_for_nothing() const { barrier_wait(&s_.open, 1); }

  // ---- a tile ----

  S2O_DEVICE void start_tile() {
    rows_ = empty_rows();
    stats_ = {0, 0, 0, 0};
    if constexpr (kEarlyStop) start_gains();
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
    if constexpr (kPvSkip) {
      clear_outputs();  // there may be no product with values
    } else {
      forget_registers(acc_);
      accumulate_ = 0;
    }
  }
  S2O_DEVICE void change_tile(bool met) {
    if (tile_count_ > 0) store_tile(met);
    start_tile();
  }

  // The assembler lets products run under other code only where every path to a wait issues the
  // same products. So there are two kinds of rounds: opening ones, after which probabilities wait
  // for their product with V, and overlapped ones, which begin and end that way.
  S2O_DEVICE void visit_steps() {
    float logits[kKeyTiles][4];
    std::uint32_t p[kTileN / 16][4];  // probabilities of the step before, packed
    float correction[2];
    std::uint32_t flags = wait_step();
    for (;;) {
      if ((flags & kStepEndsLaunch) != 0) break;
      const bool opens_tile = (flags & kStepStartsTile) != 0;
      if (opens_tile) {
        enter_tile();
      } else if ((flags & stopped_) != 0) {  // loaded before the producer knew
        drop_step();
        flags = wait_step();
        continue;
      }
      fence_gathered(flags);
      multiply_keys(logits);
      std::uint32_t first_columns[2];
      look_at_mask(flags, first_columns);
      warpgroup_wait<1>();
      pin_registers(acc_);  // the last product with V is done, says the wait
      if (opens_tile) change_tile(false);
      warpgroup_wait<0>();
      pin_registers(logits);
      release_keys();
      if (!prepare_step(flags, first_columns, logits)) {
        count_step(flags, true);
        drop_values();
        flags = wait_step();
        continue;
      }
      float first_reference[2];
      softmax_maxima(logits, args_.scale_log2, rows_, first_reference, correction);
      softmax(flags, logits, first_reference, correction);
      count_step(flags, false);
      rescale(correction);
      pack_probabilities<Element>(logits, p);
      if constexpr (kEarlyStop) post(gains_of_warp());
      std::uint32_t waiting = flags;  // of the step whose probabilities wait
      bool has_p = true;
      flags = wait_step();
      for (;;) {
        // The vote tells the compiler that lanes agree (platform_cuda.cuh).
        const bool leaves =
            (flags & (stopped_ | kStepEndsLaunch)) != 0 && (flags & kStepStartsTile) == 0;
        if (kEarlyStop ? agreed(leaves) : leaves) break;
        const bool starts_tile = (flags & kStepStartsTile) != 0;
        if (starts_tile) enter_tile();
        fence_gathered(flags);
        take_turn();
        multiply_keys(logits);
        wait_values();
        fence_gathered(waiting);
        multiply_values(p);
        allow_other();
        std::uint32_t posted = 0;
        if constexpr (kEarlyStop) posted = wait_posted();
        std::uint32_t columns[2];
        look_at_mask(flags, columns);
        warpgroup_wait<1>();
        pin_registers(logits);
        release_keys();
        if (starts_tile) {
          finish_values(p, true);
          change_tile(Traits::kTurns);  // they took their turn together
          waiting = 0;                  // nothing is decided about it any more
        }
        if (!prepare_step(flags, columns, logits)) {
          finish_values(p, !starts_tile);
          count_step(flags, true);
          drop_values();
          has_p = false;
          flags = wait_step();
          break;
        }
        float reference[2];
        const RowPair before = rows_;
        softmax_maxima(logits, args_.scale_log2, rows_, reference, correction);
        if constexpr (kEarlyStop) {
          decide(waiting, warp_sum(posted));
          if ((flags & stopped_) != 0) {  // loaded before the decision
            rows_ = before;
            finish_values(p, true);
            drop_values();
            has_p = false;
            flags = wait_step();
            break;
          }
        }
        softmax(flags, logits, reference, correction);
        pin_registers(logits);
        // Asked here, it shortens the end of a round. Without early stop that costs 0.5 %.
        const bool rescales = kEarlyStop && must_rescale(correction);
        // NOTE: a loop: the assembler would move a wait for products that stands behind straight
        // code to its front, and nothing would run under them.
        std::uint32_t next = 0;
        if constexpr (kEarlyStop) {
          wait_for_nothing();
        } else {
          next = wait_step();
        }
        finish_values(p, !starts_tile);
        if constexpr (kEarlyStop) {
          if (rescales) scale_rows(correction, acc_);
        } else {
          rescale(correction);
        }
        pack_probabilities<Element>(logits, p);
        if constexpr (kEarlyStop) {
          const std::uint32_t gains = gains_of_warp();
          next = wait_step();
          post(gains);
        }
        count_step(flags, false);
        waiting = flags;
        flags = next;
      }
      if (has_p) {
        if constexpr (kEarlyStop) wait_posted();
        wait_values();
        fence_gathered(waiting);
        multiply_values(p);
        finish_values(p, true);
      }
    }
    ++tile_count_;
    if (tile_count_ > 0) store_tile(false);
  }

  // Masks the logits of a step. False: the step adds nothing (PV skip).
  S2O_DEVICE bool prepare_step(std::uint32_t flags, const std::uint32_t (&columns)[2],
                               float (&logits)[kKeyTiles][4]) {
    if ((flags & (kStepMasked | kStepMaySkip)) == 0) [[likely]]
      return true;
    if ((flags & kStepMasked) != 0) hide_columns(columns, logits);
    return !kPvSkip || (flags & kStepMaySkip) == 0 || !may_skip_values() ||
           !step_adds_nothing(logits);
  }
  // Decides about the rest of the tile by the gains of its rows after the step of `flags`.
  S2O_DEVICE void decide(std::uint32_t flags, std::uint32_t gains) {
    const bool decides = (flags & kStepDecides) != 0;  // no jump: most steps do
    if (decides) small_steps_ = gains < kGainOfTau ? small_steps_ + 1 : 0;
    const bool stop = decides & (small_steps_ >= args_.stop.patience) &
                      (stats_.stop_steps >= args_.stop.min_steps);
    stopped_ |= stop ? kStepStoppable : 0;
  }

  S2O_DEVICE void drop_step() {
    fence_async_proxy();
    release_keys();
    drop_values();
  }

  // ---- products ----

  S2O_DEVICE void multiply_keys(float (&logits)[kKeyTiles][4]) const {
    multiply_keys_sm90<Traits>(shared_address(s_.q[tile_count_ % kQueryBuffers]) +
                                   static_cast<std::uint32_t>(warpgroup_ * 64 * kPanelRowBytes),
                               shared_address(s_.k[keys_.stage()]), logits);
  }
  S2O_DEVICE void multiply_values(std::uint32_t (&p)[kTileN / 16][4]) {
    multiply_values_sm90<Traits>(shared_address(s_.v[values_.stage()]), p, acc_,
                                 kPvSkip ? 1 : accumulate_);
    accumulate_ = 1;
  }

  // ---- softmax ----

  // The columns of this lane's two rows that see their key, of a masked step whose keys have not
  // been given back. Found while products run, before the logits are there.
  S2O_DEVICE void look_at_mask(std::uint32_t flags, std::uint32_t (&columns)[2]) const {
    if ((flags & kStepMasked) == 0) [[likely]]
      return;
    const unsigned ring = keys_.ring();
    const PublishedStep& step = s_.steps[ring];
    const auto mask = static_cast<MaskClass>(flags >> 8 & 0xffu);
    const int valid_columns = step.count - column_of();
    if (mask == MaskClass::kNone) {  // not every column holds a key
      columns[0] = columns[1] = lane_columns_below(valid_columns);
    } else {
      VisibleKeys visible[2];
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        visible[i] = visible_keys(mask, description().row_position[row_of(i)], args_.window_sink,
                                  args_.window_size);
      }
      if ((flags & kStepGathered) != 0) {
        visible_gathered_columns<2 * kKeyTiles>(visible, s_.keys[ring] + column_of(), valid_columns,
                                                columns);
      } else {
        const int first_token = static_cast<int>(step.begin) + column_of();
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          columns[i] = mask == MaskClass::kWindow
                           ? visible_lane_columns(visible[i], first_token, valid_columns)
                           : causal_lane_columns(visible[i].last, first_token, valid_columns);
        }
      }
    }
  }

  S2O_DEVICE void softmax(std::uint32_t flags, float (&logits)[kKeyTiles][4],
                          const float (&reference)[2], const float (&correction)[2]) {
    float step_sum[2] = {0.0f, 0.0f};
    softmax_columns<0, kKeyTiles>(logits, args_.scale_log2, reference, step_sum);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      rows_.normaliser[i] = fused(rows_.normaliser[i], correction[i], step_sum[i]);
    }
    if constexpr (kEarlyStop) {
      // A plan step may span several tile steps: its mass so far follows the maximum.
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const float before = (flags & StepInfo::kStartsPlanStep) != 0 ? 0.0f : plan_step_mass_[i];
        plan_step_mass_[i] = fused(before, correction[i], step_sum[i]);
      }
    }
  }

  // Once the largest keys have been seen, maxima rarely move: then there is nothing to do. Nor is
  // there before the first product.
  S2O_DEVICE void rescale(const float (&correction)[2]) {
    if (accumulate_ == 0 || !any_lane(correction[0] != 1.0f || correction[1] != 1.0f)) return;
    scale_rows(correction, acc_);
  }
  // The same question without a jump, for where it is asked among exponentials.
  S2O_DEVICE bool must_rescale(const float (&correction)[2]) const {
    return any_lane((accumulate_ != 0) & ((correction[0] != 1.0f) | (correction[1] != 1.0f)));
  }

  // ---- decisions of the whole tile ----

  // Where this lane finds the value of the consumer warp of its number, and nothing beyond the
  // last.
  S2O_DEVICE std::uint32_t posted_place() const {
    return shared_address(s_.posted[decisions_ % 2]) + static_cast<std::uint32_t>(thread_ % 32 * 4);
  }
  // Puts this warp's value, the same in all lanes, into the next decision. The lane that writes is
  // the one that arrives.
  S2O_DEVICE void post(std::uint32_t value) {
    store_and_arrive(posted_place(), value, &s_.all_posted,
                     thread_ % 32 == warpgroup_ * 4 + thread_ / 32);
  }
  // Waits for all warps; what each lane found. Before a warp posts anew it meets (give_back): all
  // of its lanes have read these then.
  S2O_DEVICE std::uint32_t wait_posted() {
    barrier_wait(&s_.all_posted, decisions_ % 2);
    const std::uint32_t value = load_shared(posted_place());
    ++decisions_;
    return value;
  }

  S2O_DEVICE void start_gains() {
    const int num_rows = description().num_rows;
    const float unit = gain_unit(args_, description().inverse_tau, num_rows);
    gain_unit_ = row_of(thread_ % 2) < num_rows ? unit : 0.0f;
  }
  S2O_DEVICE std::uint32_t gains_of_warp() const {
    return warp_gains(args_, rows_, plan_step_mass_, gain_unit_, thread_ % 2 != 0);
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
    post(warp_maximum(ordered_bits(excess)));
    return ordered_float(warp_maximum(wait_posted())) + args_.pv_skip_threshold <= 0.0f;
  }

  int accumulate_ = 1;  // 0 before the first product with values of a tile
};

}  // namespace s2o::device
