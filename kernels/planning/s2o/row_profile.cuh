// Profile of a KV head (row_ops.h): one block each. A thread sums eight neighbouring
// dimensions over every kLanes-th of the profile's tokens.
#pragma once

#include "kernels/device/layout.cuh"
#include "kernels/planning/launch.cuh"
#include "kernels/planning/s2o/row_ops.h"
#include "kernels/planning/shared/platform_planning.cuh"

namespace s2o::device {

inline constexpr int kProfileThreads = 1024;

// Power of two at the size of a quarter of x: values of deviation x fall where e4m3 is finest.
S2O_DEVICE float quarter_power(float x) {
  const float y = max_of(x, 1e-20f) * 0.35355339f;  // sqrt(2) / 4: rounds the exponent
  return bits_float(float_bits(y) & 0x7f800000u);
}

template <int kHeadDim>
struct SharedProfile {
  float sums[3][kProfileThreads * 8 / kHeadDim][kHeadDim];  // of k - origin, its square, q^2
  float strength[kHeadDim];
  std::int32_t chosen[kHeadDim];
};

template <class Element, int kHeadDim>
class RowProfiles {
 public:
  S2O_DEVICE explicit RowProfiles(const RowProfileArgs& args)
      : args_(args), s_(*reinterpret_cast<SharedProfile<kHeadDim>*>(shared_memory())) {}

  S2O_DEVICE void run() {
    const int kv_head = block_index();
    const auto count =
        static_cast<int>(args_.seqlen < kProfileTokens ? args_.seqlen : kProfileTokens);
    const int chunk = thread_index() % kChunks;
    const int lane = thread_index() / kChunks;
    const auto at = [&](const void* x, int index, int i) {
      return load_global_16(head(x, index) + profile_token(i, args_.seqlen) * kHeadDim + chunk * 8);
    };
    const Words4 origin = load_global_16(head(args_.k, kv_head) + chunk * 8);
    float sum[8] = {};
    float square[8] = {};
    float query[8] = {};
#pragma unroll 4  // loads in flight: few blocks of threads run, and wait for memory
    for (int i = lane; i < count; i += kLanes) {
      const Words4 words = at(args_.k, kv_head, i);
#pragma unroll
      for (int e = 0; e < 8; ++e) {
        const float x = element(words, e) - element(origin, e);
        sum[e] += x;
        square[e] = fused(x, x, square[e]);
      }
    }
    // Of the group's heads one after the other, without a loop that would wait for each.
    const int queries = (count - lane + kLanes - 1) / kLanes * args_.group_size;
    const int heads = args_.group_size;
#pragma unroll 6
    for (int i = 0; i < queries; ++i) {
      const Words4 words = at(args_.q, kv_head * heads + i % heads, lane + i / heads * kLanes);
#pragma unroll
      for (int e = 0; e < 8; ++e) {
        const float x = element(words, e);
        query[e] = fused(x, x, query[e]);
      }
    }
#pragma unroll
    for (int e = 0; e < 8; ++e) {
      s_.sums[0][lane][chunk * 8 + e] = sum[e];
      s_.sums[1][lane][chunk * 8 + e] = square[e];
      s_.sums[2][lane][chunk * 8 + e] = query[e];
    }
    sync_block(kProfileThreads);
    const int d = thread_index();
    float deviation = 0.0f;
    if (d < kHeadDim) {
      float total[3] = {0.0f, 0.0f, 0.0f};
#pragma unroll 8
      for (int l = 0; l < kLanes; ++l) {
#pragma unroll
        for (int x = 0; x < 3; ++x) total[x] += s_.sums[x][l][d];
      }
      const float inverse = 1.0f / static_cast<float>(count);
      const float mean = total[0] * inverse;
      deviation = square_root(max_of(fused(-mean, mean, total[1] * inverse), 0.0f));
      args_.profile.key_means[kv_head * kHeadDim + d] =
          mean + half_bits_to_float(head(args_.k, kv_head)[d]);
      s_.strength[d] =
          deviation * square_root(total[2] * inverse / static_cast<float>(args_.group_size));
    }
    sync_block(kProfileThreads);
    if (d < kHeadDim) s_.chosen[d] = is_among_strongest(d) ? 1 : 0;
    sync_block(kProfileThreads);
    if (d < kHeadDim) write_dim(kv_head, d, deviation);
  }

 private:
  static constexpr int kChunks = kHeadDim / 8;
  static constexpr int kLanes = kProfileThreads / kChunks;

  S2O_DEVICE static float element(const Words4& words, int e) {
    return e % 2 == 0 ? unpack_low<Element>(words.word[e / 2])
                      : unpack_high<Element>(words.word[e / 2]);
  }

  S2O_DEVICE const std::uint16_t* head(const void* x, int index) const {
    return static_cast<const std::uint16_t*>(x) + index * args_.seqlen * kHeadDim;
  }
  S2O_DEVICE static float half_bits_to_float(std::uint16_t bits) {
    return unpack_low<Element>(bits);
  }

  S2O_DEVICE bool is_among_strongest(int d) const {
    const float own = s_.strength[d];
    int stronger = 0;
#pragma unroll 8
    for (int other = 0; other < kHeadDim; ++other) {
      const float x = s_.strength[other];
      stronger += x > own || (x == own && other < d) ? 1 : 0;
    }
    return stronger < kRankedDims;
  }
  S2O_DEVICE void write_dim(int kv_head, int d, float deviation) const {
    if (s_.chosen[d] == 0) return;
    int place = 0;
#pragma unroll 8
    for (int other = 0; other < kHeadDim; ++other) place += other < d ? s_.chosen[other] : 0;
    const float unit = quarter_power(deviation);
    const int at = kv_head * kPackedColumns + place;
    args_.profile.dims[at] = d;
    args_.profile.key_scales[at] = 1.0f / unit;
    args_.profile.query_scales[at] = unit * args_.softmax_scale * kLog2E;
  }

  const RowProfileArgs& args_;
  SharedProfile<kHeadDim>& s_;
};

template <class Element, int kHeadDim>
struct RowProfilesKernel {
  static constexpr const char* kName = "planning: profiles of keys";
  static constexpr int kThreads = kProfileThreads;
  static constexpr int kMinBlocks = 1;
  struct Added {};
  static Added added(const RowProfileArgs& /*args*/, const AddedBy& /*by*/) { return {}; }
  static Grid grid(const RowProfileArgs& args, const Added& /*added*/) {
    return {.blocks = args.num_kv_heads, .shared_bytes = sizeof(SharedProfile<kHeadDim>)};
  }
  S2O_DEVICE static void run(const RowProfileArgs& args, const Added& /*added*/) {
    RowProfiles<Element, kHeadDim>(args).run();
  }
};

}  // namespace s2o::device
