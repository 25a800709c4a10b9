// `s2o synth`: seeded synthetic Q, K and V in a tensor file.
#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <memory>

#include "app/commands.h"
#include "lib/core/error.h"
#include "lib/core/log.h"
#include "lib/core/strict_json.h"
#include "lib/input/capture_file.h"
#include "lib/input/synthetic.h"
#include "lib/sources/source.h"

namespace s2o {
namespace {

struct SynthOptions {
  std::map<std::string, std::string> params;  // as typed, by name
  std::uint64_t seed = 0;
  std::string dtype = "bf16";
  std::string out;
};

nlohmann::ordered_json make_entry(const SynthOptions& options) {
  nlohmann::ordered_json entry = {{"source", "synthetic"}};
  for (const auto& [name, text] : options.params) {
    try {
      entry[name] = parse_strict_json(text);
    } catch (const JsonTextError&) {
      entry[name] = text;  // a pattern
    }
    if (entry[name].is_array()) {
      throw ConfigError(fmt::format("synth.{}: found a list, expected one value", name));
    }
  }
  return entry;
}

int run_synth(const SynthOptions& options) {
  handle_interrupts();
  output_format(options.out, /*num_tensors=*/3);
  const SourceOptions source = {.dtype = parse_storage_dtype(options.dtype, "--dtype"),
                                .seed = options.seed};
  const InputCell cell = expand_synthetic_source(make_entry(options), "synth", source).at(0);
  const AttentionInput input = cell.load();
  TensorMetadata metadata = {{"source", cell.name}, {"seed", std::to_string(options.seed)}};
  write_dump(options.out, input, metadata);
  const Problem& problem = input.problem;
  log_info("{}: {} query heads, {} KV heads, seqlen {}, head_dim {}, {}", options.out,
           problem.num_q_heads, problem.num_kv_heads, problem.seqlen, problem.head_dim,
           storage_dtype_name(input.dtype));
  return kExitDone;
}

std::string option_help(const ParamSpec& spec) {
  const nlohmann::ordered_json defaults = ParamSet({spec}).to_json();
  const nlohmann::ordered_json& value = defaults[spec.name];
  return fmt::format("{} [{}]", spec.help,
                     value.is_string() ? value.get<std::string>() : value.dump());
}

}  // namespace

void add_synth_command(CLI::App& app, int& exit_code) {
  auto options = std::make_shared<SynthOptions>();
  CLI::App* command = add_command(
      app, "synth", "Write seeded synthetic Q, K and V to a file",
      "s2o synth --pattern stripes --seqlen 8192 --num-q-heads 8 --out stripes.safetensors");
  for (const ParamSpec& spec : synthetic_param_specs()) {
    std::string flag = spec.name;
    std::replace(flag.begin(), flag.end(), '_', '-');
    command->add_option_function<std::string>(
        "--" + flag,
        [options, name = spec.name](const std::string& text) { options->params[name] = text; },
        option_help(spec));
  }
  command->add_option("--seed", options->seed, "Of every random number")
      ->check(integer_in<std::uint64_t>(0))
      ->capture_default_str();
  command->add_option("--dtype", options->dtype, "fp32, bf16 or fp16")->capture_default_str();
  command->add_option("-o,--out", options->out, "A .safetensors or .h5 file")->required();
  command->callback([options, &exit_code] { exit_code = run_synth(*options); });
}

}  // namespace s2o
