// The producer warpgroup of the kernel over quantised input: as producer_sm90.cuh. Values in e4m3
// lie transposed, for products in 8 bits take both sides along the contracted dimension: boxes of a
// transposed copy, of which a gather of single keys cannot be made (has_wide_values).
#pragma once

#include "kernels/attention/maps_sm90.h"
#include "kernels/attention/quantised_input.h"
#include "kernels/attention/quantised_traits_sm90.cuh"
#include "kernels/attention/rows.cuh"
#include "kernels/device/bytes_sm90.cuh"
#include "kernels/device/prefetch.cuh"
#include "kernels/device/tma_sm90.cuh"

namespace s2o::device {

template <class Traits>
class QuantisedProducer {
 public:
  S2O_DEVICE QuantisedProducer(const QuantisedKernelArgs& args, const AttentionMaps& maps,
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
  static constexpr int kProducerBarrier = 1;  // named barrier of the 128 producer threads
  static constexpr int kStages = Traits::kStages;
  static constexpr int kRing = Traits::kRing;
  static constexpr int kTileN = Traits::kTileN;
  static constexpr int kQueryBuffers = SharedSm90<Traits>::kQueryBuffers;
  static constexpr bool kEarlyStop = Traits::kDecision == StepDecision::kEarlyStop;
  static constexpr bool kPvSkip = Traits::kDecision == StepDecision::kPvSkip;
  static constexpr bool kWideValues = Traits::kWideValues;
  using KeyCopier = RowCopier<kTileN, Traits::kRowElements, 4>;
  using ValueCopier = RowCopier<kTileN, Traits::kHeadDim, 4>;
  static constexpr int kRowsPerWarp = KeyCopier::kRowsPerWarp;

  S2O_DEVICE static void sync_producers() {
    sync_named(kProducerBarrier, Traits::kProducerThreads);
  }
  S2O_DEVICE QuantisedTile<Traits>& description() const {
    return s_.tiles[tile_count_ % kQueryBuffers];
  }

  // ---- the next tile ----

  // Its parts, in the order in which they are asked for.
  enum class Ahead : std::uint8_t { kNothing, kOrder, kSharedOrder, kTile, kPlaces, kItem };
  struct NextTile {
    Ahead known = Ahead::kNothing;  // the last part asked for
    std::int32_t order = 0;         // thread 0: place in tile_order
    std::int32_t plan_tile = -1;    // -1: none is left
    std::int32_t position = 0;      // of this thread's row
    std::int64_t items_begin = 0;
    std::int64_t items_end = 0;
  };

  // Asks for the next part. Everyone must meet between two calls.
  S2O_DEVICE void look_ahead() {
    if (next_.known == Ahead::kNothing) {
      if (thread_index() == 0) next_.order = atomic_add(args_.next_tile, 1);
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
      if (thread_index() < Traits::kTileM) {
        next_.position =
            tile_row_position(args_, next_.plan_tile / args_.num_q_tiles,
                              next_.plan_tile % args_.num_q_tiles, Traits::kTileM, thread_index());
      }
      next_.items_begin = load_global(args_.pass.item_offsets + next_.plan_tile);
      next_.items_end = tile_items_end(args_.pass, next_.plan_tile);
    } else if (next_.known == Ahead::kPlaces) {
      next_.known = Ahead::kItem;
      if (next_.plan_tile >= 0 && next_.items_begin < next_.items_end) {
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
  S2O_DEVICE bool is_time_to_look_ahead() const {
    if (next_.known != Ahead::kNothing) return next_.known != Ahead::kItem;
    return walker_.num_items - walker_.index <= kLookAheadSteps &&
           (walker_.current.count - walker_.offset <= kLookAheadSteps * kTileN ||
            (kEarlyStop && walker_.current.stoppable()));
  }

  // Waits until the Q buffer was given back, then loads the tile.
  S2O_DEVICE void load_tile() {
    const int buffer = tile_count_ % kQueryBuffers;
    if (warp_index() == 0) {
      barrier_wait(&s_.q_empty[buffer], (tile_count_ / kQueryBuffers + 1) % 2);
    }
    sync_producers();
    QuantisedTile<Traits>& tile = description();
    const std::int32_t plan_tile = next_.plan_tile;
    plan_head_ = plan_tile / args_.num_q_tiles;
    kv_head_ = plan_head_ / args_.plan_heads_per_kv_head;
    const int tile_index = plan_tile % args_.num_q_tiles;
    if (thread_index() < Traits::kTileM) {
      const TileRowMap row = tile_row_at(args_, plan_head_, tile_index, Traits::kTileM,
                                         thread_index(), next_.position);
      tile.row_index[thread_index()] = row.index;
      tile.source_row[thread_index()] = row.index < 0 ? 0 : row.index;
      tile.row_position[thread_index()] = row.position;
      tile.logit_scale[thread_index()] =
          load_global(args_.logit_scale + tile.source_row[thread_index()]);
      tile.lse_shift[thread_index()] =
          load_global(args_.lse_shift + tile.source_row[thread_index()]);
    }
    const int num_rows = rows_in_tile(args_, tile_index, Traits::kTileM);
    if (thread_index() == 0) {
      tile.plan_tile = plan_tile;
      tile.num_rows = num_rows;
      tile.total_plan_steps = 0;
      // Products take probabilities twice their size then (double_halves).
      tile.value_scale = load_global(args_.value_scale + kv_head_) * (kWideValues ? 0.5f : 1.0f);
      if constexpr (kEarlyStop) {
        tile.inverse_tau = 1.0f / max_of(args_.pass.tau_of(plan_head_, args_.stop), 1e-30f);
      }
    }
    sync_producers();  // rows are known
    const bool consecutive = args_.pack == 1 && args_.pass.query_order == nullptr;
    if (!consecutive) {
      RowCopier<Traits::kTileM, Traits::kRowElements, 4>(shared_address(s_.q[buffer]),
                                                         thread_index_again())
          .gather(args_.q, tile.source_row);
      barrier_arrive_after_copies(&s_.q_full[buffer]);
    } else {
      barrier_arrive(&s_.q_full[buffer]);
    }
    if (warp_index() == 0) {
      const int first = smallest_position(tile.row_position, num_rows);
      if (lane_index() == 0) tile.first_position = first;
    }
    if constexpr (kPvSkip) {
      const int steps = plan_steps_of_thread(args_, plan_tile, Traits::kProducerThreads);
      if (steps > 0) atomic_add(&tile.total_plan_steps, steps);
      sync_producers();
    }
    if (thread_index() == 0) {
      if (consecutive) {
        load_rows(&s_.q_full[buffer], shared_address(s_.q[buffer]), &maps_.q, Traits::kTileM,
                  tile_index * Traits::kTileM, plan_head_);
      } else {
        barrier_arrive(&s_.q_full[buffer]);
      }
    }
    walker_.start(args_.pass, next_.items_begin, next_.items_end);
    next_.known = Ahead::kNothing;
  }

  // ---- steps ----

  S2O_DEVICE StepInfo next_step() {
    return walker_.template next<kTileN>(args_.block_n, FetchNow{});
  }
  S2O_DEVICE bool is_contiguous(const StepInfo& step) const {
    return !kWideValues || key_source(step, args_.pass) == KeySource::kContiguous;
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
    std::int32_t token = fetch_token(step);
    std::uint32_t starts_tile = kStepStartsTile;
    do {
      StepInfo upcoming = next_step();
      std::int32_t upcoming_token = fetch_token(upcoming);
      // NOTE: a tile without items is one step of no keys, for which any are loaded.
      const bool contiguous = step.count == 0 || is_contiguous(step);
      if (publish(step, starts_tile)) {  // stopped
        walker_.stopped = true;
        if (upcoming.count > 0 && upcoming.stoppable()) {
          upcoming = next_step();
          upcoming_token = fetch_token(upcoming);
        }
      } else {
        load_keys(step, contiguous, token);
        load_values();
        waiting_ = {contiguous ? static_cast<std::int32_t>(step.begin) : kGathered, kv_head_};
        ++k_count_;
        if (is_time_to_look_ahead()) look_ahead();
      }
      starts_tile = 0;
      step = upcoming;
      token = upcoming_token;
    } while (step.count > 0);
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
        load_rows(&s_.k_full[stage], shared_address(s_.k[stage]), &maps_.keys.k, kTileN,
                  static_cast<std::int32_t>(step.begin), kv_head_);
      }
      return;
    }
    std::int32_t* const keys = s_.keys[k_count_ % kRing] + warp_index() * kRowsPerWarp;
    if (lane_index() < kRowsPerWarp) keys[lane_index()] = token;
    sync_warp();
    gather_keys<KeyCopier>(&s_.k_full[stage], shared_address(s_.k[stage]), args_.k, kv_head_,
                           s_.keys[k_count_ % kRing]);
  }

  // V of the step before, whose keys still lie in their ring.
  S2O_DEVICE void load_values() {
    if (waiting_.row == kNothing) return;
    const unsigned stage = v_count_ % kStages;
    const int parity = static_cast<int>((v_count_ / kStages + 1) % 2);
    ++v_count_;
    if (!kWideValues && waiting_.row % kQuantisedGroup != 0) {
      barrier_wait(&s_.v_empty[stage], parity);
      copy_columns(shared_address(s_.v[stage]));
      fence_async_proxy();
      barrier_arrive(&s_.v_full[stage]);
      if (thread_index() == 0) barrier_arrive(&s_.v_full[stage]);
      return;
    }
    if (waiting_.row != kGathered) {
      if (thread_index() == 0) {
        barrier_wait(&s_.v_empty[stage], parity);
        barrier_arrive(&s_.v_full[stage], Traits::kProducerThreads);
        load_value_boxes(&s_.v_full[stage], shared_address(s_.v[stage]));
      }
      return;
    }
    if constexpr (kWideValues) {
      barrier_wait(&s_.v_empty[stage], parity);
      gather_keys<ValueCopier>(&s_.v_full[stage], shared_address(s_.v[stage]), args_.v,
                               waiting_.kv_head, s_.keys[(k_count_ - 1) % kRing]);
    }
  }

  // By thread 0: its second arrival.
  S2O_DEVICE void load_value_boxes(Barrier* full, std::uint32_t target) const {
    barrier_arrive_expect(full, Traits::kValueBytes);
    if constexpr (kWideValues) {
#pragma unroll
      for (int panel = 0; panel < 2; ++panel) {
        load_box_async(target + panel * kTileN * kPanelRowBytes, &maps_.keys.v, full,
                       panel * kPanelColumns, waiting_.row, waiting_.kv_head);
      }
    } else {  // two keys an element of the map
      load_box_async(target, &maps_.keys.v, full, waiting_.row / 2, 0, waiting_.kv_head);
    }
  }
  // Boxes of transposed values begin at whole groups of keys. Runs that do not are copied byte by
  // byte, a column a thread: slow, but no method of this project plans them.
  S2O_DEVICE void copy_columns(std::uint32_t target) const {
    const std::int64_t padded = quantised_padding(args_.seqlen);
    const int column = thread_index_again();
    const auto* const source = static_cast<const std::uint8_t*>(args_.v) +
                               (waiting_.kv_head * Traits::kHeadDim + column) * padded;
#pragma unroll 1
    for (int word = 0; word < kTileN / 4; ++word) {
      std::uint32_t packed = 0;
      for (int b = 0; b < 4; ++b) {
        const int place = word % 4 * 4 + b;
        const std::int64_t key = waiting_.row + word / 4 * kQuantisedGroup + quantised_key(place);
        if (key >= args_.seqlen) continue;
        const std::int64_t group = key / kQuantisedGroup * kQuantisedGroup;
        const int in_group = static_cast<int>(key - group);
        packed |= static_cast<std::uint32_t>(source[group + quantised_place(in_group)]) << 8 * b;
      }
      store_shared_word(target + static_cast<std::uint32_t>(
                                     column * 128 + (word / 4 ^ column % 8) * 16 + word % 4 * 4),
                        packed);
    }
  }

  // By thread 0: its second arrival. A row of 128 bytes is one box wide.
  S2O_DEVICE static void load_rows(Barrier* full, std::uint32_t target, const TensorMap* map,
                                   int num_rows, int row, int head) {
    barrier_arrive_expect(full, num_rows * Traits::kHeadDim);
    load_box_async(target, map, full, 0, row, head);
  }

  template <class Copier>
  S2O_DEVICE void gather_keys(Barrier* full, std::uint32_t target, const void* tensor, int kv_head,
                              const std::int32_t* keys) {
    Copier(target, thread_index_again())
        .gather(
            static_cast<const unsigned char*>(tensor) + kv_head * args_.seqlen * Copier::kRowBytes,
            keys);
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

  const QuantisedKernelArgs& args_;
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
