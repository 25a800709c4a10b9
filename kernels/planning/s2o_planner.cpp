#include "kernels/planning/s2o_planner.h"

#include <algorithm>
#include <string>
#include <utility>
#include <vector>

#include "kernels/attention/launch_plan.h"
#include "kernels/planning/s2o_layout.h"

namespace s2o {
namespace {

class S2oPlanner final : public Planner {
 public:
  S2oPlanner(const Problem& problem, const S2oDeviceSettings& settings, std::int64_t l2_bytes)
      : problem_(problem),
        settings_(settings),
        shape_(s2o_history_shape(problem, settings)),
        layout_(shape_, settings.score_bytes) {
    const std::int64_t rows = static_cast<std::int64_t>(shape_.num_lists()) * shape_.num_segments;
    means_ = workspace_.add<std::uint16_t>(rows * problem.head_dim);
    variances_ =
        workspace_.add<std::uint16_t>(settings.diagonal_ranking ? rows * problem.head_dim : 0);
    scores_ = workspace_.add<std::uint16_t>(layout_.score_entries);
    ranges_ = workspace_.add<ScoreRange>(rows);
    bad_row_ = workspace_.add<std::uint32_t>(1);
    score_offsets_ = workspace_.add_constant(layout_.score_offsets);
    order_offsets_ = workspace_.add_constant(layout_.order_offsets);
    order_ = workspace_.add<std::int32_t>(layout_.order_per_list() * shape_.num_lists());

    const PlanSkeleton skeleton = s2o_plan_skeleton(problem, settings, shape_, layout_);
    header_ = skeleton.header;
    items_ = workspace_.add_constant(skeleton.items);
    item_offsets_ = workspace_.add_constant(skeleton.item_offsets);
    fold_end_ = workspace_.add_constant(skeleton.fold_end);
    const PassView host{.item_offsets = skeleton.item_offsets.data(),
                        .items = skeleton.items.data()};
    tile_order_ = workspace_.add_constant(tile_launch_order(problem, header_, host, l2_bytes));
  }

  PlanningCost cost() const override {
    const double d = problem_.head_dim;
    const double queries =
        static_cast<double>(problem_.num_q_heads) * static_cast<double>(problem_.seqlen) * d;
    const double keys =
        static_cast<double>(problem_.num_kv_heads) * static_cast<double>(problem_.seqlen) * d;
    const double lists = shape_.num_lists();
    const auto scores = static_cast<double>(layout_.history_per_list) * lists;
    const auto entries = static_cast<double>(layout_.order_per_list()) * lists;
    const double products = settings_.diagonal_ranking ? 2.0 : 1.0;
    return {.flops = 2.0 * queries + 2.0 * scores * d * products,
            .bytes = 2.0 * (queries + keys) + 2.0 * 2.0 * scores + 4.0 * entries};
  }

  void plan(const DeviceInput& input, PlanningKernels& kernels) const override {
    kernels.clear(bad_row_.data(), bad_row_.size_bytes());
    kernels.clear(ranges_.data(), ranges_.size_bytes());
    kernels.mean_queries({.q = input.q,
                          .means = means_.data(),
                          .variances = variances_.data(),
                          .shape = shape_,
                          .heads_per_list = problem_.num_q_heads / shape_.num_lists(),
                          .softmax_scale = problem_.softmax_scale},
                         input.dtype, problem_.head_dim);
    for (const ScoreBatch& batch : layout_.batches) plan_batch(batch, input, kernels);
  }

  DevicePlan device_plan() const override {
    DevicePlan plan;
    plan.header = header_;
    plan.passes.push_back({.item_offsets = item_offsets_.data(),
                           .items = items_.data(),
                           .gather_indices = order_.data(),
                           .fold_end = fold_end_.data()});
    plan.tile_orders.push_back(tile_order_.data());
    return plan;
  }

  const std::uint32_t* error_word() const override { return bad_row_.data(); }
  std::string row_name(std::int64_t row) const override {
    return (settings_.share_key_order_in_group ? "KV head " : "query head ") +
           std::to_string(row / shape_.num_segments) + ", segment " +
           std::to_string(row % shape_.num_segments);
  }

 private:
  void plan_batch(const ScoreBatch& batch, const DeviceInput& input,
                  PlanningKernels& kernels) const {
    kernels.key_scores({.means = means_.data(),
                        .variances = variances_.data(),
                        .k = input.k,
                        .scores = scores_.data(),
                        .ranges = ranges_.data(),
                        .bad_row = bad_row_.data(),
                        .score_offsets = score_offsets_.data(),
                        .scores_per_list = batch.scores_per_list,
                        .first_offset = batch.first_offset,
                        .shape = shape_,
                        .first_kv_head = batch.first_kv_head,
                        .num_batch_kv_heads = batch.num_kv_heads,
                        .first_segment = batch.first_segment,
                        .end_segment = batch.end_segment,
                        .num_row_tiles = batch.num_row_tiles(shape_),
                        .num_key_chunks = batch.num_key_chunks(shape_)},
                       input.dtype, problem_.head_dim);
    kernels.rank_history({.scores = scores_.data(),
                          .ranges = ranges_.data(),
                          .score_offsets = score_offsets_.data(),
                          .scores_per_list = batch.scores_per_list,
                          .first_offset = batch.first_offset,
                          .order = order_.data(),
                          .order_offsets = order_offsets_.data(),
                          .order_per_list = layout_.order_per_list(),
                          .shape = shape_,
                          .first_list = batch.first_kv_head * shape_.lists_per_kv_head,
                          .num_batch_lists = batch.num_kv_heads * shape_.lists_per_kv_head,
                          .first_segment = batch.first_segment,
                          .end_segment = batch.end_segment});
  }

  const Problem problem_;
  const S2oDeviceSettings settings_;
  const HistoryShape shape_;
  const S2oLayout layout_;
  PlanView header_;
  Workspace::Array<std::uint16_t> means_, variances_, scores_;
  Workspace::Array<ScoreRange> ranges_;
  Workspace::Array<std::uint32_t> bad_row_;
  Workspace::Array<std::int64_t> score_offsets_, order_offsets_, item_offsets_;
  Workspace::Array<std::int32_t> order_, fold_end_, tile_order_;
  Workspace::Array<PlanItem> items_;
};

}  // namespace

std::unique_ptr<Planner> make_s2o_planner(const Problem& problem, const S2oDeviceSettings& settings,
                                          std::int64_t l2_bytes) {
  return std::make_unique<S2oPlanner>(problem, settings, l2_bytes);
}

}  // namespace s2o
