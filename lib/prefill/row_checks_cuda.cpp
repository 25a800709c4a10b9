#include <cuda_runtime.h>

#include "kernels/common/cuda_check.h"
#include "lib/prefill/error_estimate.h"
#include "lib/prefill/row_checks.h"

namespace s2o {

RowChecks::RowChecks(CudaStream stream, const Problem& problem, const PrefillWanted& wanted)
    : stream_(stream), problem_(problem), wanted_(wanted), timer_(stream) {
  const auto rows = static_cast<std::size_t>(rows_of(0).size());
  rows_.resize(rows, "rows to check");
  partial_.resize(static_cast<std::size_t>(row_check_partials(problem, static_cast<int>(rows))),
                  "check of rows");
  errors_.resize(rows * static_cast<std::size_t>(problem.num_q_heads), "check of rows");
}

std::vector<RowError> RowChecks::run(int layer, const DeviceInput& input,
                                     const std::uint16_t* out) {
  const std::vector<std::int64_t> rows = rows_of(layer);
  rows_.upload(rows.data(), rows.size(), "upload of rows to check");
  cuda_check(cudaDeviceSynchronize(), "upload of rows to check");
  timer_.begin(Phase::kRest);
  launch_row_check({.input = input,
                    .out = out,
                    .rows = rows_.data(),
                    .num_rows = static_cast<int>(rows.size()),
                    .partial = partial_.data(),
                    .errors = errors_.data()},
                   stream_);
  timer_.end();
  total_ms_ += timer_.total_milliseconds();
  std::vector<RowError> errors(errors_.size());
  errors_.download(errors.data(), "download of checked rows");
  return errors;
}

std::vector<std::int64_t> RowChecks::rows_of(int layer) const {
  return checked_rows(problem_.seqlen, wanted_.check_rows, wanted_.check_seed, layer);
}

}  // namespace s2o
