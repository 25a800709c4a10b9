// Sums of rows of K and V, the columns made of them, and both for whole blocks. A warp holds a
// row: each lane kHeadDim / 32 consecutive elements.
#pragma once

#include "kernels/attention/attention_kernels.h"
#include "kernels/attention/rows.cuh"

namespace s2o::device {

// A lane's part of a folded column, in the type of q.
template <int kElements>
struct ColumnPart {
  Words<kElements / 2> k;
  Words<kElements / 2> v;
  Words<kElements / 2> variance;
};

S2O_DEVICE void round_to_bf16(float (&pair)[2]) {
  const std::uint32_t packed = pack_pair<Bf16>(pair[0], pair[1]);
  pair[0] = unpack_low<Bf16>(packed);
  pair[1] = unpack_high<Bf16>(packed);
}

// A lane's part of a sum of rows.
template <int kElements>
struct RowSums {
  using Row = Words<kElements / 2>;
  float k[kElements];
  float v[kElements];
  float k_squared[kElements];

  S2O_DEVICE void clear() {
#pragma unroll
    for (int e = 0; e < kElements; ++e) k[e] = v[e] = k_squared[e] = 0.0f;
  }
  // Takes what the block sums hold from element `first` on.
  S2O_DEVICE void load(const BlockSumsView& sums, std::int64_t first) {
    load_part(k, sums.k + first);
    load_part(v, sums.v + first);
    if (sums.k_squared != nullptr) load_part(k_squared, sums.k_squared + first);
  }
  static S2O_DEVICE void load_part(float (&target)[kElements], const float* source) {
    constexpr int kAtOnce = kElements < 4 ? kElements : 4;
#pragma unroll
    for (int first = 0; first < kElements; first += kAtOnce) {
      const Words<kAtOnce> words = load_global_words<kAtOnce>(source + first);
#pragma unroll
      for (int e = 0; e < kAtOnce; ++e) target[first + e] = bits_float(words.word[e]);
    }
  }
  static S2O_DEVICE void store_part(float* target, const float (&source)[kElements]) {
    Words<kElements> words;
#pragma unroll
    for (int e = 0; e < kElements; ++e) words.word[e] = float_bits(source[e]);
    store_words(target, words);
  }
  S2O_DEVICE void add(const RowSums& other) {
#pragma unroll
    for (int e = 0; e < kElements; ++e) {
      k[e] += other.k[e];
      v[e] += other.v[e];
      k_squared[e] += other.k_squared[e];
    }
  }
  template <class Element>
  S2O_DEVICE void add(const Row& k_row, const Row& v_row, float sign) {
#pragma unroll
    for (int e = 0; e < kElements; ++e) {
      const std::uint32_t k_word = k_row.word[e / 2];
      const std::uint32_t v_word = v_row.word[e / 2];
      const float key = e % 2 == 0 ? unpack_low<Element>(k_word) : unpack_high<Element>(k_word);
      const float value = e % 2 == 0 ? unpack_low<Element>(v_word) : unpack_high<Element>(v_word);
      k[e] = fused(sign, key, k[e]);
      v[e] = fused(sign, value, v[e]);
      k_squared[e] = fused(sign * key, key, k_squared[e]);
    }
  }

  // The column of `remaining` > 0 keys with these sums.
  template <class Element>
  S2O_DEVICE ColumnPart<kElements> column(int remaining, bool round_bf16) const {
    const float inverse = reciprocal_fast(static_cast<float>(remaining));
    ColumnPart<kElements> part;
#pragma unroll
    for (int pair = 0; pair < kElements / 2; ++pair) {
      float mean_k[2];
      float mean_v[2];
      float var[2];
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        const int element = 2 * pair + e;
        mean_k[e] = k[element] * inverse;
        mean_v[e] = v[element] * inverse;
        var[e] = max_of(fused(-mean_k[e], mean_k[e], k_squared[element] * inverse), 0.0f);
      }
      if (round_bf16 && !Element::kIsBf16) {  // bf16 is rounded by the packing
        round_to_bf16(mean_k);
        round_to_bf16(mean_v);
      }
      part.k.word[pair] = pack_pair<Element>(mean_k[0], mean_k[1]);
      part.v.word[pair] = pack_pair<Element>(mean_v[0], mean_v[1]);
      part.variance.word[pair] = pack_pair<Element>(var[0], var[1]);
    }
    return part;
  }
};

// K and V of one head in slot order.
template <class Element, int kHeadDim>
struct SlotRowsDevice {
  const std::uint16_t* k;
  const std::uint16_t* v;
  const std::int32_t* key_order;  // null: slots are tokens

  static constexpr int kElements = kHeadDim / 32;  // of a lane
  using Sums = RowSums<kElements>;
  using Row = typename Sums::Row;

  S2O_DEVICE std::int64_t token(std::int64_t slot) const {
    return key_order == nullptr ? slot : load_global(key_order + slot);
  }
  S2O_DEVICE void load(std::int64_t slot, int lane, Row& k_row, Row& v_row) const {
    const std::int64_t offset = token(slot) * kHeadDim + lane * kElements;
    k_row = load_global_words<kElements / 2>(k + offset);
    v_row = load_global_words<kElements / 2>(v + offset);
  }
  S2O_DEVICE void add(Sums& sums, std::int64_t slot, int lane, float sign) const {
    Row k_row;
    Row v_row;
    load(slot, lane, k_row, v_row);
    sums.template add<Element>(k_row, v_row, sign);
  }
};

template <class Element, int kHeadDim>
S2O_DEVICE SlotRowsDevice<Element, kHeadDim> slot_rows(const AttentionKernelArgs& args,
                                                       int plan_head) {
  return {static_cast<const std::uint16_t*>(kv_head_rows<kHeadDim>(args, args.k, plan_head)),
          static_cast<const std::uint16_t*>(kv_head_rows<kHeadDim>(args, args.v, plan_head)),
          args.pass.key_order == nullptr ? nullptr : args.pass.key_order + plan_head * args.seqlen};
}

// One warp sums one block of one set, and makes the column of the whole block.
template <class Element, int kHeadDim>
S2O_DEVICE void block_sums_warp(const AttentionKernelArgs& args, const BlockSumsView& sums,
                                int num_sets, std::int64_t task) {
  if (task >= sums.num_blocks * num_sets) return;
  using Rows = SlotRowsDevice<Element, kHeadDim>;
  using Sums = typename Rows::Sums;
  const int set = static_cast<int>(task / sums.num_blocks);
  const std::int64_t block = task % sums.num_blocks;
  const int plan_head = args.pass.key_order != nullptr ? set : set * args.plan_heads_per_kv_head;
  const Rows rows = slot_rows<Element, kHeadDim>(args, plan_head);
  Sums total;
  total.clear();
  const std::int64_t begin = block * args.fold.fold_block;
#pragma unroll 4  // loads in flight
  for (int i = 0; i < args.fold.fold_block; ++i) {
    rows.add(total, begin + i, lane_index(), 1.0f);
  }
  const std::int64_t first = task * kHeadDim + lane_index() * Rows::kElements;
  Sums::store_part(sums.k + first, total.k);
  Sums::store_part(sums.v + first, total.v);
  if (sums.k_squared != nullptr) Sums::store_part(sums.k_squared + first, total.k_squared);
  if (sums.mean_k == nullptr) return;
  const auto column = total.template column<Element>(args.fold.fold_block, args.fold.round_bf16);
  store_words(sums.mean_k + first, column.k);
  store_words(sums.mean_v + first, column.v);
  if (sums.variance != nullptr) store_words(sums.variance + first, column.variance);
}

}  // namespace s2o::device
