// S2O with what this project adds; without ranking by rows, window and compensation it is `s2o`.
//
//   ranking        rows: scores of all queries of a tile in low precision
//                  (lib/methods/s2o/row_ranking.h); mean: from the mean query, as s2o, for other
//                  segments than 128 tokens and devices without warpgroup products
//   local_window   the tokens just before the segment are visited in place, unranked
//   compensation   the unvisited history enters as folded columns
//                  (kernels/attention/fold_columns.h), at head_dim 64 and 128; off: on real models
//                  they cost more time than the pairs they save (results/ablation.md)
// With a query guide the own segment runs in natural order and is merged with the permuted history
// pass by log-sum-exp, so that the order of queries costs no density there.
//
// Cost of ranking by rows: half of the dimensions of Q K' in e4m3, an eighth of dense attention.
#include "lib/methods/common/block_selection.h"
#include "lib/methods/s2o/s2o.h"

namespace s2o {
namespace {

std::vector<ParamSpec> plus_specs() {
  std::vector<ParamSpec> specs = s2o_param_specs();
  specs.push_back(ParamSpec::choice("ranking", "rows", {"mean", "rows"},
                                    "what the key score knows of the segment's queries"));
  specs.push_back(ParamSpec::integer("sink", 64, "leading tokens that ranking rows always visits",
                                     0, kRankedRows));
  specs.push_back(ParamSpec::real("floor_per_tau", 0.0625,
                                  "ranking rows leaves out keys of less weight than this times tau",
                                  0.0, 1.0));
  specs.push_back(ParamSpec::real("reach_per_tau", 8.0,
                                  "from 32,768 tokens on, ranking rows looks as far back as a head "
                                  "reads: probes lose at most this times tau, up to .01; 0 looks "
                                  "everywhere",
                                  0.0, 1e6));
  specs.push_back(ParamSpec::integer(
      "local_window", 128, "tokens before the segment that are always visited", 0, 1 << 24));
  specs.push_back(ParamSpec::choice("compensation", "none",
                                    {"none", "centroid", "blocks", "blocks_variance"},
                                    "what stands in for the unvisited history"));
  return specs;
}

class S2oPlus final : public S2oMethod {
 public:
  const MethodInfo& info() const override {
    static const MethodInfo kInfo = {
        .name = "s2o_plus",
        .title = "S2O+",
        .source = "S2O with a ranking by all rows and a local window",
        .summary = "s2o with keys ranked by all queries of a tile in low precision",
        .params = plus_specs(),
        .knob = "tau",
        .knob_sweep = {0.000005, 0.00003, 0.0001, 0.0003, 0.001, 0.003, 0.01, 0.03, 0.1},
        .params_by_head = {"tau", "floor_per_tau", "reach_per_tau"},
        .full_budget = {.exists = true, .params = {{"tau", 0.0}}},
        // Near-ties change the order, not which keys it holds; but for ranking by rows, whose keys
        // near the floor may come or go. Its lists: lib/methods/s2o/s2o_rows_test.cpp.
        .device =
            {.settings =
                 {{{"ranking", "mean"}, {"segment_size", 128}},
                  {{"ranking", "rows"}},
                  {{"ranking", "rows"}, {"tau", 0.001}, {"sink", 0}, {"local_window", 256}},
                  {{"ranking", "mean"}, {"segment_size", 1024}, {"key_order_sharing", "kv_head"}},
                  {{"ranking", "mean"}, {"segment_size", 256}, {"local_window", 100}},
                  {{"ranking", "mean"}, {"query_guide", "prefix_mean_key"}, {"segment_size", 256}},
                  {{"query_guide", "global_mean_key"}, {"segment_size", 128}, {"ranking", "mean"}},
                  {{"query_guide", "segment_mean_query"},
                   {"segment_size", 128},
                   {"ranking", "mean"}}},
             .tie_share = 0.002},
    };
    return kInfo;
  }

 private:
  S2oSettings settings_of(const ParamSet& params) const override {
    S2oSettings settings = s2o_settings(params);
    settings.ranking = params.get_choice("ranking") == "rows" ? Ranking::kRows : Ranking::kMean;
    settings.sink = params.get_int("sink");
    settings.floor_per_tau = static_cast<float>(params.get_real("floor_per_tau"));
    settings.reach_per_tau = static_cast<float>(params.get_real("reach_per_tau"));
    settings.local_window = params.get_int("local_window");
    settings.fold.kind = compensation_of(params);
    settings.natural_pass1 = true;
    return settings;
  }
};

}  // namespace

const Method& method_s2o_plus() {
  static const S2oPlus kMethod;
  return kMethod;
}

}  // namespace s2o
