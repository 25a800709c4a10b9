// Rule of MeanPooling: cross-in over the causal blocks; block 0 and the diagonal.
#pragma once

#include "kernels/planning/mean_pooling/ops.h"
#include "kernels/planning/pooled/select_rows.cuh"

namespace s2o::device {

template <class Element>
class MeanPoolingRow : public SelectRow<Element> {
 public:
  S2O_DEVICE explicit MeanPoolingRow(const MeanPoolingRowArgs& args)
      : Base(args.rows), args_(args) {}

  S2O_DEVICE void select() {
    const int allowed = row_ + 1;
    cross_in(allowed, args_.threshold);
    if (lane_index() == 0) {
      set_bit(bits_, 0);
      set_bit(bits_, row_);
    }
    sync_warp();
    emit(allowed);
  }

 private:
  using Base = SelectRow<Element>;
  using Base::bits_;
  using Base::cross_in;
  using Base::emit;
  using Base::row_;

  const MeanPoolingRowArgs& args_;
};

}  // namespace s2o::device
