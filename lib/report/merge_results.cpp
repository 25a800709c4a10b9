#include "lib/report/merge_results.h"

#include <fmt/format.h>

#include <map>
#include <string>

#include "lib/core/log.h"
#include "lib/report/results_file.h"

namespace s2o {
namespace {

std::string cell_key(const ResultRow& row) {
  return fmt::format("{}\n{}\n{}\n{}\n{}\n{}\n{}\n{}\n{}", row.input, row.layer, row.seqlen,
                     row.method, row.params.dump(), row.backend, row.kernel, row.prefill.model,
                     row.prefill.qkv);
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
  for (const std::filesystem::path& path : paths) {
    const ResultTable table = read_results(path);
    if (merged.context.empty()) merged.context = table.context;
    const std::size_t repeated = merge_rows(merged, table.rows);
    if (repeated > 0) {
      log_info("{}: {} rows replace those of the same cells read before", path.string(), repeated);
    }
  }
  return merged;
}

}  // namespace s2o
