// Time to first token of `s2o prefill`, split, with density and held-out loss: one row per model,
// length and setting.
#include <fmt/format.h>

#include <algorithm>
#include <map>

#include "lib/core/error.h"
#include "lib/report/paper_table.h"
#include "lib/report/prefill_table.h"
#include "lib/report/settings.h"

namespace s2o {
namespace {

std::optional<double> difference(std::optional<double> a, std::optional<double> b) {
  if (!a || !b) return std::nullopt;
  return *a - *b;
}

// Time on one GPU / time on these / their number, of the same cells; empty on one.
std::optional<double> efficiency_of(const Setting& setting, const std::vector<Setting>& all) {
  if (setting.gpus == 1) return std::nullopt;
  const auto time = [](const Setting& of) { return mean_metric(of, "time_to_first_token_ms"); };
  for (const Setting& one : all) {
    const bool same = one.gpus == 1 && one.seqlen == setting.seqlen &&
                      one.kernel == setting.kernel && one.method == setting.method &&
                      one.params == setting.params && one.rows.size() == setting.rows.size();
    if (same && time(one) && time(setting)) return *time(one) / *time(setting) / setting.gpus;
  }
  return std::nullopt;
}

// Columns of prefills over several GPUs, after those of all.
const std::vector<ReportColumn> kParallelColumns = {
    {"gpus", ""}, {"communication_ms", "", false, true}, {"parallel_efficiency", "", false, true}};

void add_parallel_cells(const Setting& setting, const std::vector<Setting>& all,
                        std::vector<ReportCell>& cells) {
  cells.push_back(integer_cell(setting.gpus));
  cells.push_back(number_cell(mean_metric(setting, "communication_ms"), 4));
  cells.push_back(fixed_cell(efficiency_of(setting, all), 3));
}

std::vector<ReportCell> row_of(const Setting& setting) {
  const ResultRow& first = *setting.rows.front();
  const std::optional<double> loss = mean_metric(setting, "held_out_loss");
  const auto milliseconds = [&setting](const char* name) {
    return number_cell(mean_metric(setting, name), 4);
  };
  return {text_cell(first.prefill.model),
          text_cell(first.prefill.qkv),
          integer_cell(setting.seqlen),
          text_cell(setting.kernel),
          text_cell(setting.full_label()),
          milliseconds("time_to_first_token_ms"),
          milliseconds("linear_ms"),
          milliseconds("attention_ms"),
          milliseconds("planning_ms"),
          milliseconds("rest_ms"),
          number_cell(geometric_mean_metric(setting, "speedup_vs_dense")),
          fixed_cell(mean_metric(setting, "compute_density"), 3),
          fixed_cell(loss, 4),
          number_cell(difference(loss, mean_metric(setting, "dense_loss"))),
          number_cell(mean_metric(setting, "kl_from_dense")),
          fixed_cell(mean_metric(setting, "top1_agreement"), 3),
          integer_cell(static_cast<std::int64_t>(setting.rows.size()))};
}

Report build_end_to_end(const ResultTable& table, const MatchOptions& options) {
  // Models, and what attention read, are no part of a setting: each has its own.
  std::map<std::pair<std::string, std::string>, ResultTable> parts;
  for (const ResultRow& row : table.rows) {
    if (row.kind != RowKind::kPrefill) continue;
    parts[{row.prefill.model, row.prefill.qkv}].rows.push_back(row);
  }
  ReportTable view{"end_to_end",
                   "Prefill end to end, by length and setting",
                   {{"model", "", true},
                    {"qkv", "", true},
                    {"seqlen", ""},
                    {"kernel", "", true},
                    {"method", "", true},
                    {"time_to_first_token_ms", "", false, true},
                    {"linear_ms", "", false, true},
                    {"attention_ms", "", false, true},
                    {"planning_ms", "", false, true},
                    {"rest_ms", "", false, true},
                    {"speedup_vs_dense", "", false, true},
                    {"compute_density", "", false, true},
                    {"held_out_loss", "", false, true},
                    {"loss_increase", "", false, true},
                    {"kl_from_dense", "", false, true},
                    {"top1_agreement", "", false, true},
                    {"prompts", ""}},
                   {},
                   {}};
  const bool is_parallel = std::any_of(table.rows.begin(), table.rows.end(),
                                       [](const ResultRow& row) { return gpus_of(row) > 1; });
  if (is_parallel) {
    view.columns.insert(view.columns.end(), kParallelColumns.begin(), kParallelColumns.end());
  }
  for (const auto& [key, part] : parts) {
    const std::vector<Setting> settings = group_settings(part, RowKind::kPrefill, options.curves);
    for (const Setting& setting : settings) {
      view.rows.push_back(row_of(setting));
      if (is_parallel) add_parallel_cells(setting, settings, view.rows.back());
    }
  }
  if (view.rows.empty()) {
    throw ConfigError(fmt::format("the results hold no prefills ({} rows); run `s2o prefill`",
                                  table.rows.size()));
  }
  view.notes = {
      "Means over the prompts of a setting of each prompt's median; speedup_vs_dense: geometric "
      "mean of dense time to first token / this one, planning included; compute_density: mean over "
      "layers; loss_increase: held-out loss minus that of dense on the same prompts, nats per "
      "token; "
      "kl_from_dense: KL(dense || method) of the compared rows of logits, nats."};
  if (is_parallel) {
    view.notes.push_back(
        "gpus: that share the model; communication_ms: waiting for sums over them; "
        "parallel_efficiency: time on one GPU / time on these / their number.");
  }
  const std::string replay = replay_note(table);
  if (!replay.empty()) view.notes.push_back(replay);
  return {{std::move(view)}, {}};
}

}  // namespace

const PaperTable& table_end_to_end() {
  static const PaperTable table{
      "end_to_end", "Time to first token, split, density and held-out loss (s2o prefill)",
      build_end_to_end};
  return table;
}

}  // namespace s2o
