// The producer warpgroup of the kernel over quantised input: as producer_sm90.cuh. Values in e4m3
// lie transposed, for products in 8 bits take both sides along the contracted dimension: boxes of a
// transposed copy, of which a gather of single keys cannot be made (has_wide_values).
#pragma once

#include "kernels/attention/producer_base_sm90.cuh"
#include "kernels/attention/quantised_input.h"
#include "kernels/attention/quantised_traits_sm90.cuh"
#include "kernels/device/bytes_sm90.cuh"

namespace s2o::device {

template <class Traits>
class QuantisedProducer : ProducerBase<Traits> {
  using Base = ProducerBase<Traits>;
  using Base::args_, Base::description, Base::end_launch, Base::fetch_token, Base::is_contiguous;
  using Base::is_near_end, Base::kEarlyStop, Base::kGathered, Base::kNothing, Base::kPvSkip;
  using Base::kQueryBuffers, Base::kStages, Base::kTileN, Base::k_count_, Base::kv_head_;
  using Base::load_keys, Base::maps_, Base::next_, Base::next_step, Base::plan_head_;
  using Base::prefetch_maps, Base::publish, Base::s_, Base::sync_producers, Base::tile_count_;
  using Base::v_count_, Base::waiting_, Base::walker_;
  using typename Base::QueryCopier;

 public:
  S2O_DEVICE QuantisedProducer(const QuantisedKernelArgs& args, const AttentionMaps& maps,
                               SharedSm90<Traits>& shared)
      : Base(args, maps, shared) {}

  S2O_DEVICE void run() {
    prefetch_maps();
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
  static constexpr bool kWideValues = Traits::kWideValues;

  // ---- the next tile ----

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
  S2O_DEVICE bool is_time_to_look_ahead() const {
    if (next_.known != Ahead::kNothing) return next_.known != Ahead::kItem;
    return is_near_end();
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
      // Products take probabilities twice their size then (make_probabilities).
      tile.value_scale = load_global(args_.value_scale + kv_head_) * (kWideValues ? 0.5f : 1.0f);
      if constexpr (kEarlyStop) {
        tile.inverse_tau = 1.0f / max_of(args_.pass.tau_of(plan_head_, args_.stop), 1e-30f);
      }
    }
    sync_producers();  // rows are known
    const bool consecutive = args_.pack == 1 && args_.pass.query_order == nullptr;
    if (!consecutive) {
      QueryCopier(shared_address(s_.q[buffer]), thread_index_again())
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
        this->template load_boxes<Traits::kTileM, Traits::kRowElements>(
            &s_.q_full[buffer], shared_address(s_.q[buffer]), &maps_.q, tile_index * Traits::kTileM,
            plan_head_);
      } else {
        barrier_arrive(&s_.q_full[buffer]);
      }
    }
    walker_.start(args_.pass, next_.items_begin, next_.items_end);
    next_.known = Ahead::kNothing;
  }

  // ---- steps ----

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

  // V of the step before.
  S2O_DEVICE void load_values() {
    if constexpr (kWideValues) {
      Base::load_values();
      return;
    }
    if (waiting_.row == kNothing) return;
    const unsigned stage = v_count_ % kStages;
    const int parity = static_cast<int>((v_count_ / kStages + 1) % 2);
    ++v_count_;
    if (waiting_.row % kQuantisedGroup != 0) {
      barrier_wait(&s_.v_empty[stage], parity);
      copy_columns(shared_address(s_.v[stage]));
      fence_async_proxy();
      barrier_arrive(&s_.v_full[stage]);
      if (thread_index() == 0) barrier_arrive(&s_.v_full[stage]);
      return;
    }
    if (waiting_.row != kGathered && thread_index() == 0) {  // always, without gathers
      barrier_wait(&s_.v_empty[stage], parity);
      barrier_arrive(&s_.v_full[stage], Traits::kProducerThreads);
      barrier_arrive_expect(&s_.v_full[stage], Traits::kValueBytes);
      load_box_async(shared_address(s_.v[stage]), &maps_.keys.v, &s_.v_full[stage],
                     waiting_.row / 2, 0, waiting_.kv_head);  // two keys an element of the map
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
};

}  // namespace s2o::device
