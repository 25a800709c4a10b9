// Tables (b) and (c): methods at equal sparsity and at equal error; and what an error costs:
// speed-up over dense attention at equal relative L2, planning included.
#include "lib/report/matched_error.h"
#include "lib/report/paper_table.h"

namespace s2o {

const PaperTable& table_matched_sparsity() {
  static const PaperTable table{
      "matched_sparsity", "MSE of each method at equal sparsity, and its ratio to the reference",
      matched_sparsity_report};
  return table;
}

const PaperTable& table_matched_mse() {
  static const PaperTable table{
      "matched_mse", "Compute density of each method at equal MSE, and its ratio to the reference",
      matched_density_report};
  return table;
}

const PaperTable& table_matched_error() {
  static const PaperTable table{
      "matched_error", "Speed-up over dense at equal relative L2, planning included, by input",
      [](const ResultTable& results, const MatchOptions& options) {
        return matched_error_report(results, ErrorOn::kRelativeL2, options);
      }};
  return table;
}

}  // namespace s2o
