// Keys in e4m3, and the samples among them (PackKeysArgs). A block takes half of a group of keys
// and copies them into shared memory, a stride of an odd number of words apart, so that 32 keys
// read the same dimension without bank conflicts; each thread then makes 16 bytes of a key at a
// time.
#pragma once

#include "kernels/device/e4m3_sm90.cuh"
#include "kernels/planning/launch.cuh"
#include "kernels/planning/s2o/row_ops.h"
#include "kernels/planning/shared/platform_planning.cuh"

namespace s2o::device {

inline constexpr int kPackThreads = 256;
inline constexpr int kPackRows = kKeyGroup / 2;
inline constexpr int kPackChunks = kPackedColumns / 16;

template <int kHeadDim>
struct SharedPack {
  static constexpr int kRowWords = kHeadDim / 2 + 1;
  std::uint32_t rows[kPackRows * kRowWords];
  float scales[kRankedDims];
  float means[kRankedDims];
  std::int32_t dims[kRankedDims];
};

template <class Element, int kHeadDim>
class PackKeys {
 public:
  S2O_DEVICE explicit PackKeys(const PackKeysArgs& args)
      : args_(args), s_(*reinterpret_cast<SharedPack<kHeadDim>*>(shared_memory())) {}

  S2O_DEVICE void run() {
    const int halves = static_cast<int>(num_key_groups(args_.seqlen)) * 2;
    const int kv_head = block_index() / halves;
    const int half = block_index() % halves;
    const std::int64_t first = std::int64_t{half} * kPackRows;
    const auto count = static_cast<int>(args_.seqlen - first);  // may be more, or less than 0
    const std::uint16_t* const source =
        static_cast<const std::uint16_t*>(args_.k) + (kv_head * args_.seqlen + first) * kHeadDim;
    load_profile(kv_head);
    load_keys(source, count);
    sync_block(kPackThreads);
    unsigned char* const group =
        args_.packed + (std::int64_t{kv_head} * halves / 2 + half / 2) * kPackedGroupBytes;
    for (int i = thread_index(); i < kPackRows * kPackChunks; i += kPackThreads) {
      const int row = i % kPackRows;
      const int c = i / kPackRows;
      const int key = half % 2 * kPackRows + row;
      store_global_16(group + packed_key_tile(key) * (kPackedGroupBytes / 4) + c * 1024 +
                          packed_key_row(key) * 16,
                      columns(row, c));
    }
    check(kv_head, half, count);
    copy_samples(kv_head, first, source);
  }

 private:
  static constexpr int kRowWords = SharedPack<kHeadDim>::kRowWords;

  S2O_DEVICE void load_profile(int kv_head) const {
    for (int i = thread_index(); i < kRankedDims; i += kPackThreads) {
      const int d = load_global(args_.profile.dims + kv_head * kPackedColumns + i);
      s_.dims[i] = d;
      s_.scales[i] = load_global(args_.profile.key_scales + kv_head * kPackedColumns + i);
      s_.means[i] = load_global(args_.profile.key_means + kv_head * kHeadDim + d);
    }
  }
  // Those beyond `count` are zeros.
  S2O_DEVICE void load_keys(const std::uint16_t* source, int count) const {
    constexpr int kChunks = kHeadDim / 8;
#pragma unroll 4
    for (int i = thread_index(); i < kPackRows * kChunks; i += kPackThreads) {
      const int row = i / kChunks;
      const Words4 words =
          row < count ? load_global_16(source + static_cast<std::int64_t>(i) * 8) : Words4{};
#pragma unroll
      for (int w = 0; w < 4; ++w) s_.rows[row * kRowWords + i % kChunks * 4 + w] = words.word[w];
    }
  }
  S2O_DEVICE float at(int row, int d) const {
    const std::uint32_t pair = s_.rows[row * kRowWords + d / 2];
    return d % 2 == 0 ? unpack_low<Element>(pair) : unpack_high<Element>(pair);
  }
  S2O_DEVICE float column(int row, int i) const {
    return (at(row, s_.dims[i]) - s_.means[i]) * s_.scales[i];
  }
  // Columns [16 c, 16 c + 16).
  S2O_DEVICE Words4 columns(int row, int c) const {
    Words4 words;
#pragma unroll
    for (int w = 0; w < 4; ++w) {
      std::uint32_t pair[2];
#pragma unroll
      for (int p = 0; p < 2; ++p) {
        const int i = c * 16 + w * 4 + p * 2;
        pair[p] = i < kRankedDims ? pack_e4m3(column(row, i), column(row, i + 1))
                                  : pack_e4m3(kShiftHigh, kShiftLow);
      }
      words.word[w] = pair[0] | pair[1] << 16;
    }
    return words;
  }

  S2O_DEVICE void check(int kv_head, int half, int count) const {
    const int row = thread_index() % kPackRows;
    float zero = 0.0f;
    for (int d = thread_index() / kPackRows; d < kHeadDim; d += kPackThreads / kPackRows) {
      zero = fused(at(row, d), 0.0f, zero);
    }
    if (row < count && !is_finite(zero)) {
      const std::int64_t id = std::int64_t{kv_head} * args_.group_size * args_.num_segments + half;
      atomic_max(args_.bad_row, ~static_cast<std::uint32_t>(id));
    }
  }
  S2O_DEVICE void copy_samples(int kv_head, std::int64_t first, const std::uint16_t* source) const {
    constexpr int kChunks = kHeadDim / 8;
    for (std::int64_t sample = first / args_.sample_stride; sample < args_.num_samples; ++sample) {
      const std::int64_t key = sampled_key(sample, args_.sample_stride) - first;
      if (key >= kPackRows) break;
      if (key < 0) continue;
      if (thread_index() < kChunks) {
        store_global_16(static_cast<std::uint16_t*>(args_.samples) +
                            (kv_head * args_.num_samples + sample) * kHeadDim + thread_index() * 8,
                        load_global_16(source + key * kHeadDim + thread_index() * 8));
      }
    }
  }

  const PackKeysArgs& args_;
  SharedPack<kHeadDim>& s_;
};

template <class Element, int kHeadDim>
struct PackKeysKernel {
  static constexpr const char* kName = "planning: packed keys";
  static constexpr int kThreads = kPackThreads;
  static constexpr int kMinBlocks = 4;
  struct Added {};
  static Added added(const PackKeysArgs& /*args*/, const AddedBy& /*by*/) { return {}; }
  static Grid grid(const PackKeysArgs& args, const Added& /*added*/) {
    return {.blocks = args.num_kv_heads * num_key_groups(args.seqlen) * 2,
            .shared_bytes = sizeof(SharedPack<kHeadDim>)};
  }
  S2O_DEVICE static void run(const PackKeysArgs& args, const Added& /*added*/) {
    PackKeys<Element, kHeadDim>(args).run();
  }
};

}  // namespace s2o::device
