// What `s2o eval` and `s2o prefill` share: a sweep whose rows go to a folder and to stdout.
#pragma once

#include <cstddef>
#include <filesystem>
#include <functional>
#include <string>

#include "app/lost_device.h"
#include "lib/eval/evaluator.h"
#include "lib/report/result_store.h"

namespace s2o {

struct SweepOutput {
  std::filesystem::path folder;
  std::size_t num_cells = 0;
  std::function<std::string(const ResultTable&)> render;  // what goes to stdout
  LostDevice device;  // what it runs on; run_sweep fills in the rest when that is lost
};

// `stop_when_lost` as in EvaluateOptions.
using Sweep = std::function<EvalSummary(bool stop_when_lost)>;

// Runs `sweep`, which adds rows to the store. Where it loses its device, a fresh process goes on,
// and this one does not come back. Whatever else ends it, the rows so far are written and printed;
// then its exception goes on. Else the exit code: done, some cells failed, or where no cell at all
// succeeded that of the first failure.
int run_sweep(ResultStore& store, const SweepOutput& output, const Sweep& sweep);

// --out, or results/<name>.
std::filesystem::path output_folder(const std::string& out, const std::string& name);

}  // namespace s2o
