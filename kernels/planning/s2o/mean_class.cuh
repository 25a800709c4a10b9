// From scores to the bytes that both products of mean queries and keys leave (MeanClassArgs).
#pragma once

#include "kernels/planning/s2o/ops.h"
#include "kernels/planning/shared/platform_planning.cuh"

namespace s2o::device {

// a b + c of both halves of pairs of fp16, rounded once; and low bytes of the halves of `low`, then
// of `high`.
#if defined(__CUDACC__)
S2O_DEVICE std::uint32_t fused_pairs(std::uint32_t a, std::uint32_t b, std::uint32_t c) {
  std::uint32_t result;
  asm("fma.rn.f16x2 %0, %1, %2, %3;" : "=r"(result) : "r"(a), "r"(b), "r"(c));
  return result;
}
S2O_DEVICE std::uint32_t low_bytes(std::uint32_t low, std::uint32_t high) {
  return __byte_perm(low, high, 0x6420);
}
#else
inline std::uint32_t fused_pairs(std::uint32_t a, std::uint32_t b, std::uint32_t c) {
  return pack_pair<Fp16>(fused(unpack_low<Fp16>(a), unpack_low<Fp16>(b), unpack_low<Fp16>(c)),
                         fused(unpack_high<Fp16>(a), unpack_high<Fp16>(b), unpack_high<Fp16>(c)));
}
inline std::uint32_t low_bytes(std::uint32_t low, std::uint32_t high) {
  return (low & 0xffu) | (low >> 8 & 0xff00u) | (high & 0xffu) << 16 | (high & 0xff0000u) << 8;
}
#endif

// Row of the product that a thread holds.
struct ClassedRow {
  unsigned char* classes;      // of key 0
  std::uint32_t scale, shift;  // pairs of fp16: to a class, plus 1,024: it is then the low byte
  std::uint32_t lowest;        // pair of fp16
  int end;                     // ranked keys; 0: there is no row
  std::uint32_t poison = 0;    // pair of fp16: zeros as long as all scores are numbers

  // Whether all scores were numbers below the largest of fp16. Of a quad, which holds the row.
  S2O_DEVICE bool is_finite() const {
    std::uint32_t all = poison;
    all = max_pairs(all, shuffle_xor(all, 1));
    all = max_pairs(all, shuffle_xor(all, 2));
    return (all & 0x7fff7fffu) == 0;
  }
};

inline constexpr std::uint32_t kClassBase = 0x64006400u;  // 1,024
inline constexpr std::uint32_t kHighestClass = kClassBase + 0x00010001u * (kMeanClasses - 1);

S2O_DEVICE std::uint32_t pair_of(float x) { return pack_pair<Fp16>(x, x); }

S2O_DEVICE ClassedRow classed_row(const MeanClassArgs& args, int kv_head, int row) {
  const std::int64_t segment = row / args.shape.lists_per_kv_head;
  const int own = row % args.shape.lists_per_kv_head;
  const int list = kv_head * args.shape.lists_per_kv_head + own;
  const MeanCut& cut = args.cuts[list * args.shape.num_segments + segment];
  return {.classes = args.classes +
                     args.batch.place(args.shape, list, load_global(args.row_offsets + segment)),
          .scale = pair_of(load_global(&cut.scale)),
          .shift = pair_of(load_global(&cut.shift) + 1024.0f),
          .lowest = kClassBase + 0x00010001u * load_global(&cut.lowest),
          .end = static_cast<int>(args.shape.history_length(segment))};
}

// Of a row of a KV head.
S2O_DEVICE void report_row(const MeanClassArgs& args, int kv_head, int row) {
  const int list = kv_head * args.shape.lists_per_kv_head + row % args.shape.lists_per_kv_head;
  const int id = list * args.shape.num_segments + row / args.shape.lists_per_kv_head;
  atomic_max(args.bad_row, ~static_cast<std::uint32_t>(id));
}

// Scores of a row, keys first_key + 8 j + 2 (lane % 4) + i as score(j, i), j < kPairs, i < 2, to
// the bytes of the lane (kStoredBlock). Blocks in which the row ends are stored whole.
template <int kPairs, class Score>
S2O_DEVICE void store_classes(ClassedRow& row, int first_key, const Score& score) {
  const int block = first_key / kStoredBlock * kStoredBlock;
  if (block >= row.end) return;
  std::uint32_t pairs[kPairs];
#pragma unroll
  for (int j = 0; j < kPairs; ++j) {
    const std::uint32_t scores = pack_pair<Fp16>(score(j, 0), score(j, 1));
    row.poison = fused_pairs(scores, 0u, row.poison);
    pairs[j] =
        min_pairs(max_pairs(fused_pairs(scores, row.scale, row.shift), row.lowest), kHighestClass);
  }
  Words<kPairs / 2> words;
#pragma unroll
  for (int w = 0; w < kPairs / 2; ++w) {
    words.word[w] = low_bytes(pairs[2 * w], pairs[2 * w + 1]) & 0x7f7f7f7fu;  // of NaN, too
  }
  if (first_key + 8 * kPairs > row.end) {
#pragma unroll
    for (int e = 0; e < 2 * kPairs; ++e) {
      const int key = first_key + e / 2 * 8 + lane_index() % 4 * 2 + e % 2;
      if (key >= row.end) words.word[e / 4] &= ~(0xffu << e % 4 * 8);
    }
  }
  store_words(row.classes + block + lane_index() % 4 * 16 + first_key % kStoredBlock / 4, words);
}

}  // namespace s2o::device
