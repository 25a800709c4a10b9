// `s2o prefill`: a whole model's prefill with any attention method; time to first token and what
// the method did to the model's predictions.
#include <fmt/format.h>

#include <csignal>
#include <cstdio>
#include <memory>

#include "app/commands.h"
#include "app/open_device.h"
#include "app/progress.h"
#include "app/rank_sweep.h"
#include "app/run_support.h"
#include "lib/core/error.h"
#include "lib/core/log.h"
#include "lib/core/text.h"
#include "lib/prefill/run_prefill.h"
#include "lib/ranks/rank_device.h"
#include "lib/report/prefill_table.h"

namespace s2o {
namespace {

struct PrefillFlags {
  std::string config;
  std::vector<std::string> sets;
  std::string out;
  std::string device;
  std::string kernel;
  std::string cublas;
  std::string nccl;
  int parallel = 0;  // 0 = the config's
  std::string format = "text";
  bool resume = false;
  std::size_t stop_after_rows = 0;
  std::string after_fault;
};

const std::vector<std::string> kPrefillFormats = {"text", "json", "csv", "markdown"};

// Rows go to the store, layers of prefills to the progress bar.
class PrefillStoreSink final : public PrefillSink {
 public:
  PrefillStoreSink(ResultStore& store, const PrefillCells& cells, std::size_t stop_after_rows)
      : store_(store), num_layers_(cells.model.config.num_layers), rows_left_(stop_after_rows) {
    const bool enabled = stderr_is_terminal() && log_level() != LogLevel::kQuiet;
    progress_ = std::make_unique<ProgressBar>(count_prefills(cells, *this) * num_layers(), enabled);
  }

  bool has_row(std::size_t cell) const override { return store_.has_row(cell); }
  void start(const std::string& what) override {
    log_debug("{}", what);
    what_ = what;
    progress_->show(what);
  }
  void progress(int done, int total) override {
    const auto part = static_cast<std::size_t>(done) * num_layers();
    progress_->advance_to(prefills_ * num_layers() + part / static_cast<std::size_t>(total));
    progress_->show(what_);
  }
  void end() override { progress_->advance_to(++prefills_ * num_layers()); }
  void add(std::size_t cell, const ResultRow& row) override {
    store_.add(cell, row, {});
    if (rows_left_ > 0 && --rows_left_ == 0) std::raise(SIGINT);
  }

 private:
  std::size_t num_layers() const { return static_cast<std::size_t>(num_layers_); }

  ResultStore& store_;
  int num_layers_;
  std::size_t rows_left_;  // 0 = no limit
  std::size_t prefills_ = 0;
  std::string what_;
  std::unique_ptr<ProgressBar> progress_;
};

// Rows go to rank 0, cells come from there.
class RankPrefillSink final : public PrefillSink {
 public:
  explicit RankPrefillSink(RankWorker& worker) : worker_(worker) {}

  bool has_row(std::size_t) const override { return false; }
  std::optional<std::size_t> next(std::size_t) override { return worker_.next(); }
  void start(const std::string& what) override { log_debug("{}", what); }
  void progress(int, int) override {}
  void end() override {}
  void add(std::size_t cell, const ResultRow& row) override { worker_.add(cell, row, {}); }

 private:
  RankWorker& worker_;
};

PrefillConfig load_config(const PrefillFlags& flags) {
  PrefillConfig config = load_prefill_config(flags.config, flags.sets);
  if (!flags.device.empty()) config.device = parse_device(flags.device, "--device");
  if (!flags.kernel.empty()) config.kernel = parse_kernel(flags.kernel, "--kernel");
  if (flags.parallel > 0) config.parallel = flags.parallel;
  return config;
}

// What the run will take, before it takes it.
void print_memory(const PrefillBackend& backend, std::int64_t seqlen) {
  if (log_level() == LogLevel::kQuiet) return;
  const PrefillMemory memory = backend.memory(seqlen);
  const auto text = [](std::int64_t bytes) { return bytes_text(static_cast<double>(bytes)); };
  std::string plan =
      fmt::format("s2o: memory for {} tokens on {}: {} of {} free; {} tokens would fit\n", seqlen,
                  memory.gpus > 1 ? fmt::format("each of {} GPUs", memory.gpus) : backend.name(),
                  text(memory.total_bytes), text(memory.free_bytes), memory.longest_seqlen);
  for (const PrefillMemory::Part& part : memory.parts) {
    plan += fmt::format("  {:>10}  {}\n", text(part.bytes), part.name);
  }
  std::fputs(plan.c_str(), stderr);
}

// Shorter prompts may run where the longest does not; its own rows say why.
void prepare(PrefillBackend& backend, std::int64_t seqlen) {
  print_memory(backend, seqlen);
  try {
    backend.prepare(seqlen);
  } catch (const UnsupportedError& error) {
    log_debug("{}", error.what());
  } catch (const CudaError& error) {
    log_debug("{}", error.what());
  }
}

std::vector<ResultRow> expected_rows(const PrefillCells& cells, const PrefillBackend& backend) {
  std::vector<ResultRow> rows;
  for (std::size_t cell = 0; cell < cells.size(); ++cell) {
    rows.push_back(blank_prefill_row(cells, cell, backend));
  }
  return rows;
}

// The hash of the config must tell runs on different devices and kernels apart.
void note_device(const PrefillBackend& backend, PrefillConfig& config) {
  config.device.kind = backend.name() == "cpu" ? DeviceKind::kCpu : DeviceKind::kCuda;
  config.kernel = parse_kernel(backend.kernel(), "--kernel");
}

PrefillModel take_model(const PrefillFlags& flags, PrefillCells& cells) {
  PrefillModel model = cells.take_model();
  model.cublas_folder = flags.cublas;
  model.nccl_folder = flags.nccl;
  model.parallel = cells.config.parallel;
  return model;
}

void prefill_rank(const PrefillFlags& flags, RankWorker& worker) {
  PrefillCells cells = expand_prefill_cells(load_config(flags));
  const int gpus = cells.config.parallel;
  const DeviceChoice device =
      choose_rank_device(cells.config.device, cells.config.kernel, worker.local_rank(), gpus);
  PrefillModel model = take_model(flags, cells);
  const std::unique_ptr<PrefillBackend> backend =
      open_prefill(std::move(model), device, cells.config.kernel);
  note_device(*backend, cells.config);
  RankJoin join = describe_rank(rank_device_text(device, gpus));
  join.device_ids = rank_device_ids(device, gpus);
  join.context = make_prefill_context(cells, *backend);
  join.cells_per_input = cells.settings.size();
  join.expected = expected_rows(cells, *backend);
  worker.join(join);
  RankPrefillSink sink(worker);
  worker.done(run_prefills(cells, *backend, sink, /*stop_when_lost=*/true));
}

int run_prefill(const PrefillFlags& flags) {
  const ReportFormat format = parse_report_format(flags.format, kPrefillFormats);
  const auto render = [format](const ResultTable& table) {
    return render_prefill_results(table, format);
  };
  if (const Launch launch = find_launch(); launch.size > 1) {
    return run_ranked_sweep(launch,
                            {.work = [&](RankWorker& worker) { prefill_rank(flags, worker); },
                             .out = flags.out,
                             .resume = flags.resume,
                             .stop_after_rows = flags.stop_after_rows,
                             .render = render});
  }
  PrefillCells cells = expand_prefill_cells(load_config(flags));
  PrefillModel model = take_model(flags, cells);
  const std::optional<LostDevice> lost = parse_lost_device(flags.after_fault);
  const std::unique_ptr<PrefillBackend> backend =
      open_prefill_after(lost, std::move(model), cells.config.device, cells.config.kernel);
  note_device(*backend, cells.config);
  const std::filesystem::path folder = output_folder(flags.out, cells.config.name);
  handle_interrupts();
  ResultStore store(
      folder, make_prefill_context(cells, *backend), expected_rows(cells, *backend),
      {.resume = flags.resume, .keep_failed = lost ? lost->failed : std::vector<std::size_t>()});
  const LostDevice device = {.device = cells.config.device, .kernel = backend->kernel()};
  return run_sweep(store, {folder, cells.size(), render, device}, [&](bool stop_when_lost) {
    PrefillStoreSink sink(store, cells, flags.stop_after_rows);
    if (count_prefills(cells, sink) == 0) return EvalSummary{};
    if (backend->lost().empty()) prepare(*backend, cells.longest_prompt());
    return run_prefills(cells, *backend, sink, stop_when_lost);
  });
}

}  // namespace

void add_prefill_command(CLI::App& app, int& exit_code) {
  auto flags = std::make_shared<PrefillFlags>();
  CLI::App* command = add_command(
      app, "prefill", "Prefill a whole model with any method: time to first token, loss, retrieval",
      "s2o prefill --config prefill_quickstart --set methods.s2o.tau=0.03,0.01 --out results/tau\n"
      "Exit code 1 means that some cells failed; their rows carry the error.");
  command->add_option("-c,--config", flags->config, "Name (configs/NAME.json) or file")->required();
  command
      ->add_option("--set", flags->sets,
                   "path=value: change a config value, or make it a sweep (v1,v2,...)")
      ->allow_extra_args(false);
  command->add_option("-o,--out", flags->out, "Folder of the result files [results/NAME]");
  command->add_option("--device", flags->device, "auto, cpu, cuda or cuda:N, over the config's");
  command->add_option("--kernel", flags->kernel,
                      "auto, or an attention kernel of `s2o list kernels`, over the config's");
  command->add_option("--cublas", flags->cublas,
                      "Folder of cuBLAS, or of NVIDIA's pip packages, where the system has none");
  command
      ->add_option("--parallel", flags->parallel,
                   "GPUs that share the model (heads, MLP, vocabulary), over the config's")
      ->check(integer_in(1, kMaxParallel));
  command->add_option("--nccl", flags->nccl,
                      "Folder of NCCL, or of NVIDIA's pip packages, where the system has none");
  command->add_option("--format", flags->format, "Of the table: text, json, csv, markdown")
      ->capture_default_str();
  command->add_flag("--resume", flags->resume,
                    "Go on with the rows in --out that the same config has left there");
  // For tests of the interrupt: behaves as Ctrl-C after that many rows.
  command->add_option("--stop-after-rows", flags->stop_after_rows)
      ->check(integer_in<std::size_t>(0))
      ->group("");
  command->add_option(kAfterFaultOption, flags->after_fault)->group("");
  command->callback([flags, &exit_code] { exit_code = run_prefill(*flags); });
}

}  // namespace s2o
