// `s2o table`: a paper table from result files.
#include <memory>
#include <string>
#include <vector>

#include "app/commands.h"
#include "app/report_options.h"
#include "lib/report/merge_results.h"
#include "lib/report/paper_table.h"

namespace s2o {
namespace {

struct TableFlags {
  ReportFlags report;
  std::string table;
  std::vector<std::string> peers;
};

int run_table(const TableFlags& flags) {
  const ReportFormat format = parse_report_format(flags.report.format, kReportFormats);
  const PaperTable& table = find_paper_table(flags.table);
  MatchOptions options = match_options(flags.report);
  for (const std::string& file : flags.peers) {
    for (const PeerTime& time : read_peer_times(file)) options.peers.push_back(time);
  }
  const ResultTable results = read_merged_results(flags.report.results);
  check_knobs(results, options.curves.knobs);
  const Report report = table.build(results, options);
  print_result(render_report(report, format));
  return kExitDone;
}

}  // namespace

void add_table_command(CLI::App& app, int& exit_code) {
  auto flags = std::make_shared<TableFlags>();
  CLI::App* command = add_command(app, "table", "Make a paper table from result files",
                                  "s2o table results/run --table matched_sparsity --format latex");
  add_report_options(*command, flags->report);
  command->add_option("--table", flags->table, "Which table; `s2o list tables` names them")
      ->required();
  command
      ->add_option(
          "--peers", flags->peers,
          "latency, matched_error: JSON of scripts/bench_peers.py, for speed-ups over its kernels; "
          "may be given several times")
      ->allow_extra_args(false);
  command->callback([flags, &exit_code] { exit_code = run_table(*flags); });
}

}  // namespace s2o
