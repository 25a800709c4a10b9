#include "kernels/planning/s2o_planner_cuda.h"

#include <cuda_runtime.h>

#include <algorithm>
#include <string>
#include <utility>
#include <vector>

#include "kernels/attention/launch_plan.h"
#include "kernels/planning/device_arena.h"
#include "kernels/planning/s2o_launch.h"
#include "kernels/planning/s2o_layout.h"

namespace s2o {
namespace {

class S2oPlanner final : public DevicePlanner {
 public:
  S2oPlanner(const Problem& problem, KernelDType dtype, const S2oDeviceSettings& settings,
             std::int64_t l2_bytes)
      : problem_(problem),
        dtype_(dtype),
        settings_(settings),
        shape_(s2o_history_shape(problem, settings)),
        layout_(shape_, settings.score_bytes),
        l2_bytes_(l2_bytes) {
    const std::int64_t rows = static_cast<std::int64_t>(shape_.num_lists()) * shape_.num_segments;
    means_ = arena_.add<std::uint16_t>(rows * problem.head_dim);
    variances_ = arena_.add<std::uint16_t>(settings.diagonal_ranking ? rows * problem.head_dim : 0);
    scores_ = arena_.add<std::uint16_t>(layout_.score_entries);
    ranges_ = arena_.add<ScoreRange>(rows);
    bad_row_ = arena_.add<std::uint32_t>(1);
    score_offsets_ = arena_.add<std::int64_t>(shape_.num_segments + 1);
    order_offsets_ = arena_.add<std::int64_t>(shape_.num_segments + 1);
    order_ = arena_.add<std::int32_t>(layout_.order_per_list() * shape_.num_lists());

    skeleton_ = s2o_plan_skeleton(problem, settings, shape_, layout_);
    const std::int64_t num_tiles = skeleton_.num_tiles();
    items_ = arena_.add<PlanItem>(static_cast<std::int64_t>(skeleton_.items.size()));
    item_offsets_ = arena_.add<std::int64_t>(num_tiles + 1);
    fold_end_ = arena_.add<std::int32_t>(static_cast<std::int64_t>(skeleton_.fold_end.size()));
    tile_order_ = arena_.add<std::int32_t>(num_tiles);
  }

  std::int64_t workspace_bytes() const override { return arena_.bytes(); }

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

  void prepare() override {
    arena_.allocate("planning of s2o");
    score_offsets_.upload(layout_.score_offsets.data(), layout_.score_offsets.size(),
                          "planning: score offsets");
    order_offsets_.upload(layout_.order_offsets.data(), layout_.order_offsets.size(),
                          "planning: order offsets");
    items_.upload(skeleton_.items.data(), skeleton_.items.size(), "planning: items");
    item_offsets_.upload(skeleton_.item_offsets.data(), skeleton_.item_offsets.size(),
                         "planning: item offsets");
    fold_end_.upload(skeleton_.fold_end.data(), skeleton_.fold_end.size(), "planning: fold ends");
    const PassView host{.item_offsets = skeleton_.item_offsets.data(),
                        .items = skeleton_.items.data()};
    const auto order = tile_launch_order(problem_, skeleton_.header, host, l2_bytes_);
    tile_order_.upload(order.data(), order.size(), "planning: tile order");
    cuda_check(cudaDeviceSynchronize(), "planning: set-up");
  }

  void plan(const DeviceInput& input, CudaStream stream) override {
    bad_row_.clear(stream, "planning: clear the error word");
    ranges_.clear(stream, "planning: clear the score ranges");
    launch_mean_queries({.q = input.q,
                         .means = means_.data(),
                         .variances = variances_.data(),
                         .shape = shape_,
                         .heads_per_list = problem_.num_q_heads / shape_.num_lists(),
                         .softmax_scale = problem_.softmax_scale},
                        dtype_, problem_.head_dim, stream);
    for (const ScoreBatch& batch : layout_.batches) plan_batch(batch, input, stream);
  }

  DevicePlan device_plan() const override {
    DevicePlan plan;
    plan.header = skeleton_.header;
    plan.passes.push_back({.item_offsets = item_offsets_.data(),
                           .items = items_.data(),
                           .gather_indices = order_.data(),
                           .fold_end = fold_end_.data()});
    plan.tile_orders.push_back(tile_order_.data());
    return plan;
  }

  void check() const override {
    std::uint32_t bad = 0;
    bad_row_.download(&bad, "planning: error word");
    if (bad == 0) return;
    const auto row = static_cast<std::int64_t>(~bad);
    const std::int64_t list = row / shape_.num_segments;
    const bool shared = settings_.share_key_order_in_group;
    throw Error(std::string("planning of s2o: ") + (shared ? "KV head " : "query head ") +
                std::to_string(list) + ", segment " + std::to_string(row % shape_.num_segments) +
                ": a key score is not finite");
  }

 private:
  void plan_batch(const ScoreBatch& batch, const DeviceInput& input, CudaStream stream) const {
    launch_key_scores({.means = means_.data(),
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
                      dtype_, problem_.head_dim, stream);
    launch_rank_history({.scores = scores_.data(),
                         .ranges = ranges_.data(),
                         .score_offsets = score_offsets_.data(),
                         .scores_per_list = batch.scores_per_list,
                         .first_offset = batch.first_offset,
                         .order = order_.data(),
                         .order_offsets = order_offsets_.data(),
                         .order_per_list = layout_.order_per_list(),
                         .shape = shape_,
                         .sharp_depth = settings_.sharp_depth,
                         .first_list = batch.first_kv_head * shape_.lists_per_kv_head,
                         .num_batch_lists = batch.num_kv_heads * shape_.lists_per_kv_head,
                         .first_segment = batch.first_segment,
                         .end_segment = batch.end_segment},
                        stream);
  }

  const Problem problem_;
  const KernelDType dtype_;
  const S2oDeviceSettings settings_;
  const HistoryShape shape_;
  const S2oLayout layout_;
  const std::int64_t l2_bytes_;
  PlanSkeleton skeleton_;
  DeviceArena arena_;
  DeviceArena::Array<std::uint16_t> means_, variances_, scores_;
  DeviceArena::Array<ScoreRange> ranges_;
  DeviceArena::Array<std::uint32_t> bad_row_;
  DeviceArena::Array<std::int64_t> score_offsets_, order_offsets_, item_offsets_;
  DeviceArena::Array<std::int32_t> order_, fold_end_, tile_order_;
  DeviceArena::Array<PlanItem> items_;
};

}  // namespace

std::unique_ptr<DevicePlanner> make_s2o_planner(const Problem& problem, KernelDType dtype,
                                                const S2oDeviceSettings& settings,
                                                std::int64_t l2_bytes) {
  return std::make_unique<S2oPlanner>(problem, dtype, settings, l2_bytes);
}

}  // namespace s2o
