// Rule of XAttention: cross-in after the forced blocks; scores are masses, not logits.
#pragma once

#include "kernels/planning/pooled/select_rows.cuh"
#include "kernels/planning/xattention/ops.h"

namespace s2o::device {

template <class Element>
class XAttentionRow : public SelectRow<Element> {
 public:
  S2O_DEVICE explicit XAttentionRow(const XAttentionRowArgs& args) : Base(args.rows), args_(args) {}

  // Later rows: blocks 0 and `row` count first, then others by descending mass while the mass
  // before them is short of the need. Rows of the first chunk: only `row` counts first, and one
  // block more is kept.
  S2O_DEVICE void select() {
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
      atomic_max(rows_.bad_row, ~static_cast<std::uint32_t>(head_ * rows_.num_q_blocks + row_));
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

 private:
  using Base = SelectRow<Element>;
  using Base::best_of;
  using Base::bits_;
  using Base::emit;
  using Base::head_;
  using Base::mark_first;
  using Base::row_;
  using Base::rows_;
  using Base::scores_;
  using Base::values_;

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

  const XAttentionRowArgs& args_;
  double sink_mass_ = 0.0;  // of block 0 where it counts apart
};

}  // namespace s2o::device
