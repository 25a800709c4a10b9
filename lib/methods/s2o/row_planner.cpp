#include "lib/methods/s2o/row_planner.h"

#include <algorithm>
#include <cmath>
#include <string>
#include <utility>
#include <vector>

#include "kernels/common/tile_order.h"
#include "kernels/planning/op.h"
#include "kernels/planning/s2o/row_ops.h"
#include "lib/methods/s2o/s2o_layout.h"

namespace s2o {
namespace {

// Lists of the rows are longer than those of other methods: those of 131,072 tokens, a quarter of
// the histories, are one batch. A second one, of a few long lists, would take as long as many.
constexpr std::int64_t row_list_bytes(std::int64_t list_bytes_per_token) {
  return list_bytes_per_token * 9 / 4;
}

class RowPlanner final : public Planner {
 public:
  RowPlanner(const Problem& problem, const RowPlannerSettings& settings,
             const PlannerLimits& limits)
      : problem_(problem),
        ranking_(settings.ranking),
        limits_{.l2_bytes = limits.l2_bytes,
                .list_bytes_per_token = row_list_bytes(limits.list_bytes_per_token)},
        common_{.segment_size = kRankedRows,
                .block_m = kRankedRows,
                .block_n = settings.block_n,
                .query_guide = QueryGuide::kNone,
                .share_key_order_in_group = false,
                .stop = settings.stop,
                .heads = heads_of(settings),
                .ranking = Ranking::kRows,
                .local_window = settings.ranking.local_window,
                .fold = settings.fold,
                .kept_fraction = settings.kept_fraction},
        shape_(s2o_history_shape(problem, common_)),
        kept_fractions_(kept_fractions_of(settings)),
        layout_(shape_, limits_, kept_fractions_),
        sample_stride_(row_sample_stride(problem.seqlen)) {
    const std::int64_t tiles = std::int64_t{shape_.num_segments} * problem.num_q_heads;
    const std::int64_t groups = num_key_groups(problem.seqlen);
    bad_row_ = workspace_.add<std::uint32_t>(1);
    next_task_ = workspace_.add<std::int32_t>(static_cast<std::int64_t>(layout_.batches.size()));
    const std::int64_t profile = std::int64_t{problem.num_kv_heads} * kPackedColumns;
    key_means_ = workspace_.add<float>(std::int64_t{problem.num_kv_heads} * problem.head_dim);
    dims_ = workspace_.add<std::int32_t>(profile);
    key_scales_ = workspace_.add<float>(profile);
    query_scales_ = workspace_.add<float>(profile);
    samples_ = workspace_.add<std::uint16_t>(std::int64_t{problem.num_kv_heads} * num_samples() *
                                             problem.head_dim);
    keys_ = workspace_.add<unsigned char>(problem.num_kv_heads * groups * kPackedGroupBytes);
    queries_ = workspace_.add<unsigned char>(tiles * kPackedQueryBytes);
    if (looks_for_reaches()) {
      masses_ =
          workspace_.add<float>(std::int64_t{probes().count()} * problem.num_q_heads * groups);
      reaches_ = workspace_.add<std::int32_t>(problem.num_q_heads);
    }
    classes_ = workspace_.add<unsigned char>(2 * std::min<std::int64_t>(tiles, kMaxRankBlocks) *
                                             groups * kKeyGroup);
    order_offsets_ = workspace_.add_constant(layout_.list_offsets);
    order_ = workspace_.add<std::int32_t>(layout_.order_entries);
    heads_ = workspace_.add_constant(head_rankings());

    PlanSkeleton skeleton = s2o_plan_skeleton(problem, common_, shape_, layout_, kept_fractions_);
    visit_everything(skeleton.passes.front());
    header_ = skeleton.header;
    std::vector<std::int32_t> tile_ends;
    for (const OrderBatch& batch : layout_.batches) {
      tile_ends.push_back(batch.end_segment);
      batch_ends_.push_back(batch.end_segment * header_.num_plan_heads);
    }
    const PassSkeleton& pass = skeleton.passes.front();
    const PassView host{.item_offsets = pass.item_offsets.data(), .items = pass.items.data()};
    items_ = workspace_.add_constant(pass.items);
    item_offsets_ = workspace_.add_constant(pass.item_offsets);
    fold_end_ = workspace_.add_constant(pass.fold_end);
    head_taus_ = workspace_.add_constant(pass.head_taus);
    tile_order_ = workspace_.add_constant(
        order_by_batch(tile_launch_order(problem, header_, host, limits.l2_bytes),
                       header_.num_q_tiles, tile_ends));
  }

  PlanningCost cost() const override {
    const double d = problem_.head_dim;
    const auto seqlen = static_cast<double>(problem_.seqlen);
    const double queries = problem_.num_q_heads * seqlen;
    const double keys = problem_.num_kv_heads * seqlen;
    const double scores =
        static_cast<double>(layout_.history_per_list) * shape_.num_lists() * kRankedRows;
    const double estimated = queries * static_cast<double>(num_samples()) / 2.0 +
                             queries * (kRankedRows + static_cast<double>(shape_.local_window));
    return {.flops = 2.0 * scores * kPackedColumns + 2.0 * estimated * d,
            .bytes = 2.0 * (d + kPackedColumns) * (queries + keys)};
  }

  void plan(const DeviceInput& input, PlanningKernels& kernels) const override {
    const Elements elements = input.elements();
    kernels.clear(bad_row_.data(), bad_row_.size_bytes());
    if (!ranks()) return;
    kernels.clear(next_task_.data(), next_task_.size_bytes());
    kernels.run(RowProfileArgs{.q = input.q,
                               .k = input.k,
                               .profile = profile(),
                               .seqlen = problem_.seqlen,
                               .num_kv_heads = problem_.num_kv_heads,
                               .group_size = problem_.group_size(),
                               .softmax_scale = problem_.softmax_scale},
                elements);
    kernels.run(PackKeysArgs{.k = input.k,
                             .profile = profile(),
                             .packed = keys_.data(),
                             .samples = samples_.data(),
                             .bad_row = bad_row_.data(),
                             .seqlen = problem_.seqlen,
                             .sample_stride = sample_stride_,
                             .num_samples = num_samples(),
                             .num_kv_heads = problem_.num_kv_heads,
                             .group_size = problem_.group_size(),
                             .num_segments = shape_.num_segments},
                elements);
    if (looks_for_reaches()) {
      pack_queries(probes(), nullptr, 1, input, kernels);
      kernels.run(FindReachArgs{.queries = queries_.data(),
                                .keys = keys_.data(),
                                .masses = masses_.data(),
                                .reaches = reaches_.data(),
                                .tiles = probes(),
                                .shape = shape_,
                                .heads = heads_.data(),
                                .sink = static_cast<std::int32_t>(ranking_.sink)},
                  elements);
    }
    pack_queries({.end = shape_.num_segments}, reaches_.data(), problem_.group_size(), input,
                 kernels);
    plan_next(0, input, kernels);
  }

  int num_batches() const override { return static_cast<int>(layout_.batches.size()); }
  void plan_next(int batch, const DeviceInput& input, PlanningKernels& kernels) const override {
    if (!ranks()) return;
    const OrderBatch& rows = layout_.batches[static_cast<std::size_t>(batch)];
    RankRowsArgs args = rank_args({.first = rows.first_segment, .end = rows.end_segment},
                                  next_task_.data() + batch);
    args.reaches = reaches_.data();
    kernels.run(args, input.elements());
  }

  DevicePlan device_plan() const override {
    DevicePlan plan;
    plan.header = header_;
    plan.passes.push_back({.item_offsets = item_offsets_.data(),
                           .items = items_.data(),
                           .gather_indices = order_.data(),
                           .fold_end = fold_end_.data(),
                           .head_taus = head_taus_.data()});
    plan.tile_orders.push_back(tile_order_.data());
    plan.batch_ends = batch_ends_;
    return plan;
  }

  const std::uint32_t* error_word() const override { return bad_row_.data(); }
  std::string row_name(std::int64_t row) const override {
    return "query head " + std::to_string(row / shape_.num_segments) + ", segment " +
           std::to_string(row % shape_.num_segments);
  }

 private:
  // Histories in place of lists, for heads without a floor. Where others have one, the ranking
  // finds as many keys.
  void visit_everything(PassSkeleton& pass) const {
    for (std::size_t tile = 0; tile + 1 < pass.item_offsets.size(); ++tile) {
      const auto segment = static_cast<std::int64_t>(tile) % shape_.num_segments;
      const auto head = static_cast<int>(static_cast<std::int64_t>(tile) / shape_.num_segments);
      if (ranking_.of(head).floor > 0.0f) continue;
      for (std::int64_t i = pass.item_offsets[tile]; i < pass.item_offsets[tile + 1]; ++i) {
        PlanItem& item = pass.items[static_cast<std::size_t>(i)];
        if (item.kind != ItemKind::kGather) continue;
        item = {.begin = 0, .count = static_cast<std::int32_t>(shape_.history_length(segment))};
      }
    }
  }
  std::int64_t num_samples() const { return problem_.seqlen / sample_stride_; }
  TileSet probes() const { return probe_tiles(shape_.num_segments, ranking_.num_probes); }
  bool looks_for_reaches() const {
    return any_head([](const RowLimits& head) { return head.reach_limit > 0.0f; }) &&
           probes().count() > 0;
  }
  bool ranks() const {
    return any_head([](const RowLimits& head) { return head.floor > 0.0f; });
  }
  template <class Predicate>
  bool any_head(const Predicate& predicate) const {
    for (int head = 0; head < problem_.num_q_heads; ++head) {
      if (predicate(ranking_.of(head))) return true;
    }
    return false;
  }
  // Limits are those of the ranking.
  static std::vector<S2oHead> heads_of(const RowPlannerSettings& settings) {
    std::vector<S2oHead> heads;
    for (const float tau : settings.head_taus) heads.push_back({.tau = tau});
    return heads;
  }
  static std::vector<std::int32_t> kept_fractions_of(const RowPlannerSettings& settings) {
    std::vector<std::int32_t> fractions;
    for (const float tau : settings.head_taus) fractions.push_back(rows_kept_fraction(tau));
    return fractions;
  }
  std::vector<HeadRanking> head_rankings() const {
    std::vector<HeadRanking> heads;
    for (int head = 0; head < problem_.num_q_heads; ++head) {
      const RowLimits limits = ranking_.of(head);
      heads.push_back({.floor = limits.floor * std::exp2(kScoreBias),
                       .least_mass = limits.least_mass,
                       .reach_limit = limits.reach_limit,
                       .kept_fraction = kept_fractions_.empty()
                                            ? shape_.kept_fraction
                                            : kept_fractions_[static_cast<std::size_t>(head)]});
    }
    return heads;
  }
  // Heads apart where tiles are few.
  void pack_queries(const TileSet& tiles, const std::int32_t* reaches, int heads_of_block,
                    const DeviceInput& input, PlanningKernels& kernels) const {
    kernels.run(PackQueriesArgs{.q = input.q,
                                .k = input.k,
                                .samples = samples_.data(),
                                .profile = profile(),
                                .packed = queries_.data(),
                                .reaches = reaches,
                                .bad_row = bad_row_.data(),
                                .tiles = tiles,
                                .shape = shape_,
                                .sample_stride = sample_stride_,
                                .num_samples = num_samples(),
                                .sink = static_cast<std::int32_t>(ranking_.sink),
                                .heads_of_block = heads_of_block,
                                .softmax_scale = problem_.softmax_scale},
                input.elements());
  }
  RankRowsArgs rank_args(const TileSet& tiles, std::int32_t* next_task) const {
    return {.queries = queries_.data(),
            .keys = keys_.data(),
            .classes = classes_.data(),
            .next_task = next_task,
            .order = order_.data(),
            .order_offsets = order_offsets_.data(),
            .items = items_.data(),
            .item_offsets = item_offsets_.data(),
            .shape = shape_,
            .heads = heads_.data(),
            .num_q_heads = problem_.num_q_heads,
            .tiles = tiles,
            .sink = static_cast<std::int32_t>(ranking_.sink)};
  }
  RowProfile profile() const {
    return {.key_means = key_means_.data(),
            .dims = dims_.data(),
            .key_scales = key_scales_.data(),
            .query_scales = query_scales_.data()};
  }

  const Problem problem_;
  const RowRankingSettings ranking_;
  const PlannerLimits limits_;
  const S2oSettings common_;
  const HistoryShape shape_;
  const std::vector<std::int32_t> kept_fractions_;  // [num_q_heads], or empty
  const S2oLayout layout_;
  const std::int64_t sample_stride_;
  PlanView header_;
  Workspace::Array<std::uint32_t> bad_row_;
  Workspace::Array<std::int32_t> next_task_, dims_, order_;
  // Empty: whole histories.
  Workspace::Array<float> masses_;
  Workspace::Array<std::int32_t> reaches_;
  Workspace::Array<float> key_means_, key_scales_, query_scales_;
  Workspace::Array<std::uint16_t> samples_;
  Workspace::Array<unsigned char> keys_, queries_, classes_;
  Workspace::Array<std::int64_t> order_offsets_, item_offsets_;
  Workspace::Array<PlanItem> items_;
  Workspace::Array<std::int32_t> fold_end_, tile_order_;
  Workspace::Array<HeadRanking> heads_;
  Workspace::Array<float> head_taus_;     // empty: all heads alike
  std::vector<std::int32_t> batch_ends_;  // as in DevicePlan
};

}  // namespace

std::unique_ptr<Planner> make_row_planner(const Problem& problem,
                                          const RowPlannerSettings& settings,
                                          const PlannerLimits& limits) {
  return std::make_unique<RowPlanner>(problem, settings, limits);
}

}  // namespace s2o
