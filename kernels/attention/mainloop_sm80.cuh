// The portable attention kernel: one block per tile, one buffer of K and one of V.
//
// Step j:   wait K(j)  -> start V(j)   | S = Q K(j)^T, mask
//           wait V(j)  -> start K(j+1) | softmax, O += P V(j)
// so that one of the two loads is always in flight behind the tensor cores, and a second resident
// block fills the gaps of the softmax. Thread 0 walks the plan two steps ahead; the token indices
// of step j + 1 are fetched while step j computes, so a gather costs no more latency than a run.
//
// Early stop: the gains of step j meet in shared memory at the barrier that step j + 1 needs
// anyway, and the decision is taken there, before step j + 1 is computed. The load of K(j+1) is
// lost.
#pragma once

#include "kernels/attention/tile_sm80.cuh"

namespace s2o::device {

// Items are copied to shared memory behind the other loads.
struct FetchAsync {
  S2O_DEVICE ItemWords item(const PlanItem* source) const { return load_item(source); }
  S2O_DEVICE void request(ItemWords& target, const PlanItem* source) const {
    copy_async_16(shared_address(&target), source, true);
  }
};

template <class Traits>
class MainloopSm80 {
 public:
  S2O_DEVICE explicit MainloopSm80(const AttentionKernelArgs& args)
      : args_(args), s_(*reinterpret_cast<SharedSm80<Traits>*>(shared_memory())) {}

  S2O_DEVICE void run() {
    load_queries();
    tile_state_.start(s_.row_states);
    if (args_.resume_out != nullptr) {
      tile_state_.resume(args_.lse, s_.row_index);
    }
    if (thread_index() == 0) s_.walker.start(args_.pass, plan_tile());
    refill(0);
    visit_steps();
    tile_state_.store(args_, s_.row_index);
    if (thread_index() == 0) args_.stats[plan_tile()] = s_.stats;
  }

 private:
  static constexpr int kThreads = Traits::kThreads;
  static constexpr int kTileN = Traits::kTileN;
  static constexpr int kStopped = -1;
  using Tile = TileSm80<Traits>;
  using Logits = float[Tile::kRowTiles][Tile::kKeyTiles][4];

  // Which tile this block runs. Read again where it is needed: registers are short in the loop.
  S2O_DEVICE std::int32_t plan_tile() const {
    return load_global(args_.tile_order + block_index());
  }

  S2O_DEVICE void load_queries() {
    const std::int32_t order = plan_tile();
    const int plan_head = order / args_.num_q_tiles;
    const int tile = order % args_.num_q_tiles;
    if (thread_index() < Traits::kTileM) {
      const TileRowMap row = tile_row(args_, plan_head, tile, Traits::kTileM, thread_index());
      s_.row_index[thread_index()] = row.index;
      s_.row_position[thread_index()] = row.position;
    }
    if (thread_index() == 0) {
      s_.plan_head = plan_head;
      s_.kv_head_bytes = static_cast<std::int64_t>(plan_head / args_.plan_heads_per_kv_head) *
                         args_.seqlen * (Traits::kHeadDim * 2);
      s_.num_rows = rows_in_tile(args_, tile, Traits::kTileM);
      s_.total_plan_steps = 0;
      s_.tau = args_.pass.tau_of(plan_head, args_.stop);
      s_.steps[3].flags = 0;  // stands in for the step before the first
      s_.stats = {0, 0, 0, 0};
    }
    sync_block(kThreads);
    copy_rows_async<Traits::kTileM, Traits::kHeadDim, kThreads>(shared_address(s_.q), args_.q,
                                                                s_.row_index, thread_index());
    copy_async_commit();
    if (warp_index() == 0) {
      const int first = smallest_position(s_.row_position, s_.num_rows);
      if (lane_index() == 0) s_.first_position = first;
    }
    if (args_.pv_skip_threshold > 0.0f) {
      const int steps = plan_steps_of_thread(args_, order, kThreads);
      if (steps > 0) atomic_add(&s_.total_plan_steps, steps);
    }
  }

  // Thread 0: the walker's next step becomes step j.
  S2O_DEVICE void walk_to(int j) {
    StepInfo step = s_.walker.template next<kTileN>(args_.block_n, FetchAsync{});
    if (step.count > 0) {
      step.flags = annotated_flags<kTileN>(step, args_.pass, s_.first_position,
                                           args_.pv_skip_threshold > 0.0f, args_.stop.tau > 0.0f);
    }
    s_.steps[j % 4] = step;
  }

  // Walks to steps j and j + 1 and starts the loads of step j.
  S2O_DEVICE void refill(int j) {
    if (thread_index() == 0) {
      walk_to(j);
      copy_async_commit();
      copy_async_wait<0>();  // the walker's request
      walk_to(j + 1);
    }
    sync_block(kThreads);
    store_tokens(j, fetch_token(j));
    sync_block(kThreads);
    start_keys(j);
  }

  // Consecutive tokens need no list of them, unless rows beyond the end must be made up: these
  // repeat the last key; they are masked, and their values count zero times.
  static S2O_DEVICE bool needs_tokens(const StepInfo& step) {
    return (step.flags & kStepGathered) != 0 || step.count != kTileN;
  }
  S2O_DEVICE std::int32_t fetch_token(int j) const {
    const int thread = thread_index_again();
    const StepInfo& step = s_.steps[j % 4];
    if (thread >= kTileN || step.count == 0 || !needs_tokens(step)) return 0;
    return step_token(step, args_.pass, args_.seqlen, s_.plan_head, min_of(thread, step.count - 1));
  }
  S2O_DEVICE void store_tokens(int j, std::int32_t token) {
    const int thread = thread_index_again();
    if (thread < kTileN) s_.keys[j % 2][thread] = token;
  }
  S2O_DEVICE void copy_rows(int j, std::uint32_t target, const void* tensor) {
    const StepInfo& step = s_.steps[j % 4];
    const auto* const base = static_cast<const unsigned char*>(tensor) + s_.kv_head_bytes;
    const RowCopier<kTileN, Traits::kHeadDim, Traits::kWarps> copier(target, thread_index_again());
    if (needs_tokens(step)) {
      copier.gather(base, s_.keys[j % 2]);
    } else {
      copier.copy(base + step.begin * (Traits::kHeadDim * 2));
    }
  }
  S2O_DEVICE void start_keys(int j) {
    if (s_.steps[j % 4].count > 0) copy_rows(j, shared_address(s_.k), args_.k);
    copy_async_commit();
  }
  S2O_DEVICE void start_values(int j) {
    copy_rows(j, shared_address(s_.v), args_.v);
    copy_async_commit();
  }

  S2O_DEVICE void visit_steps() {
    for (int j = 0;; ++j) {
      copy_async_wait<0>();
      sync_block(kThreads);  // K(j), step j + 1 and the gains of step j - 1 are in shared memory
      const StepInfo& previous = s_.steps[(j + 3) % 4];
      if ((previous.flags & kStepDecides) != 0) decide_stop();
      if (small_steps_ < 0 && s_.steps[j % 4].count > 0 && s_.steps[j % 4].stoppable()) {
        // At most once per tile: the steps after a refill are never stoppable.
        if (thread_index() == 0) {
          s_.walker.stopped = true;
          s_.walker.restart_after(s_.steps[j % 4].item);
        }
        sync_block(kThreads);
        refill(j);
        copy_async_wait<0>();
        sync_block(kThreads);
      }
      if (s_.steps[j % 4].count == 0) break;
      visit_step(j);
    }
  }

  S2O_DEVICE void visit_step(int j) {
    start_values(j);
    if (thread_index() == 0) {
      walk_to(j + 2);
    }
    const std::int32_t next_token = fetch_token(j + 1);

    Logits logits;
    clear(logits);
    tile_state_.template multiply_keys<false>(shared_address(s_.q), shared_address(s_.k), logits);
    const StepInfo& step = s_.steps[j % 4];  // in shared memory: registers are short
    const std::uint32_t flags = step.flags;
    if ((flags & kStepMasked) != 0) mask_logits(step, j, logits);
    const bool may_skip = (flags & kStepMaySkip) != 0 && may_skip_values();
    if (may_skip) post_excess(logits);

    store_tokens(j + 1, next_token);
    copy_async_wait<0>();
    sync_block(kThreads);  // V(j), tokens of step j + 1, excesses
    start_keys(j + 1);

    if (may_skip && step_adds_nothing()) {
      if (thread_index() == 0) ++s_.stats.pv_skipped;
    } else {
      update_state(flags, logits);
    }
    if ((flags & StepInfo::kEndsPlanStep) != 0) finish_plan_step(flags);
  }

  static S2O_DEVICE void clear(Logits& logits) {
#pragma unroll
    for (int t = 0; t < Tile::kRowTiles; ++t) {
#pragma unroll
      for (int n = 0; n < Tile::kKeyTiles; ++n) {
#pragma unroll
        for (int e = 0; e < 4; ++e) logits[t][n][e] = 0.0f;
      }
    }
  }

  S2O_DEVICE void mask_logits(const StepInfo& step, int j, Logits& logits) const {
    const int thread = thread_index_again();
    const bool gathered = (step.flags & kStepGathered) != 0;
    const std::int32_t* const tokens = s_.keys[j % 2] + Tile::column_of(thread);
    const int first_token = static_cast<int>(step.begin) + Tile::column_of(thread);
    const int valid_columns = step.count - Tile::column_of(thread);
#pragma unroll
    for (int t = 0; t < Tile::kRowTiles; ++t) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const VisibleKeys visible =
            visible_keys(step.mask(), s_.row_position[Tile::row_of(thread, t, i)],
                         args_.window_sink, args_.window_size);
#pragma unroll
        for (int n = 0; n < Tile::kKeyTiles; ++n) {
#pragma unroll
          for (int c = 0; c < 2; ++c) {
            const int column = n * 8 + c;
            const std::int32_t token = column >= valid_columns ? -1
                                       : gathered              ? tokens[column]
                                                               : first_token + column;
            if (!visible.contains(token)) {
              logits[t][n][2 * i + c] = kNegativeInfinity;
            }
          }
        }
      }
    }
  }

  S2O_DEVICE void update_state(std::uint32_t flags, Logits& logits) {
#pragma unroll
    for (int t = 0; t < Tile::kRowTiles; ++t) {
      float step_sum[2];
      float correction[2];
      RowPair rows = tile_state_.rows(t);
      softmax_step(logits[t], args_.scale_log2, rows, step_sum, correction);
      tile_state_.rows(t) = rows;
      tile_state_.rescale(t, correction);
      if ((flags & kStepStoppable) != 0) {
        // A plan step may span several tile steps: its mass so far follows the maximum.
        float(&mass)[2] = s_.plan_step_mass[thread_index_again()][t];
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          mass[i] = (flags & StepInfo::kStartsPlanStep) != 0
                        ? step_sum[i]
                        : fused(mass[i], correction[i], step_sum[i]);
        }
      }
    }
    tile_state_.multiply_values(shared_address(s_.v), logits);
  }

  S2O_DEVICE void finish_plan_step(std::uint32_t flags) {
    if (thread_index() == 0) {
      ++s_.stats.total_steps;
      s_.stats.stop_steps += (flags & kStepStoppable) != 0 ? 1 : 0;
    }
    if ((flags & kStepDecides) != 0) post_gain();
  }

  // gain = p_blk / l_new per row, reduced over the rows of this warp.
  S2O_DEVICE void post_gain() {
    const bool mean = args_.stop.reduce == StopReduce::kMean;
    const int thread = thread_index_again();
    float reduced = 0.0f;
#pragma unroll
    for (int t = 0; t < Tile::kRowTiles; ++t) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const float mass = quad_sum(s_.plan_step_mass[thread][t][i]);
        const float total = quad_sum(tile_state_.rows(t).normaliser[i]);
        const bool counts = Tile::row_of(thread, t, i) < s_.num_rows && total > 0.0f;
        const float gain = counts ? mass / total : 0.0f;
        reduced = mean ? reduced + gain : max_of(reduced, gain);
      }
    }
    for (int mask = 4; mask < 32; mask *= 2) {
      const float other = shuffle_xor(reduced, mask);
      reduced = mean ? reduced + other : max_of(reduced, other);
    }
    if (lane_of(thread) == 0) s_.warp_gain[warp_of(thread)] = reduced;
  }

  S2O_DEVICE void decide_stop() {
    const bool mean = args_.stop.reduce == StopReduce::kMean;
    float reduced = 0.0f;
    for (int warp = 0; warp < Traits::kWarps; ++warp) {
      reduced = mean ? reduced + s_.warp_gain[warp] : max_of(reduced, s_.warp_gain[warp]);
    }
    if (mean) reduced /= static_cast<float>(s_.num_rows);
    small_steps_ = reduced < s_.tau ? small_steps_ + 1 : 0;
    if (small_steps_ >= args_.stop.patience && s_.stats.stop_steps >= args_.stop.min_steps) {
      small_steps_ = kStopped;
    }
  }

  S2O_DEVICE bool may_skip_values() const {
    return args_.pv_skip_threshold > 0.0f &&
           s_.total_plan_steps - s_.stats.total_steps - 1 >= args_.pv_skip_exempt;
  }

  // Largest (step maximum - running maximum) of the rows of this warp, base 2.
  S2O_DEVICE void post_excess(const Logits& logits) {
    const int thread = thread_index_again();
    float excess = kNegativeInfinity;
#pragma unroll
    for (int t = 0; t < Tile::kRowTiles; ++t) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const float step_maximum = row_maximum(logits[t], i) * args_.scale_log2;
        const float running = max_of(tile_state_.rows(t).maximum[i], step_maximum);
        if (Tile::row_of(thread, t, i) < s_.num_rows && running != kNegativeInfinity) {
          excess = max_of(excess, step_maximum - running);
        }
      }
    }
    for (int mask = 4; mask < 32; mask *= 2) excess = max_of(excess, shuffle_xor(excess, mask));
    if (lane_of(thread) == 0) s_.warp_excess[warp_of(thread)] = excess;
  }

  S2O_DEVICE bool step_adds_nothing() const {
    float excess = kNegativeInfinity;
    for (int warp = 0; warp < Traits::kWarps; ++warp) excess = max_of(excess, s_.warp_excess[warp]);
    return excess + args_.pv_skip_threshold <= 0.0f;
  }

  const AttentionKernelArgs& args_;
  SharedSm80<Traits>& s_;
  Tile tile_state_;
  int small_steps_ = 0;  // consecutive steps of small gain, or kStopped
};

}  // namespace s2o::device
