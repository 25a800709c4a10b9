// A method decides which keys each query tile visits, and in which order. It never computes
// attention: it fills a SparsePlan, and one attention kernel runs it.
//
// To add a method: docs/adding_a_method.md.
#pragma once

#include <memory>
#include <span>
#include <string>
#include <vector>

#include "lib/config/params.h"
#include "lib/input/attention_input.h"
#include "lib/plan/sparse_plan.h"
#include "lib/planning/planner.h"

namespace s2o {

// Dense attention of the same stored inputs, fp32.
struct DenseReference {
  std::vector<float> out;  // [num_q_heads, seqlen, head_dim]; empty where the backend keeps it
  std::vector<float> lse;  // [num_q_heads, seqlen], natural log
};

struct PlanContext {
  const AttentionInput& input;
  const DenseReference& reference;  // for oracles only; a real method must not look
  // The parameters of each query head, which differ from those of the plan in no more than
  // MethodInfo::params_by_head; empty: all heads have those of the plan.
  std::span<const ParamSet> head_params = {};
};

// What a planner on the device must know before it sees Q and K.
struct DevicePlanningRequest {
  Problem problem;
  StorageDType dtype = StorageDType::kBF16;
  const ParamSet& params;
  PlannerLimits limits;
  std::span<const ParamSet> head_params = {};  // as in PlanContext
};

// Where a contract test expects a method to equal dense attention.
struct FullBudget {
  bool exists = false;
  nlohmann::ordered_json params;  // settings under which every causal key is visited
};

// Settings under which a test holds the device planner to plan_cpu. Near-ties may fall to the other
// side there: sums run in another order.
struct DeviceAgreement {
  std::vector<nlohmann::ordered_json> settings;
  double tie_share = 0.0;  // of all visited keys, at most, that differ
};

struct MethodInfo {
  std::string name;     // "xattention"
  std::string title;    // "XAttention"
  std::string source;   // paper, arXiv id
  std::string summary;  // one line
  std::vector<ParamSpec> params;
  std::string knob;  // the parameter that traces the error-density curve; "" for none
  // >= 6 values from dense to sparse, for a frontier: at 131,072 tokens of a real model from above
  // 60 % of the pairs to below 1 %, as far down as what the method always visits.
  std::vector<double> knob_sweep;
  // In which heads may differ inside one plan (PlanContext::head_params). The parameters of a head
  // are then all that decides what it visits: as if planned alone.
  std::vector<std::string> params_by_head = {};
  FullBudget full_budget;
  DeviceAgreement device;  // of methods with a device planner
  bool is_oracle = false;  // needs the dense reference; its planning time means nothing
  // false: the plan depends on the shape alone, not on Q, K and V; made once, it costs nothing.
  bool reads_input = true;
};

class Method;

// What some heads of a layer do.
struct HeadSetting {
  HeadRange q_heads;
  const Method* method = nullptr;
  std::shared_ptr<const ParamSet> params;
  std::vector<ParamSet> head_params = {};  // [q_heads.count] or empty, as in PlanContext

  // Of query head `q_head` of the layer, one of q_heads.
  const ParamSet& params_of(int q_head) const;
};

bool same_params(std::span<const ParamSet> a, std::span<const ParamSet> b);

class Method {
 public:
  virtual ~Method() = default;
  virtual const MethodInfo& info() const = 0;
  // Of a method that plans nothing itself but gives heads to others (`tuned`): which heads of the
  // layer do what, every head once, in their order. Else none. ConfigError for a layer or problem
  // that the settings are not for.
  virtual std::vector<HeadSetting> head_settings(const ParamSet& /*params*/, int /*layer*/,
                                                 const Problem& /*problem*/) const {
    return {};
  }
  // What results call a setting: its parameters, and what a file among them holds, so that rows of
  // one content never pass for those of another.
  virtual nlohmann::ordered_json row_params(const ParamSet& params) const {
    return params.to_json();
  }
  // Throws a ConfigError "<parameter>: found, expected" for settings that no input can run because
  // parameters contradict each other; what one value alone must be is its ParamSpec's to say.
  virtual void check(const ParamSet& /*params*/) const {}
  // Throws UnsupportedError when the settings cannot run on this input (say why), ConfigError as
  // check() does.
  virtual SparsePlan plan_cpu(const PlanContext& context, const ParamSet& params) const = 0;
  // The same plan, up to near-ties, computed on a device; null when these settings have no device
  // code. Results then say "planner": "cpu".
  virtual std::unique_ptr<Planner> device_planner(const DevicePlanningRequest& /*request*/) const {
    return nullptr;
  }
};

// All methods that plan, in the order of methods.def.
const std::vector<const Method*>& all_methods();
// One of those, or `tuned` (lib/methods/tuned). ConfigError with the nearest name when there is
// none.
const Method& find_method(const std::string& name);

// All settings of an entry of a config, whose lists are sweeps; each is one that can run.
// ConfigErrors begin with `path`, where the entry stands.
std::vector<ParamSet> expand_settings(const Method& method, const nlohmann::ordered_json& entry,
                                      const std::string& path);
// Method::check with the place in front of its error.
void check_settings(const Method& method, const ParamSet& params, const std::string& path);

}  // namespace s2o
