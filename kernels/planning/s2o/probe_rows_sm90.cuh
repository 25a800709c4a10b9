// How heads read (RowRanking): the mass of the keys of a few tiles, then what follows for each
// head.
//
// Probes: a block of threads, one warpgroup, weighs some groups of keys for one probe: products as
// in rank_rows_sm90 with a quarter of the tile's queries, and sums of exponentials where a maximum
// is large enough. A thread fetches the groups ahead. Each group's mass has a place of its own.
// Reaches: a block a head, a warp a probe.
#pragma once

#include "kernels/device/e4m3_sm90.cuh"
#include "kernels/planning/launch.cuh"
#include "kernels/planning/s2o/row_ops.h"
#include "kernels/planning/shared/platform_planning.cuh"

namespace s2o::device {

inline constexpr int kProbeThreads = 128;
inline constexpr int kProbeStages = 3;
inline constexpr int kProbeGroups = 8;  // of a block of threads: probes are few

struct SharedProbe {
  alignas(128) unsigned char q[kPackedQueryBytes];
  alignas(128) unsigned char k[kProbeStages][kPackedGroupBytes];
  float masses[2][kProbeThreads / 32];  // groups take turns
  Barrier q_full;
  Barrier k_full[kProbeStages];
};

class ProbeRowsSm90 {
 public:
  S2O_DEVICE explicit ProbeRowsSm90(const FindReachArgs& args)
      : args_(args),
        s_(*reinterpret_cast<SharedProbe*>(shared_memory())),
        num_groups_(static_cast<int>(num_key_groups(args.shape.seqlen))) {
    const int chunks = ceil_div(num_groups_, kProbeGroups);
    const int probe = block_index() / chunks % args.tiles.count();
    head_ = block_index() / chunks / args.tiles.count();
    segment_ = args.tiles.at(probe);
    length_ = static_cast<int>(args.shape.history_length(segment_));
    first_ = block_index() % chunks * kProbeGroups;
    end_ = min_of(first_ + kProbeGroups, ceil_div(length_, kKeyGroup));
    masses_ = args.masses + (std::int64_t{head_} * args.tiles.count() + probe) * num_groups_;
    const std::int64_t left = args.shape.seqlen - std::int64_t{segment_} * kRankedRows;
    const int rows = left < kRankedRows ? static_cast<int>(left) : kRankedRows;
    num_probed_ = static_cast<float>(num_probed(rows));
    // A little below the least mass that counts, in which a mean cannot exceed a maximum.
    least_mass_ = load_global(&args.heads[head_].least_mass);
    const float least = log2_fast(least_mass_) + kScoreBias - 0.03125f;
    least_score_ = least > 0.0f ? static_cast<std::int32_t>(pack_pair<Fp16>(least, 0.0f)) : -32768;
  }

  S2O_DEVICE void run() {
    if (first_ >= end_) return;
    if (thread_index() == 0) {
      barrier_init(&s_.q_full, 1);
      for (int stage = 0; stage < kProbeStages; ++stage) barrier_init(&s_.k_full[stage], 1);
      barrier_init_fence();
    }
    sync_block(kProbeThreads);
    if (thread_index() == 0) {
      barrier_arrive_expect(&s_.q_full, kPackedQueryBytes);
      load_bytes_async(shared_address(s_.q),
                       args_.queries + (std::int64_t{head_} * args_.shape.num_segments + segment_) *
                                           kPackedQueryBytes,
                       kPackedQueryBytes, &s_.q_full);
      for (int i = 0; i < kProbeStages; ++i) fetch(i);
    }
    barrier_wait(&s_.q_full, 0);
    for (int i = 0; first_ + i < end_; ++i) {
      barrier_wait(&s_.k_full[i % kProbeStages], i / kProbeStages % 2);
      const float own = weigh(i % kProbeStages, (first_ + i) * kKeyGroup);
      if (lane_index() == 0) s_.masses[i % 2][warp_index()] = own;
      sync_block(kProbeThreads);  // masses are there, and nobody reads the stage
      if (thread_index() != 0) continue;
      fetch(i + kProbeStages);
      float total = 0.0f;
      for (int w = 0; w < kProbeThreads / 32; ++w) total += s_.masses[i % 2][w];
      masses_[first_ + i] = total;
    }
  }

 private:
  using Accumulators = std::uint32_t[kProbedRows / 8][2];

  S2O_DEVICE void fetch(int i) const {
    const int group = first_ + i;
    if (group >= end_) return;
    Barrier* const barrier = &s_.k_full[i % kProbeStages];
    barrier_arrive_expect(barrier, kPackedGroupBytes);
    load_bytes_async(
        shared_address(s_.k[i % kProbeStages]),
        args_.keys + (std::int64_t{head_ / args_.shape.lists_per_kv_head} * num_groups_ + group) *
                         kPackedGroupBytes,
        kPackedGroupBytes, barrier);
  }

  // Sum of the shares of the products' queries.
  S2O_DEVICE static float sum_of(const Accumulators& d, int i) {
    float sum = 0.0f;
#pragma unroll
    for (int j = 0; j < kProbedRows / 8; ++j) {
      sum += exp2_fast(unpack_low<Fp16>(d[j][i])) + exp2_fast(unpack_high<Fp16>(d[j][i]));
    }
    return quad_sum(sum) * kInverseBias;
  }

  S2O_DEVICE bool may_count(const Accumulators& d) const {
    const std::uint32_t largest =
        max_of_pairs(max_of_pairs(d[0][0], d[0][1], d[1][0]),
                     max_of_pairs(d[1][1], d[2][0], d[2][1]), max_of_pairs(d[3][0], d[3][1]));
    return static_cast<std::int16_t>(largest & 0xffffu) >= least_score_ ||
           static_cast<std::int16_t>(largest >> 16) >= least_score_;
  }

  // Of the warp's keys of a group, in every lane.
  S2O_DEVICE float weigh(int stage, int first_key) const {
    Accumulators d[kKeyGroupTiles];
    const std::uint64_t queries =
        strided_descriptor(shared_address(s_.q), kRankedRows, kRankedRows / kProbedRows);
#pragma unroll
    for (int b = 0; b < kKeyGroupTiles; ++b) pin_registers(d[b]);
    warpgroup_fence();
#pragma unroll
    for (int b = 0; b < kKeyGroupTiles; ++b) {
      const std::uint64_t keys = packed_descriptor(
          shared_address(s_.k[stage]) +
              static_cast<std::uint32_t>(b * (kPackedGroupBytes / kKeyGroupTiles)),
          64);
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const std::uint64_t a = descriptor_at(keys, half * 2 * 64 * 16);
        multiply_e4m3(d[b], a, descriptor_at(queries, half * 2 * kRankedRows * 16), half);
      }
    }
    warpgroup_commit();
    warpgroup_wait<0>();
    float total = 0.0f;
#pragma unroll
    for (int b = 0; b < kKeyGroupTiles; ++b) {
      pin_registers(d[b]);
      if (!any_lane(may_count(d[b]))) continue;
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const float mass = sum_of(d[b], i) / num_probed_;
        const int key = first_key + warp_index() * 64 + lane_index() / 4 * 8 + b * 2 + i;
        if (key < args_.sink || key >= length_) continue;
        if (mass >= least_mass_) total += mass;
      }
    }
#pragma unroll
    for (int mask = 4; mask < 32; mask *= 2) total += shuffle_xor(total, mask);
    return total;
  }
  static constexpr float kInverseBias = 0x1p-32f;
  static_assert(kScoreBias == 32.0f);

  const FindReachArgs& args_;
  SharedProbe& s_;
  const int num_groups_;
  int head_, segment_, length_, first_, end_;
  float num_probed_;
  float least_mass_;
  std::int32_t least_score_;  // the bits of a score
  float* masses_;
};

struct ProbeRowsKernel {
  static constexpr const char* kName = "planning: probes of rows";
  static constexpr int kThreads = kProbeThreads;
  static constexpr int kMinBlocks = 4;
  struct Added {};
  static Added added(const FindReachArgs& /*args*/, const AddedBy& /*by*/) { return {}; }
  static Grid grid(const FindReachArgs& args, const Added& /*added*/) {
    const std::int64_t groups = num_key_groups(args.shape.seqlen);
    return {.blocks = (groups + kProbeGroups - 1) / kProbeGroups * args.tiles.count() *
                      args.shape.num_lists(),
            .shared_bytes = sizeof(SharedProbe)};
  }
  S2O_DEVICE static void run(const FindReachArgs& args, const Added& /*added*/) {
    ProbeRowsSm90(args).run();
  }
};

inline constexpr int kReachWarps = 16;

// A warp adds up a probe's groups from the oldest on, 32 at a time.
struct FindReachesKernel {
  static constexpr const char* kName = "planning: reaches of heads";
  static constexpr int kThreads = kReachWarps * 32;
  static constexpr int kMinBlocks = 1;
  struct Added {};
  static Added added(const FindReachArgs& /*args*/, const AddedBy& /*by*/) { return {}; }
  static Grid grid(const FindReachArgs& args, const Added& /*added*/) {
    return {.blocks = args.shape.num_lists(), .shared_bytes = sizeof(std::int32_t) * kReachWarps};
  }
  S2O_DEVICE static void run(const FindReachArgs& args, const Added& /*added*/) {
    auto* const found = reinterpret_cast<std::int32_t*>(shared_memory());
    const auto row = static_cast<int>(num_key_groups(args.shape.seqlen));
    const float limit = load_global(&args.heads[block_index()].reach_limit);
    std::int32_t reach = kNothingFar;
    for (int probe = warp_index(); probe < args.tiles.count(); probe += kReachWarps) {
      const float* const masses =
          args.masses + (std::int64_t{block_index()} * args.tiles.count() + probe) * row;
      const auto length = static_cast<int>(args.shape.history_length(args.tiles.at(probe)));
      const std::int32_t own = reach_of(masses, length, limit);
      if (own > reach) reach = own;
    }
    if (lane_index() == 0) found[warp_index()] = reach;
    sync_block(kThreads);
    if (thread_index() != 0) return;
    for (int w = 1; w < kReachWarps; ++w) {
      if (found[w] > reach) reach = found[w];
    }
    args.reaches[block_index()] =
        limit > 0.0f ? reach : static_cast<std::int32_t>(args.shape.seqlen);
  }

 private:
  S2O_DEVICE static std::int32_t reach_of(const float* masses, int length, float limit) {
    const int count = ceil_div(length, kKeyGroup);
    std::int32_t reach = kNothingFar;
    float lost = 0.0f;  // without the groups so far, but for the leading ones
    float leading = 0.0f;
    for (int first = 0; first < count; first += 32) {
      const int group = first + lane_index();
      const float own = group < count ? masses[group] : 0.0f;
      const bool leads = group < kLeadingGroups;
      const float sum = lost + warp_prefix_sum(leads ? 0.0f : own);
      leading += leads ? own : 0.0f;
      const std::uint32_t beyond = ballot(sum > limit);
      if (beyond != 0 && reach == kNothingFar) {
        reach = length - (first + lowest_bit(beyond)) * kKeyGroup;
      }
      lost = shuffle_from(sum, 31);
    }
    for (int mask = 1; mask < 32; mask *= 2) leading += shuffle_xor(leading, mask);
    if (reach == kNothingFar && lost + leading > limit) reach = 0;
    return reach;
  }
};

}  // namespace s2o::device
