// The producer warpgroup of the Hopper kernel: takes tiles, loads Q, walks the plan and keeps the
// K and V buffers full.
//
// K of step j + 1 is requested before V of step j: its buffer is free earlier, and it is used
// first; across the ends of tiles too. What the next tile needs of the plan comes by a chain of
// loads, each of which needs the one before; its parts are asked for between the last steps of this
// tile (look_ahead), so that no part is waited for.
#pragma once

#include "kernels/attention/producer_base_sm90.cuh"

namespace s2o::device {

template <class Traits>
class ProducerSm90 : ProducerBase<Traits> {
  using Base = ProducerBase<Traits>;
  using Base::args_, Base::description, Base::end_launch, Base::fetch_token, Base::is_contiguous;
  using Base::is_near_end, Base::kEarlyStop, Base::kGathered, Base::kLookAheadSteps, Base::kPvSkip;
  using Base::k_count_, Base::kv_head_, Base::load_keys, Base::load_values, Base::maps_;
  using Base::kQueryBuffers, Base::kRing, Base::kRowsPerWarp, Base::kStages, Base::kTileN;
  using Base::next_, Base::next_step, Base::plan_head_, Base::prefetch_maps, Base::publish;
  using Base::s_, Base::sync_producers, Base::tile_count_, Base::v_count_, Base::waiting_;
  using Base::walker_;
  using typename Base::KeyCopier, typename Base::QueryCopier;

 public:
  S2O_DEVICE ProducerSm90(const AttentionKernelArgs& args, const AttentionMaps& maps,
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
  // ---- the next tile ----

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
      this->template load_boxes<Traits::kTileM, Traits::kRowElements>(
          &s_.q_full[buffer], shared_address(s_.q[buffer]), &maps_.q, tile_index * Traits::kTileM,
          plan_head_);
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
    QueryCopier(shared_address(s_.q[buffer]), thread_index_again())
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
      this->template gather_rows<KeyCopier>(&s_.k_full[stage], shared_address(s_.k[stage]),
                                            static_cast<const unsigned char*>(args_.k) + head,
                                            s_.keys[ring]);
      const unsigned v_stage = v_count_ % kStages;
      barrier_wait(&s_.v_empty[v_stage], static_cast<int>((v_count_ / kStages + 1) % 2));
      this->template gather_rows<KeyCopier>(&s_.v_full[v_stage], shared_address(s_.v[v_stage]),
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
};

}  // namespace s2o::device
