#include "lib/report/curves.h"

#include <fmt/format.h>

#include <algorithm>
#include <set>
#include <sstream>

#include "lib/core/error.h"
#include "lib/core/text.h"
#include "lib/methods/method.h"
#include "lib/report/results_json.h"
#include "lib/report/settings.h"

namespace s2o {
namespace {

using nlohmann::ordered_json;

bool is_usable(const ResultRow& row, const std::string& error) {
  return !row.error && row_metric(row, error) && row_metric(row, "compute_density");
}

bool has_head_vectors(const ResultRow& row, const std::string& error) {
  const auto errors = row.per_head.find(error);
  const auto density = row.per_head.find("compute_density");
  if (errors == row.per_head.end() || density == row.per_head.end()) return false;
  return !errors->second.empty() && errors->second.size() == density->second.size();
}

MatchUnit resolve_unit(MatchUnit asked, const std::string& error,
                       const std::vector<const ResultRow*>& rows) {
  if (asked == MatchUnit::kLayer) return asked;
  for (const ResultRow* row : rows) {
    if (has_head_vectors(*row, error)) continue;
    if (asked == MatchUnit::kAuto) return MatchUnit::kLayer;
    throw ConfigError(fmt::format(
        "--unit head: the row of '{}' on {} layer {} has no per-head {} and compute_density; read "
        "results.h5 (or its folder), or use --unit layer",
        row->method, row->input, row->layer, error));
  }
  return MatchUnit::kHead;
}

// Rows of one method setting, before its points become curves.
struct Group {
  std::string method;
  ordered_json params;
  std::map<CurveUnit, std::vector<CurvePoint>> points;
};

void add_points(Group& group, const ResultRow& row, MatchUnit unit, const std::string& error) {
  CurveUnit key{row.input, row.layer, row.seqlen, row.backend, -1};
  if (unit == MatchUnit::kLayer) {
    group.points[key].push_back(
        {1.0 - *row_metric(row, "compute_density"), *row_metric(row, error)});
    return;
  }
  const std::vector<double>& errors = row.per_head.at(error);
  const std::vector<double>& density = row.per_head.at("compute_density");
  for (std::size_t head = 0; head < errors.size(); ++head) {
    key.head = static_cast<int>(head);
    group.points[key].push_back({1.0 - density[head], errors[head]});
  }
}

// Dense attention has nothing to match: no setting of it is sparse.
bool is_dense_group(const Group& group) {
  for (const auto& [unit, points] : group.points) {
    for (const CurvePoint& point : points) {
      if (point.sparsity > 0.0) return false;
    }
  }
  return true;
}

ordered_json params_without(const ordered_json& params, const std::string& knob) {
  ordered_json rest = ordered_json::object();
  for (const auto& [key, value] : params.items()) {
    if (key != knob) rest[key] = value;
  }
  return rest;
}

// Compensation other than "none", or FlashPrefill's mean correction.
bool is_compensated(const ordered_json& params) {
  if (params.contains("compensation") && params.at("compensation") != "none") return true;
  return params.contains("mean_correction") && params.at("mean_correction") == true;
}

// True if `reference` is the method's name followed by key=value words that all hold.
bool matches_reference(const MethodCurves& curves, const std::string& reference) {
  std::istringstream words(reference);
  std::string word;
  if (!(words >> word) || word != curves.method) return false;
  while (words >> word) {
    const std::size_t equals = word.find('=');
    if (equals == std::string::npos) return false;
    const std::string key = word.substr(0, equals);
    if (!curves.params.contains(key)) return false;
    if (value_text(curves.params.at(key)) != word.substr(equals + 1)) return false;
  }
  return true;
}

// "dense (2 rows), s2o (4 rows, compute density 1)"
std::string holdings_text(const std::vector<const ResultRow*>& rows) {
  struct Holding {
    int rows = 0;
    double least_density = 1.0;
  };
  std::map<std::string, Holding> holdings;
  for (const ResultRow* row : rows) {
    Holding& holding = holdings[row->method];
    ++holding.rows;
    holding.least_density = std::min(holding.least_density, *row_metric(*row, "compute_density"));
  }
  std::vector<std::string> parts;
  for (const auto& [method, holding] : holdings) {
    parts.push_back(fmt::format("{} ({} rows, compute density {:.3g} or more)", method,
                                holding.rows, holding.least_density));
  }
  return parts.empty() ? "none" : join(parts);
}

}  // namespace

MethodFacts registry_method_facts(const std::string& method) {
  const std::vector<const Method*>& methods = all_methods();
  for (std::size_t i = 0; i < methods.size(); ++i) {
    const MethodInfo& info = methods[i]->info();
    if (info.name != method) continue;
    return {info.knob, ParamSet(info.params).to_json(), info.is_oracle, static_cast<int>(i)};
  }
  return {"", ordered_json::object(), false, static_cast<int>(methods.size())};
}

MethodFacts CurveOptions::facts_of(const std::string& method) const {
  MethodFacts found = facts(method);
  const auto knob = knobs.find(method);
  if (knob != knobs.end()) found.knob = knob->second;
  return found;
}

MatchUnit parse_match_unit(const std::string& name) {
  if (name == "auto") return MatchUnit::kAuto;
  if (name == "layer") return MatchUnit::kLayer;
  if (name == "head") return MatchUnit::kHead;
  throw ConfigError(fmt::format("--unit {}: expected auto, layer or head", name));
}

std::string params_label(const ordered_json& params, const std::vector<std::string>& keys) {
  std::vector<std::string> parts;
  for (const std::string& key : keys) {
    if (params.contains(key)) parts.push_back(key + "=" + value_text(params.at(key)));
  }
  return join(parts, " ");
}

std::vector<std::string> changed_keys(const ordered_json& params, const ordered_json& defaults) {
  std::vector<std::string> keys;
  for (const auto& [key, value] : params.items()) {
    if (!defaults.contains(key) || defaults.at(key) != value) keys.push_back(key);
  }
  return keys;
}

std::string setting_label(const std::string& method, const ordered_json& params,
                          const MethodFacts& facts) {
  const ordered_json fixed = params_without(params, facts.knob);
  const std::string setting = params_label(fixed, changed_keys(fixed, facts.defaults));
  return setting.empty() ? method : method + " " + setting;
}

void check_knobs(const ResultTable& table, const std::map<std::string, std::string>& knobs) {
  std::set<std::string> methods;
  for (const ResultRow& row : table.rows) methods.insert(row.method);
  for (const auto& [method, knob] : knobs) {
    std::set<std::string> params;
    for (const ResultRow& row : table.rows) {
      if (row.method != method) continue;
      for (const auto& [name, value] : row.params.items()) params.insert(name);
    }
    if (!methods.contains(method)) {
      throw ConfigError(fmt::format("--knob {}={}: the results hold no method '{}'; they hold {}",
                                    method, knob, method, join({methods.begin(), methods.end()})));
    }
    if (!params.contains(knob)) {
      throw ConfigError(fmt::format("--knob {}={}: '{}' has no parameter '{}'; it has {}", method,
                                    knob, method, knob, join({params.begin(), params.end()})));
    }
  }
}

CurveSet build_curves(const ResultTable& table, const CurveOptions& options) {
  std::vector<const ResultRow*> rows;
  for (const ResultRow& row : table.rows) {
    if (is_usable(row, options.error)) rows.push_back(&row);
  }
  CurveSet set;
  set.unit = resolve_unit(options.unit, options.error, rows);

  std::map<std::string, MethodFacts> facts;
  std::map<std::string, std::size_t> group_index;
  std::vector<Group> groups;
  for (const ResultRow* row : rows) {
    if (!facts.contains(row->method)) facts[row->method] = options.facts_of(row->method);
    const ordered_json params = params_without(row->params, facts[row->method].knob);
    const std::string key = row->method + params.dump();
    const auto [place, is_new] = group_index.try_emplace(key, groups.size());
    if (is_new) groups.push_back({row->method, params, {}});
    add_points(groups[place->second], *row, set.unit, options.error);
  }

  std::stable_sort(groups.begin(), groups.end(), [&facts](const Group& a, const Group& b) {
    return facts.at(a.method).rank < facts.at(b.method).rank;
  });
  std::set<CurveUnit> units;
  for (const Group& group : groups) {
    if (is_dense_group(group)) continue;
    MethodCurves curves;
    curves.method = group.method;
    curves.params = group.params;
    const MethodFacts& known = facts[group.method];
    curves.label = setting_label(group.method, group.params, known);
    curves.has_default_params = changed_keys(group.params, known.defaults).empty();
    curves.is_oracle = known.is_oracle;
    curves.is_compensated = is_compensated(group.params);
    for (const auto& [unit, points] : group.points) {
      curves.curves.emplace(unit, MonotoneCurve(points));
      units.insert(unit);
    }
    set.methods.push_back(std::move(curves));
  }
  if (set.methods.empty()) {
    throw ConfigError(fmt::format(
        "the results hold no sparse method with {} and compute_density ({} rows, {} usable: {}); "
        "it is measured by `s2o eval`",
        options.error, table.rows.size(), rows.size(), holdings_text(rows)));
  }
  set.units.assign(units.begin(), units.end());
  return set;
}

const MethodCurves& find_curves(const CurveSet& set, const std::string& reference) {
  std::vector<const MethodCurves*> found;
  std::vector<std::string> labels, found_labels;
  for (const MethodCurves& curves : set.methods) {
    labels.push_back(fmt::format("'{}'", curves.label));
    if (curves.label == reference) return curves;
    if (!matches_reference(curves, reference)) continue;
    found.push_back(&curves);
    found_labels.push_back(labels.back());
  }
  if (found.size() == 1) return *found.front();
  if (found.empty()) {
    throw ConfigError(
        fmt::format("reference '{}': not among the results; --reference takes one of {}", reference,
                    join(labels)));
  }
  for (const MethodCurves* curves : found) {
    if (curves->has_default_params) return *curves;
  }
  throw ConfigError(fmt::format("reference '{}': several settings fit, name one of {}", reference,
                                join(found_labels)));
}

}  // namespace s2o
