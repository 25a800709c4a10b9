// `mpirun -n N s2o eval|prefill ...`: the cells of a sweep, computed by many processes; rank 0
// keeps the results as if it were alone.
#pragma once

#include <cstddef>
#include <functional>
#include <string>

#include "lib/eval/result_table.h"
#include "lib/ranks/mpi.h"
#include "lib/ranks/sweep_ranks.h"

namespace s2o {

struct RankedSweep {
  // Runs in a process of its own, which rank 0 does not share.
  std::function<void(RankWorker&)> work;
  std::string out;  // --out
  bool resume = false;
  std::size_t stop_after_rows = 0;  // 0 = no limit
  std::function<std::string(const ResultTable&)> render;
};

// The exit code: of the sweep in rank 0, 0 in the others, whose errors rank 0 reports.
int run_ranked_sweep(const Launch& launch, const RankedSweep& sweep);

}  // namespace s2o
