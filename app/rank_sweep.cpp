#include "app/rank_sweep.h"

#include <fmt/format.h>

#include <csignal>

#include "app/commands.h"
#include "app/progress.h"
#include "app/run_support.h"
#include "lib/core/log.h"
#include "lib/core/log_prefix.h"
#include "lib/ranks/rank_device.h"

namespace s2o {
namespace {

int lead(RankHub& hub, const RankedSweep& sweep) {
  RankLead ranks(hub);
  ranks.gather();
  const nlohmann::ordered_json& config = ranks.context().at("config");
  const std::filesystem::path folder = output_folder(sweep.out, config.at("name"));
  const std::size_t num_cells = ranks.expected().size();
  ResultStore store(folder, ranks.context(), ranks.expected(),
                    {.resume = sweep.resume, .save_outputs = config.value("save_outputs", false)});
  // A rank whose device is lost is lost with it: the others go on.
  return run_sweep(store, {folder, num_cells, sweep.render, {}}, [&](bool) {
    std::size_t missing = 0;
    for (std::size_t cell = 0; cell < num_cells; ++cell) missing += store.has_row(cell) ? 0 : 1;
    ProgressBar progress(missing, launcher_has_terminal() && log_level() != LogLevel::kQuiet);
    const std::string what = fmt::format("{} ranks", hub.size());
    progress.show(what);
    std::size_t rows_left = sweep.stop_after_rows;
    const auto add = [&](std::size_t cell, const ResultRow& row, const std::vector<float>& out) {
      store.add(cell, row, out);
      progress.step();
      progress.show(what);
      if (rows_left > 0 && --rows_left == 0) std::raise(SIGINT);
    };
    return ranks.run(
        {.has_row = [&](std::size_t cell) { return store.has_row(cell); }, .add = add});
  });
}

}  // namespace

int run_ranked_sweep(const Launch& launch, const RankedSweep& sweep) {
  handle_interrupts();
  const auto work = [&](WorkerLink& link) {
    set_log_prefix(fmt::format("rank {}: ", link.place().rank));
    warn_about_binding();
    RankWorker worker(link);
    sweep.work(worker);
  };
  return run_rank(launch, work, [&](RankHub& hub) { return lead(hub, sweep); });
}

}  // namespace s2o
