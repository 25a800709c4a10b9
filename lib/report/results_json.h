// results.json (results/README.md), and the same rows as lines of a journal.
#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "lib/eval/result_table.h"

namespace s2o {

// The columns of a row in order: names and shapes, then metrics, then "note" and "error".
std::vector<std::string> result_columns(RowKind kind = RowKind::kAttention);

// A value as the text of a table: strings without quotes.
std::string value_text(const nlohmann::ordered_json& value);

// One object with result_columns(); metrics that this build does not know follow the known ones.
// Unknown shapes (0) are null, whole numbers of bytes are integers.
nlohmann::ordered_json row_to_json(const ResultRow& row);
// `where` names the row in messages. InputError for a missing column or a wrong type.
ResultRow row_from_json(const nlohmann::ordered_json& object, const std::string& where);

// The text of results.json, one row a line. Per-head values and stop steps are in results.h5 only.
std::string results_to_json(const ResultTable& table);
// `file` names the text in messages. InputError for anything that is no results file.
ResultTable results_from_json(const std::string& text, const std::string& file);

}  // namespace s2o
