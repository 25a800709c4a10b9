#include "lib/report/journal.h"

#include <fmt/format.h>

#include <cmath>
#include <limits>

#include "lib/core/error.h"
#include "lib/core/log.h"
#include "lib/core/printable.h"
#include "lib/core/regular_file.h"
#include "lib/core/strict_json.h"
#include "lib/report/results_json.h"

namespace s2o {
namespace {

using Json = nlohmann::ordered_json;

using Vectors = std::map<std::string, std::vector<double>>;

Json vectors_to_json(const Vectors& vectors) {
  Json object = Json::object();
  for (const auto& [name, values] : vectors) object[name] = values;  // NaN -> null
  return object;
}

Vectors vectors_from_json(const Json& object) {
  Vectors vectors;
  for (const auto& [name, values] : object.items()) {
    for (const Json& value : values) {
      vectors[name].push_back(value.is_null() ? std::numeric_limits<double>::quiet_NaN()
                                              : value.get<double>());
    }
  }
  return vectors;
}

}  // namespace

Json entry_to_json(const JournalEntry& entry) {
  return {{"cell", entry.cell},
          {"row", row_to_json(entry.row)},
          {"per_head", vectors_to_json(entry.row.per_head)},
          {"per_layer", vectors_to_json(entry.row.prefill.per_layer)},
          {"stop_steps", entry.row.stop_steps},
          {"output", entry.output_file}};
}

JournalEntry entry_from_json(const Json& line, const std::string& where) {
  try {
    JournalEntry entry = {.cell = line.at("cell").get<std::size_t>(),
                          .row = row_from_json(line.at("row"), where),
                          .output_file = line.at("output").get<std::string>()};
    entry.row.per_head = vectors_from_json(line.at("per_head"));
    if (line.contains("per_layer")) {
      entry.row.prefill.per_layer = vectors_from_json(line.at("per_layer"));
    }
    entry.row.stop_steps = line.at("stop_steps").get<std::vector<std::int32_t>>();
    return entry;
  } catch (const Json::exception& error) {
    throw InputError(fmt::format("{}: {}", where, error.what()));
  }
}

JournalContent read_journal(const std::filesystem::path& file) {
  return parse_journal(read_whole_file(file), file.string());
}

std::string journal_text(const ResultTable& table) {
  std::string text = json_text(table.context) + "\n";
  for (std::size_t i = 0; i < table.rows.size(); ++i) {
    text += json_text(entry_to_json({.cell = i, .row = table.rows[i]})) + "\n";
  }
  return text;
}

JournalContent parse_journal(const std::string& text, const std::string& file) {
  JournalContent content;
  std::size_t begin = 0;
  for (int number = 1; begin < text.size(); ++number) {
    const std::size_t end = text.find('\n', begin);
    const std::string where = fmt::format("{}: line {}", file, number);
    if (end == std::string::npos) {
      log_warning("{} was cut off and is left out", where);
      break;
    }
    try {
      const Json line = parse_strict_json(std::string_view(text).substr(begin, end - begin));
      if (number == 1) {
        content.context = line;
      } else {
        content.entries.push_back(entry_from_json(line, where));
      }
    } catch (const JsonTextError& error) {
      throw InputError(fmt::format("{}: {}", where, error.what()));
    }
    begin = end + 1;
    content.valid_bytes = begin;
  }
  return content;
}

Journal::Journal(const std::filesystem::path& file, const Json& context)
    : lines_(file, LineFile::Open::kCreate) {
  lines_.truncate(0);
  lines_.append(json_text(context));
}

Journal::Journal(const std::filesystem::path& file, std::uintmax_t valid_bytes)
    : lines_(file, LineFile::Open::kExisting) {
  lines_.truncate(valid_bytes);
}

void Journal::append(const JournalEntry& entry) { lines_.append(json_text(entry_to_json(entry))); }

}  // namespace s2o
