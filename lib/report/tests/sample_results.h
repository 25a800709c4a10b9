// Hand-made result tables for the tests of this folder.
#pragma once

#include <cmath>
#include <string>
#include <vector>

#include "lib/eval/result_table.h"
#include "lib/report/match.h"

namespace s2o {

// Facts of a small imaginary registry, so that tests do not change when methods are added.
inline MethodFacts sample_facts(const std::string& method) {
  if (method == "dense") return {"", nlohmann::ordered_json::object(), false, 0};
  if (method == "window") return {"window", {{"sink", 128}, {"window", 3968}}, false, 1};
  if (method == "blocks") {
    return {"threshold", {{"threshold", 0.9}, {"compensation", "none"}}, false, 2};
  }
  if (method == "oracle") return {"density", {{"density", 0.1}}, true, 3};
  if (method == "s2o") return {"tau", {{"tau", 0.01}, {"segment_size", 1024}}, false, 4};
  return {"", nlohmann::ordered_json::object(), false, 5};
}

inline MatchOptions sample_options() {
  MatchOptions options;
  options.sparsity = {0.5, 0.7, 0.9};
  options.curves.facts = sample_facts;
  return options;
}

struct RowSpec {
  std::string method;
  nlohmann::ordered_json params;
  double density = 1.0;
  double mse = 0.0;
  int layer = 0;
  std::string input = "tiny/book";
  std::int64_t seqlen = 1024;
};

// Two query heads. Head 0 has half the row's MSE, head 1 one and a half; densities are equal.
inline ResultRow sample_row(const RowSpec& spec) {
  ResultRow row;
  row.input = spec.input;
  row.layer = spec.layer;
  row.seqlen = spec.seqlen;
  row.num_q_heads = 2;
  row.num_kv_heads = 1;
  row.head_dim = 64;
  row.method = spec.method;
  row.params = spec.params;
  row.kernel = "attention_ref";
  row.backend = "cpu";
  row.metrics = {{"mse", spec.mse},
                 {"relative_l2", std::sqrt(spec.mse)},
                 {"compute_density", spec.density},
                 {"sparsity", 1.0 - spec.density},
                 {"mass_recall", 1.0 - spec.mse},
                 {"plan_latency_ms", 1.0},
                 {"attention_latency_ms", 9.0 * spec.density},
                 {"total_latency_ms", 1.0 + 9.0 * spec.density},
                 {"speedup_vs_dense", 9.0 / (1.0 + 9.0 * spec.density)}};
  row.per_head = {{"mse", {0.5 * spec.mse, 1.5 * spec.mse}},
                  {"compute_density", {spec.density, spec.density}},
                  {"mass_recall", {1.0 - spec.mse, 1.0 - spec.mse}}};
  return row;
}

// MSE = scale * 10^(4 sparsity - 6): log-linear, so interpolation is exact.
inline double sample_mse(double sparsity, double scale) {
  return scale * std::pow(10.0, 4.0 * sparsity - 6.0);
}

// Rounded, so that a table shows .05 and not .05000000000000004.
inline double sample_density(double sparsity) {
  return std::round(1000.0 * (1.0 - sparsity)) / 1000.0;
}

// s2o measured at sparsities .4 to .95; "blocks" has twice (layer 0) and eight times (layer 1) its
// error, so 4 in the geometric mean, and stops at sparsity .8 in layer 1; "window" has 16 times.
inline ResultTable sample_table() {
  ResultTable table;
  for (int layer : {0, 1}) {
    table.rows.push_back(sample_row({"dense", nlohmann::ordered_json::object(), 1.0, 0.0, layer}));
    for (double sparsity : {0.4, 0.6, 0.8, 0.95}) {
      const double density = sample_density(sparsity);
      table.rows.push_back(sample_row({"s2o",
                                       {{"tau", sparsity}, {"segment_size", 1024}},
                                       density,
                                       sample_mse(sparsity, 1.0),
                                       layer}));
      table.rows.back().stop_steps = {0, 1, 2, 3, 0, 5, 5, 5};
      if (layer == 0 || sparsity <= 0.8) {
        table.rows.push_back(sample_row({"blocks",
                                         {{"threshold", density}, {"compensation", "none"}},
                                         density,
                                         sample_mse(sparsity, layer == 0 ? 2.0 : 8.0),
                                         layer}));
      }
      table.rows.push_back(sample_row({"window",
                                       {{"sink", 128}, {"window", std::round(4000.0 * density)}},
                                       density,
                                       sample_mse(sparsity, 16.0),
                                       layer}));
    }
  }
  return table;
}

}  // namespace s2o
