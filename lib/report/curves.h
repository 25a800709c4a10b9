// Result rows grouped into error curves: one per method setting and unit, traced by the method's
// knob.
#pragma once

#include <functional>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "lib/eval/result_table.h"
#include "lib/report/interpolate.h"

namespace s2o {

// What a report must know of a method, besides its rows.
struct MethodFacts {
  std::string knob;                 // parameter that traces the curve; "" = none
  nlohmann::ordered_json defaults;  // of its parameters
  bool is_oracle = false;
  int rank = 0;  // place in methods.def; unknown methods come last
};
using MethodFactsLookup = std::function<MethodFacts(const std::string& method)>;

// From the registry. A method that this build does not know has no knob: each setting stands alone.
MethodFacts registry_method_facts(const std::string& method);

// What error and density are measured on, and what is resampled. Vectors exist of the MSE alone.
enum class MatchUnit {
  kAuto,   // kHead if every row has per-head errors and compute_density, otherwise kLayer
  kLayer,  // (input, layer): the columns of the error and compute_density of a row
  kHead,   // (input, layer, head): its per-head vectors
};
// ConfigError unless "auto", "layer" or "head".
MatchUnit parse_match_unit(const std::string& name);

struct CurveUnit {
  std::string input;
  int layer = 0;
  std::int64_t seqlen = 0;
  std::string backend;
  int head = -1;  // -1 for kLayer
  auto operator<=>(const CurveUnit&) const = default;
};

// One method with one choice of everything but its knob.
struct MethodCurves {
  std::string label;  // "s2o" with default parameters, else "s2o segment_size=512"
  std::string method;
  nlohmann::ordered_json params;  // without the knob
  bool has_default_params = false;
  bool is_oracle = false;
  bool is_compensated = false;  // unvisited keys are represented, not dropped
  std::map<CurveUnit, MonotoneCurve> curves;
};

struct CurveSet {
  MatchUnit unit = MatchUnit::kLayer;  // never kAuto
  std::vector<MethodCurves> methods;   // in the order of methods.def, then as the rows come
  std::vector<CurveUnit> units;        // every unit of any method, sorted
};

struct CurveOptions {
  MatchUnit unit = MatchUnit::kAuto;
  std::string error = "mse";                 // or "relative_l2": the column that is the error
  std::map<std::string, std::string> knobs;  // method -> parameter, in place of the registry's knob
  MethodFactsLookup facts = registry_method_facts;

  // `facts`, with the knob of `knobs`.
  MethodFacts facts_of(const std::string& method) const;
};

// ConfigError unless every knob is a parameter of its method in the results.
void check_knobs(const ResultTable& table, const std::map<std::string, std::string>& knobs);

// Rows that failed, and rows without the error or compute_density, are left out. Dense rows (no
// knob and no error to plot) make no curve. ConfigError when kHead is asked for and a row has no
// per-head vectors, or when nothing is left.
CurveSet build_curves(const ResultTable& table, const CurveOptions& options);

// "key=value key=value" of the named keys.
std::string params_label(const nlohmann::ordered_json& params,
                         const std::vector<std::string>& keys);
// Keys whose values differ from the defaults. For a method without known defaults, all keys.
std::vector<std::string> changed_keys(const nlohmann::ordered_json& params,
                                      const nlohmann::ordered_json& defaults);
// "s2o segment_size=512": the method and its changed_keys without the knob.
std::string setting_label(const std::string& method, const nlohmann::ordered_json& params,
                          const MethodFacts& facts);

// Finds the curves that `reference` names: a label, or "method key=value ...". Of several, the one
// with default parameters. ConfigError listing the candidates when none or several remain.
const MethodCurves& find_curves(const CurveSet& set, const std::string& reference);

}  // namespace s2o
