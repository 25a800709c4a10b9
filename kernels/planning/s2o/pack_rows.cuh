// Packing of 128 rows of queries or keys into e4m3 (row_ops.h). A block copies the rows into
// shared memory, a stride of an odd number of words apart, so that 32 rows read the same dimension
// without bank conflicts; each thread then makes 16 bytes of a row at a time.
#pragma once

#include "kernels/device/e4m3_sm90.cuh"
#include "kernels/planning/launch.cuh"
#include "kernels/planning/s2o/row_ops.h"
#include "kernels/planning/shared/platform_planning.cuh"

namespace s2o::device {

inline constexpr int kPackThreads = 256;
inline constexpr int kPackRows = 128;
inline constexpr int kPackChunks = kPackedColumns / 16;

template <int kHeadDim>
struct SharedPack {
  static constexpr int kRowWords = kHeadDim / 2 + 1;
  std::uint32_t rows[kPackRows * kRowWords];
  float means[kHeadDim];
  float scales[kPackedColumns];
  float offsets[kPackedColumns];
  std::int32_t dims[kPackedColumns];
  float partial[2][kPackRows];
};

template <class Element, int kHeadDim>
class RowPacker {
 public:
  S2O_DEVICE RowPacker(SharedPack<kHeadDim>& shared, const RowProfile& profile, int kv_head,
                       const float* scales, bool centred)
      : s_(shared) {
    for (int i = thread_index(); i < kRankedDims; i += kPackThreads) {
      const int d = load_global(profile.dims + kv_head * kPackedColumns + i);
      s_.dims[i] = d;
      s_.scales[i] = load_global(scales + kv_head * kPackedColumns + i);
      s_.offsets[i] = centred ? load_global(profile.key_means + kv_head * kHeadDim + d) : 0.0f;
    }
    for (int i = thread_index(); i < kHeadDim; i += kPackThreads) {
      s_.means[i] = load_global(profile.key_means + kv_head * kHeadDim + i);
    }
  }

  // Rows beyond `count` are zeros. All threads; a block barrier must follow.
  S2O_DEVICE void load(const std::uint16_t* source, int count) const {
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
  // Sum over half of the dimensions of row times key mean; not finite if the row is not.
  S2O_DEVICE float half_dot(int row, int half) const {
    float sum = 0.0f;
#pragma unroll 8
    for (int i = 0; i < kHeadDim / 4; ++i) {
      const int word = half * (kHeadDim / 4) + i;
      const std::uint32_t pair = s_.rows[row * kRowWords + word];
      sum = fused(unpack_low<Element>(pair), s_.means[2 * word], sum);
      sum = fused(unpack_high<Element>(pair), s_.means[2 * word + 1], sum);
    }
    return sum;
  }
  // 16 columns; of the last chunk the last two are `last`, packed.
  S2O_DEVICE Words4 chunk(int row, int c, std::uint32_t last) const {
    Words4 words;
#pragma unroll
    for (int w = 0; w < 4; ++w) {
      std::uint32_t pair[2];
#pragma unroll
      for (int p = 0; p < 2; ++p) {
        const int i = c * 16 + w * 4 + p * 2;
        if (i >= kRankedDims) {
          pair[p] = last;
        } else {
          pair[p] = pack_e4m3((at(row, s_.dims[i]) - s_.offsets[i]) * s_.scales[i],
                              (at(row, s_.dims[i + 1]) - s_.offsets[i + 1]) * s_.scales[i + 1]);
        }
      }
      words.word[w] = pair[0] | pair[1] << 16;
    }
    return words;
  }

 private:
  static constexpr int kRowWords = SharedPack<kHeadDim>::kRowWords;
  SharedPack<kHeadDim>& s_;
};

S2O_DEVICE bool is_finite(float x) { return absolute(x) < -kNegativeInfinity; }

// A block packs half of a group of keys and copies the samples among them.
template <class Element, int kHeadDim>
class PackKeys {
 public:
  S2O_DEVICE explicit PackKeys(const PackKeysArgs& args) : args_(args) {}

  S2O_DEVICE void run() {
    auto& s = *reinterpret_cast<SharedPack<kHeadDim>*>(shared_memory());
    const int halves = static_cast<int>(num_key_groups(args_.seqlen)) * 2;
    const int kv_head = block_index() / halves;
    const int half = block_index() % halves;
    const std::int64_t first = std::int64_t{half} * kPackRows;
    const auto count = static_cast<int>(args_.seqlen - first);  // may be more, or less than 0
    const std::uint16_t* const source =
        static_cast<const std::uint16_t*>(args_.k) + (kv_head * args_.seqlen + first) * kHeadDim;
    const RowPacker<Element, kHeadDim> packer(s, args_.profile, kv_head, args_.profile.key_scales,
                                              true);
    packer.load(source, count);
    sync_block(kPackThreads);
    unsigned char* const group =
        args_.packed + (std::int64_t{kv_head} * halves / 2 + half / 2) * kPackedGroupBytes;
    const std::uint32_t last = pack_e4m3(kShiftHigh, kShiftLow);
    for (int i = thread_index(); i < kPackRows * kPackChunks; i += kPackThreads) {
      const int row = i % kPackRows;
      const int c = i / kPackRows;
      const int key = half % 2 * kPackRows + row;
      unsigned char* const target = group + packed_key_tile(key) * (kPackedGroupBytes / 4) +
                                    c * 1024 + packed_key_row(key) * 16;
      store_global_16(target, packer.chunk(row, c, last));
    }
    check(packer, kv_head, half, count, s);
    copy_samples(kv_head, first, source);
  }

 private:
  S2O_DEVICE void check(const RowPacker<Element, kHeadDim>& packer, int kv_head, int half,
                        int count, SharedPack<kHeadDim>&) const {
    const int row = thread_index() % kPackRows;
    float zero = 0.0f;
    for (int d = thread_index() / kPackRows; d < kHeadDim; d += kPackThreads / kPackRows) {
      zero = fused(packer.at(row, d), 0.0f, zero);
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
};

// A block packs a tile of queries, unless its head ranks nothing.
template <class Element, int kHeadDim>
class PackQueries {
 public:
  S2O_DEVICE explicit PackQueries(const PackQueriesArgs& args) : args_(args) {}

  S2O_DEVICE void run() {
    auto& s = *reinterpret_cast<SharedPack<kHeadDim>*>(shared_memory());
    const HistoryShape& shape = args_.shape;
    const int head = block_index() / args_.tiles.count();
    const int segment = args_.tiles.at(block_index() % args_.tiles.count());
    const std::int64_t tile = std::int64_t{head} * shape.num_segments + segment;
    if (shape.history_length(segment) == 0) return;
    if (args_.reaches != nullptr && !is_whole_tile(segment, shape.num_segments) &&
        load_global(&args_.reaches[head]) == kNothingFar) {
      return;
    }
    const int kv_head = head / shape.lists_per_kv_head;
    const std::int64_t first = std::int64_t{segment} * kPackRows;
    const auto count = static_cast<int>(shape.seqlen - first);
    const RowPacker<Element, kHeadDim> packer(s, args_.profile, kv_head, args_.profile.query_scales,
                                              false);
    packer.load(
        static_cast<const std::uint16_t*>(args_.q) + (head * shape.seqlen + first) * kHeadDim,
        count);
    sync_block(kPackThreads);
    const int row = thread_index() % kPackRows;
    const int half = thread_index() / kPackRows;
    s.partial[half][row] = packer.half_dot(row, half);
    sync_block(kPackThreads);
    const float dot = (s.partial[0][row] + s.partial[1][row]) * (args_.softmax_scale * kLog2E);
    const float normalizer =
        row < count ? load_global(args_.log2_normalizers + head * shape.seqlen + first + row)
                    : 0.0f;
    if (row < count && !is_finite(normalizer - dot)) {
      atomic_max(args_.bad_row, ~static_cast<std::uint32_t>(tile));
    }
    // Rows that do not exist want nothing.
    const float shift = row < count ? kScoreBias - (normalizer - dot) : -kLargestE4m3;
    const std::uint32_t high = pack_e4m3(shift * (1.0f / kShiftHigh), 0.0f) & 0xffu;
    const float rest = shift - kShiftHigh * unpack_e4m3(high);
    const std::uint32_t last = high | pack_e4m3(0.0f, rest * (1.0f / kShiftLow));
    unsigned char* const target = args_.packed + tile * kPackedQueryBytes + row * 16;
#pragma unroll
    for (int i = 0; i < kPackChunks / 2; ++i) {
      const int c = half + 2 * i;
      store_global_16(target + c * kPackRows * 16, packer.chunk(row, c, last));
    }
  }

 private:
  const PackQueriesArgs& args_;
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

template <class Element, int kHeadDim>
struct PackQueriesKernel {
  static constexpr const char* kName = "planning: packed queries";
  static constexpr int kThreads = kPackThreads;
  static constexpr int kMinBlocks = 4;
  struct Added {};
  static Added added(const PackQueriesArgs& /*args*/, const AddedBy& /*by*/) { return {}; }
  static Grid grid(const PackQueriesArgs& args, const Added& /*added*/) {
    return {.blocks = std::int64_t{args.shape.num_lists()} * args.tiles.count(),
            .shared_bytes = sizeof(SharedPack<kHeadDim>)};
  }
  S2O_DEVICE static void run(const PackQueriesArgs& args, const Added& /*added*/) {
    PackQueries<Element, kHeadDim>(args).run();
  }
};

}  // namespace s2o::device
