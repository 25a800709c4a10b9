// How heads read (RowRanking): the mass of the keys of a few tiles, then what follows for each
// head.
//
// Probes: a block of threads weighs some groups of keys, which a thread of its last warp fetches
// once, for the heads of a KV head's group and two probes that follow each other: their probed
// queries, a quarter of a tile's, are the 64 columns of a product as in rank_rows_sm90. Warpgroups
// take turns at heads; sums of exponentials where a maximum is large enough run under the products
// of the others. Masses stay in shared memory until the end.
// Reaches: a block a head, a warp a probe.
#pragma once

#include <utility>

#include "kernels/device/e4m3_sm90.cuh"
#include "kernels/planning/launch.cuh"
#include "kernels/planning/s2o/row_ops.h"
#include "kernels/planning/shared/platform_planning.cuh"
#include "kernels/planning/shared/product_sm90.cuh"

namespace s2o::device {

inline constexpr int kProbeWarpgroups = 2;
inline constexpr int kProbeThreads = kProbeWarpgroups * 128 + 32;
inline constexpr int kProbeBlocks = 2;  // of a multiprocessor
inline constexpr int kProbeStages = 2;
inline constexpr int kProbeHeads = 8;  // of a block; larger groups come in parts
inline constexpr int kPairRows = 2 * kProbedRows;
// Groups of keys of a block: enough to pay for its queries, and as its shared memory holds masses.
inline constexpr int kLeastProbeGroups = 3;
inline constexpr int kMostProbeGroups = 32;

struct SharedProbes {
  alignas(128) unsigned char q[kProbeHeads][kPairRows * kPackedColumns];
  alignas(128) unsigned char k[kProbeStages][kPackedGroupBytes];
  float masses[kProbeHeads][2][kMostProbeGroups][4];  // of warps
  float least_mass[kProbeHeads];
  std::uint32_t below[kProbeHeads];  // the largest score that cannot count, as a pair
  ProductRing<kProbeStages> ring;
};
static_assert(kProbeBlocks * (sizeof(SharedProbes) + 1024) <= 228 * 1024);

// How the work is cut: pairs of probes, the last ones first; of a pair chunks of the longer
// history; of a chunk KV heads and parts of their groups. Of an odd number the first probe is
// alone.
struct ProbeBlocks {
  std::int32_t groups;  // of a chunk

  S2O_ANYWHERE static std::int32_t parts(const HistoryShape& shape) {
    return (shape.lists_per_kv_head + kProbeHeads - 1) / kProbeHeads;
  }
  S2O_ANYWHERE std::int32_t of_pair(const FindReachArgs& args, int later) const {
    const std::int64_t keys = args.shape.history_length(args.tiles.at(later));
    const auto all = static_cast<std::int32_t>(num_key_groups(keys));
    return (all + groups - 1) / groups * args.shape.num_kv_heads * parts(args.shape);
  }
  S2O_ANYWHERE std::int64_t count(const FindReachArgs& args) const {
    std::int64_t sum = 0;
    for (int later = args.tiles.count() - 1; later >= 0; later -= 2) sum += of_pair(args, later);
    return sum;
  }
};

class ProbeRowsSm90 {
 public:
  S2O_DEVICE ProbeRowsSm90(const FindReachArgs& args, const ProbeBlocks& blocks)
      : args_(args), s_(*reinterpret_cast<SharedProbes*>(shared_memory())) {
    int later = args.tiles.count() - 1;
    int rest = block_index();
    for (int n = blocks.of_pair(args, later); rest >= n; n = blocks.of_pair(args, later)) {
      rest -= n;
      later -= 2;
    }
    const HistoryShape& shape = args.shape;
    const int parts = ProbeBlocks::parts(shape);
    const int part = rest % parts;
    rest /= parts;
    kv_head_ = rest % shape.num_kv_heads;
    const int begin = part * shape.lists_per_kv_head / parts;
    first_head_ = kv_head_ * shape.lists_per_kv_head + begin;
    heads_ = (part + 1) * shape.lists_per_kv_head / parts - begin;
    first_group_ = rest / shape.num_kv_heads * blocks.groups;
#pragma unroll
    for (int p = 0; p < 2; ++p) {
      probe_[p] = later - p;
      const bool exists = probe_[p] >= 0;
      segment_[p] = args.tiles.at(exists ? probe_[p] : later);
      length_[p] = exists ? static_cast<int>(shape.history_length(segment_[p])) : 0;
      const std::int64_t left = shape.seqlen - std::int64_t{segment_[p]} * kRankedRows;
      const int rows = left < kRankedRows ? static_cast<int>(left) : kRankedRows;
      num_probed_[p] = static_cast<float>(num_probed(rows));
    }
    groups_ = min_of(blocks.groups, ceil_div(length_[0], kKeyGroup) - first_group_);
  }

  S2O_DEVICE void run() {
    if (thread_index() == 0) s_.ring.init(kProbeWarpgroups * 4);
    sync_block(kProbeThreads);
    if (thread_index() >= kConsumers) {
      if (thread_index() == kConsumers) fill();
      return;
    }
    load_heads();
    fence_async_proxy();
    sync_named(1, kConsumers);
    // Heads of one group of keys after the other.
    int turn = warpgroup_index();
    for (int i = 0; i < groups_; ++i) {
      s_.ring.wait(i);
      for (; turn < (i + 1) * heads_; turn += kProbeWarpgroups) weigh(i, turn - i * heads_);
      s_.ring.give_back(i);
    }
    sync_named(1, kConsumers);
    write();
  }

 private:
  using Accumulators = std::uint32_t[kPairRows / 8][2];
  static constexpr int kConsumers = kProbeWarpgroups * 128;
  static constexpr int kKeyTileBytes = kPackedGroupBytes / kKeyGroupTiles;

  S2O_DEVICE void fill() const {
    const unsigned char* const keys =
        args_.keys +
        (kv_head_ * num_key_groups(args_.shape.seqlen) + first_group_) * kPackedGroupBytes;
    for (int i = 0; i < groups_; ++i) {
      Barrier* const barrier = s_.ring.begin_fill(i, kPackedGroupBytes);
      load_bytes_async(shared_address(s_.k[i % kProbeStages]),
                       keys + static_cast<std::int64_t>(i) * kPackedGroupBytes, kPackedGroupBytes,
                       barrier);
    }
  }

  // A thread has the same 16 bytes of every head.
  S2O_DEVICE void load_heads() const {
    static_assert(kConsumers * 16 == sizeof(s_.q[0]));
    const int chunk = thread_index() / kPairRows;
    const int row = thread_index() % kPairRows;
    const int probed = row % kProbedRows / 8 * 32 + row % 8;
    const unsigned char* const source = args_.queries +
                                        (std::int64_t{first_head_} * args_.shape.num_segments +
                                         (row < kProbedRows ? segment_[0] : segment_[1])) *
                                            kPackedQueryBytes +
                                        (chunk * kRankedRows + probed) * 16;
    const std::int64_t stride = std::int64_t{args_.shape.num_segments} * kPackedQueryBytes;
    Words4 own[kProbeHeads];
#pragma unroll
    for (int head = 0; head < kProbeHeads; ++head) {
      if (head < heads_) own[head] = load_global_16(source + head * stride);
    }
#pragma unroll
    for (int head = 0; head < kProbeHeads; ++head) {
      if (head < heads_) store_shared_16(&s_.q[head][thread_index() * 16], own[head]);
    }
    if (thread_index() >= heads_) return;
    const float mass = load_global(&args_.heads[first_head_ + thread_index()].least_mass);
    // A little below the least mass that counts, in which a mean cannot exceed a maximum.
    const float least = log2_fast(mass) + kScoreBias - 0.03125f;
    s_.least_mass[thread_index()] = mass;
    s_.below[thread_index()] = least > 0.0f ? pack_pair<Fp16>(least, least) - 0x00010001u : kLowest;
  }

  S2O_DEVICE void write() const {
    const std::int64_t row = num_key_groups(args_.shape.seqlen);
#pragma unroll
    for (int p = 0; p < 2; ++p) {
      const int count = min_of(groups_, ceil_div(length_[p], kKeyGroup) - first_group_);
      for (int i = thread_index(); i < heads_ * kMostProbeGroups; i += kConsumers) {
        const int head = i / kMostProbeGroups;
        const int group = i % kMostProbeGroups;
        if (group >= count) continue;
        float total = 0.0f;
        for (int w = 0; w < 4; ++w) total += s_.masses[head][p][group][w];
        args_.masses[(std::int64_t{first_head_ + head} * args_.tiles.count() + probe_[p]) * row +
                     first_group_ + group] = total;
      }
    }
  }

  // Sum of the shares of a probe's queries.
  S2O_DEVICE static float sum_of(const Accumulators& d, int probe, int i) {
    float sum = 0.0f;
#pragma unroll
    for (int j = 0; j < kProbedRows / 8; ++j) {
      const std::uint32_t pair = d[probe * (kProbedRows / 8) + j][i];
      sum += exp2_fast(unpack_low<Fp16>(pair)) + exp2_fast(unpack_high<Fp16>(pair));
    }
    return quad_sum(sum) * kInverseBias;
  }

  S2O_DEVICE static bool may_count(const Accumulators& d, int probe, std::uint32_t below) {
    const int j = probe * (kProbedRows / 8);
    const std::uint32_t largest =
        max_of_pairs(max_of_pairs(max_of_pairs(d[j][0], d[j][1], below), d[j + 1][0], d[j + 1][1]),
                     max_of_pairs(d[j + 2][0], d[j + 2][1], d[j + 3][0]), d[j + 3][1]);
    return largest != below;
  }

  // The block's group i of keys for a head and both probes: a mass of every warp's keys.
  S2O_DEVICE void weigh(int i, int head) const {
    Accumulators d[kKeyGroupTiles];
    const std::uint64_t queries = packed_descriptor(shared_address(s_.q[head]), kPairRows);
    const std::uint64_t keys = packed_descriptor(shared_address(s_.k[i % kProbeStages]), 64);
#pragma unroll
    for (int b = 0; b < kKeyGroupTiles; ++b) pin_registers(d[b]);
    warpgroup_fence();
#pragma unroll
    for (int b = 0; b < kKeyGroupTiles; ++b) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        multiply_e4m3(d[b], descriptor_at(keys, b * kKeyTileBytes + half * 2 * 64 * 16),
                      descriptor_at(queries, half * 2 * kPairRows * 16), half);
      }
      warpgroup_commit();
    }
    float masses[2] = {0.0f, 0.0f};
    const HeadLimits limits{s_.least_mass[head], s_.below[head]};
    const int first_key = (first_group_ + i) * kKeyGroup + warp_index() % 4 * 64;
    // The product of a tile runs while those before it are reduced.
    const auto reduce = [&]<int... b>(std::integer_sequence<int, b...>) {
      (add_tile<b>(d[b], limits, first_key, masses), ...);
    };
    reduce(std::make_integer_sequence<int, kKeyGroupTiles>{});
#pragma unroll
    for (int p = 0; p < 2; ++p) {
#pragma unroll
      for (int mask = 4; mask < 32; mask *= 2) masses[p] += shuffle_xor(masses[p], mask);
      if (lane_index() == 0) s_.masses[head][p][i][warp_index() % 4] = masses[p];
    }
  }
  struct HeadLimits {
    float least_mass;
    std::uint32_t below;
  };
  template <int b>
  S2O_DEVICE void add_tile(Accumulators& d, const HeadLimits& limits, int first_key,
                           float (&masses)[2]) const {
    warpgroup_wait<kKeyGroupTiles - 1 - b>();
    pin_registers(d);
#pragma unroll
    for (int p = 0; p < 2; ++p) {
      if (!any_lane(may_count(d, p, limits.below))) continue;
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const float mass = sum_of(d, p, i) / num_probed_[p];
        const int key = first_key + lane_index() / 4 * 8 + b * 2 + i;
        if (key < args_.sink || key >= length_[p]) continue;
        if (mass >= limits.least_mass) masses[p] += mass;
      }
    }
  }
  static constexpr float kInverseBias = 0x1p-32f;
  static_assert(kScoreBias == 32.0f);
  static constexpr std::uint32_t kLowest = 0x80008000u;  // of signed 16-bit numbers

  const FindReachArgs& args_;
  SharedProbes& s_;
  int kv_head_;
  int first_head_, heads_;    // query heads
  int first_group_, groups_;  // of keys
  // Of the pair, the later first; without an earlier one its length is 0.
  int probe_[2], segment_[2], length_[2];
  float num_probed_[2];
};

struct ProbeRowsKernel {
  static constexpr const char* kName = "planning: probes of rows";
  static constexpr int kThreads = kProbeThreads;
  static constexpr int kMinBlocks = kProbeBlocks;
  using Added = ProbeBlocks;
  // All blocks at once, if they can be.
  static Added added(const FindReachArgs& args, const AddedBy& by) {
    const std::int64_t resident = std::int64_t{kProbeBlocks} * by.num_multiprocessors();
    ProbeBlocks blocks{kLeastProbeGroups};
    while (blocks.groups < kMostProbeGroups && blocks.count(args) > resident) ++blocks.groups;
    return blocks;
  }
  static Grid grid(const FindReachArgs& args, const Added& added) {
    return {.blocks = added.count(args), .shared_bytes = sizeof(SharedProbes)};
  }
  S2O_DEVICE static void run(const FindReachArgs& args, const Added& added) {
    ProbeRowsSm90(args, added).run();
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
#pragma unroll 4
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
