#include "lib/input/source.h"
#include "lib/input/synthetic.h"

namespace s2o {

std::vector<InputCell> expand_synthetic_source(const nlohmann::ordered_json& entry,
                                               const std::string& path,
                                               const SourceOptions& options) {
  std::vector<InputCell> cells;
  for (const ParamSet& params : expand_params(synthetic_param_specs(), entry, "source", path)) {
    InputCell cell;
    cell.name = "synthetic/" + params.get_choice("pattern");
    cell.seqlen = params.get_int("seqlen");
    cell.load = [params, options] {
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
