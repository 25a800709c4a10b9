// The context block of a result: what was asked for, by what, and when.
#include <fmt/format.h>

#include <array>
#include <ctime>

#include "lib/core/text.h"
#include "lib/core/version.h"
#include "lib/eval/evaluator.h"

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

nlohmann::ordered_json make_context(const EvalCells& cells, Backend& backend) {
  const nlohmann::ordered_json config = to_json(cells.config);
  nlohmann::ordered_json context = {{"name", cells.config.name},
                                    {"s2o_version", version()},
                                    {"git_commit", git_commit()},
                                    {"started_at", utc_now()}};
  context.update(backend.context());
  context["seed"] = cells.config.seed;
  context["num_cells"] = cells.size();
  context["config"] = config;
  context["config_hash"] = hash_hex(config.dump());
  return context;
}

}  // namespace s2o
