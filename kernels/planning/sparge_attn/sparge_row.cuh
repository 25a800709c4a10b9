// Rule of SpargeAttn: top-k or cross-out over similar blocks; the others whole.
#pragma once

#include "kernels/planning/pooled/select_rows.cuh"
#include "kernels/planning/sparge_attn/ops.h"

namespace s2o::device {

template <class Element>
class SpargeRow : public SelectRow<Element> {
 public:
  S2O_DEVICE explicit SpargeRow(const SpargeRowArgs& args) : Base(args.rows), args_(args) {}

  S2O_DEVICE void select() {
    const std::int64_t end_token = static_cast<std::int64_t>(row_ + 1) * rows_.block_m;
    const int causal = min_of(static_cast<int>((end_token + rows_.block_n - 1) / rows_.block_n),
                              rows_.num_kv_blocks);
    const std::uint8_t* const similar =
        args_.k_similar +
        static_cast<std::int64_t>(head_ / args_.heads_per_k) * rows_.num_kv_blocks;
    const bool query_similar =
        args_.q_similar[static_cast<std::int64_t>(head_) * rows_.num_q_blocks + row_] != 0;
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

 private:
  using Base = SelectRow<Element>;
  using Base::best_of;
  using Base::bits_;
  using Base::emit;
  using Base::head_;
  using Base::mark_first;
  using Base::row_;
  using Base::rows_;
  using Base::softmax;
  using Base::values_;

  const SpargeRowArgs& args_;
};

}  // namespace s2o::device
