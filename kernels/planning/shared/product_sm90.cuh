// Products of rows and keys on warpgroups (sm_90a), the part that planning kernels share: a ring of
// stages in shared memory that one thread fills with tensor-map boxes, and the products of 64 rows
// a warpgroup that read it. What is in a stage and what becomes of the accumulators is the
// caller's.
//
// A block has some warpgroups of consumers and one more, of which one thread fills the ring and
// which leaves its registers to the others.
#pragma once

#include "kernels/device/layout.cuh"
#include "kernels/device/mbarrier_sm90.cuh"
#include "kernels/device/tma_sm90.cuh"
#include "kernels/device/wgmma_sm90.cuh"

namespace s2o::device {

S2O_HOST_DEVICE constexpr int product_threads(int consumers) { return (consumers + 1) * 128; }
// The compiler gives each of three warpgroups 168 registers a thread, each of five 96; the filling
// one keeps what its loops need.
S2O_HOST_DEVICE constexpr int filling_registers(int consumers) { return consumers == 2 ? 40 : 32; }
S2O_HOST_DEVICE constexpr int consumer_registers(int consumers) {
  return consumers == 2 ? 232 : 112;
}

// Of a block: what its warpgroups hold once they have exchanged registers.
S2O_HOST_DEVICE constexpr int block_registers(int consumers) {
  return 128 * (filling_registers(consumers) + consumers * consumer_registers(consumers));
}

S2O_DEVICE int warpgroup_index() {
  return static_cast<int>(uniform(static_cast<std::uint32_t>(thread_index() / 128)));
}
// fill() on one thread, consume(warpgroup) on each warpgroup of consumers.
template <int kConsumers, class Fill, class Consume>
S2O_DEVICE void run_product(const Fill& fill, const Consume& consume) {
  static_assert(kConsumers == 2 || kConsumers == 4);
  const int warpgroup = warpgroup_index();
  if (warpgroup == kConsumers) {
    set_register_limit_down<filling_registers(kConsumers)>();
    if (thread_index() == kConsumers * 128) fill();
  } else {
    set_register_limit_up<consumer_registers(kConsumers)>();
    consume(warpgroup);
  }
}

// Entry e lies in stage e % kStages, the (e / kStages)-th to do so. Entries count from 0.
template <int kStages>
struct ProductRing {
  static_assert((kStages & (kStages - 1)) == 0, "so that places need no division");
  Barrier full[kStages];
  Barrier empty[kStages];  // given back by every warp that reads the stage

  // NOTE: unsigned, or a division by a power of two takes four instructions.
  S2O_DEVICE static int stage_of(int entry) {
    return static_cast<int>(static_cast<std::uint32_t>(entry) % kStages);
  }
  S2O_DEVICE static int parity_of(int entry) {
    return static_cast<int>(static_cast<std::uint32_t>(entry) / kStages % 2);
  }

  // One thread; a block barrier must follow.
  S2O_DEVICE void init(int reading_warps) {
    for (int stage = 0; stage < kStages; ++stage) {
      barrier_init(&full[stage], 1);
      barrier_init(&empty[stage], reading_warps);
    }
    barrier_init_fence();
  }

  // The filling thread: waits until the stage of the entry is free and says how much will come.
  // The copies then complete on the barrier returned.
  S2O_DEVICE Barrier* begin_fill(int entry, int bytes) {
    const int stage = stage_of(entry);
    barrier_wait(&empty[stage], parity_of(entry) ^ 1);
    barrier_arrive_expect(&full[stage], bytes);
    return &full[stage];
  }

  // Consumers. After give_back the warp reads the entry no more.
  S2O_DEVICE void wait(int entry) { barrier_wait(&full[stage_of(entry)], parity_of(entry)); }
  S2O_DEVICE void give_back(int entry) {
    sync_warp();
    if (lane_index() == 0) barrier_arrive(&empty[stage_of(entry)]);
  }
};

// Of rows in a tile that begin at `address`.
S2O_DEVICE std::uint64_t panel_descriptor(std::uint32_t address) {
  return warpgroup_descriptor(address, 16, 8 * kPanelRowBytes);
}

// Issues d = a b^T (+ d) over kPanels panels of 64 columns and commits. `rows` (panel_descriptor)
// are the warpgroup's in a tile of a_rows rows, `columns` 8 kTiles rows in a tile of b_rows.
// NOTE: registers must have been pinned since they were last touched.
template <class Element, int kPanels, int kTiles>
S2O_DEVICE void issue_product(float (&d)[kTiles][4], std::uint64_t rows, int a_rows,
                              std::uint64_t columns, int b_rows, bool accumulate) {
  warpgroup_fence();
#pragma unroll
  for (int step = 0; step < 4 * kPanels; ++step) {
    const int in_panel = step % 4 * 32;  // 16 elements of a 128-byte row
    warpgroup_multiply<Element>(
        d, descriptor_at(rows, step / 4 * a_rows * kPanelRowBytes + in_panel),
        descriptor_at(columns, step / 4 * b_rows * kPanelRowBytes + in_panel),
        accumulate || step > 0 ? 1 : 0);
  }
  warpgroup_commit();
}

}  // namespace s2o::device
