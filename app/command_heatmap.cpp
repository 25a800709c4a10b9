// `s2o heatmap`: a picture of one head's attention and of what each method visits of it.
#include <fmt/format.h>

#include <memory>
#include <optional>

#include "app/commands.h"
#include "lib/core/error.h"
#include "lib/core/log.h"
#include "lib/eval/cells.h"
#include "lib/report/heatmap.h"
#include "lib/report/tuned_picture.h"

namespace s2o {
namespace {

constexpr int kMinPixels = 64;
constexpr int kMaxPixels = 4096;

struct HeatmapOptions {
  std::string config;
  std::vector<std::string> sets;
  std::optional<int> layer;
  int head = 0;
  std::string input;
  std::optional<std::int64_t> seqlen;
  std::string out;
  int pixels = 480;
  std::string tuned;
};

std::string cell_text(const InputCell& cell) {
  return fmt::format("'{}' layer {} seqlen {}", cell.name, cell.layer, cell.seqlen);
}

// The first input of the config that fits.
const InputCell& select_input(const EvalCells& cells, const HeatmapOptions& options) {
  std::string known;
  for (const InputCell& cell : cells.inputs) {
    known += (known.empty() ? "" : ", ") + cell_text(cell);
    if (!options.input.empty() && cell.name != options.input) continue;
    if (options.layer && cell.layer != *options.layer) continue;
    if (options.seqlen && cell.seqlen != *options.seqlen) continue;
    return cell;
  }
  throw ConfigError(fmt::format("{}: no input fits{}{}{}; the config has {}", cells.config.file,
                                options.input.empty() ? "" : " --input " + options.input,
                                options.layer ? fmt::format(" --layer {}", *options.layer) : "",
                                options.seqlen ? fmt::format(" --seqlen {}", *options.seqlen) : "",
                                known));
}

// What the methods of the config do with the head; the attention map itself stands for dense.
std::vector<HeatmapMethod> select_methods(const EvalCells& cells, const InputCell& cell,
                                          const Problem& problem, int head) {
  std::vector<HeatmapMethod> methods;
  for (MethodSetting setting : cells.settings) {
    for (const HeadSetting& heads : setting.method->head_settings(
             setting.params, cell.names_layer ? cell.layer : -1, problem)) {
      const bool is_inside =
          head >= heads.q_heads.first && head < heads.q_heads.first + heads.q_heads.count;
      if (is_inside) setting = {.method = heads.method, .params = heads.params_of(head)};
    }
    const std::string& name = setting.method->info().name;
    if (name == "dense") continue;
    methods.push_back(
        {setting_text(name, setting.params.to_json()), setting.method, setting.params});
  }
  return methods;
}

int run_heatmap(const HeatmapOptions& options) {
  if (!options.out.ends_with(".png")) {
    throw ConfigError(fmt::format("--out {}: expected a name that ends in .png", options.out));
  }
  if (!options.tuned.empty()) {
    tuned_picture(read_tuned_file(options.tuned)).write_png(options.out);
    log_info("{} written", options.out);
    return kExitDone;
  }
  if (options.config.empty()) throw ConfigError("--config or --tuned: expected one of them");
  const EvalCells cells = expand_cells(load_run_config(options.config, options.sets));
  const InputCell& cell = select_input(cells, options);
  handle_interrupts();
  const AttentionInput input = cell.load();
  if (options.head >= input.problem.num_q_heads) {
    throw ConfigError(fmt::format("--head {}: {} has {} query heads, counted from 0", options.head,
                                  cell_text(cell), input.problem.num_q_heads));
  }
  const Heatmap heatmap =
      compute_heatmap(input, options.head, select_methods(cells, cell, input.problem, options.head),
                      options.pixels);
  draw_heatmap(heatmap, options.pixels).write_png(options.out);
  log_info("{} written", options.out);
  return kExitDone;
}

}  // namespace

void add_heatmap_command(CLI::App& app, int& exit_code) {
  auto options = std::make_shared<HeatmapOptions>();
  CLI::App* command = add_command(
      app, "heatmap", "Draw one head's attention map beside the tiles that each method visits",
      "s2o heatmap --config quickstart --layer 20 --head 0 --out heatmap.png\n"
      "  s2o heatmap --tuned tuned.json --out tuned.png");
  command->add_option("--config", options->config, "Config file, or its name in configs/");
  CLI::Option* const tuned = command->add_option(
      "--tuned", options->tuned,
      "Draw a file of s2o tune instead: the setting of every head of every layer");
  command->add_option("--set", options->sets, "Change a value of the config: path=value")
      ->allow_extra_args(false);
  command->add_option("--layer", options->layer, "Layer of the input; default: its first")
      ->check(integer_in(0));
  command->add_option("--head", options->head, "Query head, from 0")
      ->check(integer_in(0))
      ->capture_default_str();
  command->add_option("--input", options->input,
                      "Name of the input; default: the first of the config");
  command->add_option("--seqlen", options->seqlen, "Length of the input; default: its first")
      ->check(integer_in<std::int64_t>(1));
  command->add_option("--pixels", options->pixels, "Side of a panel")
      ->check(integer_in(kMinPixels, kMaxPixels))
      ->capture_default_str();
  // A picture of all layers and heads has no choice of them.
  for (CLI::Option* const option : command->get_options()) {
    const std::string name = option->get_name();
    if (name == "--help" || name == "--verbose" || name == "--quiet" || option == tuned) continue;
    tuned->excludes(option);
  }
  command->add_option("--out", options->out, "PNG file to write")->required();
  command->callback([options, &exit_code] { exit_code = run_heatmap(*options); });
}

}  // namespace s2o
