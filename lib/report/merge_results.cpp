#include "lib/report/merge_results.h"

#include <fmt/format.h>

#include <map>
#include <string>

#include "lib/core/error.h"
#include "lib/core/log.h"
#include "lib/input/identity.h"
#include "lib/report/results_file.h"
#include "lib/report/row_tables.h"
#include "lib/report/settings.h"

namespace s2o {
namespace {

using Json = nlohmann::ordered_json;

std::string cell_key(const ResultRow& row) {
  return fmt::format("{}\n{}\n{}\n{}\n{}\n{}\n{}\n{}\n{}\n{}\n{}", row.input, row.input_id,
                     row.layer, row.seqlen, row.method, row.params.dump(), row.backend, row.kernel,
                     row.prefill.model, row.prefill.qkv, gpus_of(row));
}

// A file in which two rows cannot be told apart has lost what they were measured on.
void require_distinct(const ResultTable& table, const std::string& file) {
  std::map<std::string, std::size_t> first;
  for (std::size_t i = 0; i < table.rows.size(); ++i) {
    const auto [found, is_new] = first.try_emplace(cell_key(table.rows[i]), i);
    if (is_new) continue;
    throw InputError(fmt::format(
        "{}: rows {} and {} are both {} on {}, nothing tells their inputs apart; run them again, "
        "results name such inputs differently now",
        file, found->second, i, table.rows[i].method, place_text(table.rows[i])));
  }
}

// What the ids of a file's rows stand for.
using Identities = std::map<std::string, InputIdentity>;

Json object_or_empty(const Json& item, const char* key) {
  return item.contains(key) && item[key].is_object() ? item[key] : Json::object();
}

// Older files have no ids. Of what determines the numbers they tell dtype and seed.
InputIdentity legacy_identity(const Json& context) {
  const Json config = object_or_empty(context, "config");
  InputIdentity identity;
  for (const char* key : {"dtype", "seed"}) {
    if (config.contains(key)) identity.facts[key] = config[key];
  }
  return identity;
}

void read_identities(ResultTable& table, Identities& identities) {
  if (table.context.contains("inputs") && table.context["inputs"].is_array()) {
    for (const Json& item : table.context["inputs"]) {
      if (!item.is_object() || !item.contains("id") || !item["id"].is_string()) continue;
      identities.try_emplace(item["id"].get<std::string>(),
                             InputIdentity{.facts = object_or_empty(item, "facts"),
                                           .origin = object_or_empty(item, "origin")});
    }
  }
  const InputIdentity legacy = legacy_identity(table.context);
  for (ResultRow& row : table.rows) {
    if (row.input_id.empty()) row.input_id = legacy.id();
    identities.try_emplace(row.input_id, legacy);
  }
}

}  // namespace

std::size_t merge_rows(ResultTable& table, const std::vector<ResultRow>& more) {
  std::map<std::string, std::size_t> place;
  for (std::size_t i = 0; i < table.rows.size(); ++i) place[cell_key(table.rows[i])] = i;
  std::size_t repeated = 0;
  for (const ResultRow& row : more) {
    const auto [found, is_new] = place.try_emplace(cell_key(row), table.rows.size());
    if (is_new) {
      table.rows.push_back(row);
      continue;
    }
    ++repeated;
    ResultRow& known = table.rows[found->second];
    if (!row.error || known.error) known = row;
  }
  return repeated;
}

ResultTable read_merged_results(const std::vector<std::filesystem::path>& paths) {
  ResultTable merged;
  Identities identities;
  for (const std::filesystem::path& path : paths) {
    ResultTable table = read_results(path);
    read_identities(table, identities);
    require_distinct(table, path.string());
    if (merged.context.empty()) merged.context = table.context;
    const std::size_t repeated = merge_rows(merged, table.rows);
    if (repeated > 0) {
      log_warning("{}: {} rows replace those of the same cells read before", path.string(),
                  repeated);
    }
  }
  std::vector<NamedInput> named;
  for (ResultRow& row : merged.rows) {
    named.push_back({&row.input, row.layer, row.seqlen, &identities.at(row.input_id)});
  }
  tell_names_apart(named);
  return merged;
}

}  // namespace s2o
