// Which error methods are compared at, and the rows that carry it.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "lib/report/curves.h"

namespace s2o {

enum class ErrorOn {
  kMse,          // of the attention output (`s2o eval`)
  kRelativeL2,   // of the attention output (`s2o eval`)
  kKl,           // KL of the predictions from those of dense, nats (`s2o prefill`)
  kHeldOutLoss,  // increase of the held-out loss over dense, nats (`s2o prefill`)
  kAccuracy,     // share of prompts answered by dense minus that of the method (`s2o prefill`)
};

struct ErrorMetric {
  ErrorOn on = ErrorOn::kRelativeL2;
  std::string name;              // "relative_l2"
  std::string title;             // "relative L2"
  std::vector<double> levels;    // compared at by default
  bool is_of_attention = false;  // else of whole prefills
};

// "mse", "relative_l2", "kl_from_dense", "held_out_loss" or "accuracy"; ConfigError with the list
// for another.
const ErrorMetric& parse_error_metric(const std::string& name);
const ErrorMetric& error_metric(ErrorOn on);

// One setting of one method in one unit.
struct UnitSetting {
  // What is compared with each other: an input of an evaluation, a model of a prefill.
  std::string group;
  std::string unit;  // "layer 3"; the prompt; the task
  std::int64_t seqlen = 0;
  std::string backend;
  std::string kernel;
  int num_q_heads = 0;
  int num_kv_heads = 0;
  int head_dim = 0;
  std::string method;
  std::string label;  // of its family: everything but the knob
  double knob = 0.0;  // 0 without a numeric one
  bool is_oracle = false;
  int rank = 0;  // of the method
  double error = 0.0;
  double compute_density = 0.0;
  // Attention and planning; empty where it was not timed and for oracles.
  std::optional<double> total_ms;
  std::optional<double> speedup_vs_dense;  // of total_ms, against dense of the same run
};

// In the order of rows. Left out: dense, failed rows, rows without the error or a density; on
// accuracy also tasks that the dense model fails (retrieval_cells.h).
std::vector<UnitSetting> unit_settings(const ResultTable& table, ErrorOn on,
                                       const CurveOptions& options);

}  // namespace s2o
