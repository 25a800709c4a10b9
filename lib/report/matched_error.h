// Methods at equal error: how fast each is, and how little it visits.
//
// A unit is a layer of an input (on the held-out loss a prompt, on accuracy a task). In each unit a
// method costs what the fastest point of its curve costs that errs at most the target
// (cost_at_error.h); a method with several families of settings has the lower envelope of theirs.
// Over units: geometric means, with the number of units that reach the target beside them.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "lib/report/error_metric.h"
#include "lib/report/geometric_mean.h"
#include "lib/report/match.h"
#include "lib/report/report_table.h"

namespace s2o {

// One method at one target.
struct MatchedErrorCell {
  GeometricMean speedup_vs_dense;  // planning included, of the fastest setting of each unit
  GeometricMean total_ms;          // of the same
  GeometricMean compute_density;   // of the same
  GeometricMean least_density;     // of the sparsest setting instead, timed or not
  std::map<std::string, GeometricMean> speedup_vs_peer;
  std::map<std::string, int> families;  // label -> units in which it was the fastest
};

// What is compared with each other: one input (or model) at one length on one kernel.
struct MatchedErrorGroup {
  std::string name;
  std::int64_t seqlen = 0;
  std::string backend;
  std::string kernel;
  std::vector<std::string> units;
  std::vector<std::string> methods;                  // in the order of methods.def
  std::vector<std::vector<MatchedErrorCell>> cells;  // [methods, targets]
};

// Ordered by length, then as groups first appear.
std::vector<MatchedErrorGroup> match_errors(std::vector<UnitSetting> settings,
                                            const std::vector<double>& targets,
                                            const std::vector<PeerTime>& peers);

// options.errors are the targets; empty: those of the metric. options.by_family: one row a family.
// ConfigError when the results hold nothing to compare, and for an MSE without targets: no MSE
// means the same in two inputs.
Report matched_error_report(const ResultTable& table, ErrorOn on, const MatchOptions& options);

}  // namespace s2o
