// Inputs and comparisons that tests of several parts share. Header-only, tests only.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <string>
#include <vector>

#include "kernels/attention/attention.h"
#include "lib/input/synthetic.h"
#include "lib/methods/method.h"
#include "lib/plan/work.h"

namespace s2o::testing {

struct Shape {
  std::int64_t seqlen;
  int num_q_heads;
  int num_kv_heads;
  int head_dim;
};

inline AttentionInput structured_input(const Shape& shape, const std::string& pattern = "mixed",
                                       StorageDType dtype = StorageDType::kBF16) {
  ParamSet params(synthetic_param_specs());
  const auto& specs = synthetic_param_specs();
  params.set(specs, "pattern", pattern, "test");
  params.set(specs, "seqlen", shape.seqlen, "test");
  params.set(specs, "num_q_heads", shape.num_q_heads, "test");
  params.set(specs, "num_kv_heads", shape.num_kv_heads, "test");
  params.set(specs, "head_dim", shape.head_dim, "test");
  AttentionInput input = make_synthetic(params, /*seed=*/7);
  input.dtype = dtype;
  round_to_dtype(input.q, dtype, "q");
  round_to_dtype(input.k, dtype, "k");
  round_to_dtype(input.v, dtype, "v");
  validate_attention_input(input, false);
  return input;
}

struct Executed {
  std::vector<float> out;
  std::vector<float> lse;
  std::vector<TileStats> stats;
};

// Runs a plan with poisoned outputs.
inline Executed execute(const AttentionInput& input, const SparsePlan& plan) {
  const Problem& problem = input.problem;
  const PlanPointers pointers(plan);
  Executed result;
  result.out.assign(input.q.size(), std::numeric_limits<float>::quiet_NaN());
  result.lse.assign(static_cast<std::size_t>(problem.seqlen * problem.num_q_heads),
                    std::numeric_limits<float>::quiet_NaN());
  result.stats.resize(plan.passes.size() * static_cast<std::size_t>(plan.num_tiles()));
  attention_ref(problem, pointers.view(), input.q.data(), input.k.data(), input.v.data(),
                result.out.data(), result.lse.data(), result.stats.data());
  return result;
}

// Dense attention straight from its definition, fp64, one row at a time. Shares no code with the
// kernels that it judges.
inline DenseReference naive_dense(const AttentionInput& input) {
  const Problem& problem = input.problem;
  const int d = problem.head_dim;
  DenseReference reference;
  reference.out.resize(input.q.size());
  reference.lse.resize(static_cast<std::size_t>(problem.seqlen * problem.num_q_heads));
  std::vector<double> p(static_cast<std::size_t>(problem.seqlen));
  std::vector<double> row(static_cast<std::size_t>(d));
  for (int head = 0; head < problem.num_q_heads; ++head) {
    const int kv_head = head / problem.group_size();
    for (std::int64_t t = 0; t < problem.seqlen; ++t) {
      const float* q = input.q_head(head) + t * d;
      double largest = -std::numeric_limits<double>::infinity();
      for (std::int64_t x = 0; x <= t; ++x) {
        const float* k = input.k_head(kv_head) + x * d;
        double dot = 0.0;
        for (int i = 0; i < d; ++i) dot += static_cast<double>(q[i]) * static_cast<double>(k[i]);
        p[static_cast<std::size_t>(x)] = dot / std::sqrt(static_cast<double>(d));
        largest = std::max(largest, p[static_cast<std::size_t>(x)]);
      }
      double sum = 0.0;
      std::fill(row.begin(), row.end(), 0.0);
      for (std::int64_t x = 0; x <= t; ++x) {
        const double weight = std::exp(p[static_cast<std::size_t>(x)] - largest);
        sum += weight;
        const float* v = input.v_head(kv_head) + x * d;
        for (int i = 0; i < d; ++i)
          row[static_cast<std::size_t>(i)] += weight * static_cast<double>(v[i]);
      }
      for (int i = 0; i < d; ++i) {
        reference.out[static_cast<std::size_t>(problem.row_offset(head, t) + i)] =
            static_cast<float>(row[static_cast<std::size_t>(i)] / sum);
      }
      reference.lse[static_cast<std::size_t>(head * problem.seqlen + t)] =
          static_cast<float>(largest + std::log(sum));
    }
  }
  return reference;
}

// Dense attention by the CPU reference kernel: fast enough for long inputs.
inline DenseReference dense_reference(const AttentionInput& input) {
  DenseReference none;
  const SparsePlan plan =
      find_method("dense").plan_cpu({.input = input, .reference = none}, ParamSet());
  Executed executed = execute(input, plan);
  return {.out = std::move(executed.out), .lse = std::move(executed.lse)};
}

// ||a - b|| / ||b||; NaN anywhere gives NaN, which fails every comparison.
inline double relative_l2(const std::vector<float>& a, const std::vector<float>& b) {
  double difference = 0.0;
  double norm = 0.0;
  for (std::size_t i = 0; i < b.size(); ++i) {
    const double delta = static_cast<double>(a[i]) - static_cast<double>(b[i]);
    difference += delta * delta;
    norm += static_cast<double>(b[i]) * static_cast<double>(b[i]);
  }
  return std::sqrt(difference / norm);
}

// Settings of a method from a JSON object of parameters.
inline ParamSet settings_of(const Method& method, const nlohmann::ordered_json& params) {
  ParamSet settings(method.info().params);
  for (const auto& [name, value] : params.items()) {
    settings.set(method.info().params, name, value, method.info().name);
  }
  return settings;
}

}  // namespace s2o::testing
