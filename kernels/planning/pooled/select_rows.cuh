// Selection of key blocks row by row (ops.h), one warp a row.
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

template <class Element>
class SelectRow {
 public:
  S2O_DEVICE SelectRow(const SelectArgs& args, int warps_per_block) : args_(args) {
    const std::int64_t task =
        static_cast<std::int64_t>(block_index()) * warps_per_block + warp_index();
    exists_ = task < static_cast<std::int64_t>(args.num_heads) * args.num_rows;
    head_ = static_cast<int>(task / args.num_rows);
    row_ = args.first_row + static_cast<int>(task % args.num_rows);
    unsigned char* const shared = shared_memory() + warp_index() * select_bytes(args.num_kv_blocks);
    values_ = reinterpret_cast<float*>(shared);
    bits_ = reinterpret_cast<std::uint32_t*>(values_ + select_values(args.num_kv_blocks));
    scores_ =
        args.scores + (static_cast<std::int64_t>(head_) * args.num_rows + row_ - args.first_row) *
                          args.row_stride;
  }

  S2O_DEVICE void run() {
    if (!exists_) return;  // the whole warp
    for (int word = lane_index(); word < select_values(args_.num_kv_blocks) / 32; word += 32) {
      bits_[word] = 0;
    }
    sync_warp();
    if (args_.rule == RowRule::kSpargeAttn) {
      select_sparge();
    } else if (args_.rule == RowRule::kPbsAttn) {
      select_pbs();
    } else if (args_.rule == RowRule::kXAttention) {
      select_xattention();
    } else {
      select_mean_pooling();
    }
    if (lane_index() == 0) {
      args_.item_counts[static_cast<std::int64_t>(head_) * args_.num_q_blocks + row_] = num_items_;
    }
  }

 private:
  S2O_DEVICE void select_mean_pooling() {
    const int allowed = row_ + 1;
    cross_in(allowed);
    if (lane_index() == 0) {
      set_bit(bits_, 0);
      set_bit(bits_, row_);
    }
    sync_warp();
    emit(allowed);
  }

  S2O_DEVICE void select_pbs() {
    const int allowed = row_ / args_.segment_blocks * args_.segment_blocks;
    cross_in(allowed);
    const int sink = load_global(args_.sink_block + head_);
    if (lane_index() == 0 && sink < allowed) set_bit(bits_, sink);
    sync_warp();
    TileItems tile = tile_items();
    emit_blocks(bits_, allowed, allowed, args_.block_n, args_.seqlen, tile);
    const std::int64_t begin = static_cast<std::int64_t>(allowed) * args_.block_n;
    std::int64_t end = begin + static_cast<std::int64_t>(args_.segment_blocks) * args_.block_n;
    if (end > args_.seqlen) end = args_.seqlen;
    if (lane_index() == 0) {
      PlanItem own;
      own.begin = begin;
      own.count = static_cast<std::int32_t>(end - begin);
      own.kind = ItemKind::kRun;
      own.mask = MaskClass::kCausal;
      store_item(tile.items + tile.count, own);
    }
    num_items_ = tile.count + 1;
  }

  S2O_DEVICE void select_sparge() {
    const std::int64_t end_token = static_cast<std::int64_t>(row_ + 1) * args_.block_m;
    const int causal = min_of(static_cast<int>((end_token + args_.block_n - 1) / args_.block_n),
                              args_.num_kv_blocks);
    const std::uint8_t* const similar =
        args_.k_similar +
        static_cast<std::int64_t>(head_ / args_.heads_per_k) * args_.num_kv_blocks;
    const bool query_similar =
        args_.q_similar[static_cast<std::int64_t>(head_) * args_.num_q_blocks + row_] != 0;
    const bool any = softmax(causal, similar);
    if (!query_similar || !any) {
      mark_first(causal);
      emit(causal);
      return;
    }
    for (int j = lane_index(); j < causal; j += 32) {
      values_[j] = unpack_low<Element>(pack_pair<Element>(values_[j], 0.0f));
    }
    sync_warp();
    // Blocks that are not causal have probability 0 and the highest indices: they never change
    // which causal blocks are among the best, so they need not be looked at.
    const float target = args_.threshold;
    const int top = args_.top_count;
    TopCut cut = TopCut::everything();
    if (args_.by_mass) {
      cut = find_top_cut(
          values_, causal,
          [target](const CountAndSum& m) {
            return !(unpack_low<Element>(pack_pair<Element>(static_cast<float>(m.sum), 0.0f)) <=
                     target);
          },
          /*keep_crossing=*/false, TopCut::everything());
      const CountAndSum above = measure_from<true>(values_, causal, cut.value);
      if (above.count + cut.ties < 1) cut = best_of(1, causal);
    } else if (top < causal) {
      cut = best_of(top, causal);
    }
    mark_top(values_, causal, cut, bits_);
    for (int j = lane_index(); j < causal; j += 32) {
      const bool is_forced = similar[j] == 0 || (args_.keep_first && j == 0);
      if (is_forced) atomic_or(&bits_[j / 32], 1u << (j % 32));
    }
    sync_warp();
    emit(causal);
  }
  S2O_DEVICE TopCut best_of(int count, int num_values) const {
    return find_top_cut(
        values_, num_values, [count](const CountAndSum& m) { return m.count >= count; },
        /*keep_crossing=*/true, TopCut::everything());
  }

  // Later rows: blocks 0 and `row` count first, then others by descending mass while the mass
  // before them is short of the need. Rows of the first chunk: only `row` counts first, and one
  // block more is kept.
  S2O_DEVICE void select_xattention() {
    const int last = row_;
    double total = 0.0;
    bool finite = true;
    for (int j = lane_index(); j <= last; j += 32) {
      const float mass = unpack_low<Element>(load_half_bits(scores_ + j));
      finite = finite && absolute(mass) < -kNegativeInfinity;
      values_[j] = mass;
      total += static_cast<double>(mass);
    }
    if (ballot(!finite) != 0 && lane_index() == 0) {
      atomic_max(args_.bad_row, ~static_cast<std::uint32_t>(head_ * args_.num_q_blocks + row_));
    }
    for (int mask = 16; mask > 0; mask /= 2) total += shuffle_xor(total, mask);
    sync_warp();
    if (args_.mass_share >= 1.0) {
      mark_first(last + 1);
    } else {
      const bool first_chunk = last < args_.first_chunk_blocks;
      if (!first_chunk) exclude_sink();
      const double need = args_.mass_share * total;
      const double credited = static_cast<double>(values_[last]) + sink_mass_;
      TopCut cut = cross_after(credited, need, last);
      if (first_chunk) {
        int kept = cut.none ? 0 : last;
        if (!cut.none && cut.ties < last) {
          kept = measure_from<true>(values_, last, cut.value).count + cut.ties;
        }
        if (kept < last) cut = need > 0.0 ? best_of(kept + 1, last) : TopCut::nothing();
      }
      mark_top(values_, last, cut, bits_);
    }
    if (lane_index() == 0) {
      set_bit(bits_, 0);
      set_bit(bits_, last);
    }
    sync_warp();
    emit(last + 1);
  }
  // Block 0 is kept in any case; among the others it then has no mass, and takes no place of one
  // that has.
  S2O_DEVICE void exclude_sink() {
    if (row_ == 0) return;
    sink_mass_ = static_cast<double>(values_[0]);
    sync_warp();
    if (lane_index() == 0) values_[0] = 0.0f;
    sync_warp();
  }
  // Of values_[0, count): those before which `credited` and the mass kept so far are below `need`.
  S2O_DEVICE TopCut cross_after(double credited, double need, int count) const {
    if (!(credited < need) || count == 0) return TopCut::nothing();
    return find_top_cut(
        values_, count,
        [credited, need](const CountAndSum& m) { return !(credited + m.sum < need); },
        /*keep_crossing=*/true, TopCut::everything());
  }

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
        atomic_max(args_.bad_row, ~static_cast<std::uint32_t>(head_ * args_.num_q_blocks + row_));
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

  S2O_DEVICE void cross_in(int allowed) {
    if (allowed == 0) return;
    if (args_.threshold >= 1.0f) {
      mark_first(allowed);
      return;
    }
    softmax(allowed, nullptr);
    const float target = args_.threshold;
    const TopCut cut = find_top_cut(
        values_, allowed,
        [target](const CountAndSum& m) { return static_cast<float>(m.sum) >= target; },
        /*keep_crossing=*/true, TopCut::nothing());
    mark_top(values_, allowed, cut, bits_);
  }

  S2O_DEVICE void mark_first(int count) {
    for (int word = lane_index(); word * 32 < count; word += 32) {
      const int left = count - word * 32;
      bits_[word] = left >= 32 ? 0xffffffffu : (1u << left) - 1u;
    }
    sync_warp();
  }

  S2O_DEVICE TileItems tile_items() const {
    const std::int64_t tile = static_cast<std::int64_t>(head_) * args_.num_q_blocks + row_;
    return {args_.items + load_global(args_.item_offsets + tile), 0};
  }
  S2O_DEVICE void emit(int num_blocks) {
    TileItems tile = tile_items();
    emit_blocks(bits_, num_blocks,
                past_blocks(static_cast<std::int64_t>(row_) * args_.block_m, args_.block_n),
                args_.block_n, args_.seqlen, tile);
    num_items_ = tile.count;
  }

  const SelectArgs& args_;
  bool exists_;
  int head_;
  int row_;
  float* values_;
  std::uint32_t* bits_;
  const std::uint16_t* scores_;
  int num_items_ = 0;
  double sink_mass_ = 0.0;  // of block 0 where it counts apart
};

template <class Element>
struct SelectRowsKernel {
  static constexpr const char* kName = "planning: select rows";
  static constexpr int kThreads = 32 * kSelectWarps;
  static constexpr int kMinBlocks = 0;
  static Grid grid(const SelectArgs& args) {
    const int warps = select_warps(args.num_kv_blocks);
    const std::int64_t rows = std::int64_t{args.num_heads} * args.num_rows;
    return {.blocks = (rows + warps - 1) / warps,
            .shared_bytes = static_cast<std::size_t>(warps) *
                            static_cast<std::size_t>(select_bytes(args.num_kv_blocks)),
            .threads = 32 * warps};
  }
  S2O_DEVICE static void run(const SelectArgs& args) {
    SelectRow<Element>(args, num_threads() / 32).run();
  }
};

}  // namespace s2o::device
