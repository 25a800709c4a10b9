#include <algorithm>
#include <string>
#include <utility>
#include <vector>

#include "kernels/common/ceil_div.h"
#include "kernels/common/tile_order.h"
#include "kernels/planning/op.h"
#include "kernels/planning/s2o/ops.h"
#include "lib/methods/s2o/s2o_layout.h"

namespace s2o {
namespace {

class S2oPlanner final : public Planner {
 public:
  S2oPlanner(const Problem& problem, const S2oSettings& settings, const PlannerLimits& limits)
      : problem_(problem),
        settings_(settings),
        shape_(s2o_history_shape(problem, settings)),
        layout_(shape_, limits) {
    const std::int64_t rows = static_cast<std::int64_t>(shape_.num_lists()) * shape_.num_segments;
    means_ = workspace_.add<std::uint16_t>(rows * problem.head_dim);
    if (layout_.has_classes) {
      cuts_ = workspace_.add<MeanCut>(rows);
      classes_ = workspace_.add<unsigned char>(layout_.score_entries);
    } else {
      ranges_ = workspace_.add<ScoreRange>(rows);
      scores_ = workspace_.add<std::uint16_t>(layout_.score_entries);
    }
    bad_row_ = workspace_.add<std::uint32_t>(1);
    row_offsets_ = workspace_.add_constant(layout_.row_offsets);
    order_offsets_ = workspace_.add_constant(layout_.order_offsets);
    order_ = workspace_.add<std::int32_t>(layout_.order_per_list * shape_.num_lists());

    const PlanSkeleton skeleton = s2o_plan_skeleton(problem, settings, shape_, layout_);
    header_ = skeleton.header;
    std::vector<std::int32_t> tile_ends;
    for (const OrderBatch& batch : layout_.batches) {
      const std::int64_t end = std::min(batch.end_segment * shape_.segment_size, problem.seqlen);
      tile_ends.push_back(ceil_div<std::int32_t>(end, header_.block_m));
      batch_ends_.push_back(tile_ends.back() * header_.num_plan_heads);
    }
    for (const PassSkeleton& pass : skeleton.passes) {
      const PassView host{.item_offsets = pass.item_offsets.data(), .items = pass.items.data()};
      passes_.push_back({.items = workspace_.add_constant(pass.items),
                         .item_offsets = workspace_.add_constant(pass.item_offsets),
                         .fold_end = workspace_.add_constant(pass.fold_end),
                         .head_taus = workspace_.add_constant(pass.head_taus),
                         .tile_order = workspace_.add_constant(order_by_batch(
                             tile_launch_order(problem, header_, host, limits.l2_bytes),
                             header_.num_q_tiles, tile_ends))});
    }
    if (settings.query_guide == QueryGuide::kNone) return;
    guides_ =
        workspace_.add<float>(guide_args({}).num_sources() *
                              static_cast<std::int64_t>(shape_.num_segments) * problem.head_dim);
    query_order_ = workspace_.add<std::int32_t>(problem.num_q_heads * problem.seqlen);
  }

  PlanningCost cost() const override {
    const double d = problem_.head_dim;
    const auto seqlen = static_cast<double>(problem_.seqlen);
    const double queries = problem_.num_q_heads * seqlen * d;
    const double keys = problem_.num_kv_heads * seqlen * d;
    const double lists = shape_.num_lists();
    const auto scores = static_cast<double>(layout_.history_per_list) * lists;
    const auto entries = static_cast<double>(layout_.ordered_per_list) * lists;
    PlanningCost cost{.flops = 2.0 * queries + 2.0 * scores * d,
                      .bytes = 2.0 * (queries + keys) +
                               2.0 * static_cast<double>(layout_.score_bytes()) * scores +
                               4.0 * entries};
    if (settings_.query_guide != QueryGuide::kNone) {
      cost.flops += 2.0 * queries;
      cost.bytes += 2.0 * (queries + keys) + 4.0 * queries / d;
    }
    return cost;
  }

  void plan(const DeviceInput& input, PlanningKernels& kernels) const override {
    kernels.clear(bad_row_.data(), bad_row_.size_bytes());
    if (!layout_.has_classes) kernels.clear(ranges_.data(), ranges_.size_bytes());
    if (settings_.query_guide != QueryGuide::kNone) {
      kernels.run(guide_args(input), input.elements());
    }
    kernels.run(MeanQueryArgs{.q = input.q,
                              .means = means_.data(),
                              .shape = shape_,
                              .heads_per_list = problem_.num_q_heads / shape_.num_lists(),
                              .softmax_scale = problem_.softmax_scale},
                input.elements());
    if (layout_.has_classes) {
      kernels.run(
          MeanCutArgs{.means = means_.data(), .k = input.k, .cuts = cuts_.data(), .shape = shape_},
          input.elements());
    }
    plan_next(0, input, kernels);
  }

  int num_batches() const override { return static_cast<int>(layout_.batches.size()); }
  void plan_next(int batch, const DeviceInput& input, PlanningKernels& kernels) const override {
    for (const RowBatch& rows : layout_.batches[static_cast<std::size_t>(batch)].rows) {
      layout_.has_classes ? order_classes(rows, input, kernels) : rank_keys(rows, input, kernels);
    }
  }

  DevicePlan device_plan() const override {
    DevicePlan plan;
    plan.header = header_;
    for (const PassArrays& pass : passes_) {
      plan.passes.push_back({.item_offsets = pass.item_offsets.data(),
                             .items = pass.items.data(),
                             .fold_end = pass.fold_end.data(),
                             .head_taus = pass.head_taus.data()});
      plan.tile_orders.push_back(pass.tile_order.data());
    }
    plan.passes.back().query_order = query_order_.data();
    plan.passes.back().gather_indices = order_.data();
    plan.batch_ends = batch_ends_;
    return plan;
  }

  const std::uint32_t* error_word() const override { return bad_row_.data(); }
  std::string row_name(std::int64_t row) const override {
    return (settings_.share_key_order_in_group ? "KV head " : "query head ") +
           std::to_string(row / shape_.num_segments) + ", segment " +
           std::to_string(row % shape_.num_segments);
  }

 private:
  QueryOrderArgs guide_args(const DeviceInput& input) const {
    return {.q = input.q,
            .k = input.k,
            .guides = guides_.data(),
            .query_order = query_order_.data(),
            .bad_row = bad_row_.data(),
            .shape = shape_,
            .num_q_heads = problem_.num_q_heads,
            .group_size = problem_.group_size(),
            .kind = settings_.query_guide};
  }

  void rank_keys(const RowBatch& batch, const DeviceInput& input, PlanningKernels& kernels) const {
    kernels.run(KeyScoreArgs{.means = means_.data(),
                             .k = input.k,
                             .scores = scores_.data(),
                             .ranges = ranges_.data(),
                             .bad_row = bad_row_.data(),
                             .row_offsets = row_offsets_.data(),
                             .shape = shape_,
                             .batch = batch},
                input.elements());
    kernels.run(RankArgs{.scores = scores_.data(),
                         .ranges = ranges_.data(),
                         .row_offsets = row_offsets_.data(),
                         .order = order_.data(),
                         .order_offsets = order_offsets_.data(),
                         .order_per_list = layout_.order_per_list,
                         .shape = shape_,
                         .batch = batch},
                input.elements());
  }

  void order_classes(const RowBatch& batch, const DeviceInput& input,
                     PlanningKernels& kernels) const {
    kernels.run(MeanClassArgs{.means = means_.data(),
                              .k = input.k,
                              .cuts = cuts_.data(),
                              .classes = classes_.data(),
                              .bad_row = bad_row_.data(),
                              .row_offsets = row_offsets_.data(),
                              .shape = shape_,
                              .batch = batch},
                input.elements());
    const PassArrays& history = passes_.back();
    kernels.run(
        ClassOrderArgs{.classes = classes_.data(),
                       .row_offsets = row_offsets_.data(),
                       .order = order_.data(),
                       .order_offsets = order_offsets_.data(),
                       .order_per_list = layout_.order_per_list,
                       .items = history.items.data(),
                       .item_offsets = history.item_offsets.data(),
                       .num_tiles = header_.num_q_tiles,
                       .tiles_per_segment =
                           static_cast<std::int32_t>(settings_.segment_size) / header_.block_m,
                       .heads_per_list = problem_.num_q_heads / shape_.num_lists(),
                       .shape = shape_,
                       .batch = batch},
        input.elements());
  }

  const Problem problem_;
  const S2oSettings settings_;
  const HistoryShape shape_;
  const S2oLayout layout_;
  PlanView header_;
  Workspace::Array<std::uint16_t> means_;
  // Of rows: scores and their ranges, or classes and their cuts.
  Workspace::Array<std::uint16_t> scores_;
  Workspace::Array<ScoreRange> ranges_;
  Workspace::Array<unsigned char> classes_;
  Workspace::Array<MeanCut> cuts_;
  Workspace::Array<std::uint32_t> bad_row_;
  Workspace::Array<float> guides_;
  Workspace::Array<std::int32_t> query_order_;
  Workspace::Array<std::int64_t> row_offsets_, order_offsets_;
  Workspace::Array<std::int32_t> order_;
  struct PassArrays {
    Workspace::Array<PlanItem> items;
    Workspace::Array<std::int64_t> item_offsets;
    Workspace::Array<std::int32_t> fold_end;
    Workspace::Array<float> head_taus;
    Workspace::Array<std::int32_t> tile_order;
  };
  std::vector<PassArrays> passes_;
  std::vector<std::int32_t> batch_ends_;  // as in DevicePlan
};

}  // namespace

std::unique_ptr<Planner> s2o_planner(const Problem& problem, const S2oSettings& settings,
                                     const PlannerLimits& limits) {
  return std::make_unique<S2oPlanner>(problem, settings, limits);
}

}  // namespace s2o
