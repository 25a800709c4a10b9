#include "kernels/attention/fold_columns.h"

#include <algorithm>
#include <cmath>
#include <cstddef>

#include "kernels/common/bf16.h"
#include "kernels/common/ceil_div.h"

namespace s2o {
namespace {

// sums[i] += sign * row[i]
void add_row(double* sums, const float* row, int head_dim, double sign) {
  for (int i = 0; i < head_dim; ++i) sums[i] += sign * static_cast<double>(row[i]);
}

void add_squares(double* sums, const float* row, int head_dim, double sign) {
  for (int i = 0; i < head_dim; ++i) {
    sums[i] += sign * static_cast<double>(row[i]) * static_cast<double>(row[i]);
  }
}

}  // namespace

BlockSums sum_blocks(const SlotRows& rows, const FoldRule& rule) {
  const int d = rows.head_dim;
  BlockSums sums;
  sums.num_blocks = rows.seqlen / rule.fold_block;
  const auto size = static_cast<std::size_t>(sums.num_blocks * d);
  sums.k.assign(size, 0.0);
  sums.v.assign(size, 0.0);
  const bool squares = rule.kind == Compensation::kBlocksVariance;
  if (squares) sums.k_squared.assign(size, 0.0);
  for (std::int64_t slot = 0; slot < sums.num_blocks * rule.fold_block; ++slot) {
    const std::int64_t block = slot / rule.fold_block;
    const std::int64_t token = rows.token(slot);
    add_row(sums.k.data() + block * d, rows.k + token * d, d, 1.0);
    add_row(sums.v.data() + block * d, rows.v + token * d, d, 1.0);
    if (squares) add_squares(sums.k_squared.data() + block * d, rows.k + token * d, d, 1.0);
  }
  return sums;
}

FoldColumns::FoldColumns(const SlotRows& rows, const FoldRule& rule, const BlockSums& sums,
                         std::int64_t fold_end)
    : rows_(rows), rule_(rule), fold_end_(fold_end) {
  const int d = rows.head_dim;
  const std::int64_t whole = std::min(fold_end / rule.fold_block, sums.num_blocks);
  const std::int64_t num_blocks = ceil_div(fold_end, rule.fold_block);
  const auto copy_whole = [&](const std::vector<double>& source, std::vector<double>& target) {
    if (source.empty()) return;
    target.assign(static_cast<std::size_t>(num_blocks * d), 0.0);
    std::copy_n(source.begin(), whole * d, target.begin());
  };
  copy_whole(sums.k, k_);
  copy_whole(sums.v, v_);
  copy_whole(sums.k_squared, k_squared_);
  k_.resize(static_cast<std::size_t>(num_blocks * d));
  v_.resize(static_cast<std::size_t>(num_blocks * d));
  if (rule.kind == Compensation::kBlocksVariance) {
    k_squared_.resize(static_cast<std::size_t>(num_blocks * d));
  }
  remaining_.assign(static_cast<std::size_t>(num_blocks), rule.fold_block);
  // The block that fold_end cuts has no ready sum.
  for (std::int64_t slot = whole * rule.fold_block; slot < fold_end; ++slot) {
    const std::int64_t block = slot / rule.fold_block;
    const std::int64_t token = rows.token(slot);
    add_row(k_.data() + block * d, rows.k + token * d, d, 1.0);
    add_row(v_.data() + block * d, rows.v + token * d, d, 1.0);
    if (!k_squared_.empty()) add_squares(k_squared_.data() + block * d, rows.k + token * d, d, 1.0);
  }
  if (whole < num_blocks) {
    remaining_.back() = fold_end - (num_blocks - 1) * rule.fold_block;
  }
}

void FoldColumns::remove(std::int64_t slot) {
  if (slot >= fold_end_) return;
  const int d = rows_.head_dim;
  const std::int64_t block = slot / rule_.fold_block;
  const std::int64_t token = rows_.token(slot);
  add_row(k_.data() + block * d, rows_.k + token * d, d, -1.0);
  add_row(v_.data() + block * d, rows_.v + token * d, d, -1.0);
  if (!k_squared_.empty()) add_squares(k_squared_.data() + block * d, rows_.k + token * d, d, -1.0);
  --remaining_[static_cast<std::size_t>(block)];
}

void FoldColumns::remove_range(std::int64_t begin_slot, std::int64_t end_slot) {
  end_slot = std::min(end_slot, fold_end_);
  for (std::int64_t slot = begin_slot; slot < end_slot;) {
    const std::int64_t block = slot / rule_.fold_block;
    const std::int64_t block_end = std::min((block + 1) * rule_.fold_block, fold_end_);
    // A block that is visited whole leaves nothing: no arithmetic needed.
    if (slot == block * rule_.fold_block && end_slot >= block_end) {
      remaining_[static_cast<std::size_t>(block)] = 0;
      slot = block_end;
    } else {
      remove(slot++);
    }
  }
}

FoldColumns::Columns FoldColumns::finish() const {
  const int d = rows_.head_dim;
  Columns columns;
  const auto emit = [&](double n, const double* k, const double* v, const double* k_squared) {
    for (int i = 0; i < d; ++i) {
      const double mean_k = k[i] / n;
      const double mean_v = v[i] / n;
      const auto rounded = [&](double x) {
        return rule_.round_bf16 ? static_cast<double>(round_bf16(static_cast<float>(x))) : x;
      };
      columns.k.push_back(rounded(mean_k));
      columns.v.push_back(rounded(mean_v));
      if (k_squared != nullptr) {
        columns.variance.push_back(std::max(k_squared[i] / n - mean_k * mean_k, 0.0));
      }
    }
    columns.log_n.push_back(std::log(n));
    ++columns.count;
  };

  if (rule_.kind == Compensation::kCentroid) {
    std::vector<double> k(static_cast<std::size_t>(d), 0.0);
    std::vector<double> v(static_cast<std::size_t>(d), 0.0);
    double n = 0.0;
    for (std::size_t block = 0; block < remaining_.size(); ++block) {
      if (remaining_[block] == 0) continue;
      n += static_cast<double>(remaining_[block]);
      for (int i = 0; i < d; ++i) {
        k[static_cast<std::size_t>(i)] +=
            k_[block * static_cast<std::size_t>(d) + static_cast<std::size_t>(i)];
        v[static_cast<std::size_t>(i)] +=
            v_[block * static_cast<std::size_t>(d) + static_cast<std::size_t>(i)];
      }
    }
    if (n > 0.0) emit(n, k.data(), v.data(), nullptr);
    return columns;
  }
  for (std::size_t block = 0; block < remaining_.size(); ++block) {
    if (remaining_[block] == 0) continue;
    const std::size_t offset = block * static_cast<std::size_t>(d);
    emit(static_cast<double>(remaining_[block]), k_.data() + offset, v_.data() + offset,
         k_squared_.empty() ? nullptr : k_squared_.data() + offset);
  }
  return columns;
}

}  // namespace s2o
