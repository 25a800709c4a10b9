// `s2o match`: methods compared at equal sparsity and at equal error.
#include <memory>

#include "app/commands.h"
#include "app/report_options.h"
#include "lib/report/merge_results.h"

namespace s2o {
namespace {

int run_match(const ReportFlags& flags) {
  const ReportFormat format = parse_report_format(flags.format, kReportFormats);
  const MatchOptions options = match_options(flags);
  const ResultTable table = read_merged_results(flags.results);
  Report report = matched_sparsity_report(table, options);
  Report by_mse = matched_mse_report(table, options);
  std::move(by_mse.view.begin(), by_mse.view.end(), std::back_inserter(report.view));
  std::move(by_mse.data.begin(), by_mse.data.end(), std::back_inserter(report.data));
  print_result(render_report(report, format));
  return kExitDone;
}

}  // namespace

void add_match_command(CLI::App& app, int& exit_code) {
  auto flags = std::make_shared<ReportFlags>();
  flags->sparsity = "0.7,0.8,0.9";
  CLI::App* command =
      add_command(app, "match", "Compare methods at equal sparsity and at equal error",
                  "s2o match results/run --reference s2o --sparsity 0.7,0.8,0.9");
  add_report_options(*command, *flags);
  command->callback([flags, &exit_code] { exit_code = run_match(*flags); });
}

}  // namespace s2o
