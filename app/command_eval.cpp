// `s2o eval`: inputs x methods x settings -> a table on stdout, results.json and results.h5.
#include <csignal>
#include <memory>

#include "app/commands.h"
#include "app/open_device.h"
#include "app/progress.h"
#include "app/rank_sweep.h"
#include "app/run_support.h"
#include "lib/core/log.h"
#include "lib/eval/evaluator.h"
#include "lib/ranks/rank_device.h"
#include "lib/report/eval_table.h"

namespace s2o {
namespace {

struct EvalOptions {
  std::string config;
  std::vector<std::string> sets;
  std::string out;
  std::string device;
  std::string kernel;
  std::string format = "text";
  bool resume = false;
  bool allow_nonfinite = false;
  bool check = false;
  std::size_t stop_after_rows = 0;
  std::string after_fault;
};

// Rows go to the store, what happens to the progress bar.
class EvalStoreSink final : public EvalSink {
 public:
  EvalStoreSink(ResultStore& store, ProgressBar& progress, std::size_t stop_after_rows)
      : store_(store), progress_(progress), rows_left_(stop_after_rows) {}

  bool has_row(std::size_t cell) const override { return store_.has_row(cell); }
  void start(std::size_t, const std::string& what) override {
    log_debug("{}", what);
    progress_.show(what);
  }
  void add(std::size_t cell, const ResultRow& row, const std::vector<float>& out) override {
    store_.add(cell, row, out);
    progress_.step();
    if (rows_left_ > 0 && --rows_left_ == 0) std::raise(SIGINT);
  }

 private:
  ResultStore& store_;
  ProgressBar& progress_;
  std::size_t rows_left_;  // 0 = no limit
};

// Rows go to rank 0, cells come from there.
class RankEvalSink final : public EvalSink {
 public:
  explicit RankEvalSink(RankWorker& worker) : worker_(worker) {}

  bool has_row(std::size_t) const override { return false; }
  std::optional<std::size_t> next(std::size_t) override { return worker_.next(); }
  void start(std::size_t, const std::string& what) override { log_debug("{}", what); }
  void add(std::size_t cell, const ResultRow& row, const std::vector<float>& out) override {
    worker_.add(cell, row, out);
  }

 private:
  RankWorker& worker_;
};

RunConfig load_config(const EvalOptions& options) {
  RunConfig config = load_run_config(options.config, options.sets);
  if (!options.device.empty()) config.device = parse_device(options.device, "--device");
  if (!options.kernel.empty()) config.kernel = parse_kernel(options.kernel, "--kernel");
  config.allow_nonfinite = config.allow_nonfinite || options.allow_nonfinite;
  return config;
}

std::vector<ResultRow> expected_rows(const EvalCells& cells, const Backend& backend) {
  std::vector<ResultRow> rows;
  for (std::size_t cell = 0; cell < cells.size(); ++cell) {
    rows.push_back(blank_row(cells, cell, backend, nullptr));
  }
  return rows;
}

std::size_t count_missing(const ResultStore& store, std::size_t num_cells) {
  std::size_t missing = 0;
  for (std::size_t cell = 0; cell < num_cells; ++cell) missing += store.has_row(cell) ? 0 : 1;
  return missing;
}

void eval_rank(const EvalOptions& options, RankWorker& worker) {
  RunConfig config = load_config(options);
  const DeviceChoice device =
      choose_rank_device(config.device, config.kernel, worker.local_rank(), 1);
  const std::unique_ptr<Backend> backend = open_backend(device, config.kernel);
  // Not which GPU: the run is the same, whatever the ranks are.
  config.device.kind = device.kind;
  config.kernel = parse_kernel(backend->kernel(), "--kernel");
  const EvalCells cells = expand_cells(config);
  RankJoin join = describe_rank(rank_device_text(device, 1));
  join.device_ids = rank_device_ids(device, 1);
  join.context = make_context(cells, *backend);
  join.cells_per_input = cells.settings.size();
  join.expected = expected_rows(cells, *backend);
  worker.join(join);
  RankEvalSink sink(worker);
  // Without its device a rank is of no use: the others get its cells.
  worker.done(
      evaluate(cells, *backend, {.check_plans = options.check, .stop_when_lost = true}, sink));
}

int run_eval(const EvalOptions& options) {
  const ReportFormat format = parse_report_format(options.format, kEvalFormats);
  const auto render = [format](const ResultTable& table) { return render_results(table, format); };
  if (const Launch launch = find_launch(); launch.size > 1) {
    return run_ranked_sweep(launch,
                            {.work = [&](RankWorker& worker) { eval_rank(options, worker); },
                             .out = options.out,
                             .resume = options.resume,
                             .stop_after_rows = options.stop_after_rows,
                             .render = render});
  }
  RunConfig config = load_config(options);
  const std::optional<LostDevice> lost = parse_lost_device(options.after_fault);
  const std::unique_ptr<Backend> backend = open_backend_after(lost, config.device, config.kernel);
  // The hash of the config must tell runs on different devices and kernels apart.
  config.device = backend->device();
  config.kernel = parse_kernel(backend->kernel(), "--kernel");
  const EvalCells cells = expand_cells(config);
  const std::filesystem::path folder = output_folder(options.out, config.name);
  handle_interrupts();
  ResultStore store(folder, make_context(cells, *backend), expected_rows(cells, *backend),
                    {.resume = options.resume,
                     .save_outputs = config.save_outputs,
                     .keep_failed = lost ? lost->failed : std::vector<std::size_t>()});
  const LostDevice device = {.device = config.device, .kernel = backend->kernel()};
  return run_sweep(store, {folder, cells.size(), render, device}, [&](bool stop_when_lost) {
    ProgressBar progress(count_missing(store, cells.size()),
                         stderr_is_terminal() && log_level() != LogLevel::kQuiet);
    EvalStoreSink sink(store, progress, options.stop_after_rows);
    return evaluate(cells, *backend,
                    {.check_plans = options.check, .stop_when_lost = stop_when_lost}, sink);
  });
}

}  // namespace

void add_eval_command(CLI::App& app, int& exit_code) {
  auto options = std::make_shared<EvalOptions>();
  CLI::App* command =
      add_command(app, "eval", "Run methods on inputs; measure error, density and time",
                  "s2o eval --config quickstart --set methods.s2o.tau=0.03,0.01 --out results/tau\n"
                  "Exit code 1 means that some cells failed; their rows carry the error.");
  command->add_option("-c,--config", options->config, "Name (configs/NAME.json) or file")
      ->required();
  command
      ->add_option("--set", options->sets,
                   "path=value: change a config value, or make it a sweep (v1,v2,...)")
      ->allow_extra_args(false);
  command->add_option("-o,--out", options->out, "Folder of the result files [results/NAME]");
  command->add_option("--device", options->device, "auto, cpu, cuda or cuda:N, over the config's");
  command->add_option("--kernel", options->kernel,
                      "auto, or an attention kernel of `s2o list kernels`, over the config's");
  command->add_option("--format", options->format, "Of the table: text, json, csv, markdown")
      ->capture_default_str();
  command->add_flag("--resume", options->resume,
                    "Go on with the rows in --out that the same config has left there");
  command->add_flag("--allow-nonfinite", options->allow_nonfinite,
                    "Go on when Q, K or V hold NaN or infinity");
  command->add_flag("--check", options->check, "Check every invariant of every plan (slow)");
  // For tests of the interrupt: behaves as Ctrl-C after that many rows.
  command->add_option("--stop-after-rows", options->stop_after_rows)
      ->check(integer_in<std::size_t>(0))
      ->group("");
  command->add_option(kAfterFaultOption, options->after_fault)->group("");
  command->callback([options, &exit_code] { exit_code = run_eval(*options); });
}

}  // namespace s2o
