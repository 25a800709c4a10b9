// Rows of FlexPrefill (ops.h): probabilities of query-aware heads, the cut over all rows of a
// head, and the items of every row.
#pragma once

#include "kernels/planning/flexprefill/ops.h"
#include "kernels/planning/launch.cuh"
#include "kernels/planning/shared/block_cut.cuh"
#include "kernels/planning/shared/emit_items.cuh"

namespace s2o::device {

inline constexpr int kFlexThreads = 128;
inline constexpr int kFlexWarps = kFlexThreads / 32;

// One thread an element.
template <class Element, int kHeadDim>
S2O_DEVICE void scale_query_means(const FlexMeanArgs& args) {
  const std::int64_t i = static_cast<std::int64_t>(block_index()) * kFlexThreads + thread_index();
  if (i >= static_cast<std::int64_t>(args.num_heads) * args.num_blocks * kHeadDim) return;
  const bool is_last = i / kHeadDim % args.num_blocks == args.num_blocks - 1;
  const float mean = unpack_low<Element>(args.means[i]);
  const float whole =
      unpack_low<Element>(pack_pair<Element>(is_last ? mean * args.last_factor : mean, 0.0f));
  args.means[i] =
      static_cast<std::uint16_t>(pack_pair<Element>(whole * args.scale, 0.0f) & 0xffffu);
}

struct FlexRow {
  int head;  // of the batch
  int row;
  bool exists;

  S2O_DEVICE explicit FlexRow(const FlexRowArgs& args) {
    const std::int64_t task = static_cast<std::int64_t>(block_index()) * kFlexWarps + warp_index();
    exists = task < static_cast<std::int64_t>(args.num_heads) * args.num_blocks;
    head = static_cast<int>(task / args.num_blocks);
    row = static_cast<int>(task % args.num_blocks);
  }
};
S2O_DEVICE float* flex_probabilities(const FlexRowArgs& args, int head, int row) {
  return args.probabilities +
         (static_cast<std::int64_t>(head) * args.num_blocks + row) * args.num_blocks;
}

// Softmax of each row over its causal blocks, zeros beyond; one warp a row.
template <class Element>
S2O_DEVICE void flex_softmax(const FlexRowArgs& args) {
  const FlexRow task(args);
  if (!task.exists || load_global(args.query_aware + args.first_head + task.head) == 0) return;
  const std::uint16_t* const scores =
      args.scores +
      (static_cast<std::int64_t>(task.head) * args.num_blocks + task.row) * args.row_stride;
  float* const target = flex_probabilities(args, task.head, task.row);
  float largest = kNegativeInfinity;
  bool finite = true;
  for (int j = lane_index(); j <= task.row; j += 32) {
    const float score = unpack_low<Element>(load_half_bits(scores + j));
    finite = finite && absolute(score) < -kNegativeInfinity;
    largest = max_of(largest, score);
  }
  if (ballot(!finite) != 0 && lane_index() == 0) {
    atomic_max(args.bad_row, ~static_cast<std::uint32_t>(
                                 (args.first_head + task.head) * args.num_blocks + task.row));
  }
  for (int mask = 16; mask > 0; mask /= 2) largest = max_of(largest, shuffle_xor(largest, mask));
  double sum = 0.0;
  for (int j = lane_index(); j <= task.row; j += 32) {
    sum +=
        static_cast<double>(exp_natural(unpack_low<Element>(load_half_bits(scores + j)) - largest));
  }
  for (int mask = 16; mask > 0; mask /= 2) sum += shuffle_xor(sum, mask);
  const auto total = static_cast<float>(sum);
  for (int j = lane_index(); j < args.num_blocks; j += 32) {
    target[j] = 0.0f;
    if (j > task.row) continue;
    target[j] =
        divide(exp_natural(unpack_low<Element>(load_half_bits(scores + j)) - largest), total);
  }
}

// Best entries of all rows of a head together while their sum is at most the target; one block of
// kCutThreads threads a head.
S2O_DEVICE void flex_cut(const FlexRowArgs& args) {
  SharedCut& s = *reinterpret_cast<SharedCut*>(shared_memory());
  const int head = block_index();
  if (load_global(args.query_aware + args.first_head + head) == 0) return;
  const float* const values = flex_probabilities(args, head, 0);
  const float target = args.target;
  const BlockCut found = find_block_cut(
      s, [values](int i) { return values[i]; }, args.num_blocks * args.num_blocks,
      [target](const CountAndSum& m) { return !(static_cast<float>(m.sum) <= target); },
      /*keep_crossing=*/false);
  // Ties go to the lower row, then to the lower block.
  std::int32_t* const row_ties = args.row_ties + static_cast<std::int64_t>(head) * args.num_blocks;
  for (int row = warp_index(); row < args.num_blocks; row += kCutWarps) {
    int ties = 0;
    for (int j = lane_index(); j < args.num_blocks; j += 32) {
      const float value = values[static_cast<std::int64_t>(row) * args.num_blocks + j];
      ties += float_bits(value) == found.cut.value ? 1 : 0;
    }
    for (int mask = 16; mask > 0; mask /= 2) ties += shuffle_xor(ties, mask);
    if (lane_index() == 0) row_ties[row] = ties;
  }
  sync_block(kCutThreads);
  if (thread_index() == 0) args.cuts[head].value = found.cut.value;
  if (warp_index() != 0) return;
  std::int64_t before = 0;
  for (int first = 0; first < args.num_blocks; first += 32) {
    const int row = first + lane_index();
    const int own = row < args.num_blocks ? row_ties[row] : 0;
    const int inclusive = warp_prefix_sum(own);
    const std::int64_t left = found.cut.ties - (before + inclusive - own);
    if (row < args.num_blocks) {
      row_ties[row] = left <= 0 ? 0 : left < own ? static_cast<std::int32_t>(left) : own;
    }
    before += shuffle_from(inclusive, 31);
  }
}

// Bitmap of the row's blocks, then its items; one warp a row.
S2O_DEVICE void flex_items(const FlexRowArgs& args) {
  const FlexRow task(args);
  if (!task.exists) return;
  const int words = ceil_div(args.num_blocks, 32);
  std::uint32_t* const bits =
      reinterpret_cast<std::uint32_t*>(shared_memory()) + warp_index() * words;
  const int head = args.first_head + task.head;
  const std::uint32_t* const columns = args.column_bits + static_cast<std::int64_t>(head) * words;
  const std::uint32_t* const diagonals =
      args.diagonal_bits + static_cast<std::int64_t>(head) * words;
  for (int first = 0; first <= task.row; first += 32) {
    const int j = first + lane_index();
    const bool kept =
        j <= task.row && (args.dense || bit_of(columns, j) || bit_of(diagonals, task.row - j));
    const std::uint32_t word = ballot(kept);
    if (lane_index() == 0) bits[first / 32] = word;
  }
  sync_warp();
  if (!args.dense && load_global(args.query_aware + head) != 0) {
    const TopCut cut = {
        load_global(&args.cuts[task.head].value),
        load_global(args.row_ties + static_cast<std::int64_t>(task.head) * args.num_blocks +
                    task.row),
        false};
    mark_top(flex_probabilities(args, task.head, task.row), task.row + 1, cut, bits);
  }
  const std::int64_t tile = static_cast<std::int64_t>(head) * args.num_blocks + task.row;
  TileItems items = {args.items + load_global(args.item_offsets + tile), 0};
  emit_blocks(bits, task.row + 1,
              past_blocks(static_cast<std::int64_t>(task.row) * args.block, args.block), args.block,
              args.seqlen, items);
  if (lane_index() == 0) args.item_counts[tile] = items.count;
}

template <class Element, int kHeadDim>
struct ScaleQueryMeansKernel {
  static constexpr const char* kName = "planning: scale of means";
  static constexpr int kThreads = kFlexThreads;
  static constexpr int kMinBlocks = 0;
  static Grid grid(const FlexMeanArgs& args) {
    const std::int64_t elements = std::int64_t{args.num_heads} * args.num_blocks * kHeadDim;
    return {.blocks = (elements + kFlexThreads - 1) / kFlexThreads};
  }
  S2O_DEVICE static void run(const FlexMeanArgs& args) {
    scale_query_means<Element, kHeadDim>(args);
  }
};

inline std::int64_t flex_row_blocks(const FlexRowArgs& args) {
  return (std::int64_t{args.num_heads} * args.num_blocks + kFlexWarps - 1) / kFlexWarps;
}

template <class Element>
struct FlexSoftmaxKernel {
  static constexpr const char* kName = "planning: block probabilities";
  static constexpr int kThreads = kFlexThreads;
  static constexpr int kMinBlocks = 0;
  static Grid grid(const FlexRowArgs& args) { return {.blocks = flex_row_blocks(args)}; }
  S2O_DEVICE static void run(const FlexRowArgs& args) { flex_softmax<Element>(args); }
};

struct FlexCutKernel {
  static constexpr const char* kName = "planning: cuts of heads";
  static constexpr int kThreads = kCutThreads;
  static constexpr int kMinBlocks = 0;
  static Grid grid(const FlexRowArgs& args) {
    return {.blocks = args.num_heads, .shared_bytes = sizeof(SharedCut)};
  }
  S2O_DEVICE static void run(const FlexRowArgs& args) { flex_cut(args); }
};

struct FlexItemsKernel {
  static constexpr const char* kName = "planning: items of rows";
  static constexpr int kThreads = kFlexThreads;
  static constexpr int kMinBlocks = 0;
  static Grid grid(const FlexRowArgs& args) {
    return {.blocks = flex_row_blocks(args),
            .shared_bytes = sizeof(std::uint32_t) *
                            static_cast<std::size_t>(kFlexWarps * ceil_div(args.num_blocks, 32))};
  }
  S2O_DEVICE static void run(const FlexRowArgs& args) { flex_items(args); }
};

}  // namespace s2o::device
