// What the producer warpgroups of both Hopper kernels do with a step: they tell the consumers about
// it, and fill its K buffer and that of the V before.
//
// Contiguous keys come as tensor-map boxes, issued by thread 0; gathered keys by cp.async of all
// 128 threads into the same swizzled layout. Either way a buffer is full after kFillArrivals
// arrivals. Each warp gathers rows of its own, and fetches their tokens one step ahead, so that the
// walk over indices never waits for memory between two steps.
//
// Only warp 0 polls barriers; the others sleep at a named barrier, for every instruction of
// a polling warp is one that the softmax does not get.
#pragma once

#include "kernels/attention/maps_sm90.h"
#include "kernels/attention/rows.cuh"
#include "kernels/attention/traits_sm90.cuh"
#include "kernels/device/prefetch.cuh"
#include "kernels/device/tma_sm90.cuh"

namespace s2o::device {

inline constexpr int kProducerBarrier = 1;  // named barrier of the 128 producer threads

template <class Traits>
class ProducerBase {
 protected:
  static constexpr int kStages = Traits::kStages;
  static constexpr int kRing = Traits::kRing;
  static constexpr int kTileN = Traits::kTileN;
  static constexpr int kQueryBuffers = SharedSm90<Traits>::kQueryBuffers;
  static constexpr bool kEarlyStop = Traits::kDecision == StepDecision::kEarlyStop;
  static constexpr bool kPvSkip = Traits::kDecision == StepDecision::kPvSkip;
  static constexpr int kLookAheadSteps = 6;  // one more than there are parts of the next tile
  static constexpr std::int32_t kNothing = -1;
  static constexpr std::int32_t kGathered = -2;
  using QueryCopier = RowCopier<Traits::kTileM, Traits::kRowElements, 4, Traits::kEagerCopies>;
  using KeyCopier = RowCopier<kTileN, Traits::kRowElements, 4, Traits::kEagerCopies>;
  using ValueCopier = RowCopier<kTileN, Traits::kHeadDim, 4, Traits::kEagerCopies>;
  static constexpr int kRowsPerWarp = KeyCopier::kRowsPerWarp;

  S2O_DEVICE ProducerBase(const typename Traits::Args& args, const AttentionMaps& maps,
                          SharedSm90<Traits>& shared)
      : args_(args), maps_(maps), s_(shared) {}

  S2O_DEVICE static void sync_producers() {
    sync_named(kProducerBarrier, Traits::kProducerThreads);
  }
  S2O_DEVICE typename Traits::Tile& description() const {
    return s_.tiles[tile_count_ % kQueryBuffers];
  }
  S2O_DEVICE void prefetch_maps() const {
    if (thread_index() == 0) {
      tensor_map_prefetch(&maps_.q);
      tensor_map_prefetch(&maps_.keys.k);
      tensor_map_prefetch(&maps_.keys.v);
    }
  }

  // Not long before the end of a tile, so that no block keeps a tile that others could begin.
  S2O_DEVICE bool is_near_end() const {
    return walker_.num_items - walker_.index <= kLookAheadSteps &&
           (walker_.current.count - walker_.offset <= kLookAheadSteps * kTileN ||
            (kEarlyStop && walker_.current.stoppable()));
  }

  // ---- steps ----

  S2O_DEVICE StepInfo next_step() {
    return walker_.template next<kTileN>(args_.block_n, FetchNow{});
  }
  S2O_DEVICE bool is_contiguous(const StepInfo& step) const {
    return !Traits::kMayGather || key_source(step, args_.pass) == KeySource::kContiguous;
  }
  // Token of this lane's row, for steps whose keys are not contiguous. Rows beyond the end repeat
  // the last key: they are masked, and their values count zero times.
  S2O_DEVICE std::int32_t fetch_token(const StepInfo& step) const {
    if (step.count == 0 || lane_index() >= kRowsPerWarp || is_contiguous(step)) return -1;
    return step_token(step, args_.pass, args_.seqlen, plan_head_,
                      min_of(warp_index() * kRowsPerWarp + lane_index(), step.count - 1));
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
        load_boxes<kTileN, Traits::kRowElements>(&s_.k_full[stage], shared_address(s_.k[stage]),
                                                 &maps_.keys.k,
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
    if (waiting_.row != kGathered) {
      if (thread_index() == 0) {
        barrier_wait(&s_.v_empty[stage], parity);
        barrier_arrive(&s_.v_full[stage], Traits::kProducerThreads);
        load_boxes<kTileN, Traits::kHeadDim>(&s_.v_full[stage], shared_address(s_.v[stage]),
                                             &maps_.keys.v, waiting_.row, waiting_.kv_head);
      }
      return;
    }
    barrier_wait(&s_.v_empty[stage], parity);
    gather_keys<ValueCopier>(&s_.v_full[stage], shared_address(s_.v[stage]), args_.v,
                             waiting_.kv_head, s_.keys[(k_count_ - 1) % kRing]);
  }

  // By thread 0: its second arrival.
  template <int kRows, int kColumns>
  S2O_DEVICE static void load_boxes(Barrier* full, std::uint32_t target, const TensorMap* map,
                                    int row, int head) {
    barrier_arrive_expect(full, tile_bytes(kRows, kColumns));
#pragma unroll
    for (int panel = 0; panel < kColumns / kPanelColumns; ++panel) {
      load_box_async(target + panel * kRows * kPanelRowBytes, map, full, panel * kPanelColumns, row,
                     head);
    }
  }

  template <class Copier>
  S2O_DEVICE void gather_keys(Barrier* full, std::uint32_t target, const void* tensor, int kv_head,
                              const std::int32_t* keys) {
    gather_rows<Copier>(
        full, target,
        static_cast<const unsigned char*>(tensor) + kv_head * args_.seqlen * Copier::kRowBytes,
        keys);
  }
  template <class Copier>
  S2O_DEVICE static void gather_rows(Barrier* full, std::uint32_t target, const unsigned char* rows,
                                     const std::int32_t* keys) {
    Copier(target, Traits::kProducerRereads ? thread_index_again() : thread_index())
        .gather(rows, keys);
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

  struct WaitingValues {
    std::int32_t row;  // first one, or kNothing or kGathered
    int kv_head;
  };

  const typename Traits::Args& args_;
  const AttentionMaps& maps_;
  SharedSm90<Traits>& s_;
  StepWalker walker_;
  typename Traits::NextTile next_;
  WaitingValues waiting_{kNothing, 0};
  int plan_head_ = 0;
  int kv_head_ = 0;
  int tile_count_ = 0;    // tiles taken by this block
  unsigned k_count_ = 0;  // K buffers filled
  unsigned v_count_ = 0;
};

}  // namespace s2o::device
