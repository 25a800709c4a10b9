// The context block of a result: what was asked for, by what, and when.
#include <fmt/format.h>

#include <array>
#include <ctime>

#include "lib/core/printable.h"
#include "lib/core/text.h"
#include "lib/core/version.h"
#include "lib/eval/evaluator.h"
#include "lib/eval/run_context.h"

namespace s2o {
namespace {

std::string utc_now() {
  const std::time_t now = std::time(nullptr);
  std::tm parts = {};
  gmtime_r(&now, &parts);
  std::array<char, 32> text = {};
  std::strftime(text.data(), text.size(), "%Y-%m-%dT%H:%M:%SZ", &parts);
  return text.data();
}

}  // namespace

nlohmann::ordered_json make_run_context(const RunIdentity& run,
                                        const nlohmann::ordered_json& device_context) {
  nlohmann::ordered_json context = {{"name", run.name},
                                    {"s2o_version", version()},
                                    {"git_commit", git_commit()},
                                    {"started_at", utc_now()}};
  context.update(device_context);
  context["seed"] = run.seed;
  context["num_cells"] = run.num_cells;
  context["config"] = run.config;
  context["config_hash"] = hash_hex(json_text(run.config));
  context["inputs"] = run.inputs;
  return context;
}

nlohmann::ordered_json make_context(const EvalCells& cells, Backend& backend) {
  nlohmann::ordered_json inputs = nlohmann::ordered_json::array();
  for (const InputCell& cell : cells.inputs) {
    // Layers of one input are one after the other.
    nlohmann::ordered_json item = input_to_json(cell.name, cell.identity);
    if (inputs.empty() || inputs.back() != item) inputs.push_back(std::move(item));
  }
  return make_run_context({.name = cells.config.name,
                           .seed = cells.config.seed,
                           .num_cells = cells.size(),
                           .config = to_json(cells.config),
                           .inputs = std::move(inputs)},
                          backend.context());
}

}  // namespace s2o
