#include <fmt/format.h>

#include <Eigen/Dense>
#include <algorithm>
#include <cstddef>

#include "kernels/common/ceil_div.h"
#include "kernels/common/parallel.h"
#include "lib/core/error.h"
#include "lib/methods/common/block_selection.h"
#include "lib/methods/s2o/row_planner.h"
#include "lib/methods/s2o/s2o.h"

namespace s2o {
namespace {

using RowMatrixXf = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
using Rows = Eigen::Map<const RowMatrixXf>;

bool ranks_rows(const S2oSettings& settings) { return settings.ranking == Ranking::kRows; }

// What probes cost and save: a tenth of the ranking and a fifth at 32,768 tokens, a tenth and half
// at 131,072.
constexpr std::int64_t kShortestProbed = 32768;
constexpr int kNumProbes = 16;
// Whatever tau, keys of this and less count in probes: looser evidence cuts what the model needs.
constexpr float kLoosestEvidence = 0.01f;

RowLimits row_limits(const S2oHead& head, int block_n) {
  const float evidence = std::min(head.tau, kLoosestEvidence);
  return {.floor = head.floor_per_tau * head.tau,
          .least_mass = evidence / static_cast<float>(block_n),
          .reach_limit = head.reach_per_tau * evidence};
}

RowRankingSettings row_settings(const S2oSettings& settings, std::int64_t seqlen) {
  const RowLimits all = row_limits(
      {settings.stop.tau, settings.floor_per_tau, settings.reach_per_tau}, settings.block_n);
  RowRankingSettings ranking = {.local_window = settings.local_window,
                                .sink = settings.sink,
                                .floor = all.floor,
                                .num_probes = seqlen < kShortestProbed ? 0 : kNumProbes,
                                .least_mass = all.least_mass,
                                .reach_limit = all.reach_limit};
  for (const S2oHead& head : settings.heads) {
    ranking.heads.push_back(row_limits(head, settings.block_n));
  }
  return ranking;
}

class S2oCpuPlan {
 public:
  S2oCpuPlan(const AttentionInput& input, const S2oSettings& settings)
      : input_(input),
        problem_(input.problem),
        settings_(settings),
        num_segments_(ceil_div(problem_.seqlen, settings.segment_size)),
        plan_(problem_, settings.block_m, settings.block_n) {
    check_s2o(settings);
  }

  SparsePlan plan() {
    plan_.header.stop = settings_.stop;
    plan_.header.fold = settings_.fold;
    const bool orders_queries = settings_.query_guide != QueryGuide::kNone;
    const bool two_passes = orders_queries && settings_.natural_pass1;
    if (two_passes) plan_.passes.resize(2);
    PlanPass& main_pass = plan_.passes.back();
    if (orders_queries) order_queries(main_pass.query_order);
    rank_all_histories(main_pass.gather_indices);

    PlanBuilder local(plan_);
    PlanBuilder history(plan_);
    PlanBuilder& history_target = two_passes ? history : local;
    for (int head = 0; head < problem_.num_q_heads; ++head) {
      for (int tile = 0; tile < plan_.header.num_q_tiles; ++tile) {
        add_pass1(local, head, tile, two_passes ? nullptr : &main_pass.query_order);
        add_pass2(history_target, head, tile);
      }
    }
    local.finish(plan_.passes.front());
    if (two_passes) history.finish(main_pass);
    main_pass.head_taus = settings_.head_taus();
    if (settings_.fold.kind != Compensation::kNone) set_fold_end(main_pass);
    return std::move(plan_);
  }

 private:
  std::int64_t segment_of(int tile) const {
    return static_cast<std::int64_t>(tile) * settings_.block_m / settings_.segment_size;
  }
  std::int64_t segment_begin(std::int64_t segment) const {
    return segment * settings_.segment_size;
  }
  std::int64_t segment_end(std::int64_t segment) const {
    return std::min((segment + 1) * settings_.segment_size, problem_.seqlen);
  }
  // Tokens before the segment that are visited in place, and end of the ranked history.
  std::int64_t window_begin(std::int64_t segment) const {
    return std::max<std::int64_t>(segment_begin(segment) - settings_.local_window, 0);
  }

  Rows queries(int q_head, std::int64_t segment) const {
    const std::int64_t begin = segment_begin(segment);
    return Rows(input_.q_head(q_head) + begin * problem_.head_dim, segment_end(segment) - begin,
                problem_.head_dim);
  }

  // Step 1: inside each segment, rows by descending q . u.
  void order_queries(std::vector<std::int32_t>& query_order) const {
    query_order.resize(static_cast<std::size_t>(problem_.num_q_heads * problem_.seqlen));
    parallel_for(problem_.num_q_heads, [&](std::int64_t head) {
      const int q_head = static_cast<int>(head);
      const Rows keys(input_.k_head(q_head / problem_.group_size()), problem_.seqlen,
                      problem_.head_dim);
      Eigen::VectorXf prefix_sum = Eigen::VectorXf::Zero(problem_.head_dim);
      Eigen::VectorXf guide;
      if (settings_.query_guide == QueryGuide::kGlobalMeanKey) {
        guide = keys.colwise().mean().transpose();
      }
      for (std::int64_t segment = 0; segment < num_segments_; ++segment) {
        const std::int64_t begin = segment_begin(segment);
        const std::int64_t count = segment_end(segment) - begin;
        if (settings_.query_guide == QueryGuide::kPrefixMeanKey) {
          prefix_sum += keys.middleRows(begin, count).colwise().sum().transpose();
          guide = prefix_sum / static_cast<float>(begin + count);
        } else if (settings_.query_guide == QueryGuide::kSegmentMeanQuery) {
          guide = queries(q_head, segment).colwise().mean().transpose();
        }
        const Eigen::VectorXf rank = queries(q_head, segment) * guide;
        const auto order = order_descending({rank.data(), static_cast<std::size_t>(count)});
        std::int32_t* target = query_order.data() + head * problem_.seqlen + begin;
        for (std::int64_t i = 0; i < count; ++i) {
          target[i] = static_cast<std::int32_t>(begin + order[static_cast<std::size_t>(i)]);
        }
      }
    });
  }

  // Step 2: the visiting order of every segment's history, one flat list per head (or KV head).
  void rank_all_histories(std::vector<std::int32_t>& gather_indices) {
    const int group = problem_.group_size();
    const bool shared = settings_.share_key_order_in_group;
    const int num_lists = shared ? problem_.num_kv_heads : problem_.num_q_heads;
    history_offset_.assign(static_cast<std::size_t>(num_segments_) + 1, 0);
    for (std::int64_t segment = 0; segment < num_segments_; ++segment) {
      history_offset_[static_cast<std::size_t>(segment) + 1] =
          history_offset_[static_cast<std::size_t>(segment)] + window_begin(segment);
    }
    // With tau 0 nothing is left out: no order matters.
    if (ranks_rows(settings_) && settings_.stop.tau == 0.0f) return;
    gather_indices.resize(static_cast<std::size_t>(history_offset_.back() * num_lists));
    if (ranks_rows(settings_)) {
      rank_rows(gather_indices);
      return;
    }
    parallel_for(num_lists * num_segments_, [&](std::int64_t task) {
      const std::int64_t list = task / num_segments_;
      // Late segments have the longest histories: start with them.
      const std::int64_t segment = num_segments_ - 1 - task % num_segments_;
      const int first_q_head = static_cast<int>(shared ? list * group : list);
      std::int32_t* target = gather_indices.data() + list * history_offset_.back() +
                             history_offset_[static_cast<std::size_t>(segment)];
      rank_history(first_q_head, shared ? group : 1, segment, target);
    });
  }

  void rank_rows(std::vector<std::int32_t>& gather_indices) {
    const RowRanking ranking(input_, row_settings(settings_, problem_.seqlen));
    HistoryShape shape;
    shape.segment_size = settings_.segment_size;
    shape.local_window = settings_.local_window;
    ranked_.resize(static_cast<std::size_t>(problem_.num_q_heads * num_segments_));
    parallel_for(problem_.num_q_heads * num_segments_, [&](std::int64_t task) {
      const std::int64_t head = task / num_segments_;
      const std::int64_t segment = num_segments_ - 1 - task % num_segments_;
      HistoryShape of_head = shape;
      of_head.kept_fraction = rows_kept_fraction(settings_.of(static_cast<int>(head)).tau);
      const auto order =
          ranking.order(static_cast<int>(head), segment, of_head.order_length(segment));
      std::copy(order.begin(), order.end(),
                gather_indices.begin() + head * history_offset_.back() +
                    history_offset_[static_cast<std::size_t>(segment)]);
      ranked_[static_cast<std::size_t>(head * num_segments_ + segment)] =
          static_cast<std::int32_t>(order.size());
    });
  }

  void rank_history(int first_q_head, int num_heads, std::int64_t segment,
                    std::int32_t* target) const {
    const std::int64_t length = history_offset_[static_cast<std::size_t>(segment) + 1] -
                                history_offset_[static_cast<std::size_t>(segment)];
    if (length == 0) return;
    const std::vector<float> scores = mean_query_scores(
        input_, first_q_head, num_heads, segment_begin(segment), segment_end(segment), length);
    std::ranges::copy(order_descending(scores), target);
  }

  // Step 3: the segment itself, in place, up to the largest position among the tile's rows.
  void add_pass1(PlanBuilder& builder, int head, int tile,
                 const std::vector<std::int32_t>* query_order) const {
    const TileRows rows = tile_rows(problem_, plan_.header, tile);
    const std::int64_t begin = segment_begin(segment_of(tile));
    std::int64_t last = rows.last_position;
    if (query_order != nullptr && !query_order->empty()) {
      const auto base = query_order->begin() + head * problem_.seqlen;
      last = *std::max_element(base + rows.first_slot, base + rows.end_slot);
    }
    builder.add(head, tile,
                {.begin = begin,
                 .count = static_cast<std::int32_t>(last + 1 - begin),
                 .kind = ItemKind::kRun,
                 .mask = MaskClass::kCausal});
  }

  // Steps 4 and 5: the local window, then the history in visiting order until the stop.
  void add_pass2(PlanBuilder& builder, int head, int tile) const {
    const std::int64_t segment = segment_of(tile);
    const std::int64_t window = segment_begin(segment) - window_begin(segment);
    if (window > 0) {
      builder.add(head, tile,
                  {.begin = window_begin(segment), .count = static_cast<std::int32_t>(window)});
    }
    const auto s = static_cast<std::size_t>(segment);
    std::int64_t length = history_offset_[s + 1] - history_offset_[s];
    if (length == 0) return;
    if (ranks_rows(settings_) && settings_.of(head).tau == 0.0f) {
      builder.add(head, tile, {.begin = 0, .count = static_cast<std::int32_t>(length)});
      return;
    }
    if (!ranked_.empty()) {
      length = ranked_[static_cast<std::size_t>(head * num_segments_ + segment)];
    } else {
      HistoryShape shape;
      shape.segment_size = settings_.segment_size;
      shape.local_window = settings_.local_window;
      shape.max_depth = settings_.max_depth;
      shape.kept_fraction = settings_.kept_fraction;
      length = shape.order_length(segment);
    }
    const int list = settings_.share_key_order_in_group ? head / problem_.group_size() : head;
    builder.add(head, tile,
                {.begin = list * history_offset_.back() + history_offset_[s],
                 .count = static_cast<std::int32_t>(length),
                 .kind = ItemKind::kGather,
                 .mask = MaskClass::kNone,
                 .stoppable = settings_.may_stop(head)});
  }

  void set_fold_end(PlanPass& pass) const {
    pass.fold_end.resize(static_cast<std::size_t>(plan_.num_tiles()));
    for (int head = 0; head < problem_.num_q_heads; ++head) {
      for (int tile = 0; tile < plan_.header.num_q_tiles; ++tile) {
        pass.fold_end[static_cast<std::size_t>(plan_.tile_index(head, tile))] =
            static_cast<std::int32_t>(segment_begin(segment_of(tile)));
      }
    }
  }

  const AttentionInput& input_;
  const Problem& problem_;
  const S2oSettings& settings_;
  const std::int64_t num_segments_;
  SparsePlan plan_;
  std::vector<std::int64_t> history_offset_;  // [num_segments + 1], into one head's list
  std::vector<std::int32_t> ranked_;          // [num_q_heads, num_segments], with ranking by rows
};

}  // namespace

void S2oSettings::add_head(const S2oSettings& alone) {
  stop.tau = heads.empty() ? alone.stop.tau : std::max(stop.tau, alone.stop.tau);
  const bool is_whole = !heads.empty() && (max_depth == 0 || alone.max_depth == 0);
  max_depth = is_whole ? 0 : std::max(heads.empty() ? 0 : max_depth, alone.max_depth);
  heads.push_back({alone.stop.tau, alone.floor_per_tau, alone.reach_per_tau});
}

std::vector<float> S2oSettings::head_taus() const {
  std::vector<float> taus;
  for (const S2oHead& head : heads) taus.push_back(head.tau);
  return taus;
}

void check_s2o(const S2oSettings& settings) {
  if (settings.segment_size % settings.block_m != 0) {
    throw ConfigError(fmt::format("segment_size: found {}, expected a multiple of block_m {}",
                                  settings.segment_size, settings.block_m));
  }
  if (!ranks_rows(settings)) return;
  constexpr const char* kOthers = "use ranking mean for others";
  if (settings.segment_size != kRankedRows || settings.block_m != kRankedRows) {
    throw ConfigError(
        fmt::format("ranking: rows ranks tiles of {} queries, found segment_size {} and block_m "
                    "{}; {}",
                    kRankedRows, settings.segment_size, settings.block_m, kOthers));
  }
  if (settings.query_guide != QueryGuide::kNone || settings.share_key_order_in_group) {
    throw ConfigError(fmt::format(
        "ranking: rows needs query_guide none and key_order_sharing query_head; {}", kOthers));
  }
}

std::vector<ParamSpec> s2o_param_specs() {
  return {
      ParamSpec::real("tau", 0.01, "stop once a step adds less than this share of softmax mass",
                      0.0, 1.0),
      ParamSpec::integer("segment_size", 128, "tokens per segment, a multiple of block_m", 16,
                         1 << 24),
      ParamSpec::choice("query_guide", "none",
                        {"none", "prefix_mean_key", "global_mean_key", "segment_mean_query"},
                        "vector that ranks the queries of a segment; none keeps their order"),
      ParamSpec::choice("key_order_sharing", "query_head", {"query_head", "kv_head"},
                        "one visiting order per query head, or per KV head for its whole group"),
      ParamSpec::choice("stop_reduce", "mean", {"mean", "max"}, "reduction of the rows' gains"),
      ParamSpec::integer("stop_patience", 1, "consecutive small steps before the stop", 1, 1 << 20),
      ParamSpec::integer("min_steps", 1, "steps of the history before a stop", 1, 1 << 20),
      ParamSpec::integer("block_m", 128, "query rows of a tile", 16, 1024),
      ParamSpec::integer("block_n", 128, "keys of a step", 16, 1024),
  };
}

std::int64_t s2o_max_depth(const StopRule& stop, int block_n) {
  // The largest gain of one row need not fall from step to step.
  if (stop.tau <= 0.0f || stop.reduce == StopReduce::kMax) return 0;
  constexpr double kMost = 1 << 24;
  const auto steps =
      static_cast<std::int64_t>(std::min(1.0 / static_cast<double>(stop.tau), kMost));
  return (std::max<std::int64_t>(steps, stop.min_steps) + stop.patience) * block_n;
}

S2oSettings s2o_settings(const ParamSet& params) {
  const std::string& guide = params.get_choice("query_guide");
  const StopRule stop{
      .tau = static_cast<float>(params.get_real("tau")),
      .reduce = params.get_choice("stop_reduce") == "mean" ? StopReduce::kMean : StopReduce::kMax,
      .patience = static_cast<int>(params.get_int("stop_patience")),
      .min_steps = static_cast<int>(params.get_int("min_steps"))};
  const auto block_n = static_cast<int>(params.get_int("block_n"));
  return {
      .segment_size = params.get_int("segment_size"),
      .block_m = static_cast<int>(params.get_int("block_m")),
      .block_n = block_n,
      .query_guide = guide == "prefix_mean_key"      ? QueryGuide::kPrefixMeanKey
                     : guide == "global_mean_key"    ? QueryGuide::kGlobalMeanKey
                     : guide == "segment_mean_query" ? QueryGuide::kSegmentMeanQuery
                                                     : QueryGuide::kNone,
      .share_key_order_in_group = params.get_choice("key_order_sharing") == "kv_head",
      .stop = stop,
      .ranking = Ranking::kMean,
      .local_window = 0,
      .fold = {},
      .natural_pass1 = false,
      .max_depth = s2o_max_depth(stop, block_n),
      .kept_fraction = 0,
      .sink = 0,
      .floor_per_tau = 0.0f,
      .reach_per_tau = 0.0f,
  };
}

std::unique_ptr<Planner> device_planner_s2o(const DevicePlanningRequest& request,
                                            const S2oSettings& settings) {
  check_s2o(settings);
  if (ranks_rows(settings)) {
    if (request.dtype == StorageDType::kF32) return nullptr;
    return make_row_planner(request.problem,
                            {.ranking = row_settings(settings, request.problem.seqlen),
                             .block_n = settings.block_n,
                             .kept_fraction = rows_kept_fraction(settings.stop.tau),
                             .stop = settings.stop,
                             .fold = settings.fold,
                             .head_taus = settings.head_taus()},
                            request.limits);
  }
  // With permuted rows in the pass over the own segment, its items depend on the order.
  const bool has_guide = settings.query_guide == QueryGuide::kNone ||
                         (settings.natural_pass1 && settings.segment_size <= kMaxGuidedSegment);
  if (request.dtype == StorageDType::kF32 || !has_guide) return nullptr;
  return s2o_planner(request.problem, settings, request.limits);
}

SparsePlan plan_s2o(const AttentionInput& input, const S2oSettings& settings) {
  return S2oCpuPlan(input, settings).plan();
}

}  // namespace s2o
