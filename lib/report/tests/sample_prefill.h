// A small hand-made result table of `s2o prefill`. Header-only, tests only.
#pragma once

#include <string>

#include "lib/eval/result_table.h"
#include "lib/prefill/columns.h"

namespace s2o {

inline ResultRow blank_prefill(const std::string& prompt, const std::string& method,
                               std::int64_t seqlen) {
  ResultRow row;
  row.kind = RowKind::kPrefill;
  row.input = prompt;
  row.seqlen = seqlen;
  row.method = method;
  if (method == "s2o") row.params = {{"tau", 0.1}};
  row.kernel = "attention_ref";
  row.backend = "cpu";
  row.prefill = {.model = "tiny-llama", .qkv = "model"};
  for (const MetricColumn& column : prefill_columns()) row.metrics[column.name] = std::nullopt;
  return row;
}

inline ResultRow text_row(const std::string& method, double milliseconds, double loss) {
  ResultRow row = blank_prefill("book", method, 2000);
  row.metrics["time_to_first_token_ms"] = milliseconds;
  row.metrics["speedup_vs_dense"] = 100.0 / milliseconds;
  row.metrics["compute_density"] = method == "dense" ? 1.0 : 0.25;
  row.metrics["held_out_loss"] = loss;
  row.metrics["dense_loss"] = 3.7;
  row.prefill.loss_by_position = nlohmann::ordered_json::parse(
      R"([{"begin": 0, "end": 1024, "loss": 4.0}, {"begin": 1024, "end": 1999, "loss": 3.5}])");
  row.prefill.per_layer["compute_density"] = {1.0, 0.5, 0.0, 0.25};
  return row;
}

inline ResultRow needle_row(const std::string& method, int sample, int correct) {
  ResultRow row = blank_prefill("tasks/niah/" + std::to_string(sample), method, 1024);
  row.prefill.task = "niah";
  row.metrics["answer_tokens"] = 7.0;
  row.metrics["answer_correct"] = correct;
  row.metrics["retrieval_accuracy"] = correct / 7.0;
  row.metrics["exact_match"] = correct == 7 ? 1.0 : 0.0;
  return row;
}

inline ResultTable sample_prefill() {
  ResultTable table{.context = {{"name", "x"}}};
  table.rows = {text_row("dense", 100.0, 3.7), text_row("s2o", 40.0, 3.75)};
  for (int i = 0; i < 4; ++i) table.rows.push_back(needle_row("dense", i, 7));
  for (int i = 0; i < 4; ++i) table.rows.push_back(needle_row("s2o", i, i < 3 ? 7 : 2));
  return table;
}

}  // namespace s2o
