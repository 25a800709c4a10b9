// Columns of one step of folded columns: how many keys each stands for, and the rows that make
// those of touched blocks.
#pragma once

#include "kernels/attention/fold_traits.cuh"

namespace s2o::device {

// Raw logit that a column of `num_keys` keys is worth.
S2O_DEVICE float fold_bias(int num_keys, float inverse_scale) {
  return log_natural(static_cast<float>(num_keys)) * inverse_scale;
}

// 64 columns: the block of the first, and its first bit among the visited ones.
struct FoldStep {
  int first_block;
  int first_bit;
};

template <class Traits>
class FoldList {
 public:
  S2O_DEVICE FoldList(const AttentionKernelArgs& args, SharedFold<Traits>& shared,
                      const FoldStep& step)
      : args_(args), s_(shared), step_(step) {}

  // Counts the keys that each column stands for, and lists the rows that make it. A few lanes share
  // a column; a warp has the consecutive ones of a group.
  S2O_DEVICE void sort(int thread) const {
    const int column = thread / kLanes;
    const int size = column_size(step_.first_block + column);
    int visited = count_rows(thread, size, 0);
    for (int mask = 1; mask < kLanes; mask *= 2) visited += shuffle_xor(visited, mask);
    const int remaining = size - visited;
    if (thread % kLanes == 0) {
      s_.remaining[column] = remaining;
      s_.bias[column] = remaining > 0 ? fold_bias(remaining, s_.inverse_scale) : kNegativeInfinity;
      s_.sign[column] = remaining == 0 || remaining == args_.fold.fold_block ? RowSign::kNone
                        : subtracts(size, remaining)                         ? RowSign::kSubtract
                                                                             : RowSign::kAdd;
      if (remaining > 0) atomic_add(&s_.num_columns, 1);
    }
    sync_warp();
    list(thread, 0);
  }

  // Lists rows [first, first + kFoldListRows) of this warp's group, and how many it has in all.
  S2O_DEVICE void list(int thread, int first) const {
    const int column = thread / kLanes;
    const int group = column / kFoldGroup;
    const int block = step_.first_block + column;
    const RowSign sign = s_.sign[column];
    const int size = sign == RowSign::kNone ? 0 : column_size(block);
    const std::uint32_t flip = sign == RowSign::kAdd ? 0xffffffffu : 0u;
    int total = count_rows(thread, size, flip);
    int place = -first;  // of the lane's first row
    for (int mask = 1; mask < 32; mask *= 2) {
      const int other = shuffle_xor(total, mask);
      if ((thread & mask) != 0) place += other;
      total += other;
    }
    std::int32_t* const tokens = s_.row_token + group * kFoldListRows;
    std::uint8_t* const columns = s_.row_column + group * kFoldListRows;
    for (int i = thread % kLanes * 32; i < size; i += kLanes * 32) {
      const int bit = column * args_.fold.fold_block + i;
      std::uint32_t left = (s_.visited.at(step_.first_bit + bit) ^ flip) & low_bits(size - i);
      for (; left != 0; left &= left - 1, ++place) {
        if (place < 0 || place >= kFoldListRows) continue;
        const std::int64_t slot =
            static_cast<std::int64_t>(block) * args_.fold.fold_block + i + lowest_bit(left);
        tokens[place] = static_cast<std::int32_t>(s_.rows.token(slot));
        columns[place] = static_cast<std::uint8_t>(column % kFoldGroup);
      }
    }
    // Up to whole products; these rows are zero and in no column.
    const int end = total - first;
    const int pad = end + lane_of(thread);
    if (pad < ceil_div(end, kFoldRows) * kFoldRows && pad < kFoldListRows) {
      tokens[pad] = -1;
      columns[pad] = kFoldGroup;
    }
    if (lane_of(thread) == 0) s_.num_rows[group] = total;
  }

 private:
  // Lanes of a column.
  static constexpr int kLanes = Traits::kThreads / kFoldColumns;

  // This lane's share of the visited slots of its column, or of the others with `flip`.
  S2O_DEVICE int count_rows(int thread, int size, std::uint32_t flip) const {
    const int first_bit = step_.first_bit + thread / kLanes * args_.fold.fold_block;
    int count = 0;
    for (int i = thread % kLanes * 32; i < size; i += kLanes * 32) {
      count += count_bits((s_.visited.at(first_bit + i) ^ flip) & low_bits(size - i));
    }
    return count;
  }

  // Key slots of a column below fold_end.
  S2O_DEVICE int column_size(int block) const {
    const int fold_block = args_.fold.fold_block;
    const std::int64_t left = s_.fold_end - static_cast<std::int64_t>(block) * fold_block;
    return left < 0 ? 0 : (left < fold_block ? static_cast<int>(left) : fold_block);
  }
  // Whole blocks have a ready sum, and removing few rows is cheaper than adding many.
  S2O_DEVICE bool subtracts(int size, int remaining) const {
    return size == args_.fold.fold_block && size - remaining < remaining;
  }

  const AttentionKernelArgs& args_;
  SharedFold<Traits>& s_;
  FoldStep step_;
};

}  // namespace s2o::device
