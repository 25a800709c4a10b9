// What an error costs: speed-up over dense attention at equal relative L2, planning included.
#include "lib/report/matched_error.h"
#include "lib/report/paper_table.h"

namespace s2o {

const PaperTable& table_matched_error() {
  static const PaperTable table{
      "matched_error", "Speed-up over dense at equal relative L2, planning included, by input",
      [](const ResultTable& results, const MatchOptions& options) {
        return matched_error_report(results, ErrorOn::kRelativeL2, options);
      }};
  return table;
}

}  // namespace s2o
