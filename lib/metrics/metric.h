// A metric turns one executed cell into named numbers. To add one: write lib/metrics/bar.cpp that
// defines `const Metric& metric_bar()`, and add S2O_METRIC(bar) to metrics.def. Its columns then
// appear in the text table, JSON and HDF5.
#pragma once

#include <cmath>
#include <cstdint>
#include <limits>
#include <optional>
#include <string>
#include <vector>

#include "kernels/error_sum/error_sum.h"
#include "lib/input/attention_input.h"
#include "lib/methods/method.h"
#include "lib/plan/work.h"
#include "lib/planning/planner.h"

namespace s2o {

struct Timings {
  // Milliseconds; empty when not measured.
  std::vector<double> plan_ms;
  std::vector<double> attention_ms;
  std::optional<double> dense_attention_ms;  // median of dense on the same input, same backend

  // Planning and attention of each repeat; where planning was measured another number of times, its
  // median is part of each. Empty without planning.
  std::vector<double> total_ms() const;
};

struct MetricContext {
  const AttentionInput& input;
  const DenseReference& reference;
  // The output against the dense one, [num_q_heads]; the backend that holds both sums them.
  const std::vector<ErrorSums>& error_sums;
  const std::vector<float>& lse;  // [num_q_heads, seqlen]
  const Work& work;
  const Timings& timings;
  std::int64_t workspace_bytes;
  // Of a plan made on a device; empty for one made on the CPU.
  std::optional<PlanningCost> planning_cost;
};

struct MetricColumn {
  std::string name;  // JSON key, HDF5 dataset and table header
  std::string unit;  // "", "ms", "bytes", "FLOP", "TFLOP/s"
  std::string help;
  bool per_head = false;      // also written as /rows/<i>/per_head/<name> [num_q_heads]
  bool in_text_table = true;  // shown by `s2o eval` on stdout
  bool is_column = true;      // false: only the per-head vector is written
};

struct MetricValue {
  std::optional<double> value;   // null = not measured
  std::vector<double> per_head;  // [num_q_heads] if the column says so; NaN = not measured
  std::string reason;            // why there is no value, where a reader would ask
};

struct Metric {
  std::vector<MetricColumn> columns;
  // One value per column.
  std::vector<MetricValue> (*compute)(const MetricContext& context);
};

// All metrics, in the order of metrics.def.
const std::vector<const Metric*>& all_metrics();
// The columns of all metrics, in order, without those that are no table columns.
const std::vector<MetricColumn>& metric_columns();

// The value below which a fraction `q` of the samples lies, interpolated linearly between order
// statistics; null for no samples.
std::optional<double> quantile(std::vector<double> samples, double q);

}  // namespace s2o
