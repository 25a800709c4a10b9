#include "lib/config/json_reader.h"
#include "lib/core/memory.h"
#include "lib/input/synthetic.h"
#include "lib/sources/source.h"

namespace s2o {
namespace {

InputIdentity identity_of(const ParamSet& params, const SourceOptions& options) {
  InputIdentity identity;
  identity.facts["source"] = "synthetic";
  identity.facts.update(params.to_json());
  identity.facts.erase("seqlen");
  identity.facts["seed"] = options.seed;
  identity.facts["dtype"] = storage_dtype_name(options.dtype);
  return identity;
}

}  // namespace

std::vector<InputCell> expand_synthetic_source(const nlohmann::ordered_json& entry,
                                               const std::string& path,
                                               const SourceOptions& options) {
  std::string name;
  nlohmann::ordered_json parameters = entry;
  if (entry.contains("name")) {
    const nlohmann::ordered_json& value = entry["name"];
    if (!value.is_string()) throw_wrong_json(value, json_member_path(path, "name"), "a string");
    name = value.get<std::string>();
    parameters.erase("name");
  }
  std::vector<InputCell> cells;
  for (const ParamSet& params :
       expand_params(synthetic_param_specs(), parameters, "source", path)) {
    check_synthetic(params, path);
    InputCell cell;
    cell.name = name.empty() ? "synthetic/" + params.get_choice("pattern") : name;
    cell.seqlen = params.get_int("seqlen");
    cell.identity = identity_of(params, options);
    cell.load = [params, options, name = cell.name] {
      require_memory(synthetic_bytes(params), name);
      AttentionInput input = make_synthetic(params, options.seed);
      input.dtype = options.dtype;
      round_to_dtype(input.q, options.dtype, input.name + ": q");
      round_to_dtype(input.k, options.dtype, input.name + ": k");
      round_to_dtype(input.v, options.dtype, input.name + ": v");
      validate_attention_input(input, options.allow_nonfinite);
      return input;
    };
    cells.push_back(std::move(cell));
  }
  return cells;
}

}  // namespace s2o
