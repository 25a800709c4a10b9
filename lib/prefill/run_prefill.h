// The one loop of `s2o prefill`: prompts x settings -> rows.
#pragma once

#include <cstddef>
#include <string>

#include "lib/eval/evaluator.h"
#include "lib/eval/result_table.h"
#include "lib/prefill/cells.h"
#include "lib/prefill/prefill_backend.h"

namespace s2o {

class PrefillSink : public CellSink {
 public:
  // A prefill begins.
  virtual void start(const std::string& what) = 0;
  // `done` of `total` layers of it, all repeats counted.
  virtual void progress(int done, int total) = 0;
  // It ended, well or not.
  virtual void end() = 0;
  virtual void add(std::size_t cell, const ResultRow& row) = 0;
};

// Prefills that the cells of a sink still need, the dense references among them.
std::size_t count_prefills(const PrefillCells& cells, const PrefillSink& sink);

// Runs the cells that the sink asks for. Each prompt is first prefilled with dense attention:
// the reference of its rows, and the row of dense if the config lists it. A cell that fails becomes
// a row with an error, and the loop goes on; where dense fails, all cells of the prompt do.
// InterruptedError ends the loop after the rows so far were added. `stop_when_lost` as in
// EvaluateOptions.
EvalSummary run_prefills(const PrefillCells& cells, PrefillBackend& backend, PrefillSink& sink,
                         bool stop_when_lost = false);

// The row of a cell before it ran: no measurements.
ResultRow blank_prefill_row(const PrefillCells& cells, std::size_t cell,
                            const PrefillBackend& backend);

// What a config and this machine say about the results.
nlohmann::ordered_json make_prefill_context(const PrefillCells& cells, PrefillBackend& backend);

}  // namespace s2o
