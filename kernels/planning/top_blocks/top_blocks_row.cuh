// Rule of TopBlocks: the best of the causal blocks; block 0 and the diagonal.
#pragma once

#include "kernels/planning/pooled/select_rows.cuh"
#include "kernels/planning/top_blocks/ops.h"

namespace s2o::device {

template <class Element>
class TopBlocksRow : public SelectRow<Element> {
 public:
  S2O_DEVICE explicit TopBlocksRow(const TopBlocksRowArgs& args) : Base(args.rows), args_(args) {}

  S2O_DEVICE void select() {
    const int allowed = row_ + 1;
    if (args_.topk >= allowed) {
      mark_first(allowed);
    } else {
      softmax(allowed, nullptr);
      mark_top(values_, allowed, best_of(args_.topk, allowed), bits_);
    }
    if (lane_index() == 0) {
      set_bit(bits_, 0);
      set_bit(bits_, row_);
    }
    sync_warp();
    emit(allowed);
  }

 private:
  using Base = SelectRow<Element>;
  using Base::best_of;
  using Base::bits_;
  using Base::emit;
  using Base::mark_first;
  using Base::row_;
  using Base::softmax;
  using Base::values_;

  const TopBlocksRowArgs& args_;
};

}  // namespace s2o::device
