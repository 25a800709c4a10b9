// Energies of key blocks (energy_rows.cuh) by warpgroup products, two tiles a block of threads, a
// warpgroup each. 64 mean keys are the rows of a product and the tile's 128 queries its columns, so
// that the sum over the queries is one over registers of a lane and its quad.
//
// Exponentials are relative to one reference a warp (and branch): the largest logit of its mean
// keys in the first step. Only where a later sum leaves fp32's comfortable range is the reference
// raised, and what was summed before scaled down.
//
// Exponentials take as long as the product on units of their own, and the ends of a tile leave both
// idle: two blocks share a multiprocessor.
#pragma once

#include "kernels/device/cp_async.cuh"
#include "kernels/planning/block_energy/energy_grid_sm90.cuh"
#include "kernels/planning/block_energy/energy_tile.cuh"
#include "kernels/planning/launch.cuh"
#include "kernels/planning/shared/product_sm90.cuh"

namespace s2o::device {

template <class Element, int kHeadDim, int kBranches>
class EnergyRowsSm90 {
 public:
  S2O_DEVICE EnergyRowsSm90(const BlockEnergyArgs& args, const EnergyGridSm90& grid)
      : args_(args), grid_(grid) {}

  S2O_DEVICE void run() {
    if (thread_index() == 0) {
      shared().first_tile = first_tile();
      shared().plan_head = block_index() % args_.num_plan_heads;
      shared().kv_head = shared().plan_head / args_.plan_heads_per_kv_head;
      shared().num_steps = 0;
      for (int i = 0; i < kEnergyConsumers; ++i) {
        const int steps = ceil_div(candidates_of(first_tile() + i), kEnergyKeys);
        if (steps > shared().num_steps) shared().num_steps = steps;
      }
      shared().energy_stride = ceil_div(args_.num_blocks, kEnergyKeys) * kEnergyKeys;
      for (int stage = 0; stage < grid_.num_stages; ++stage) {
        barrier_init(&shared().full[stage], 1);
        barrier_init(&shared().empty[stage], kEnergyConsumers * 4);
      }
      barrier_init_fence();
    }
    sync_block(kEnergyThreadsSm90);
    const int warpgroup = warpgroup_index();
    if (warpgroup < kEnergyConsumers) {
      consume(warpgroup);
    } else if (lane_index() == 0) {
      fill();
    }
  }

 private:
  static constexpr int kPanels = kHeadDim / kPanelColumns;
  static constexpr int kTiles = kEnergyBlock / 8;  // of 8 queries
  static constexpr int kTileBytes = tile_bytes(kEnergyBlock, kHeadDim);
  static constexpr float kLargestSum = 0x1p100f;  // until the reference is raised
  static constexpr float kHidden = -0x1.8p127f;

  S2O_DEVICE unsigned char* queries(int tile) const { return shared_memory() + tile * kTileBytes; }
  S2O_DEVICE unsigned char* stage(int index) const {
    return shared_memory() + kEnergyConsumers * kTileBytes + index * kEnergyPanelBytes;
  }
  S2O_DEVICE SharedEnergySm90& shared() const {
    return *reinterpret_cast<SharedEnergySm90*>(stage(grid_.num_stages));
  }
  S2O_DEVICE float* energies(int tile, int branch) const {
    return reinterpret_cast<float*>(stage(grid_.num_stages) + sizeof(SharedEnergySm90)) +
           (tile * kBranches + branch) * shared().energy_stride;
  }
  // Long tiles first.
  S2O_DEVICE int first_tile() const {
    return args_.first_tile + (ceil_div(args_.end_tile - args_.first_tile, kEnergyConsumers) - 1 -
                               block_index() / args_.num_plan_heads) *
                                  kEnergyConsumers;
  }
  S2O_DEVICE EnergyTile tile_of(int tile) const {
    return EnergyTile(args_, shared().plan_head, shared().first_tile + tile);
  }
  S2O_DEVICE bool exists(int tile) const { return shared().first_tile + tile < args_.end_tile; }
  // The same for every head.
  S2O_DEVICE int candidates_of(int tile) const {
    return tile < args_.end_tile ? EnergyTile(args_, 0, tile).num_candidates() : 0;
  }

  S2O_DEVICE void fill() {
    RingPlace place;
    const int kv_head = shared().kv_head;
    for (int step = 0; step < shared().num_steps; ++step) {
      for (int panel = 0; panel < kPanels; ++panel) {
        Barrier* const full = &shared().full[place.stage()];
        barrier_wait(&shared().empty[place.stage()], place.parity() ^ 1);
        barrier_arrive_expect(full, kEnergyPanelBytes);
        load_box_async(shared_address(stage(place.stage())), &grid_.means, full,
                       panel * kPanelColumns, step * kEnergyKeys, kv_head);
        place.advance(grid_.num_stages);
      }
    }
  }

  // A warpgroup whose tile has fewer steps than the other's multiplies all the same: both give
  // every entry back.
  S2O_DEVICE void consume(int warpgroup) {
    const int steps = ceil_div(candidates_of(shared().first_tile + warpgroup), kEnergyKeys);
    const int whole_steps = steps > 0 ? num_whole_steps(tile_of(warpgroup)) : 0;
    if (shared().num_steps > 0) prepare_queries(warpgroup);
    const std::uint32_t columns = shared_address(queries(warpgroup));
    RingPlace place;
    float d[kTiles][4];
    for (int step = 0; step < shared().num_steps; ++step) {
      const RingPlace first = place;
      pin_registers(d);
#pragma unroll
      for (int panel = 0; panel < kPanels; ++panel) {
        barrier_wait(&shared().full[place.stage()], place.parity());
        issue_product<Element, 1>(
            d, panel_descriptor(shared_address(stage(place.stage()))), kEnergyKeys,
            panel_descriptor(columns +
                             static_cast<std::uint32_t>(panel * kEnergyBlock * kPanelRowBytes)),
            kEnergyBlock, panel > 0);
        place.advance(grid_.num_stages);
      }
      warpgroup_wait<0>();
      pin_registers(d);
      give_back(first);
      if (agreed(step < steps)) {
        add_step(d, warpgroup, step, whole_steps);
      }
    }
    if (exists(warpgroup)) select(warpgroup, candidates_of(shared().first_tile + warpgroup));
  }
  S2O_DEVICE void give_back(RingPlace place) const {
    sync_warp();
    if (lane_index() != 0) return;
#pragma unroll
    for (int panel = 0; panel < kPanels; ++panel) {
      barrier_arrive(&shared().empty[place.stage()]);
      place.advance(grid_.num_stages);
    }
  }
  // Constant numbers: else the compiler reserves every barrier there is.
  S2O_DEVICE static void sync_tile(int warpgroup) {
    warpgroup == 0 ? sync_named(1, 128) : sync_named(2, 128);
  }

  // Queries into shared memory, and their norms for the second branch.
  S2O_DEVICE void prepare_queries(int warpgroup) const {
    constexpr int kChunks = kHeadDim / kChunkElements;
    const EnergyTile tile = tile_of(warpgroup);
    const int thread = thread_index() % 128;
    const int chunk = thread % kChunks;
    const std::uint32_t target = shared_address(queries(warpgroup));
    const std::int64_t first_position = tile.first_position();
    const auto first_head = static_cast<int>(tile.first_slot() % args_.pack);
    const int end_row =
        exists(warpgroup) ? static_cast<int>(tile.end_slot() - tile.first_slot()) : 0;
    const auto* const source =
        static_cast<const std::uint16_t*>(args_.q) +
        static_cast<std::int64_t>(tile.plan_head()) * args_.pack * args_.seqlen * kHeadDim +
        chunk * kChunkElements;
#pragma unroll 4
    for (int row = thread / kChunks; row < kEnergyBlock; row += 128 / kChunks) {
      const auto slot = static_cast<unsigned>(first_head + row);
      const auto pack = static_cast<unsigned>(args_.pack);
      const std::int64_t position = first_position + slot / pack;
      const std::int64_t head = slot % pack;
      const bool valid = row < end_row;
      copy_async_16(
          target + static_cast<std::uint32_t>(swizzled_chunk_offset(kEnergyBlock, row, chunk)),
          source + (valid ? (head * args_.seqlen + position) * kHeadDim : 0), valid);
    }
    copy_async_commit();
    copy_async_wait<0>();
    fence_async_proxy();
    sync_tile(warpgroup);
    if constexpr (kBranches == 2) {
      float square = 0.0f;
#pragma unroll 4
      for (int c = 0; c < kChunks; ++c) {
        const Words4 words = load_shared_16(
            target + static_cast<std::uint32_t>(swizzled_chunk_offset(kEnergyBlock, thread, c)));
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const float low = unpack_low<Element>(words.word[i]);
          const float high = unpack_high<Element>(words.word[i]);
          square = fused(low, low, fused(high, high, square));
        }
      }
      shared().row_norm[warpgroup][thread] = square_root(square);
      sync_tile(warpgroup);
    }
  }

  // Key i of this lane's two, of step `step`.
  S2O_DEVICE static int key_of_lane(int step, int i) {
    return step * kEnergyKeys + warp_index() % 4 * 16 + i * 8 + lane_index() / 4;
  }

  S2O_DEVICE void add_step(float (&d)[kTiles][4], int warpgroup, int step, int whole_steps) const {
    const EnergyTile tile = tile_of(warpgroup);
    if (agreed(step >= whole_steps)) hide_others(d, tile, step);
    if (holds_negative_infinity(d)) tile.report_bad();
    add_branch<0>(d, tile, warpgroup, step);
    if constexpr (kBranches == 2) add_branch<1>(d, tile, warpgroup, step);
  }
  // Only RBS has two branches.
  S2O_DEVICE static int first_row(const EnergyTile& tile, int key) {
    return kBranches == 2 ? 0 : tile.first_row(key);
  }
  // Steps before which every query takes part in every key.
  S2O_DEVICE static int num_whole_steps(const EnergyTile& tile) {
    if (tile.end_row() < kEnergyBlock) return 0;
    int steps = tile.num_candidates() / kEnergyKeys;
    while (steps > 0 && first_row(tile, steps * kEnergyKeys - 1) > 0) --steps;
    return steps;
  }
  // Logits of queries that take no part in the key become a number whose term is zero.
  S2O_DEVICE static void hide_others(float (&d)[kTiles][4], const EnergyTile& tile, int step) {
    const int candidates = tile.num_candidates();
    const int end_row = tile.end_row() - lane_index() % 4 * 2;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int key = key_of_lane(step, i);
      const int begin_row =
          (key < candidates ? first_row(tile, key) : kEnergyBlock) - lane_index() % 4 * 2;
#pragma unroll
      for (int n = 0; n < kTiles; ++n) {
#pragma unroll
        for (int c = 0; c < 2; ++c) {
          const int row = n * 8 + c;
          if (row < begin_row || row >= end_row) d[n][2 * i + c] = kHidden;
        }
      }
    }
  }
  // Minus infinity leaves no trace in a sum. As bits it is above every number. Products of fp16
  // numbers do not get there.
  S2O_DEVICE static bool holds_negative_infinity(const float (&d)[kTiles][4]) {
    if constexpr (!Element::kIsBf16) return false;
    std::uint32_t largest = 0;
#pragma unroll
    for (int n = 0; n < kTiles; ++n) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const std::uint32_t bits = float_bits(d[n][e]);
        largest = largest > bits ? largest : bits;
      }
    }
    return largest >= float_bits(kNegativeInfinity);
  }

  // This lane's logits of a branch.
  template <int kBranch>
  struct Logits {
    const float (&d)[kTiles][4];
    const float* norms;
    float lift[2];

    // Calls use(x, e) for each logit x, of key e / 2.
    template <class Use>
    S2O_DEVICE void for_each(const Use& use) const {
#pragma unroll
      for (int n = 0; n < kTiles; ++n) {
        FloatPair norm = {0.0f, 0.0f};
        if constexpr (kBranch == 1) norm = load_shared_pair(norms + n * 8 + lane_index() % 4 * 2);
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          float x = d[n][e];
          if constexpr (kBranch == 1) x = fused(e % 2 == 0 ? norm.low : norm.high, lift[e / 2], x);
          use(x, e);
        }
      }
    }
  };

  template <int kBranch>
  S2O_DEVICE void add_branch(const float (&d)[kTiles][4], const EnergyTile& tile, int warpgroup,
                             int step) const {
    Logits<kBranch> logits{d, shared().row_norm[warpgroup], {}};
    if constexpr (kBranch == 1) {
      const float* const lifts =
          args_.lifts + static_cast<std::int64_t>(shared().kv_head) * args_.num_blocks;
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int key = key_of_lane(step, i);
        logits.lift[i] = key < args_.num_blocks ? load_global(lifts + key) : 0.0f;
      }
    }
    float sum[2];
    bool raised = step == 0;
    for (;;) {
      if (raised) raise_reference(logits, warpgroup, step);
      sum_terms(logits, reference_of(warpgroup, kBranch), sum);
      if (agreed(raised)) break;
      raised = any_lane(!(sum[0] < kLargestSum && sum[1] < kLargestSum));
      if (!raised) break;
    }
    if (raised && !(sum[0] + sum[1] < -kNegativeInfinity)) tile.report_bad();
    if (lane_index() % 4 == 0) {
      float* const target = energies(warpgroup, kBranch);
      target[key_of_lane(step, 0)] = sum[0];
      target[key_of_lane(step, 1)] = sum[1];
    }
  }

  template <int kBranch>
  S2O_DEVICE void sum_terms(const Logits<kBranch>& logits, float reference, float (&sum)[2]) const {
    const float scale = args_.scale * kLog2E;
    const float shift = reference == kNegativeInfinity ? 0.0f : -reference;
    float part[4] = {0.0f, 0.0f, 0.0f, 0.0f};
    logits.for_each([&](float x, int e) { part[e] += exp2_fast(fused(x, scale, shift)); });
    sum[0] = quad_sum(part[0] + part[1]);
    sum[1] = quad_sum(part[2] + part[3]);
  }

  // To the largest logit of this step and those before.
  template <int kBranch>
  S2O_DEVICE void raise_reference(const Logits<kBranch>& logits, int warpgroup, int step) const {
    float largest = kNegativeInfinity;
    logits.for_each([&](float x, int) { largest = max_of(largest, x); });
#pragma unroll
    for (int mask = 16; mask > 0; mask /= 2) largest = max_of(largest, shuffle_xor(largest, mask));
    if (largest <= 0.75f * kHidden) largest = kNegativeInfinity;
    float& reference = reference_of(warpgroup, kBranch);
    const float before = step == 0 ? kNegativeInfinity : reference;
    const float raised = max_of(before, largest * (args_.scale * kLog2E));
    sync_warp();
    if (lane_index() == 0) reference = raised;
    const float factor = reference_scale(before, raised);
    float* const own = energies(warpgroup, kBranch) + warp_index() % 4 * 16 + lane_index() % 16;
    for (int s = lane_index() / 16; s < step; s += 2) own[s * kEnergyKeys] *= factor;
    sync_warp();
  }
  // Of this warp's mean keys: those of places [16 w, 16 w + 16) of every step.
  S2O_DEVICE float& reference_of(int warpgroup, int branch) const {
    return shared().reference[warpgroup][branch][warp_index() % 4];
  }

  // Blocks within alpha of the loudest, and the items. The bits take the place of the queries.
  S2O_DEVICE void select(int warpgroup, int candidates) const {
    const EnergyTile tile = tile_of(warpgroup);
    const int own_warp = warp_index() % 4;
    const int first_key = own_warp * 32 + lane_index();  // then every 128th: keys of one warp
    sync_tile(warpgroup);
    float factor[kBranches] = {};
#pragma unroll
    for (int branch = 0; branch < kBranches; ++branch) {
      if (candidates == 0) break;
      const float* const reference = shared().reference[warpgroup][branch];
      const float largest =
          max_of(max_of(reference[0], reference[1]), max_of(reference[2], reference[3]));
      factor[branch] = reference_scale(reference[first_key / 16 % 4], largest);
      float loudest = 0.0f;
      for (int j = first_key; j < candidates; j += 128) {
        loudest = max_of(loudest, energies(warpgroup, branch)[j] * factor[branch]);
      }
#pragma unroll
      for (int mask = 16; mask > 0; mask /= 2) {
        loudest = max_of(loudest, shuffle_xor(loudest, mask));
      }
      if (lane_index() == 0) shared().loudest[warpgroup][branch][own_warp] = loudest;
    }
    sync_tile(warpgroup);
    float cut[kBranches];
#pragma unroll
    for (int branch = 0; branch < kBranches; ++branch) {
      const float* const loudest = shared().loudest[warpgroup][branch];
      cut[branch] = (branch == 0 ? args_.alpha : args_.alpha_lifted) *
                    max_of(max_of(loudest[0], loudest[1]), max_of(loudest[2], loudest[3]));
    }
    auto* const bits = reinterpret_cast<std::uint32_t*>(queries(warpgroup));
    const int last_block = tile.last_block();
    for (int first = own_warp * 32; first <= last_block; first += 128) {
      const int j = first + lane_index();
      bool kept = false;
      if (j < candidates) {
#pragma unroll
        for (int branch = 0; branch < kBranches; ++branch) {
          kept = kept || energies(warpgroup, branch)[j] * factor[branch] >= cut[branch];
        }
      }
      const std::uint32_t word = ballot(kept);
      if (lane_index() == 0) bits[first / 32] = word;
    }
    sync_tile(warpgroup);
    if (own_warp == 0) tile.finish(bits);
  }

  const BlockEnergyArgs& args_;
  const EnergyGridSm90& grid_;
};

template <class Element, int kHeadDim, int kBranches>
struct EnergyRowsSm90Kernel {
  static constexpr const char* kName = "planning: energies";
  static constexpr int kThreads = kEnergyThreadsSm90;
  static constexpr int kMinBlocks = kEnergyBlocksSm90;
  static constexpr bool kPrefersShared = true;
  using Added = EnergyGridSm90;
  static Added added(const BlockEnergyArgs& args, const AddedBy& by) {
    return energy_grid_sm90(args, kHeadDim, by);
  }
  static Grid grid(const BlockEnergyArgs& args, const Added& added) {
    return {.blocks = energy_blocks_sm90(args),
            .shared_bytes =
                static_cast<std::size_t>(energy_bytes_sm90(args, kHeadDim, added.num_stages))};
  }
  S2O_DEVICE static void run(const BlockEnergyArgs& args, const Added& added) {
    EnergyRowsSm90<Element, kHeadDim, kBranches>(args, added).run();
  }
};

}  // namespace s2o::device
