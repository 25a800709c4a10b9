// `s2o match`: methods compared at equal sparsity and at equal error.
#include <iterator>
#include <memory>
#include <string>

#include "app/commands.h"
#include "app/report_options.h"
#include "lib/core/error.h"
#include "lib/report/matched_error.h"
#include "lib/report/merge_results.h"

namespace s2o {
namespace {

struct MatchFlags {
  ReportFlags report;
  std::string on = "mse";
};

void append(Report& report, Report more) {
  std::move(more.view.begin(), more.view.end(), std::back_inserter(report.view));
  std::move(more.data.begin(), more.data.end(), std::back_inserter(report.data));
}

// Times are compared only at errors that mean the same everywhere, and where there are any.
bool compares_times(const ErrorMetric& metric, const MatchOptions& options) {
  return !metric.is_of_attention || metric.on == ErrorOn::kRelativeL2 || !options.errors.empty();
}

int run_match(const MatchFlags& flags) {
  const ReportFormat format = parse_report_format(flags.report.format, kReportFormats);
  const ErrorMetric& metric = parse_error_metric(flags.on);
  MatchOptions options = match_options(flags.report);
  const ResultTable table = read_merged_results(flags.report.results);
  check_knobs(table, options.curves.knobs);
  Report report;
  if (metric.is_of_attention) {
    options.curves.error = metric.name;
    report = matched_sparsity_report(table, options);
    append(report, matched_density_report(table, options));
  }
  if (compares_times(metric, options))
    append(report, matched_error_report(table, metric.on, options));
  print_result(render_report(report, format));
  return kExitDone;
}

}  // namespace

void add_match_command(CLI::App& app, int& exit_code) {
  auto flags = std::make_shared<MatchFlags>();
  flags->report.sparsity = "0.7,0.8,0.9";
  CLI::App* command =
      add_command(app, "match", "Compare methods at equal sparsity and at equal error",
                  "s2o match results/run --reference s2o --sparsity 0.7,0.8,0.9");
  add_report_options(*command, flags->report);
  command
      ->add_option(
          "--on", flags->on,
          "Error: mse or relative_l2 of attention (`s2o eval`), kl_from_dense, held_out_loss "
          "over dense, or accuracy lost on prompts with an answer (`s2o prefill`)")
      ->capture_default_str();
  command->callback([flags, &exit_code] { exit_code = run_match(*flags); });
}

}  // namespace s2o
