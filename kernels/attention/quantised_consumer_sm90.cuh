// A consumer warpgroup of the kernel over quantised input: 64 query rows of the tile.
//
// Per step: S = Q K(j)^T is issued, then O += P V(j-1); maxima of step j are taken when S is there.
// Its probabilities are codes of integers without exponentials (quantise.h), made while O is
// multiplied. With values in e4m3 it moves to sums in fp32. How tiles follow each other, the early
// stop and the PV skip are as in the kernel over 16-bit input (consumer_sm90.cuh).
#pragma once

#include <type_traits>

#include "kernels/attention/quantised_fragments_sm90.cuh"
#include "kernels/attention/quantised_output_sm90.cuh"
#include "kernels/device/mbarrier_test_sm90.cuh"

namespace s2o::device {

template <class Traits>
class QuantisedConsumer : QuantisedOutput<Traits> {
  using Base = QuantisedOutput<Traits>;
  using Base::acc_, Base::allow_other, Base::args_, Base::clear_outputs, Base::column_of;
  using Base::count_step, Base::decisions_, Base::description, Base::drop_values, Base::enter_tile;
  using Base::fence_gathered, Base::finish_values, Base::gain_unit_, Base::give_back;
  using Base::has_sums_, Base::kEarlyStop, Base::kPvSkip, Base::kQueryBuffers, Base::keys_;
  using Base::may_skip_values, Base::pin_outputs, Base::plan_step_mass_, Base::resumed_logit;
  using Base::row_of, Base::rows_, Base::s_, Base::small_steps_, Base::stats_, Base::stopped_;
  using Base::store_tile, Base::sum_products, Base::sums_scale_, Base::take_turn, Base::thread;
  using Base::tile_count_, Base::unsummed_, Base::values_, Base::wait_queries, Base::wait_step;
  using Base::wait_values, Base::warpgroup_;

 public:
  S2O_DEVICE QuantisedConsumer(const QuantisedKernelArgs& args, SharedSm90<Traits>& shared)
      : Base(args, shared) {}

  S2O_DEVICE static void init_decisions(SharedSm90<Traits>& shared) {
    for (std::int32_t& tile : shared.stopped_tile) tile = 0;
    for (std::uint32_t& value : shared.posted) value = 0;
  }
  // By all threads, beside the values of every stage.
  S2O_DEVICE static void write_ones(SharedSm90<Traits>& shared) {
    constexpr std::uint32_t kFourOnes = 0x38383838u;
    constexpr int kWords = Traits::kOnesBytes / 4;
    for (int i = thread_index(); i < Traits::kStages * kWords; i += Traits::kThreads) {
      store_shared_word(
          shared_address(shared.v[i / kWords]) + Traits::kValueBytes + i % kWords * 4u, kFourOnes);
    }
    fence_async_proxy();
  }

  S2O_DEVICE void run() {
    if (warpgroup_ == 1) allow_other();  // warpgroup 0 begins
    visit_steps();
  }

 private:
  static constexpr bool kWideValues = Traits::kWideValues;
  static constexpr unsigned kPlaces = std::extent_v<typename Traits::Posted>;
  using Logits = std::uint32_t[16][4];
  using Halves = std::uint32_t[8][4];
  using Probabilities = std::uint32_t[Traits::kPackedSteps][4];

  // ---- buffers ----

  // Its flags if it is there; 0 if not, or if it has none.
  S2O_DEVICE std::uint32_t look_at_step() const {
    const bool there = barrier_test(&s_.k_full[keys_.stage()], keys_.parity());
    return there ? load_shared(shared_address(&s_.steps[keys_.ring()].flags)) : 0;
  }
  // Gives the K buffer back; the place of its step and keys, which stay beyond that (kRing).
  S2O_DEVICE unsigned release_keys(std::uint32_t flags) {
    const unsigned place = keys_.ring();
    if (kEarlyStop && (flags & kStepStoppable) != 0 &&
        thread_index_again() == Traits::kProducerThreads) {
      s_.stopped_tile[place] = stopped_ != 0 ? static_cast<std::int32_t>(tile_count_) + 1 : 0;
    }
    give_back(&s_.k_empty[keys_.stage()]);
    keys_.advance();
    return place;
  }

  // ---- a tile ----

  S2O_DEVICE void start_tile() {
    stats_ = {0, 0, 0, 0};
    if constexpr (kEarlyStop) start_gains();
    unsummed_ = 0;
    has_sums_ = false;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      rows_.codes.start(i, description().logit_scale[row_of(i)]);
      rows_.normaliser[i] = 0.0f;
      sums_scale_[i] = 1.0f;
      if (args_.resume_out == nullptr) continue;
      // Goes on from (out, lse) of an earlier launch: the state (m, l, acc) = (lse, 1, out); `out`
      // joins when the row is stored, scaled by then like everything of the start.
      const std::int32_t index = description().row_index[row_of(i)];
      if (index < 0) continue;
      const float lse = args_.lse[index];
      if (lse == kNegativeInfinity) continue;
      const float logit = resumed_logit(description(), row_of(i), lse);
      rows_.codes.resume(i, logit);
      // Lanes of a quad hold parts of a sum, or the same product.
      rows_.normaliser[i] =
          !kWideValues || column_of() == 0 ? exp2_fast(logit - rows_.codes.logit_of_one(i)) : 0.0f;
    }
    clear_outputs();
#pragma unroll
    for (float& product : rows_.products[0]) product = 0.0f;
  }

  S2O_DEVICE void change_tile() {
    if (tile_count_ > 0) store_tile();
    start_tile();
  }

  // The assembler lets products run under other code only where every path to a wait issues the
  // same products. So there are two kinds of rounds: opening ones, after which probabilities wait
  // for their product with V, and overlapped ones, which begin and end that way.
  S2O_DEVICE void visit_steps() {
    Logits logits;
    Probabilities p;  // of the step before, packed
    float step_sum[2], correction[2];
    std::uint32_t flags = wait_step();
    for (;;) {
      if ((flags & kStepEndsLaunch) != 0) break;
      const bool opens_tile = (flags & kStepStartsTile) != 0;
      if (opens_tile) {
        enter_tile();
      } else if ((flags & stopped_) != 0) {  // loaded before the producer knew
        drop_step(flags);
        flags = wait_step();
        continue;
      }
      fence_gathered(flags);
      multiply_keys(logits);
      warpgroup_wait<1>();
      pin_outputs();  // the last product with V is done, says the wait
      if (opens_tile) change_tile();
      warpgroup_wait<0>();
      pin_registers(logits);
      if (!prepare_step(flags, release_keys(flags), logits)) {
        count_step(flags, true);
        drop_values();
        flags = wait_step();
        continue;
      }
      const bool first_rises = raise_rows(logits, rows_.codes, correction);
      Halves first_halves;
      make_codes(logits, rows_.codes, step_sum, first_halves);
      make_probabilities(first_halves, p);
      add_step(flags, step_sum, first_rises, correction);
      count_step(flags, false);
      std::uint32_t waiting = flags;  // of the step whose probabilities wait
      bool has_p = true;
      flags = wait_step();
      for (;;) {
        if ((flags & (stopped_ | kStepEndsLaunch)) != 0 && (flags & kStepStartsTile) == 0) break;
        const bool starts_tile = (flags & kStepStartsTile) != 0;
        if (starts_tile) enter_tile();
        fence_gathered(flags);
        take_turn();
        multiply_keys(logits);
        wait_values();
        fence_gathered(waiting);
        multiply_values(p);
        if constexpr (kWideValues) allow_other();
        if constexpr (kEarlyStop) post_gain();
        warpgroup_wait<1>();
        pin_registers(logits);
        if constexpr (!kWideValues) allow_other();  // whose keys meet the codes of these
        const unsigned ring = release_keys(flags);
        if (starts_tile) {
          finish_values(p, true);
          change_tile();
          waiting = 0;  // nothing is decided about it any more
        }
        if (!prepare_step(flags, ring, logits)) {
          finish_values(p, !starts_tile);
          count_step(flags, true);
          drop_values();
          has_p = false;
          flags = wait_step();
          break;
        }
        const auto before = rows_.codes;
        // NOTE: the branch keeps the wait for V behind the maxima.
        const bool rises = raise_rows(logits, rows_.codes, correction);
        std::uint32_t next;
        Halves halves;
        // NOTE: a loop, as in consumer_sm90.cuh: the assembler would move the wait for V before
        // straight code. What it waits for depends on the codes, or they would move behind it.
        const int no_parity =
            any_lane(make_codes(logits, rows_.codes, step_sum, halves)) ? 1 : 0;  // 0
        if constexpr (kEarlyStop) wait_queries(no_parity);
        next = kEarlyStop ? look_at_step() : wait_step(no_parity);
        finish_values(p, !starts_tile);
        make_probabilities(halves, p);
        if constexpr (kEarlyStop) {
          const std::uint32_t gains = collect();
          decide(waiting, gains);
          if ((flags & stopped_) != 0) {  // the decision came too late for this step
            rows_.codes = before;
            drop_values();
            has_p = false;
            flags = next == 0 ? wait_step() : next;
            break;
          }
        }
        add_step(flags, step_sum, rises, correction);
        sum_products();
        count_step(flags, false);
        waiting = flags;
        flags = kEarlyStop && next == 0 ? wait_step() : next;
      }
      if (has_p) {
        wait_values();
        fence_gathered(waiting);
        multiply_values(p);
        finish_values(p, true);
      }
    }
    ++tile_count_;
    if (tile_count_ > 0) store_tile();
  }

  // Masks the logits of the step at `ring`. False: the step adds nothing (PV skip).
  S2O_DEVICE bool prepare_step(std::uint32_t flags, unsigned ring, Logits& logits) {
    if ((flags & (kStepMasked | kStepMaySkip)) == 0) [[likely]]
      return true;
    if ((flags & kStepMasked) != 0) mask_logits(flags, ring, logits);
    return !kPvSkip || (flags & kStepMaySkip) == 0 || !may_skip_values() ||
           !step_adds_nothing(logits);
  }
  // Decides about the rest of the tile by the gains of its rows after the step of `flags`, which
  // lane 0 knows.
  S2O_DEVICE void decide(std::uint32_t flags, std::uint32_t gains) {
    const bool decides = (flags & kStepDecides) != 0;  // no jump: most steps do
    if (decides) small_steps_ = gains < kGainOfTau ? small_steps_ + 1 : 0;
    const bool stop =
        decides && small_steps_ >= args_.stop.patience && stats_.stop_steps >= args_.stop.min_steps;
    stopped_ |= any_lane(stop) ? kStepStoppable : 0;
  }

  S2O_DEVICE void drop_step(std::uint32_t flags) {
    fence_gathered(flags);  // as where they are read: the copy engine may write there next
    release_keys(flags);
    drop_values();
  }

  // ---- products ----

  S2O_DEVICE void multiply_keys(Logits& logits) const {
    multiply_quantised_keys(shared_address(s_.q[tile_count_ % kQueryBuffers]) +
                                static_cast<std::uint32_t>(warpgroup_ * 64 * kPanelRowBytes),
                            shared_address(s_.k[keys_.stage()]), logits);
  }
  S2O_DEVICE void multiply_values(Probabilities& p) {
    if constexpr (kWideValues) {
      multiply_wide_values(shared_address(s_.v[values_.stage()]), p, acc_);
    } else {
      multiply_quantised_values(shared_address(s_.v[values_.stage()]), p, acc_, rows_.products,
                                unsummed_);
      ++unsummed_;
    }
  }

  // ---- softmax ----

  S2O_DEVICE void mask_logits(std::uint32_t flags, unsigned ring, Logits& logits) const {
    const PublishedStep& step = s_.steps[ring];
    const bool contiguous = !kWideValues || (flags & kStepGathered) == 0;
    const auto mask = static_cast<MaskClass>(flags >> 8 & 0xffu);
    const int valid_columns = step.count - column_of();
    const VisibleKeys visible[2] = {visible_keys(mask, description().row_position[row_of(0)],
                                                 args_.window_sink, args_.window_size),
                                    visible_keys(mask, description().row_position[row_of(1)],
                                                 args_.window_sink, args_.window_size)};
    std::uint32_t columns[2];  // that are visible
    if (contiguous) {
      const int first_token = static_cast<int>(step.begin) + column_of();
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        columns[i] = visible_lane_columns(visible[i], first_token, valid_columns);
      }
    } else {
      visible_gathered_columns<32>(visible, s_.keys[ring] + column_of(), valid_columns, columns);
    }
    hide_sums(columns, logits);
  }

  // The step counts: sums and outputs follow their octaves.
  S2O_DEVICE void add_step(std::uint32_t flags, const float (&step_sum)[2], bool rises,
                           const float (&correction)[2]) {
    if (rises) {
      scale_rows(correction, acc_);
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        sums_scale_[i] *= correction[i];
        rows_.normaliser[i] *= correction[i];
        plan_step_mass_[i] *= correction[i];
        rows_.products[0][2 * i] *= correction[i];
      }
    }
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      if constexpr (kWideValues) rows_.normaliser[i] += step_sum[i];
      if constexpr (kEarlyStop) {  // a plan step may span several tile steps
        const bool starts = (flags & StepInfo::kStartsPlanStep) != 0;
        plan_step_mass_[i] = (starts ? 0.0f : plan_step_mass_[i]) + step_sum[i];
      }
    }
  }

  // ---- decisions of the whole tile ----

  // Puts this warp's value, the same in all lanes, into the next decision; `collect` sees those of
  // all consumer warps. Only lane 0 touches shared memory: barriers order what one thread does.
  S2O_DEVICE void post(std::uint32_t value, bool maximum) {
    if (thread() % 32 == 0) {
      std::uint32_t* const place = &s_.posted[decisions_ % kPlaces];
      if (maximum) {
        atomic_max(place, value);
      } else {
        atomic_add(place, value);
      }
      // The last but one decision was read by all before they posted to the last, and this place
      // is next used after all have posted here.
      if (thread() == 0 && warpgroup_ == 0) s_.posted[(decisions_ + 2) % kPlaces] = 0;
      barrier_arrive(&s_.all_posted);
    }
  }
  // Waits for all warps; the reduced value in lane 0, the largest number in the others.
  S2O_DEVICE std::uint32_t collect() {
    barrier_wait(&s_.all_posted, decisions_ % 2);
    const unsigned place = decisions_++ % kPlaces;
    return thread() % 32 == 0 ? load_shared(shared_address(&s_.posted[place])) : ~0u;
  }

  S2O_DEVICE void start_gains() {
    const int num_rows = description().num_rows;
    const float unit = gain_unit(args_, description().inverse_tau, num_rows);
    gain_unit_ = row_of(thread() % 2) < num_rows ? unit : 0.0f;
  }
  S2O_DEVICE void post_gain() {
    const RowPair sums{{0.0f, 0.0f}, {rows_.normaliser[0], rows_.normaliser[1]}};
    post(warp_gains(args_, sums, plan_step_mass_, gain_unit_, thread() % 2 != 0), false);
  }

  // Whether the step's maximum of every row lies the threshold below the running one (base 2), or
  // the octave that this lies in.
  S2O_DEVICE bool step_adds_nothing(const Logits& logits) {
    float excess = kNegativeInfinity;
    std::int32_t largest[2];
    largest_sums(logits, largest);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const std::int32_t all = largest_of_quad(largest[i]);
      if (row_of(i) >= description().num_rows) continue;
      if (all == static_cast<std::int32_t>(kHiddenSum)) continue;
      const float logit = static_cast<float>(all) * description().logit_scale[row_of(i)];
      excess = max_of(excess,
                      rows_.codes.has_key(i) ? min_of(logit - rows_.codes.octave(i), 0.0f) : 0.0f);
    }
    post(warp_maximum(ordered_bits(excess)), true);
    return ordered_float(first_lane(collect())) + args_.pv_skip_threshold <= 0.0f;
  }
};

}  // namespace s2o::device
