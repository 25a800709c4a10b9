// S2O with what this project adds; every part is a parameter, and with all of them off it is `s2o`.
//
//   ranking        key scores that know which keys some queries of the segment want although their
//                  mean does not: from the means of clusters of queries, or from their covariance;
//   normalizer_aware, value_aware   the other terms of the score
//                  (all in lib/methods/s2o/key_ranking.h)
//   local_window   the tokens just before the segment are visited in place, unranked
//   compensation   the unvisited history enters as folded columns
//                  (kernels/attention/fold_columns.h)
//   pass1_order    "natural": the own segment runs in natural order and is merged with the permuted
//                  history pass by log-sum-exp, so that a query order costs no density in pass 1
//
// Cost of the default ranking: num_clusters / segment_size of Q K': a quarter with segments of 128
// tokens, that is an eighth of the products of dense attention, a 64th with segments of 1,024.
#include "lib/methods/common/block_selection.h"
#include "lib/methods/s2o/s2o.h"

namespace s2o {
namespace {

std::vector<ParamSpec> plus_specs() {
  std::vector<ParamSpec> specs = s2o_param_specs();
  specs.push_back(ParamSpec::choice("ranking", "clusters",
                                    {"mean", "diagonal", "low_rank", "full", "clusters", "rows"},
                                    "what the key score knows of the segment's queries"));
  specs.push_back(ParamSpec::integer("sink", 64, "leading tokens that ranking rows always visits",
                                     0, kRankedRows));
  specs.push_back(ParamSpec::real("floor_per_tau", 0.0625,
                                  "ranking rows leaves out keys of less weight than this times tau",
                                  0.0, 1.0));
  specs.push_back(ParamSpec::real(
      "local_per_tau", 2.0, "ranking rows ranks nothing where less mass than this times tau is far",
      0.0, 1e6));
  specs.push_back(
      ParamSpec::integer("low_rank", 8, "eigenvectors kept by ranking low_rank", 1, 1024));
  specs.push_back(
      ParamSpec::integer("num_clusters", 32, "query means kept by ranking clusters", 1, 1024));
  specs.push_back(ParamSpec::integer("cluster_iterations", 3,
                                     "iterations of Lloyd's algorithm of ranking clusters", 1, 64));
  specs.push_back(ParamSpec::integer(
      "local_window", 128, "tokens before the segment that are always visited", 0, 1 << 24));
  specs.push_back(ParamSpec::choice("compensation", "blocks_variance",
                                    {"none", "centroid", "blocks", "blocks_variance"},
                                    "what stands in for the unvisited history"));
  specs.push_back(ParamSpec::boolean("normalizer_aware", true,
                                     "weigh queries by their estimated softmax normaliser"));
  specs.push_back(ParamSpec::boolean(
      "value_aware", true, "rank keys by mass times distance of their value to its block"));
  specs.push_back(ParamSpec::integer("fold_block", 128, "key slots per folded column", 1, 1 << 20));
  specs.push_back(ParamSpec::choice("pass1_order", "natural", {"natural", "permuted"},
                                    "row order of the pass over the own segment"));
  return specs;
}

Ranking parse_ranking(const std::string& name) {
  if (name == "mean") return Ranking::kMean;
  if (name == "diagonal") return Ranking::kDiagonal;
  if (name == "low_rank") return Ranking::kLowRank;
  if (name == "rows") return Ranking::kRows;
  return name == "full" ? Ranking::kFull : Ranking::kClusters;
}

class S2oPlus final : public Method {
 public:
  const MethodInfo& info() const override {
    static const MethodInfo kInfo = {
        .name = "s2o_plus",
        .title = "S2O+",
        .source = "S2O with second-order ranking, local window and tail compensation",
        .summary = "s2o with sharper ranking and the unvisited history folded into a few columns",
        .params = plus_specs(),
        .knob = "tau",
        .knob_sweep = {0.000005, 0.00003, 0.0001, 0.0003, 0.001, 0.003, 0.01, 0.03, 0.1},
        .full_budget = {.exists = true, .params = {{"tau", 0.0}}},
        // Near-ties change the order, not which keys it holds.
        .device = {.settings = {{{"segment_size", 128}},
                                {{"segment_size", 1024}, {"key_order_sharing", "kv_head"}},
                                {{"ranking", "diagonal"},
                                 {"normalizer_aware", false},
                                 {"value_aware", false},
                                 {"segment_size", 256}},
                                {{"ranking", "mean"}, {"segment_size", 256}, {"local_window", 100}},
                                {{"query_guide", "prefix_mean_key"}, {"segment_size", 256}},
                                {{"query_guide", "global_mean_key"},
                                 {"segment_size", 128},
                                 {"ranking", "mean"}},
                                {{"query_guide", "segment_mean_query"},
                                 {"segment_size", 128},
                                 {"ranking", "mean"}}},
                   .tie_share = 0.0},
    };
    return kInfo;
  }

  SparsePlan plan_cpu(const PlanContext& context, const ParamSet& params) const override {
    return plan_s2o(context.input, plus_settings(params));
  }

  std::unique_ptr<Planner> device_planner(const DevicePlanningRequest& request) const override {
    return device_planner_s2o(request, plus_settings(request.params));
  }

 private:
  static S2oSettings plus_settings(const ParamSet& params) {
    S2oSettings settings = s2o_settings(params);
    settings.ranking.form = parse_ranking(params.get_choice("ranking"));
    settings.sink = params.get_int("sink");
    settings.floor_per_tau = static_cast<float>(params.get_real("floor_per_tau"));
    settings.local_per_tau = static_cast<float>(params.get_real("local_per_tau"));
    settings.ranking.low_rank = static_cast<int>(params.get_int("low_rank"));
    settings.ranking.num_clusters = static_cast<int>(params.get_int("num_clusters"));
    settings.ranking.cluster_iterations = static_cast<int>(params.get_int("cluster_iterations"));
    settings.ranking.normalizer_aware = params.get_bool("normalizer_aware");
    settings.ranking.value_aware = params.get_bool("value_aware");
    settings.local_window = params.get_int("local_window");
    settings.fold.kind = compensation_of(params);
    settings.fold.fold_block = static_cast<int>(params.get_int("fold_block"));
    settings.natural_pass1 = params.get_choice("pass1_order") == "natural";
    return settings;
  }
};

}  // namespace

const Method& method_s2o_plus() {
  static const S2oPlus kMethod;
  return kMethod;
}

}  // namespace s2o
