// Classes of the keys of every row (MeanClassArgs) from the product of any device; by warpgroups:
// mean_classes_sm90.cuh.
#pragma once

#include "kernels/planning/s2o/mean_class.cuh"
#include "kernels/planning/s2o/mean_product.cuh"

namespace s2o::device {

struct ClassRows {
  using Args = MeanClassArgs;
  static constexpr const char* kName = "planning: classes of keys";
  static constexpr bool kNeighbours = false;  // kStoredBlock

  S2O_DEVICE void describe(int r, const Args& args, int kv_head, int row) {
    rows_[r] = classed_row(args, kv_head, row);
  }
  template <bool kWhole, class Score>
  S2O_DEVICE void store(int r, const Args& /*args*/, int first_key, int end, const Score& score) {
    if (!kWhole && end == 0) return;  // there is no row
    store_classes<4>(rows_[r], first_key, score);
  }
  S2O_DEVICE void publish(int r, const Args& args, int kv_head, int row) const {
    if (!rows_[r].is_finite() && lane_index() % 4 == 0) report_row(args, kv_head, row);
  }

 private:
  ClassedRow rows_[4];
};

template <class Element, int kHeadDim>
using MeanClassesKernel = MeanProductKernel<Element, kHeadDim, ClassRows>;

}  // namespace s2o::device
