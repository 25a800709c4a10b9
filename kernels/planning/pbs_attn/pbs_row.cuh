// Rule of PBS-Attn: cross-in over earlier segments; the block of token 0; the own segment.
#pragma once

#include "kernels/planning/pbs_attn/ops.h"
#include "kernels/planning/pooled/select_rows.cuh"

namespace s2o::device {

template <class Element>
class PbsRow : public SelectRow<Element> {
 public:
  S2O_DEVICE explicit PbsRow(const PbsRowArgs& args) : Base(args.rows), args_(args) {}

  S2O_DEVICE void select() {
    const int allowed = row_ / args_.segment_blocks * args_.segment_blocks;
    cross_in(allowed, args_.threshold);
    const int sink = load_global(args_.sink_block + head_);
    if (lane_index() == 0 && sink < allowed) set_bit(bits_, sink);
    sync_warp();
    TileItems tile = tile_items();
    emit_blocks(bits_, allowed, allowed, rows_.block_n, rows_.seqlen, tile);
    const std::int64_t begin = static_cast<std::int64_t>(allowed) * rows_.block_n;
    std::int64_t end = begin + static_cast<std::int64_t>(args_.segment_blocks) * rows_.block_n;
    if (end > rows_.seqlen) end = rows_.seqlen;
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

 private:
  using Base = SelectRow<Element>;
  using Base::bits_;
  using Base::cross_in;
  using Base::head_;
  using Base::num_items_;
  using Base::row_;
  using Base::rows_;
  using Base::tile_items;

  const PbsRowArgs& args_;
};

}  // namespace s2o::device
