// The producer warpgroup of the Hopper kernel: takes tiles, loads Q, walks the plan and keeps the
// K and V buffers full.
//
// Contiguous keys come as tensor-map boxes, issued by thread 0; gathered keys by cp.async of all
// 128 threads into the same swizzled layout. Either way a buffer is full after kFillArrivals
// arrivals. Each warp gathers rows of its own, and fetches their tokens one step ahead, so that the
// walk over indices never waits for memory between two steps.
//
// K of step j + 1 is requested before V of step j: its buffer is free earlier, and it is used
// first; across the ends of tiles too. What the next tile needs of the plan comes by a chain of
// loads, each of which needs the one before; its parts are asked for between the last steps of this
// tile (look_ahead), so that no part is waited for.
//
// Only warp 0 polls barriers; the others sleep at a named barrier, for every instruction of
// a polling warp is one that the softmax does not get.
#pragma once

#include "kernels/attention/kernel_args.h"
#include "kernels/attention/maps_sm90.h"
#include "kernels/attention/rows.cuh"
#include "kernels/attention/traits_sm90.cuh"
#include "kernels/device/prefetch.cuh"
#include "kernels/device/tma_sm90.cuh"

namespace s2o::device {

inline constexpr int kProducerBarrier = 1;  // named barrier of the 128 producer threads

template <class Traits>
class ProducerSm90 {
 public:
  S2O_DEVICE ProducerSm90(const AttentionKernelArgs& args, const AttentionMaps& maps,
                          SharedSm90<Traits>& shared)
      : args_(args), maps_(maps), s_(shared) {}

  S2O_DEVICE void run() {
    if (thread_index() == 0) {
      tensor_map_prefetch(&maps_.q);
      tensor_map_prefetch(&maps_.keys.k);
      tensor_map_prefetch(&maps_.keys.v);
    }
    for (tile_count_ = 0;; ++tile_count_) {
      finish_look_ahead();
      if (next_.plan_tile < 0) break;
      load_tile();
      visit_steps();
    }
    load_values();
    end_launch();
  }

 private:
  static constexpr int kStages = Traits::kStages;
  static constexpr int kRing = Traits::kRing;
  static constexpr int kTileN = Traits::kTileN;
  static constexpr int kQueryBuffers = SharedSm90<Traits>::kQueryBuffers;
  static constexpr bool kEarlyStop = Traits::kDecision == StepDecision::kEarlyStop;
  static constexpr bool kPvSkip = Traits::kDecision == StepDecision::kPvSkip;
  using KeyCopier = RowCopier<kTileN, Traits::kHeadDim, 4, kEarlyStop>;
  static constexpr int kRowsPerWarp = KeyCopier::kRowsPerWarp;

  S2O_DEVICE static void sync_producers() {
    sync_named(kProducerBarrier, Traits::kProducerThreads);
  }
  S2O_DEVICE TileDescription<Traits>& description() const {
    return s_.tiles[tile_count_ % kQueryBuffers];
  }

  // ---- the next tile ----

  // What is known of it, in the order in which it is asked for.
  enum class Ahead : std::uint8_t { kNothing, kOrder, kSharedOrder, kTile, kPlaces, kItem };
  struct NextTile {
    Ahead known = Ahead::kNothing;  // the last part asked for
    std::int32_t order = 0;         // thread 0: place in tile_order
    std::int32_t plan_tile = -1;    // -1: none is left
    std::int32_t plan_head = 0;
    std::int32_t position = 0;  // of this thread's row
    std::int64_t items_begin = 0;
    std::int32_t num_items = 0;
  };

  S2O_DEVICE std::int32_t claim() const {
    return thread_index() == 0 ? atomic_add(args_.next_tile, 1) : 0;
  }
  // Asks for the next part. Everyone must meet between two calls.
  S2O_DEVICE void look_ahead() {
    if (next_.known == Ahead::kNothing) {
      next_.order = claim();
      next_.known = Ahead::kOrder;
    } else if (next_.known == Ahead::kOrder) {
      if (thread_index() == 0) s_.next_order = next_.order;
      next_.known = Ahead::kSharedOrder;
    } else if (next_.known == Ahead::kSharedOrder) {
      const std::int32_t order = s_.next_order;
      next_.plan_tile = order < args_.num_tiles ? load_global(args_.tile_order + order) : -1;
      next_.known = Ahead::kTile;
    } else if (next_.known == Ahead::kTile) {
      next_.known = Ahead::kPlaces;
      if (next_.plan_tile < 0) return;
      next_.items_begin = load_global(args_.pass.item_offsets + next_.plan_tile);
      next_.num_items = static_cast<std::int32_t>(tile_items_end(args_.pass, next_.plan_tile) -
                                                  next_.items_begin);
      next_.plan_head = static_cast<std::int32_t>(static_cast<unsigned>(next_.plan_tile) /
                                                  static_cast<unsigned>(args_.num_q_tiles));
      if (thread_index() < Traits::kTileM) {
        next_.position = tile_row_position(args_, next_.plan_head,
                                           next_.plan_tile - next_.plan_head * args_.num_q_tiles,
                                           Traits::kTileM, thread_index());
      }
    } else if (next_.known == Ahead::kPlaces) {
      next_.known = Ahead::kItem;
      if (next_.plan_tile >= 0 && next_.num_items > 0) {
        prefetch_global(args_.pass.items + next_.items_begin);
      }
    }
  }
  S2O_DEVICE void finish_look_ahead() {
    while (next_.known != Ahead::kItem) {
      sync_producers();
      look_ahead();
    }
  }
  // Not long before the end of a tile, so that no block keeps a tile that others could begin.
  S2O_DEVICE bool is_near_end() const {
    return walker_.num_items - walker_.index <= kLookAheadSteps &&
           (walker_.current.count - walker_.offset <= kLookAheadSteps * kTileN ||
            (kEarlyStop && walker_.current.stoppable()));
  }
  // After a step was loaded. The tile after the next is not claimed too: behind a long one it would
  // wait while other blocks have nothing left.
  S2O_DEVICE void look_ahead_in_time() {
    if (next_.known != Ahead::kItem && (is_near_end() || next_.known != Ahead::kNothing)) {
      look_ahead();
    }
  }

  // Waits until the Q buffer was given back, then loads the tile.
  S2O_DEVICE void load_tile() {
    const int buffer = tile_count_ % kQueryBuffers;
    if (warp_index() == 0) {
      barrier_wait(&s_.q_empty[buffer], (tile_count_ / kQueryBuffers + 1) % 2);
    }
    sync_producers();
    TileDescription<Traits>& tile = description();
    plan_head_ = next_.plan_head;
    const int tile_index = next_.plan_tile - plan_head_ * args_.num_q_tiles;
    const bool consecutive = args_.pack == 1 && args_.pass.query_order == nullptr;
    if (consecutive && thread_index() == 0) {
      load_boxes<Traits::kTileM>(&s_.q_full[buffer], shared_address(s_.q[buffer]), &maps_.q,
                                 tile_index * Traits::kTileM, plan_head_);
    }
    kv_head_ = static_cast<int>(static_cast<unsigned>(plan_head_) /
                                static_cast<unsigned>(args_.plan_heads_per_kv_head));
    const int num_rows = rows_in_tile(args_, tile_index, Traits::kTileM);
    if (thread_index() < Traits::kTileM) {
      const TileRowMap row = tile_row_at(args_, plan_head_, tile_index, Traits::kTileM,
                                         thread_index(), next_.position);
      tile.row_index[thread_index()] = row.index;
      tile.source_row[thread_index()] = row.index < 0 ? 0 : row.index;
      tile.row_position[thread_index()] = row.position;
      if (thread_index() == 0) {
        tile.plan_tile = next_.plan_tile;
        tile.num_rows = num_rows;
        tile.first_position = row.position;
        tile.first_row = consecutive && num_rows == Traits::kTileM ? row.index : -1;
        tile.total_plan_steps = 0;
        if constexpr (kEarlyStop) {
          tile.inverse_tau = 1.0f / max_of(args_.pass.tau_of(plan_head_, args_.stop), 1e-30f);
        }
      }
    }
    if constexpr (kPvSkip) {
      sync_producers();
      const int steps = plan_steps_of_thread(args_, next_.plan_tile, Traits::kProducerThreads);
      if (steps > 0) atomic_add(&tile.total_plan_steps, steps);
    }
    if (consecutive) {
      barrier_arrive(&s_.q_full[buffer]);
    } else {
      gather_queries(tile, num_rows, buffer);
    }
    walker_.start(args_.pass, next_.items_begin, next_.items_begin + next_.num_items);
    next_.known = Ahead::kNothing;
  }
  S2O_DEVICE void gather_queries(TileDescription<Traits>& tile, int num_rows, int buffer) {
    sync_producers();  // rows are known
    RowCopier<Traits::kTileM, Traits::kHeadDim, 4, kEarlyStop>(shared_address(s_.q[buffer]),
                                                               thread_index_again())
        .gather(args_.q, tile.source_row);
    barrier_arrive_after_copies(&s_.q_full[buffer]);
    if (warp_index() == 0) {
      const int first = smallest_position(tile.row_position, num_rows);
      if (lane_index() == 0) {
        tile.first_position = first;
        barrier_arrive(&s_.q_full[buffer]);
      }
    }
  }

  // ---- steps ----

  S2O_DEVICE StepInfo next_step() {
    return walker_.template next<kTileN>(args_.block_n, FetchNow{});
  }
  S2O_DEVICE bool is_contiguous(const StepInfo& step) const {
    return key_source(step, args_.pass) == KeySource::kContiguous;
  }
  // Token of this lane's row, for steps whose keys are not contiguous. Rows beyond the end repeat
  // the last key: they are masked, and their values count zero times.
  S2O_DEVICE std::int32_t fetch_token(const StepInfo& step) const {
    if (step.count == 0 || lane_index() >= kRowsPerWarp || is_contiguous(step)) return -1;
    return step_token(step, args_.pass, args_.seqlen, plan_head_,
                      min_of(warp_index() * kRowsPerWarp + lane_index(), step.count - 1));
  }

  S2O_DEVICE void visit_steps() {
    StepInfo step = next_step();
    // A tile without items is one step of no keys. Rows beyond the tensor are zeros: its
    // probabilities of 0 must not meet values that are not finite.
    if (step.count == 0) step.begin = args_.seqlen;
    std::int32_t token = fetch_token(step);
    StepInfo upcoming{};
    std::int32_t upcoming_token = -1;
    const auto look_at_upcoming = [&] {
      upcoming = next_step();
      upcoming_token = fetch_token(upcoming);
    };
    bool first = true;
    do {
      if constexpr (kEarlyStop) {
        if (!first) {
          visit_gathered(step, token);
          if (step.count == 0) break;
        }
      }
      // The first keys of a tile are asked for before anything about the second step.
      if (!first) look_at_upcoming();
      const bool contiguous = step.count == 0 || is_contiguous(step);
      const bool dropped = publish(step, first ? kStepStartsTile : 0u);
      if (dropped) {
        walker_.stopped = true;
        if (upcoming.count > 0 && upcoming.stoppable()) look_at_upcoming();
      } else {
        load_keys(step, contiguous, token);
        if (first) look_at_upcoming();
        load_values();
        waiting_ = {contiguous ? static_cast<std::int32_t>(step.begin) : kGathered, kv_head_};
        ++k_count_;
        look_ahead_in_time();
      }
      first = false;
      step = upcoming;
      token = upcoming_token;
    } while (step.count > 0);
  }

  // Steps of one item of gathered keys, but for those next to its ends, are all alike: most steps
  // of long lists. A producer is never idle then, so they have a loop of their own, of half the
  // instructions. `step` is the one to load; so it is afterwards, of no keys if none is left.
  S2O_DEVICE void visit_gathered(StepInfo& step, std::int32_t& token) {
    if (waiting_.row != kGathered || step.kind() != ItemKind::kGather || step.count != kTileN ||
        step.item != walker_.index || args_.block_n != kTileN) {
      return;
    }
    const bool may_stop = kEarlyStop && step.stoppable();
    int left = (walker_.current.count - walker_.offset) / kTileN;
    if (next_.known != Ahead::kItem) {
      if (next_.known != Ahead::kNothing) return;
      if (walker_.num_items - walker_.index <= kLookAheadSteps) {  // look_ahead_in_time
        left = may_stop ? 0 : left - kLookAheadSteps - 1;
      }
    }
    if (left <= 0) return;
    const std::uint32_t flags = annotated_flags<kTileN>(
        step, args_.pass, description().first_position, kPvSkip, kEarlyStop);
    const std::int32_t* tokens =
        args_.pass.gather_indices + step.begin + warp_index() * kRowsPerWarp + lane_index();
    const std::int64_t head = kv_head_ * args_.seqlen * (Traits::kHeadDim * 2);
    int steps = 0;
    bool dropped = false;
    do {
      tokens += kTileN;
      const std::int32_t upcoming = lane_index() < kRowsPerWarp ? load_global(tokens) : -1;
      const unsigned stage = k_count_ % kStages;
      const unsigned ring = k_count_ % kRing;
      if (warp_index() == 0) {
        if (lane_index() == 0) {
          s_.steps[ring].count = kTileN;
          s_.steps[ring].flags = flags;
        }
        barrier_wait(&s_.k_empty[stage], (k_count_ / kStages + 1) % 2);
      }
      sync_producers();
      if (lane_index() < kRowsPerWarp) {
        s_.keys[ring][warp_index() * kRowsPerWarp + lane_index()] = token;
      }
      if (may_stop && s_.stopped_tile[(k_count_ - kStages) % kRing] == tile_count_ + 1) {
        dropped = true;
        break;
      }
      sync_warp();
      gather_rows(&s_.k_full[stage], shared_address(s_.k[stage]),
                  static_cast<const unsigned char*>(args_.k) + head, s_.keys[ring]);
      const unsigned v_stage = v_count_ % kStages;
      barrier_wait(&s_.v_empty[v_stage], static_cast<int>((v_count_ / kStages + 1) % 2));
      gather_rows(&s_.v_full[v_stage], shared_address(s_.v[v_stage]),
                  static_cast<const unsigned char*>(args_.v) + head,
                  s_.keys[(k_count_ - 1) % kRing]);
      ++v_count_;
      ++k_count_;
      token = upcoming;
    } while (++steps < left);
    step.begin += steps * kTileN;
    walker_.offset += steps * kTileN;
    if (dropped) {
      walker_.stopped = true;
      step = next_step();
      token = fetch_token(step);
    }
  }

  // Writes what consumers must know about the step and waits for its K buffer. True if the tile had
  // stopped when the consumers gave that buffer back: then the step must not be loaded.
  S2O_DEVICE bool publish(const StepInfo& step, std::uint32_t starts_tile) {
    const bool may_stop = kEarlyStop && step.stoppable();
    if (warp_index() == 0) {
      if (lane_index() == 0) {
        PublishedStep& published = s_.steps[k_count_ % kRing];  // free by now (kRing)
        published.begin = step.begin;
        published.count = step.count;
        published.flags =
            starts_tile | (step.count == 0 ? kStepMasked
                                           : annotated_flags<kTileN>(step, args_.pass,
                                                                     description().first_position,
                                                                     kPvSkip, kEarlyStop));
      }
      barrier_wait(&s_.k_empty[k_count_ % kStages], (k_count_ / kStages + 1) % 2);
    }
    sync_producers();  // the buffer is free
    return may_stop && s_.stopped_tile[(k_count_ - kStages) % kRing] == tile_count_ + 1;
  }
  S2O_DEVICE void load_keys(const StepInfo& step, bool contiguous, std::int32_t token) {
    const unsigned stage = k_count_ % kStages;
    if (contiguous) {
      if (thread_index() == 0) {
        barrier_arrive(&s_.k_full[stage], Traits::kProducerThreads);
        load_boxes<kTileN>(&s_.k_full[stage], shared_address(s_.k[stage]), &maps_.keys.k,
                           static_cast<std::int32_t>(step.begin), kv_head_);
      }
      return;
    }
    std::int32_t* const keys = s_.keys[k_count_ % kRing] + warp_index() * kRowsPerWarp;
    if (lane_index() < kRowsPerWarp) keys[lane_index()] = token;
    sync_warp();
    gather_keys(&s_.k_full[stage], shared_address(s_.k[stage]), args_.k, kv_head_,
                s_.keys[k_count_ % kRing]);
  }

  // V of the step before, whose keys still lie in their ring.
  S2O_DEVICE void load_values() {
    if (waiting_.row == kNothing) return;
    const unsigned stage = v_count_ % kStages;
    const int parity = static_cast<int>((v_count_ / kStages + 1) % 2);
    ++v_count_;
    if (waiting_.row != kGathered) {
      if (thread_index() == 0) {
        barrier_wait(&s_.v_empty[stage], parity);
        barrier_arrive(&s_.v_full[stage], Traits::kProducerThreads);
        load_boxes<kTileN>(&s_.v_full[stage], shared_address(s_.v[stage]), &maps_.keys.v,
                           waiting_.row, waiting_.kv_head);
      }
      return;
    }
    barrier_wait(&s_.v_empty[stage], parity);
    gather_keys(&s_.v_full[stage], shared_address(s_.v[stage]), args_.v, waiting_.kv_head,
                s_.keys[(k_count_ - 1) % kRing]);
  }

  // By thread 0: its second arrival.
  template <int kRows>
  S2O_DEVICE static void load_boxes(Barrier* full, std::uint32_t target, const TensorMap* map,
                                    int row, int head) {
    barrier_arrive_expect(full, tile_bytes(kRows, Traits::kHeadDim));
#pragma unroll
    for (int panel = 0; panel < Traits::kHeadDim / kPanelColumns; ++panel) {
      load_box_async(target + panel * kRows * kPanelRowBytes, map, full, panel * kPanelColumns, row,
                     head);
    }
  }

  S2O_DEVICE void gather_keys(Barrier* full, std::uint32_t target, const void* tensor, int kv_head,
                              const std::int32_t* keys) {
    gather_rows(
        full, target,
        static_cast<const unsigned char*>(tensor) + kv_head * args_.seqlen * (Traits::kHeadDim * 2),
        keys);
  }
  S2O_DEVICE static void gather_rows(Barrier* full, std::uint32_t target, const unsigned char* rows,
                                     const std::int32_t* keys) {
    KeyCopier(target, thread_index()).gather(rows, keys);
    barrier_arrive_after_copies(full);
    if (thread_index() == 0) barrier_arrive(full);
  }

  // The last entry of the K pipeline.
  S2O_DEVICE void end_launch() {
    if (thread_index() == 0) {
      barrier_wait(&s_.k_empty[k_count_ % kStages], (k_count_ / kStages + 1) % 2);
      s_.steps[k_count_ % kRing].flags = kStepEndsLaunch;
      barrier_arrive(&s_.k_full[k_count_ % kStages], Traits::kFillArrivals);
    }
  }

  static constexpr std::int32_t kNothing = -1;
  static constexpr std::int32_t kGathered = -2;
  static constexpr int kLookAheadSteps = 6;  // one more than there are parts
  struct WaitingValues {
    std::int32_t row;  // first one, or kNothing or kGathered
    int kv_head;
  };

  const AttentionKernelArgs& args_;
  const AttentionMaps& maps_;
  SharedSm90<Traits>& s_;
  StepWalker walker_;
  NextTile next_;
  WaitingValues waiting_{kNothing, 0};
  int plan_head_ = 0;
  int kv_head_ = 0;
  int tile_count_ = 0;    // tiles taken by this block
  unsigned k_count_ = 0;  // K buffers filled
  unsigned v_count_ = 0;
};

}  // namespace s2o::device
