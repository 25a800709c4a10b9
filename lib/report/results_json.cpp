#include "lib/report/results_json.h"

#include <fmt/format.h>

#include <cmath>
#include <limits>

#include "lib/core/error.h"
#include "lib/core/printable.h"
#include "lib/core/strict_json.h"
#include "lib/metrics/metric.h"
#include "lib/prefill/columns.h"

namespace s2o {
namespace {

using Json = nlohmann::ordered_json;

Json known_or_null(std::int64_t value) { return value == 0 ? Json() : Json(value); }

Json metric_json(const std::string& name, const std::optional<double>& value) {
  if (!value || !std::isfinite(*value)) return nullptr;
  const bool whole = (name.ends_with("_bytes") || name == "rank" || name == "gpus") &&
                     *value == std::nearbyint(*value) && std::abs(*value) < 0x1p53;
  return whole ? Json(static_cast<std::int64_t>(*value)) : Json(*value);
}

// Typed access to the columns of one row.
class RowReader {
 public:
  RowReader(const Json& object, std::string where) : object_(object), where_(std::move(where)) {
    if (!object_.is_object()) throw InputError(where_ + ": expected an object");
  }

  std::string text(const std::string& name) const {
    const Json& value = at(name);
    if (!value.is_string()) wrong(name, value, "a string");
    return value.get<std::string>();
  }
  std::optional<std::string> text_or_null(const std::string& name) const {
    const Json& value = at(name);
    if (value.is_null()) return std::nullopt;
    if (!value.is_string()) wrong(name, value, "a string or null");
    return value.get<std::string>();
  }
  // 0 for null.
  std::int64_t integer(const std::string& name, std::int64_t max) const {
    const Json& value = at(name);
    if (value.is_null()) return 0;
    if (!value.is_number_integer() || value.get<double>() < 0 ||
        value.get<double>() > static_cast<double>(max)) {
      wrong(name, value, "a whole number or null");
    }
    return value.get<std::int64_t>();
  }
  int small_integer(const std::string& name) const {
    return static_cast<int>(integer(name, std::numeric_limits<int>::max()));
  }
  const Json& at(const std::string& name) const {
    const auto found = object_.find(name);
    if (found == object_.end()) {
      throw InputError(fmt::format("{}: column '{}' is missing", where_, name));
    }
    return *found;
  }
  [[noreturn]] void wrong(const std::string& name, const Json& value, const char* expected) const {
    throw InputError(
        fmt::format("{}: {}: found {}, expected {}", where_, name, value.type_name(), expected));
  }

 private:
  const Json& object_;
  std::string where_;
};

const std::vector<MetricColumn>& measured_columns(RowKind kind) {
  return kind == RowKind::kPrefill ? prefill_columns() : metric_columns();
}

Json leading_json(const ResultRow& row) {
  if (row.kind == RowKind::kPrefill) {
    return {{"prompt", row.input},
            {"task", row.prefill.task},
            {"model", row.prefill.model},
            {"qkv", row.prefill.qkv},
            {"seqlen", row.seqlen},
            {"method", row.method},
            {"params", row.params},
            {"kernel", row.kernel},
            {"backend", row.backend},
            {"planner", row.planner},
            {"loss_by_position", row.prefill.loss_by_position},
            {"input_id", row.input_id}};
  }
  return {{"input", row.input},
          {"layer", row.layer},
          {"seqlen", known_or_null(row.seqlen)},
          {"num_q_heads", known_or_null(row.num_q_heads)},
          {"num_kv_heads", known_or_null(row.num_kv_heads)},
          {"head_dim", known_or_null(row.head_dim)},
          {"method", row.method},
          {"params", row.params},
          {"kernel", row.kernel},
          {"backend", row.backend},
          {"planner", row.planner},
          {"input_id", row.input_id}};
}

void read_leading(const RowReader& reader, ResultRow& row) {
  if (row.kind == RowKind::kPrefill) {
    row.input = reader.text("prompt");
    row.prefill.task = reader.text("task");
    row.prefill.model = reader.text("model");
    row.prefill.qkv = reader.text("qkv");
    row.prefill.loss_by_position = reader.at("loss_by_position");
    const Json& buckets = row.prefill.loss_by_position;
    if (!buckets.is_null() && !buckets.is_array()) {
      reader.wrong("loss_by_position", buckets, "a list or null");
    }
  } else {
    row.input = reader.text("input");
    row.layer = reader.small_integer("layer");
    row.num_q_heads = reader.small_integer("num_q_heads");
    row.num_kv_heads = reader.small_integer("num_kv_heads");
    row.head_dim = reader.small_integer("head_dim");
  }
  row.seqlen = reader.integer("seqlen", std::numeric_limits<std::int64_t>::max());
  row.method = reader.text("method");
  row.params = reader.at("params");
  if (!row.params.is_object()) reader.wrong("params", row.params, "an object");
  row.kernel = reader.text("kernel");
  row.backend = reader.text("backend");
}

}  // namespace

std::vector<std::string> result_columns(RowKind kind) {
  std::vector<std::string> columns;
  const Json leading = leading_json({.kind = kind});
  for (const auto& [name, value] : leading.items()) columns.push_back(name);
  for (const MetricColumn& column : measured_columns(kind)) columns.push_back(column.name);
  columns.push_back("note");
  columns.push_back("error");
  return columns;
}

std::string value_text(const Json& value) {
  return value.is_string() ? value.get<std::string>() : value.dump();
}

Json row_to_json(const ResultRow& row) {
  Json object = leading_json(row);
  for (const MetricColumn& column : measured_columns(row.kind)) {
    const auto found = row.metrics.find(column.name);
    object[column.name] =
        found == row.metrics.end() ? Json() : metric_json(column.name, found->second);
  }
  for (const auto& [name, value] : row.metrics) {
    if (!object.contains(name)) object[name] = metric_json(name, value);
  }
  object["note"] = row.note ? Json(*row.note) : Json();
  object["error"] = row.error ? Json(*row.error) : Json();
  return object;
}

ResultRow row_from_json(const Json& object, const std::string& where) {
  const RowReader reader(object, where);
  ResultRow row = {.kind = object.contains("prompt") ? RowKind::kPrefill : RowKind::kAttention};
  read_leading(reader, row);
  // Older files do not say these; all their plans were made on the CPU.
  if (object.contains("planner")) row.planner = reader.text("planner");
  if (object.contains("input_id")) row.input_id = reader.text("input_id");
  if (object.contains("note")) row.note = reader.text_or_null("note");
  const Json leading = leading_json({.kind = row.kind});
  for (const auto& [name, value] : object.items()) {
    if (name == "error" || name == "note" || leading.contains(name)) continue;  // no metric
    if (!value.is_null() && !value.is_number()) reader.wrong(name, value, "a number or null");
    row.metrics[name] = value.is_null() ? std::nullopt : std::optional(value.get<double>());
  }
  row.error = reader.text_or_null("error");
  return row;
}

std::string results_to_json(const ResultTable& table) {
  std::string text = fmt::format("{{\"schema_version\": {},\n\"context\": {},\n\"rows\": [",
                                 kResultSchemaVersion, json_text(table.context, 1));
  for (std::size_t i = 0; i < table.rows.size(); ++i) {
    text += (i == 0 ? "\n" : ",\n") + json_text(row_to_json(table.rows[i]));
  }
  return text + "\n]}\n";
}

ResultTable results_from_json(const std::string& text, const std::string& file) {
  Json document;
  try {
    document = parse_strict_json(text);
  } catch (const JsonTextError& error) {
    throw InputError(fmt::format("{}: {}", file, error.what()));
  }
  for (const char* key : {"schema_version", "context", "rows"}) {
    if (!document.is_object() || !document.contains(key)) {
      throw InputError(
          fmt::format("{}: key '{}' is missing, this is no results file of s2o", file, key));
    }
  }
  if (document["schema_version"] != kResultSchemaVersion) {
    throw InputError(fmt::format("{}: schema_version is {}, expected {}", file,
                                 document["schema_version"].dump(), kResultSchemaVersion));
  }
  if (!document["context"].is_object() || !document["rows"].is_array()) {
    throw InputError(fmt::format("{}: expected an object 'context' and a list 'rows'", file));
  }
  ResultTable table;
  table.context = document["context"];
  for (std::size_t i = 0; i < document["rows"].size(); ++i) {
    table.rows.push_back(row_from_json(document["rows"][i], fmt::format("{}: rows[{}]", file, i)));
  }
  return table;
}

}  // namespace s2o
