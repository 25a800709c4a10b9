#include "app/run_support.h"

#include <algorithm>
#include <exception>

#include "app/commands.h"
#include "lib/core/log.h"

namespace s2o {
namespace {

int exit_code_of(const EvalSummary& summary, const ResultTable& table) {
  const auto has_failed = [](const ResultRow& row) { return row.error.has_value(); };
  const bool any = std::any_of(table.rows.begin(), table.rows.end(), has_failed);
  if (!any && summary.failed == 0) return kExitDone;
  if (!std::all_of(table.rows.begin(), table.rows.end(), has_failed)) return kExitSomeCellsFailed;
  // All of them in a process before this one: on a device that it lost.
  if (!summary.first_failure) return kExitCuda;
  return failure_exit_code(summary.first_failure);
}

EvalSummary run_on_any_device(const ResultStore& store, const SweepOutput& output,
                              const Sweep& sweep) {
  LostDevice device = output.device;
  try {
    return sweep(/*stop_when_lost=*/true);
  } catch (const DeviceLostError& error) {
    device.reason = error.what();
  }
  device.failed = store.failed_cells();
  go_on_in_fresh_process(device);
  return sweep(/*stop_when_lost=*/false);
}

}  // namespace

std::filesystem::path output_folder(const std::string& out, const std::string& name) {
  if (!out.empty()) return out;
  return std::filesystem::path("results") / name;
}

int run_sweep(ResultStore& store, const SweepOutput& output, const Sweep& sweep) {
  EvalSummary summary;
  std::exception_ptr stopped;
  try {
    summary = run_on_any_device(store, output, sweep);
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
