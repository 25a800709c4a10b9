#include "app/run_support.h"

#include <exception>

#include "app/commands.h"
#include "lib/core/log.h"

namespace s2o {
namespace {

int exit_code_of(const EvalSummary& summary, const ResultTable& table) {
  if (summary.failed == 0) return kExitDone;
  for (const ResultRow& row : table.rows) {
    if (!row.error) return kExitSomeCellsFailed;
  }
  return failure_exit_code(summary.first_failure);
}

}  // namespace

std::filesystem::path output_folder(const std::string& out, const std::string& name) {
  if (!out.empty()) return out;
  return std::filesystem::path("results") / name;
}

int run_sweep(ResultStore& store, const SweepOutput& output,
              const std::function<EvalSummary()>& sweep) {
  EvalSummary summary;
  std::exception_ptr stopped;
  try {
    summary = sweep();
  } catch (...) {
    stopped = std::current_exception();
  }
  // The files come first, because stdout may be a pipe that nobody reads.
  const ResultTable table = store.table();
  bool is_written = false;
  try {
    store.finish();
    is_written = true;
  } catch (...) {
    if (stopped)
      log_error(failure_text(std::current_exception()));
    else
      stopped = std::current_exception();
  }
  print_result(output.render(table));
  if (is_written) log_info("{} rows in {}", table.rows.size(), output.folder.string());
  if (stopped) {
    if (is_written && !table.rows.empty()) {
      log_warning("{} of {} rows are in {}; the same command with --resume goes on",
                  table.rows.size(), output.num_cells, output.folder.string());
    }
    std::rethrow_exception(stopped);
  }
  return exit_code_of(summary, table);
}

}  // namespace s2o
