// Selection of key blocks row by row (RowArgs in ops.h), one warp a row. What is selected is the
// rule of a method: a class over SelectRow in the method's folder.
#pragma once

#include "kernels/planning/launch.cuh"
#include "kernels/planning/pooled/ops.h"
#include "kernels/planning/shared/emit_items.cuh"
#include "kernels/planning/shared/top_cut.cuh"

namespace s2o::device {

inline constexpr int kSelectWarps = 4;

// Shared memory of one warp: a value per key block, then a bit per key block.
S2O_HOST_DEVICE constexpr int select_values(int num_kv_blocks) {
  return ceil_div(num_kv_blocks, 32) * 32;
}
S2O_HOST_DEVICE constexpr int select_bytes(int num_kv_blocks) {
  return select_values(num_kv_blocks) * 4 + select_values(num_kv_blocks) / 8;
}

// Warps of a block: as many as fit the shared memory that every device has.
S2O_HOST_DEVICE constexpr int select_warps(int num_kv_blocks) {
  constexpr int kSharedBytes = 160 * 1024;
  const int fitting = kSharedBytes / select_bytes(num_kv_blocks);
  return fitting < 1 ? 1 : min_of(fitting, kSelectWarps);
}

// What the rules share. A rule has the constructor Rule(args), whose `args.rows` are RowArgs, and
// void select(), which leaves the number of items in num_items_.
template <class Element>
class SelectRow {
 public:
  S2O_DEVICE explicit SelectRow(const RowArgs& rows) : rows_(rows) {
    const std::int64_t task =
        static_cast<std::int64_t>(block_index()) * (num_threads() / 32) + warp_index();
    exists_ = task < static_cast<std::int64_t>(rows.num_heads) * rows.num_rows;
    head_ = static_cast<int>(task / rows.num_rows);
    row_ = rows.first_row + static_cast<int>(task % rows.num_rows);
    unsigned char* const shared = shared_memory() + warp_index() * select_bytes(rows.num_kv_blocks);
    values_ = reinterpret_cast<float*>(shared);
    bits_ = reinterpret_cast<std::uint32_t*>(values_ + select_values(rows.num_kv_blocks));
    scores_ =
        rows.scores + (static_cast<std::int64_t>(head_) * rows.num_rows + row_ - rows.first_row) *
                          rows.row_stride;
  }

  // False where there is no row.
  S2O_DEVICE bool begin() const {
    if (!exists_) return false;  // the whole warp
    for (int word = lane_index(); word < select_values(rows_.num_kv_blocks) / 32; word += 32) {
      bits_[word] = 0;
    }
    sync_warp();
    return true;
  }
  S2O_DEVICE void end() const {
    if (lane_index() == 0) {
      rows_.item_counts[static_cast<std::int64_t>(head_) * rows_.num_q_blocks + row_] = num_items_;
    }
  }

 protected:
  // Softmax of the scores of blocks [0, allowed) into values_; blocks that are not similar get 0.
  // False when there is nothing to normalise.
  S2O_DEVICE bool softmax(int allowed, const std::uint8_t* similar) {
    float largest = kNegativeInfinity;
    bool finite = true;
    for (int j = lane_index(); j < allowed; j += 32) {
      const float score = unpack_low<Element>(load_half_bits(scores_ + j));
      finite = finite && absolute(score) < -kNegativeInfinity;
      const float x = similar != nullptr && similar[j] == 0 ? kNegativeInfinity : score;
      values_[j] = x;
      largest = max_of(largest, x);
    }
    if (ballot(!finite) != 0) {
      if (lane_index() == 0) {
        atomic_max(rows_.bad_row, ~static_cast<std::uint32_t>(head_ * rows_.num_q_blocks + row_));
      }
    }
    for (int mask = 16; mask > 0; mask /= 2) largest = max_of(largest, shuffle_xor(largest, mask));
    double sum = 0.0;
    for (int j = lane_index(); j < allowed; j += 32) {
      const float e = largest == kNegativeInfinity ? 0.0f : exp_natural(values_[j] - largest);
      values_[j] = e;
      sum += static_cast<double>(e);
    }
    for (int mask = 16; mask > 0; mask /= 2) sum += shuffle_xor(sum, mask);
    const auto total = static_cast<float>(sum);
    if (total > 0.0f) {
      for (int j = lane_index(); j < allowed; j += 32) values_[j] = divide(values_[j], total);
    }
    sync_warp();
    return total > 0.0f;
  }

  // Of blocks [0, allowed): the best until their probabilities first reach `target`, that one
  // included; from 1 on all of them.
  S2O_DEVICE void cross_in(int allowed, float target) {
    if (allowed == 0) return;
    if (target >= 1.0f) {
      mark_first(allowed);
      return;
    }
    softmax(allowed, nullptr);
    const TopCut cut = find_top_cut(
        values_, allowed,
        [target](const CountAndSum& m) { return static_cast<float>(m.sum) >= target; },
        /*keep_crossing=*/true, TopCut::nothing());
    mark_top(values_, allowed, cut, bits_);
  }

  // The `count` best of values_[0, num_values).
  S2O_DEVICE TopCut best_of(int count, int num_values) const {
    return find_top_cut(
        values_, num_values, [count](const CountAndSum& m) { return m.count >= count; },
        /*keep_crossing=*/true, TopCut::everything());
  }

  S2O_DEVICE void mark_first(int count) {
    for (int word = lane_index(); word * 32 < count; word += 32) {
      const int left = count - word * 32;
      bits_[word] = left >= 32 ? 0xffffffffu : (1u << left) - 1u;
    }
    sync_warp();
  }

  S2O_DEVICE TileItems tile_items() const {
    const std::int64_t tile = static_cast<std::int64_t>(head_) * rows_.num_q_blocks + row_;
    return {rows_.items + load_global(rows_.item_offsets + tile), 0};
  }
  S2O_DEVICE void emit(int num_blocks) {
    TileItems tile = tile_items();
    emit_blocks(bits_, num_blocks,
                past_blocks(static_cast<std::int64_t>(row_) * rows_.block_m, rows_.block_n),
                rows_.block_n, rows_.seqlen, tile);
    num_items_ = tile.count;
  }

  const RowArgs& rows_;
  bool exists_;
  int head_;
  int row_;
  float* values_;        // of every key block
  std::uint32_t* bits_;  // which key blocks are selected
  const std::uint16_t* scores_;
  int num_items_ = 0;
};

template <class Rule, class Args>
struct SelectRowsKernel {
  static constexpr const char* kName = "planning: select rows";
  static constexpr int kThreads = 32 * kSelectWarps;
  static constexpr int kMinBlocks = 1;
  static Grid grid(const Args& args) {
    const int warps = select_warps(args.rows.num_kv_blocks);
    const std::int64_t rows = std::int64_t{args.rows.num_heads} * args.rows.num_rows;
    return {.blocks = (rows + warps - 1) / warps,
            .shared_bytes = static_cast<std::size_t>(warps) *
                            static_cast<std::size_t>(select_bytes(args.rows.num_kv_blocks)),
            .threads = 32 * warps};
  }
  S2O_DEVICE static void run(const Args& args) {
    Rule rule(args);
    if (!rule.begin()) return;
    rule.select();
    rule.end();
  }
};

}  // namespace s2o::device
