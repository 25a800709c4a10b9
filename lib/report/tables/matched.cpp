// Tables (b) and (c): methods at equal sparsity and at equal error.
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

}  // namespace s2o
