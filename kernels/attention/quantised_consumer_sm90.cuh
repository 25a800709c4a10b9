// A consumer warpgroup of the kernel over quantised input: 64 query rows of the tile.
//
// Per step: S = Q K(j)^T is issued, then O += P V(j-1); maxima of step j are taken when S is there.
// Its probabilities are codes of integers without exponentials (quantise.h), made while O is
// multiplied. With values in e4m3 it moves to sums in fp32. How tiles follow each other, the early
// stop and the PV skip are as in the kernel over 16-bit input (consumer_sm90.cuh).
#pragma once

#include <type_traits>

#include "kernels/attention/consumer_base_sm90.cuh"
#include "kernels/attention/fragments_sm90.cuh"
#include "kernels/attention/gains_sm90.cuh"
#include "kernels/attention/quantised_fragments_sm90.cuh"
#include "kernels/attention/quantised_traits_sm90.cuh"
#include "kernels/device/mbarrier_test_sm90.cuh"
#include "kernels/device/online_softmax.cuh"
#include "kernels/device/wgmma_sm90.cuh"

namespace s2o::device {

template <class Traits>
class QuantisedConsumer : ConsumerBase<Traits> {
  using Base = ConsumerBase<Traits>;
  using Base::acc_, Base::args_, Base::decisions_, Base::gain_unit_, Base::plan_step_mass_;
  using Base::description, Base::enter_tile, Base::give_back, Base::last_description;
  using Base::kEarlyStop, Base::kPvSkip, Base::kQueryBuffers, Base::kRing, Base::kStages;
  using Base::keys_, Base::values_, Base::wait_step, Base::wait_values, Base::release_values,
      Base::allow_other, Base::clear_outputs, Base::column_of, Base::count_step;
  using Base::kTileN, Base::kValueTiles;
  using Base::may_skip_values, Base::take_turn;
  using Base::rows_, Base::s_, Base::small_steps_, Base::stats_, Base::stopped_;
  using Base::thread, Base::thread_, Base::wait_queries, Base::tile_count_, Base::warpgroup_;

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

  S2O_DEVICE static int row_of(int i) {
    const int thread = thread_index_again() - Traits::kProducerThreads;
    return thread / 32 * 16 + accumulator_position(lane_of(thread), 2 * i).row;
  }

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
      const bool rises = raise_rows(logits, correction);
      Halves halves;
      make_codes(logits, step_sum, halves);
      make_probabilities(halves, p);
      add_step(flags, step_sum, rises, correction);
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
        const bool rises = raise_rows(logits, correction);
        std::uint32_t next;
        Halves halves;
        // NOTE: a loop, as in consumer_sm90.cuh: the assembler would move the wait for V before
        // straight code. What it waits for depends on the codes, or they would move behind it.
        const int no_parity = any_lane(make_codes(logits, step_sum, halves)) ? 1 : 0;  // 0
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
  S2O_DEVICE void pin_outputs() {
    pin_registers(acc_);
    if constexpr (!kWideValues) pin_registers(rows_.products);
  }
  // Waits for the product of p and V; both are free then. V is given back `once`.
  S2O_DEVICE void finish_values(Probabilities& p, bool once) {
    warpgroup_wait<0>();
    pin_outputs();
    pin_registers(p);
    if (once) release_values();
  }
  S2O_DEVICE void drop_values() {
    wait_values();
    if constexpr (kWideValues) fence_async_proxy();  // as drop_step
    release_values();
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

  // Keys and values that came by cp.async.
  S2O_DEVICE static void fence_gathered(std::uint32_t flags) {
    if (kWideValues && (flags & kStepGathered) != 0) fence_async_proxy();
  }
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

  // Octaves rise to the logits where they must: whether they do in a row of this warp. Once the
  // largest keys have been seen they rarely do.
  S2O_DEVICE bool raise_rows(const Logits& logits, float (&correction)[2]) {
    std::int32_t largest[2];
    largest_sums(logits, largest);
    if (!exceeds_codes(rows_.codes, largest)) return false;
#pragma unroll
    for (int i = 0; i < 2; ++i) correction[i] = rows_.codes.raise(i, largest_of_quad(largest[i]));
    return true;
  }
  // Never true, which depends on all codes.
  S2O_DEVICE bool make_codes(const Logits& logits, float (&step_sum)[2], Halves& halves) const {
    if constexpr (kWideValues) {
      code_wide_logits(logits, rows_.codes, step_sum, halves);
      return step_sum[0] + step_sum[1] < 0.0f;
    } else {
      return (code_logits(logits, rows_.codes, halves) & kNoBit) != 0;
    }
  }
  S2O_DEVICE static void make_probabilities(const Halves& halves, Probabilities& p) {
    if constexpr (kWideValues) {
      double_halves(halves, p);
    } else {
      join_halves(halves, p);
    }
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

  // ---- output ----

  // Divides the rows of the tile before this one by their normaliser and writes them and lse in
  // original order (attention.h), then gives its queries back.
  S2O_DEVICE void store_tile() {
    const QuantisedTile<Traits>& tile = last_description();
    float inverse[2], lse[2];
    add_sums();
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const float normaliser = kWideValues ? quad_sum(rows_.normaliser[i])
                                           : rows_.normaliser[i] + rows_.products[0][2 * i];
      const bool empty = normaliser == 0.0f;
      lse[i] = empty ? kNegativeInfinity
                     : rows_.codes.logit_of_one(i) * kLn2 + tile.lse_shift[row_of(i)] +
                           log_natural(normaliser);
      inverse[i] = empty ? 0.0f : tile.value_scale / normaliser;
      const std::int32_t row = tile.row_index[row_of(i)];
      if (row < 0) continue;
      const std::int64_t first = static_cast<std::int64_t>(row) * Traits::kHeadDim + column_of();
      if (args_.resume_out != nullptr && !empty) {
        const float earlier = resumed_logit(tile, row_of(i), args_.lse[row]);
        add_resumed_row(args_.resume_out + first,
                        exp2_fast(earlier - rows_.codes.logit_of_one(i)) / tile.value_scale, i,
                        acc_);
      }
      if (args_.out_fp32 != nullptr) store_row(args_.out_fp32 + first, inverse[i], i, acc_);
    }
    if (args_.out_fp32 == nullptr) store_rows_16(tile, inverse);
    sync_warp();  // every lane has read the lse of its rows
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const std::int32_t row = tile.row_index[row_of(i)];
      if (row >= 0 && column_of() == 0) args_.lse[row] = lse[i];
    }
    if (warpgroup_ == 0 && thread() == 0) args_.stats[tile.plan_tile] = stats_;
    give_back(&s_.q_empty[(tile_count_ - 1) % kQueryBuffers]);
  }

  // ---- sums ----

  // An lse in base 2, of logits as the kernel sees them.
  S2O_DEVICE static float resumed_logit(const QuantisedTile<Traits>& tile, int row, float lse) {
    return (lse - tile.lse_shift[row]) * kLog2E;
  }
  // Products of kSummedSteps steps move to sums in fp32; the next one starts afresh.
  S2O_DEVICE void sum_products() {
    if constexpr (kWideValues) return;
    if (unsummed_ < Traits::kSummedSteps) return;
    unsummed_ = 0;
    float* const place = &s_.sums[warpgroup_ * 4 + thread() / 32][0][thread() % 32][0];
#pragma unroll
    for (int n = 0; n < kValueTiles; ++n) {
      auto* const words = reinterpret_cast<Words4*>(place + n * 128);
      Words4 sums = has_sums_ ? *words : Words4{};
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        sums.word[e] = float_bits(fused(bits_float(sums.word[e]), sums_scale_[e / 2], acc_[n][e]));
      }
      *words = sums;
    }
    rows_.normaliser[0] += rows_.products[0][0];
    rows_.normaliser[1] += rows_.products[0][2];
    has_sums_ = true;
    sums_scale_[0] = sums_scale_[1] = 1.0f;
  }
  S2O_DEVICE void add_sums() {
    if constexpr (kWideValues) return;
    if (!has_sums_) return;
    const float* const place = &s_.sums[warpgroup_ * 4 + thread() / 32][0][thread() % 32][0];
#pragma unroll
    for (int n = 0; n < kValueTiles; ++n) {
      const Words4 sums = *reinterpret_cast<const Words4*>(place + n * 128);
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        acc_[n][e] = fused(bits_float(sums.word[e]), sums_scale_[e / 2], acc_[n][e]);
      }
    }
  }

  // Rows in 16 bit by way of the place of this warp's sums, which nobody needs any more: it then
  // writes whole rows instead of 16 bytes of each of eight.
  S2O_DEVICE void store_rows_16(const QuantisedTile<Traits>& tile, const float (&inverse)[2]) {
    constexpr int kChunks = Traits::kHeadDim / kChunkElements;
    constexpr int kRowsAtOnce = 32 / kChunks;
    const int lane = lane_of(thread_index_again());
    auto* const rows = reinterpret_cast<unsigned char*>(s_.sums[warpgroup_ * 4 + thread() / 32]);
    sync_warp();
    store_fragments_16<typename Traits::Output>(shared_address(rows), 16, lane, inverse, acc_);
    sync_warp();
    const int first_of_tile = row_of(0) - lane / 4;
    const int chunk = lane % kChunks;
#pragma unroll
    for (int i = 0; i < 16 / kRowsAtOnce; ++i) {
      const int row = lane / kChunks + i * kRowsAtOnce;
      const std::int32_t index = tile.row_index[first_of_tile + row];
      const Words4 words =
          load_shared_16(shared_address(rows + swizzled_chunk_offset(16, row, chunk)));
      if (index < 0) continue;
      store_words<4>(static_cast<std::uint16_t*>(args_.out_16) +
                         static_cast<std::int64_t>(index) * Traits::kHeadDim +
                         chunk * kChunkElements,
                     words);
    }
    sync_warp();  // before sums are written again
  }

  float sums_scale_[2];
  int unsummed_ = 0;  // e4m3: products with V in acc_
  bool has_sums_ = false;
};

}  // namespace s2o::device
