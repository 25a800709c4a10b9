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
    const int column = column_of(thread);
    const int size = column_size(step_.first_block + column);
    int rows = count_rows(thread, size, 0);
    int visited = rows;
    for (int mask = 1; mask < kLanes; mask *= 2) visited += shuffle_xor(visited, mask);
    const int remaining = size - visited;
    const RowSign sign = sign_of(size, remaining);
    if (static_cast<unsigned>(thread) % kLanes == 0) {
      s_.remaining[column] = remaining;
      s_.bias[column] = remaining > 0 ? fold_bias(remaining, s_.inverse_scale) : kNegativeInfinity;
      s_.sign[column] = sign;
      if (remaining > 0) atomic_add(&s_.num_columns, 1);
    }
    if (sign == RowSign::kNone) rows = 0;
    if (sign == RowSign::kAdd) rows = count_rows(thread, size, ~0u);
    list(thread, sign, rows, 0);
  }

  // Lists rows [first, first + kFoldListRows) of this warp's group once more.
  S2O_DEVICE void list_again(int thread, int first) const {
    const RowSign sign = s_.sign[column_of(thread)];
    const int size = column_size(step_.first_block + column_of(thread));
    const int rows =
        sign == RowSign::kNone ? 0 : count_rows(thread, size, sign == RowSign::kAdd ? ~0u : 0u);
    list(thread, sign, rows, first);
  }

 private:
  // `rows` are those of this lane.
  S2O_DEVICE void list(int thread, RowSign sign, int rows, int first) const {
    const int column = column_of(thread);
    const int group = column / kFoldGroup;
    const int first_slot = (step_.first_block + column) * args_.fold.fold_block;
    const int size = rows == 0 ? 0 : column_size(step_.first_block + column);
    const std::uint32_t flip = sign == RowSign::kAdd ? ~0u : 0u;
    int total = rows;
    int place = -first;  // of the lane's first row
    for (int mask = 1; mask < 32; mask *= 2) {
      const int other = shuffle_xor(total, mask);
      if ((thread & mask) != 0) place += other;
      total += other;
    }
    std::int32_t* const tokens = s_.row_token + group * kFoldListRows;
    std::uint8_t* const columns = s_.row_column + group * kFoldListRows;
    const int first_bit = step_.first_bit + column * args_.fold.fold_block;
    for (int i = first_of(thread); i < size; i += kLanes * 32) {
      std::uint32_t left = (s_.visited.at(first_bit + i) ^ flip) & low_bits(size - i);
      for (; left != 0; left &= left - 1, ++place) {
        if (place < 0 || place >= kFoldListRows) continue;
        const int slot = first_slot + i + lowest_bit(left);
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

  static constexpr int kLanes = Traits::kThreads / kFoldColumns;  // of a column
  static S2O_DEVICE int column_of(int thread) { return static_cast<unsigned>(thread) / kLanes; }
  // Of the slots of its column, the first that a lane looks at; 32 at a time.
  static S2O_DEVICE int first_of(int thread) { return static_cast<unsigned>(thread) % kLanes * 32; }

  // This lane's share of the visited slots of its column, or of the others with `flip`.
  S2O_DEVICE int count_rows(int thread, int size, std::uint32_t flip) const {
    const int first_bit = step_.first_bit + column_of(thread) * args_.fold.fold_block;
    int count = 0;
    for (int i = first_of(thread); i < size; i += kLanes * 32) {
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
  S2O_DEVICE RowSign sign_of(int size, int remaining) const {
    const int fold_block = args_.fold.fold_block;
    if (remaining == 0 || remaining == fold_block) return RowSign::kNone;
    const bool subtracts = size == fold_block && size - remaining < remaining;
    return subtracts ? RowSign::kSubtract : RowSign::kAdd;
  }

  const AttentionKernelArgs& args_;
  SharedFold<Traits>& s_;
  FoldStep step_;
};

}  // namespace s2o::device
