// Not a method of its own: a file of `s2o tune` says which method with which setting every query
// head of every layer runs.
#include <fmt/format.h>

#include <mutex>
#include <set>
#include <utility>

#include "lib/core/error.h"
#include "lib/core/log.h"
#include "lib/methods/tuned/tuned_file.h"

namespace s2o {
namespace {

// Once for each length at which nobody has measured what the file does.
void warn_of_length(const std::string& path, const TunedFile& file, std::int64_t seqlen) {
  if (file.covers(seqlen)) return;
  static std::mutex mutex;
  static std::set<std::pair<std::string, std::int64_t>> warned;
  const std::lock_guard lock(mutex);
  if (!warned.emplace(path, seqlen).second) return;
  log_warning("{}: tuned for {} to {} tokens; {} tokens take the settings of the nearest", path,
              file.lengths.front().seqlen, file.lengths.back().seqlen, seqlen);
}

class Tuned final : public Method {
 public:
  const MethodInfo& info() const override {
    static const MethodInfo kInfo = {
        .name = "tuned",
        .title = "Tuned",
        .source = "s2o tune",
        .summary = "settings by layer and head, from a file of `s2o tune`",
        .params = {ParamSpec::path("path", "file of s2o tune"),
                   ParamSpec::integer("layer", -1,
                                      "whose settings heads take; -1: of the layer they are in", -1,
                                      1 << 20)}};
    return kInfo;
  }

  void check(const ParamSet& params) const override {
    if (params.get_path("path").empty()) {
      throw ConfigError("path: not set, expected a file that s2o tune wrote");
    }
  }

  nlohmann::ordered_json row_params(const ParamSet& params) const override {
    nlohmann::ordered_json row = params.to_json();
    row["file_id"] = load_tuned_file(params.get_path("path"))->hash;
    return row;
  }

  std::vector<HeadSetting> head_settings(const ParamSet& params, int layer,
                                         const Problem& problem) const override {
    if (params.get_int("layer") >= 0) layer = static_cast<int>(params.get_int("layer"));
    if (layer < 0) {
      throw ConfigError(
          "tuned.layer: not set, expected the number of the layer that q, k and v are of");
    }
    const std::string& path = params.get_path("path");
    const std::shared_ptr<const TunedFile> file = load_tuned_file(path);
    const TunedModel& model = file->model;
    if (problem.num_q_heads != model.num_q_heads || problem.num_kv_heads != model.num_kv_heads ||
        problem.head_dim != model.head_dim || layer >= model.num_layers) {
      throw ConfigError(fmt::format(
          "{}: for layers of {} ({} layers, {} query and {} KV heads of {}), found layer {} of {} "
          "query and {} KV heads of {}",
          path, model.name, model.num_layers, model.num_q_heads, model.num_kv_heads, model.head_dim,
          layer, problem.num_q_heads, problem.num_kv_heads, problem.head_dim));
    }
    warn_of_length(path, *file, problem.seqlen);
    return group_heads(file->settings, file->heads_at(problem.seqlen, layer), problem.group_size());
  }

  SparsePlan plan_cpu(const PlanContext&, const ParamSet&) const override {
    throw Error("tuned: heads plan by the methods that its file gives them");
  }
};

}  // namespace

const Method& method_tuned() {
  static const Tuned kMethod;
  return kMethod;
}

}  // namespace s2o
