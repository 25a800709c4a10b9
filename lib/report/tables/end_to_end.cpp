// Time to first token of `s2o prefill`, split, with density and held-out loss: one row per model,
// length and setting.
#include <fmt/format.h>

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
  for (const auto& [key, part] : parts) {
    for (const Setting& setting : group_settings(part, options.curves)) {
      view.rows.push_back(row_of(setting));
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
