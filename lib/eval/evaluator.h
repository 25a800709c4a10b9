// The one loop of an evaluation: inputs x methods x settings -> rows.
#pragma once

#include <cstddef>
#include <exception>
#include <optional>
#include <string>
#include <vector>

#include "lib/core/error.h"
#include "lib/eval/backend.h"
#include "lib/eval/cells.h"
#include "lib/eval/result_table.h"

namespace s2o {

// Takes the rows. Exceptions of a sink end the evaluation.
class CellSink {
 public:
  virtual ~CellSink() = default;
  // True for a cell whose row is known already, from an earlier run.
  virtual bool has_row(std::size_t cell) const = 0;
  // The cell to compute next, none at the end. Here: those without a row, in their order.
  virtual std::optional<std::size_t> next(std::size_t num_cells);

 private:
  std::size_t next_ = 0;
};

class EvalSink : public CellSink {
 public:
  // A cell, or the dense reference and the loading before it, begins.
  virtual void start(std::size_t cell, const std::string& what) = 0;
  // `out` [num_q_heads, seqlen, head_dim] is empty for a failed cell and without save_outputs.
  virtual void add(std::size_t cell, const ResultRow& row, const std::vector<float>& out) = 0;
};

// Ends an evaluation on a device that is lost to this process; the row of the cell that it happened
// in is there, and a new process may go on.
class DeviceLostError : public CudaError {
 public:
  using CudaError::CudaError;
};

struct EvaluateOptions {
  bool check_plans = false;  // every invariant of every plan (slow)
  // A lost device ends the loop with a DeviceLostError; else all further rows say that it is lost.
  bool stop_when_lost = false;
};

struct EvalSummary {
  std::size_t failed = 0;            // cells with an error
  std::size_t succeeded = 0;         // cells without, those of an earlier run not counted
  std::exception_ptr first_failure;  // null if nothing failed
};

// Runs the cells that the sink asks for. A cell that fails becomes a row with an error, and
// the loop goes on; a broken input fails all of its cells. InterruptedError ends the loop after the
// rows so far were added.
EvalSummary evaluate(const EvalCells& cells, Backend& backend, const EvaluateOptions& options,
                     EvalSink& sink);

// Sets a metric of a row. A value that is NaN or infinite becomes null, and the row's note says so;
// the rest of the row stays. `reason` says why there is no value, "" for no need to.
void set_metric(ResultRow& row, const std::string& column, std::optional<double> value,
                std::string reason = "");

// The row of a cell before it ran: names and shapes, no metrics. `input` may be null (unknown
// shapes are 0 then).
ResultRow blank_row(const EvalCells& cells, std::size_t cell, const Backend& backend,
                    const AttentionInput* input);

// What a config and this machine say about the results.
nlohmann::ordered_json make_context(const EvalCells& cells, Backend& backend);

}  // namespace s2o
