// Sums of rows of K and V, and the sums of whole blocks that folded columns start from.
#pragma once

#include "kernels/attention/attention_launch.h"
#include "kernels/attention/rows.cuh"

namespace s2o::device {

// 8 elements of one row, summed.
struct ChunkSums {
  float k[kChunkElements];
  float v[kChunkElements];
  float k_squared[kChunkElements];

  S2O_DEVICE void clear() {
#pragma unroll
    for (int e = 0; e < kChunkElements; ++e) k[e] = v[e] = k_squared[e] = 0.0f;
  }
  template <class Element>
  S2O_DEVICE void add(const Words4& k_words, const Words4& v_words, float sign) {
#pragma unroll
    for (int e = 0; e < kChunkElements; ++e) {
      const std::uint32_t k_word = k_words.word[e / 2];
      const std::uint32_t v_word = v_words.word[e / 2];
      const float key = e % 2 == 0 ? unpack_low<Element>(k_word) : unpack_high<Element>(k_word);
      const float value = e % 2 == 0 ? unpack_low<Element>(v_word) : unpack_high<Element>(v_word);
      k[e] = fused(sign, key, k[e]);
      v[e] = fused(sign, value, v[e]);
      k_squared[e] = fused(sign * key, key, k_squared[e]);
    }
  }
  // Sum over lanes that differ in the bits of `lane_mask`.
  S2O_DEVICE void add_lanes(int lane_mask) {
#pragma unroll
    for (int e = 0; e < kChunkElements; ++e) {
      k[e] += shuffle_xor(k[e], lane_mask);
      v[e] += shuffle_xor(v[e], lane_mask);
      k_squared[e] += shuffle_xor(k_squared[e], lane_mask);
    }
  }
};

// K and V of one head in slot order.
template <class Element, int kHeadDim>
struct SlotRowsDevice {
  const std::uint16_t* k;
  const std::uint16_t* v;
  const std::int32_t* key_order;  // null: slots are tokens

  static constexpr int kChunks = kHeadDim / kChunkElements;
  static constexpr int kGroups = 32 / kChunks;  // rows that a warp reads at once

  S2O_DEVICE void load(std::int64_t slot, int chunk, Words4& k_words, Words4& v_words) const {
    const std::int64_t token = key_order == nullptr ? slot : load_global(key_order + slot);
    const std::int64_t offset = token * kHeadDim + chunk * kChunkElements;
    k_words = load_global_16(k + offset);
    v_words = load_global_16(v + offset);
  }
  S2O_DEVICE void add(ChunkSums& sums, std::int64_t slot, int chunk, float sign) const {
    Words4 k_words;
    Words4 v_words;
    load(slot, chunk, k_words, v_words);
    sums.template add<Element>(k_words, v_words, sign);
  }
};

template <class Element, int kHeadDim>
S2O_DEVICE SlotRowsDevice<Element, kHeadDim> slot_rows(const AttentionKernelArgs& args,
                                                       int plan_head) {
  return {static_cast<const std::uint16_t*>(kv_head_rows<kHeadDim>(args, args.k, plan_head)),
          static_cast<const std::uint16_t*>(kv_head_rows<kHeadDim>(args, args.v, plan_head)),
          args.pass.key_order == nullptr ? nullptr : args.pass.key_order + plan_head * args.seqlen};
}

// One warp sums one block of one set.
template <class Element, int kHeadDim>
S2O_DEVICE void block_sums_warp(const AttentionKernelArgs& args, const BlockSumsView& sums,
                                int num_sets, std::int64_t task) {
  if (task >= sums.num_blocks * num_sets) return;
  using Rows = SlotRowsDevice<Element, kHeadDim>;
  const int set = static_cast<int>(task / sums.num_blocks);
  const std::int64_t block = task % sums.num_blocks;
  const int plan_head = args.pass.key_order != nullptr ? set : set * args.plan_heads_per_kv_head;
  const Rows rows = slot_rows<Element, kHeadDim>(args, plan_head);
  const int chunk = lane_index() % Rows::kChunks;
  ChunkSums total;
  total.clear();
  const std::int64_t end = (block + 1) * args.fold.fold_block;
  for (std::int64_t slot = block * args.fold.fold_block + lane_index() / Rows::kChunks; slot < end;
       slot += Rows::kGroups) {
    rows.add(total, slot, chunk, 1.0f);
  }
  for (int mask = Rows::kChunks; mask < 32; mask *= 2) total.add_lanes(mask);
  if (lane_index() >= Rows::kChunks) return;
  const std::int64_t first = task * kHeadDim + chunk * kChunkElements;
#pragma unroll
  for (int e = 0; e < kChunkElements; ++e) {
    sums.k[first + e] = total.k[e];
    sums.v[first + e] = total.v[e];
    if (sums.k_squared != nullptr) sums.k_squared[first + e] = total.k_squared[e];
  }
}

}  // namespace s2o::device
