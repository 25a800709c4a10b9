// The producer warpgroup of the Hopper kernel: takes tiles, loads Q, walks the plan and keeps the
// K and V buffers full.
//
// Contiguous keys come as tensor-map boxes, issued by thread 0; gathered keys by cp.async of all
// 128 threads into the same swizzled layout. Either way a buffer is full after kFillArrivals
// arrivals. Thread t fetches the token of key t one step ahead, so that the walk over indices never
// waits for memory between two steps.
#pragma once

#include "kernels/attention/kernel_args.h"
#include "kernels/attention/rows.cuh"
#include "kernels/attention/traits_sm90.cuh"
#include "kernels/device/tma_sm90.cuh"

namespace s2o::device {

inline constexpr int kProducerBarrier = 1;  // named barrier of the 128 producer threads

template <class Traits>
class ProducerSm90 {
 public:
  S2O_DEVICE ProducerSm90(const AttentionKernelArgs& args, const TensorMaps& maps,
                          SharedSm90<Traits>& shared)
      : args_(args), maps_(maps), s_(shared) {}

  S2O_DEVICE void run() {
    if (thread_index() == 0) {
      tensor_map_prefetch(&maps_.k);
      tensor_map_prefetch(&maps_.v);
      s_.next_order = atomic_add(args_.next_tile, 1);
    }
    for (tile_count_ = 0;; ++tile_count_) {
      if (!load_tile()) return;
      visit_steps();
    }
  }

 private:
  static constexpr int kStages = Traits::kStages;
  static constexpr int kRing = Traits::kRing;
  static constexpr int kTileN = Traits::kTileN;
  static constexpr int kTileBytes = tile_bytes(kTileN, Traits::kHeadDim);

  S2O_DEVICE static void sync_producers() {
    sync_named(kProducerBarrier, Traits::kProducerThreads);
  }

  // Waits until the last tile's Q was given back, then loads the next tile. False: none is left,
  // and the consumers know.
  S2O_DEVICE bool load_tile() {
    barrier_wait(&s_.q_empty, (tile_count_ + 1) % 2);
    sync_producers();  // thread 0 wrote next_order
    const std::int32_t order = s_.next_order;
    if (order >= args_.num_tiles) {
      if (thread_index() == 0) {
        s_.plan_tile = -1;
        barrier_arrive(&s_.q_full, Traits::kFillArrivals);
      }
      return false;
    }
    plan_tile_ = load_global(args_.tile_order + order);
    plan_head_ = plan_tile_ / args_.num_q_tiles;
    const int tile = plan_tile_ % args_.num_q_tiles;
    TileRowMap row = {-1, 0};
    if (thread_index() < Traits::kTileM) {
      row = tile_row(args_, plan_head_, tile, Traits::kTileM, thread_index());
      s_.row_index[thread_index()] = row.index;
      s_.row_position[thread_index()] = row.position;
    }
    const int num_rows = rows_in_tile(args_, tile, Traits::kTileM);
    if (thread_index() == 0) {
      s_.plan_tile = plan_tile_;
      s_.num_rows = num_rows;
      s_.total_plan_steps = 0;
    }
    sync_producers();  // rows are known, and everyone has read next_order
    copy_rows_async<Traits::kTileM, Traits::kHeadDim, Traits::kProducerThreads>(
        shared_address(s_.q), args_.q, s_.row_index, thread_index());
    barrier_arrive_after_copies(&s_.q_full);
    describe_tile(num_rows);
    sync_producers();  // the description is complete
    if (thread_index() == 0) {
      barrier_arrive(&s_.q_full);
      s_.next_order = atomic_add(args_.next_tile, 1);  // known long before it is needed
    }
    walker_.start(args_.pass, plan_tile_);
    return true;
  }

  S2O_DEVICE void describe_tile(int num_rows) {
    if (warp_index() == 0) {
      const int first = smallest_position(s_.row_position, num_rows);
      if (lane_index() == 0) s_.first_position = first;
    }
    if (args_.pv_skip_threshold > 0.0f) {
      const int steps = plan_steps_of_thread(args_, plan_tile_, Traits::kProducerThreads);
      if (steps > 0) atomic_add(&s_.total_plan_steps, steps);
    }
  }

  S2O_DEVICE StepInfo next_step() {
    return walker_.template next<kTileN>(args_.block_n, FetchNow{});
  }
  // Token of this thread's key, for steps whose keys are not contiguous.
  S2O_DEVICE std::int32_t fetch_token(const StepInfo& step) const {
    if (step.count == 0 || key_source(step, args_.pass) == KeySource::kContiguous) return -1;
    return step_token(step, args_.pass, args_.seqlen, plan_head_, thread_index());
  }

  S2O_DEVICE void visit_steps() {
    StepInfo step = next_step();
    std::int32_t token = fetch_token(step);
    while (step.count > 0) {
      StepInfo upcoming = next_step();
      std::int32_t upcoming_token = fetch_token(upcoming);
      const bool contiguous = key_source(step, args_.pass) == KeySource::kContiguous;
      const bool stopped = publish(step, token, contiguous);
      if (stopped) {
        walker_.stopped = true;
        if (upcoming.count > 0 && upcoming.stoppable()) {
          upcoming = next_step();
          upcoming_token = fetch_token(upcoming);
        }
      } else if (contiguous) {
        if (thread_index() == 0) load_boxes(step);
        advance();
      } else {
        gather_rows();
        advance();
      }
      step = upcoming;
      token = upcoming_token;
    }
    end_tile();
  }

  // Waits for the K buffer and writes what consumers must know about the step. True if the tile
  // has stopped and the step must not be loaded.
  S2O_DEVICE bool publish(const StepInfo& step, std::int32_t token, bool contiguous) {
    if (thread_index() == 0) {
      barrier_wait(&s_.k_empty[k_count_ % kStages], (k_count_ / kStages + 1) % 2);
      StepInfo& published = s_.steps[k_count_ % kRing];  // without the item: nobody asks
      published.begin = step.begin;
      published.count = step.count;
      published.flags = step.flags;
      if (step.stoppable()) {
        s_.producer_stop[stop_checks_ % 2] = volatile_load(&s_.stopped_tile) == tile_count_ + 1;
      }
    }
    // Through contiguous steps the threads need not keep together, and thread 0 is behind the
    // others; they meet where they gather or decide together.
    if (contiguous && !step.stoppable()) return false;
    sync_producers();  // the buffer is free: so are the keys of the step kRing ago
    if (!contiguous && thread_index() < kTileN) s_.keys[k_count_ % kRing][thread_index()] = token;
    sync_producers();
    if (!step.stoppable()) return false;
    const bool stopped = s_.producer_stop[stop_checks_ % 2] != 0;
    ++stop_checks_;
    return stopped;
  }

  S2O_DEVICE void load_boxes(const StepInfo& step) {
    const int row = static_cast<int>(step.begin);
    Barrier* const k_full = &s_.k_full[k_count_ % kStages];
    load_tile_boxes(k_full, shared_address(s_.k[k_count_ % kStages]), &maps_.k, row);
    barrier_wait(&s_.v_empty[v_count_ % kStages], (v_count_ / kStages + 1) % 2);
    Barrier* const v_full = &s_.v_full[v_count_ % kStages];
    load_tile_boxes(v_full, shared_address(s_.v[v_count_ % kStages]), &maps_.v, row);
  }
  S2O_DEVICE void load_tile_boxes(Barrier* full, std::uint32_t target, const TensorMap* map,
                                  int row) {
    barrier_arrive_expect(full, kTileBytes);
    barrier_arrive(full, Traits::kFillArrivals - 1);
#pragma unroll
    for (int panel = 0; panel < Traits::kHeadDim / kPanelColumns; ++panel) {
      load_box_async(target + panel * kTileN * kPanelRowBytes, map, full, panel * kPanelColumns,
                     row, plan_head_ / args_.plan_heads_per_kv_head);
    }
  }

  S2O_DEVICE void gather_rows() {
    const std::int32_t* keys = s_.keys[k_count_ % kRing];
    // Thread 0 waited for the buffer before the barrier of publish.
    gather_tile(&s_.k_full[k_count_ % kStages], shared_address(s_.k[k_count_ % kStages]), args_.k,
                keys);
    barrier_wait(&s_.v_empty[v_count_ % kStages], (v_count_ / kStages + 1) % 2);
    gather_tile(&s_.v_full[v_count_ % kStages], shared_address(s_.v[v_count_ % kStages]), args_.v,
                keys);
  }
  S2O_DEVICE void gather_tile(Barrier* full, std::uint32_t target, const void* tensor,
                              const std::int32_t* keys) {
    copy_rows_async<kTileN, Traits::kHeadDim, Traits::kProducerThreads>(
        target, kv_head_rows<Traits::kHeadDim>(args_, tensor, plan_head_), keys, thread_index());
    barrier_arrive_after_copies(full);
    if (thread_index() == 0) barrier_arrive(full);
  }

  S2O_DEVICE void end_tile() {
    if (thread_index() == 0) {
      barrier_wait(&s_.k_empty[k_count_ % kStages], (k_count_ / kStages + 1) % 2);
      s_.steps[k_count_ % kRing].count = 0;
      barrier_arrive(&s_.k_full[k_count_ % kStages], Traits::kFillArrivals);
    }
    ++k_count_;  // the end takes a K buffer's turn, no V buffer's
  }

  S2O_DEVICE void advance() {
    ++k_count_;
    ++v_count_;
  }

  const AttentionKernelArgs& args_;
  const TensorMaps& maps_;
  SharedSm90<Traits>& s_;
  StepWalker walker_;
  std::int32_t plan_tile_ = 0;
  int plan_head_ = 0;
  int tile_count_ = 0;  // tiles taken by this block
  int stop_checks_ = 0;
  unsigned k_count_ = 0;  // K buffers filled, ends of tiles included
  unsigned v_count_ = 0;
};

}  // namespace s2o::device
