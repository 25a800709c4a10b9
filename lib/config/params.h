// Typed, documented parameters. Methods, patterns and tables declare theirs as ParamSpecs; one
// parser checks names, types and ranges, expands sweeps and writes the resolved values.
#pragma once

#include <cstdint>
#include <limits>
#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <variant>
#include <vector>

namespace s2o {

using ParamValue = std::variant<std::monostate, bool, std::int64_t, double, std::string>;

enum class ParamType { kBool, kInt, kReal, kChoice, kPath };

struct ParamSpec {
  std::string name;  // the paper's name
  ParamType type = ParamType::kReal;
  ParamValue value;  // default; monostate = "not set" (JSON null), legal only if it is the default
  std::string help;  // one line with the unit and, where it differs, the upstream name
  double min = -std::numeric_limits<double>::infinity();  // inclusive, for kInt and kReal
  double max = std::numeric_limits<double>::infinity();
  std::vector<std::string> choices;   // for kChoice
  std::vector<std::int64_t> allowed;  // for kInt: the values there are; empty: all of the range
  // Part of a ParamSet, and so of results, only where it is not the default.
  bool is_implied = false;

  static ParamSpec boolean(std::string name, bool value, std::string help);
  static ParamSpec integer(std::string name, std::int64_t value, std::string help, double min = 0,
                           double max = std::numeric_limits<double>::infinity());
  // One of a few, ascending.
  static ParamSpec integer_of(std::string name, std::int64_t value,
                              std::vector<std::int64_t> allowed, std::string help);
  static ParamSpec real(std::string name, double value, std::string help,
                        double min = -std::numeric_limits<double>::infinity(),
                        double max = std::numeric_limits<double>::infinity());
  // A real that is null unless set.
  static ParamSpec optional_real(std::string name, std::string help, double min, double max);
  static ParamSpec choice(std::string name, std::string value, std::vector<std::string> choices,
                          std::string help);
  // A file; relative to the config's folder where it stands in a config. "" unless set.
  static ParamSpec path(std::string name, std::string help);
};

// Values of one setting, complete (every spec that is not implied has an entry), in the order of
// the specs.
class ParamSet {
 public:
  // Defaults of the specs.
  explicit ParamSet(const std::vector<ParamSpec>& specs);
  ParamSet() = default;

  // Throws ConfigError "<path>.<name>: ..." for an unknown name (nearest name suggested), a wrong
  // type, a value out of range or an unknown choice. `path` is where the value stands in the
  // config.
  void set(const std::vector<ParamSpec>& specs, const std::string& name,
           const nlohmann::json& value, const std::string& path);

  bool get_bool(const std::string& name) const;
  std::int64_t get_int(const std::string& name) const;
  double get_real(const std::string& name) const;
  const std::string& get_choice(const std::string& name) const;
  const std::string& get_path(const std::string& name) const;
  bool is_set(const std::string& name) const;    // false only for a null optional
  bool contains(const std::string& name) const;  // false for an implied one at its default

  nlohmann::ordered_json to_json() const;

 private:
  const ParamValue& at(const std::string& name) const;
  std::vector<std::pair<std::string, ParamValue>> values_;
};

// A JSON object of parameters, where a list is a sweep, as the product of its lists in the order in
// which they stand in the object. `skip_key` ("name") is ignored. Empty lists are ConfigErrors.
std::vector<ParamSet> expand_params(const std::vector<ParamSpec>& specs,
                                    const nlohmann::ordered_json& object,
                                    const std::string& skip_key, const std::string& path);

}  // namespace s2o
