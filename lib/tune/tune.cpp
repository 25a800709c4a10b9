#include "lib/tune/tune.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <optional>
#include <utility>

#include "kernels/common/parallel.h"
#include "lib/core/error.h"
#include "lib/core/log.h"
#include "lib/core/printable.h"
#include "lib/tune/measure.h"
#include "lib/tune/solver.h"
#include "lib/tune/tune_options.h"

namespace s2o {
namespace {

using Json = nlohmann::ordered_json;

// Budgets tried until the whole model meets a target of loss: errors add up only nearly.
constexpr int kMaxTries = 5;          // for each granularity
constexpr double kCloseEnough = 0.9;  // of the target
constexpr double kAim = 0.95;         // of the target, where the next budget is meant to lead
constexpr double kSameBudget = 0.99;  // budgets nearer than this are one

class Tuner {
 public:
  explicit Tuner(const TuneOptions& options)
      : options_(checked_options(options)),
        settings_(settings_to_try(options)),
        measurer_(options, settings_, [this](const std::string& what) { step(what); }) {
    if (options.extend) take_older();
    measurer_.prepare();
  }

  TunedFile run() {
    std::vector<std::int64_t> seqlens = options_.seqlens;
    std::ranges::sort(seqlens);
    const auto repeated = std::ranges::unique(seqlens);
    seqlens.erase(repeated.begin(), repeated.end());
    const bool by_loss = options_.target == TuneTarget::kLoss;
    total_ = seqlens.size() * (num_texts() + granularities().size() * (by_loss ? kMaxTries : 1)) +
             (by_loss && effects_.empty() ? static_cast<std::size_t>(id().num_layers) : 0);
    TunedFile file{.model = id(),
                   .context = measurer_.context(),
                   .target = target(),
                   .objective = options_.objective,
                   .settings = settings_};
    for (const std::int64_t seqlen : seqlens) {
      measurer_.enter_length(seqlen);
      if (by_loss && effects_.empty()) effects_ = measurer_.measure_effects();
      file.lengths.push_back(by_loss ? meet_loss() : meet_sum());
    }
    merge_older(file);
    write_tuned_file(options_.out, file);
    return file;
  }

 private:
  const TunedModel& id() const { return measurer_.id(); }
  std::size_t num_texts() const { return measurer_.num_texts(); }
  const std::vector<HeadProbe>& probes(std::size_t text, int layer, std::size_t setting) const {
    return measurer_.probes(text, layer, setting);
  }
  const ModelOutcome& dense() const { return measurer_.dense(); }
  Json target() const { return {{target_name(options_.target), options_.value}}; }

  void take_older() {
    older_ = read_tuned_file(options_.out);
    if (older_->model.id != id().id) {
      throw ConfigError(fmt::format("{}: for weights {} ({}), --model has {} ({})",
                                    options_.out.string(), older_->model.id, older_->model.name,
                                    id().id, id().name));
    }
    const TunedModel& of_file = older_->model;
    if (of_file.num_layers != id().num_layers || of_file.num_q_heads != id().num_q_heads ||
        of_file.num_kv_heads != id().num_kv_heads || of_file.head_dim != id().head_dim) {
      throw ConfigError(fmt::format(
          "{}: for {} layers of {} query and {} KV heads of {}, --model has {} of {} and {} of {}",
          options_.out.string(), of_file.num_layers, of_file.num_q_heads, of_file.num_kv_heads,
          of_file.head_dim, id().num_layers, id().num_q_heads, id().num_kv_heads, id().head_dim));
    }
    if (older_->target != target() || older_->objective != options_.objective) {
      throw ConfigError(fmt::format(
          "{}: for the target {} and the objective {}, expected {} and {}", options_.out.string(),
          json_text(older_->target), older_->objective, json_text(target()), options_.objective));
    }
    if (older_->context.contains("effects")) {
      effects_ = older_->context["effects"].get<std::vector<double>>();
    }
  }

  void merge_older(TunedFile& file) const {
    if (!effects_.empty()) file.context["effects"] = effects_;
    if (!older_) return;
    std::map<std::string, int> known;
    for (const TunedSetting& setting : file.settings) {
      known.try_emplace(setting.text(), static_cast<int>(known.size()));
    }
    std::vector<int> numbers;  // of the older settings
    for (const TunedSetting& setting : older_->settings) {
      const auto [number, is_new] =
          known.try_emplace(setting.text(), static_cast<int>(file.settings.size()));
      if (is_new) file.settings.push_back(setting);
      numbers.push_back(number->second);
    }
    // That of the file is of the new lengths: text, commit and device may be others.
    Json context = older_->context;
    context.erase("effects");
    for (TunedLength length : older_->lengths) {
      const bool is_new = std::ranges::any_of(
          file.lengths, [&](const TunedLength& one) { return one.seqlen == length.seqlen; });
      if (is_new) continue;
      for (std::vector<int>& heads : length.layers) {
        for (int& head : heads) head = numbers[static_cast<std::size_t>(head)];
      }
      if (!length.measured.contains("context")) length.measured["context"] = context;
      file.lengths.push_back(std::move(length));
    }
    std::ranges::sort(file.lengths, {}, &TunedLength::seqlen);
  }

  void step(const std::string& what) {
    if (options_.progress) options_.progress(std::min(steps_, total_), total_, what);
    log_info("{}", what);
    ++steps_;
    throw_if_cancelled();
  }

  // What takes settings; errors add up to what the target limits. By head, the query heads of a
  // layer are a chain: neighbours that can be planned together run together (but for a run that
  // holds a part of one KV head and more, which is two).
  std::vector<TuneChain> chains(const std::string& by) const {
    std::vector<TuneChain> chains;
    TuneUnit whole_model(settings_.size());
    const std::vector<int> kinds = kinds_of(settings_);
    for (int layer = 0; layer < id().num_layers; ++layer) {
      TuneUnit whole_layer(settings_.size());
      if (by == "head") chains.push_back({.starts = starts_of(layer), .kinds = kinds});
      for (int head = 0; head < id().num_q_heads; ++head) {
        const TuneUnit unit = unit_of(layer, head);
        add(unit, whole_layer);
        if (by == "head") chains.back().units.push_back(unit);
      }
      add(whole_layer, whole_model);
      if (by == "layer") chains.push_back({.units = {whole_layer}});
    }
    if (by == "model") chains.push_back({.units = {whole_model}});
    return chains;
  }
  static void add(const TuneUnit& part, TuneUnit& sum) {
    for (std::size_t i = 0; i < sum.size(); ++i) {
      sum[i].cost += part[i].cost;
      sum[i].error += part[i].error;
    }
  }

  TuneUnit unit_of(int layer, int head) const {
    TuneUnit unit(settings_.size());
    const double share = 1.0 / static_cast<double>(num_texts());
    for (std::size_t t = 0; t < num_texts(); ++t) {
      double reference = 0.0;
      for (const HeadProbe& probe : probes(t, layer, 0)) reference += probe.reference;
      for (std::size_t i = 0; i < settings_.size(); ++i) {
        const HeadProbe& probe = probes(t, layer, i)[static_cast<std::size_t>(head)];
        unit[i].cost += share * cost_of(probe);
        unit[i].error += share * error_of(probe, layer, reference);
      }
    }
    unit[0].error = 0.0;
    return unit;
  }

  // What heads of one setting cost more for every further group that they are split into.
  std::vector<double> starts_of(int layer) const {
    std::vector<double> starts(settings_.size());
    if (options_.objective != "time" || id().num_q_heads < 2) return starts;
    for (std::size_t i = 0; i < settings_.size(); ++i) {
      double more = 0.0;
      for (std::size_t t = 0; t < num_texts(); ++t) {
        for (const HeadProbe& probe : probes(t, layer, i)) more += probe.alone_ms - cost_of(probe);
      }
      starts[i] = std::max(
          0.0, more / static_cast<double>(num_texts()) / static_cast<double>(id().num_q_heads - 1));
    }
    return starts;
  }

  double cost_of(const HeadProbe& probe) const {
    return options_.objective == "time" ? probe.plan_ms + probe.attention_ms : probe.pair_density;
  }
  double error_of(const HeadProbe& probe, int layer, double reference) const {
    const double error = relative_error(probe.error, reference);
    switch (options_.target) {
      case TuneTarget::kLoss:
        return error * effects_[static_cast<std::size_t>(layer)];
      case TuneTarget::kRelativeL2:
        return error / id().num_layers;
      case TuneTarget::kMass:
        return std::max(0.0, 1.0 - probe.mass) / (id().num_layers * id().num_q_heads);
    }
    return error;
  }

  TunedLength length_of(const TuneSolution& solution) const {
    std::vector<std::size_t> choice;  // of the units
    for (const std::vector<std::size_t>& chain : solution.choice) {
      choice.insert(choice.end(), chain.begin(), chain.end());
    }
    TunedLength length{.seqlen = measurer_.seqlen()};
    const auto num_heads = static_cast<std::size_t>(id().num_layers * id().num_q_heads);
    for (std::size_t head = 0; head < num_heads; ++head) {
      if (head % static_cast<std::size_t>(id().num_q_heads) == 0) length.layers.emplace_back();
      length.layers.back().push_back(static_cast<int>(choice[head * choice.size() / num_heads]));
    }
    return length;
  }

  Json measured(const TunedLength& length, const std::string& by, const TuneSolution& solution,
                double budget, const ModelOutcome& outcome) const {
    std::map<std::string, int> heads;
    for (const std::vector<int>& layer : length.layers) {
      for (const int setting : layer) {
        ++heads[settings_[static_cast<std::size_t>(setting)].method->info().name];
      }
    }
    return {{"kl_from_dense", outcome.kl},
            {"loss_over_dense", outcome.loss - dense().loss},
            {"pair_density", outcome.pair_density},
            {"planning_ms", outcome.planning_ms},
            {"attention_ms", outcome.attention_ms},
            {"dense_attention_ms", dense().attention_ms},
            {"predicted_cost", solution.cost},
            {"predicted_error", solution.error},
            {"budget", budget},
            {"price", solution.price},
            {"by", by},
            {"heads", heads}};
  }

  double cost_of(const ModelOutcome& outcome) const {
    return options_.objective == "time" ? outcome.planning_ms + outcome.attention_ms
                                        : outcome.pair_density;
  }

  struct Try {
    TunedLength length;
    ModelOutcome outcome;
  };
  // Runs the whole model with a solution.
  Try attempt(const std::string& by, const TuneSolution& solution, double budget) {
    step(fmt::format("the whole model, {} tokens, settings by {}", measurer_.seqlen(), by));
    Try one{.length = length_of(solution)};
    one.outcome = measurer_.run(one.length);
    one.length.measured = measured(one.length, by, solution, budget, one.outcome);
    log_info(
        "  budget {:.3g}: KL {:.4g}, {:.1f} + {:.1f} ms, predicted cost {:.1f}, dense {:.1f} ms",
        budget, one.outcome.kl, one.outcome.planning_ms, one.outcome.attention_ms, solution.cost,
        dense().attention_ms);
    return one;
  }
  // Keeps `one` if it costs less than what met the target before, and what each granularity
  // reached.
  void consider(Try one, const std::string& by, std::optional<Try>& best, Json& reached) const {
    const bool is_first = !reached.contains(by);
    if (is_first || cost_of(one.outcome) < reached[by]["cost"].get<double>()) {
      reached[by] = {{"cost", cost_of(one.outcome)}, {"kl_from_dense", one.outcome.kl}};
    }
    if (!best || cost_of(one.outcome) < cost_of(best->outcome)) best = std::move(one);
  }
  TunedLength taken(Try& best, const Json& reached) const {
    best.length.measured["reached_by"] = reached;
    const bool is_dense = std::ranges::all_of(best.length.layers, [](const auto& heads) {
      return std::ranges::all_of(heads, [](int setting) { return setting == 0; });
    });
    if (is_dense) {
      log_warning(
          "{}={} at {} tokens: nothing meets it at less cost than dense, all heads stay dense; the "
          "best that one setting for all heads is measured to reach is {:.4g}",
          target_name(options_.target), options_.value, measurer_.seqlen(), best_of_one_setting());
    } else if (best.length.measured["price"] == 0.0 &&
               (options_.target != TuneTarget::kLoss ||
                best.outcome.kl < kCloseEnough * options_.value)) {
      log_warning(
          "{}={} at {} tokens: met by the cheapest setting of every head, at a KL of {:.3g}; "
          "looser settings (--method '{{\"name\": ..., ...}}') may cost less",
          target_name(options_.target), options_.value, measurer_.seqlen(), best.outcome.kl);
    }
    return std::move(best.length);
  }
  // In the unit of the target.
  double best_of_one_setting() const {
    const TuneUnit whole_model = chains("model").front().units.front();
    double least = std::numeric_limits<double>::infinity();
    for (std::size_t i = 1; i < whole_model.size(); ++i) {
      least = std::min(least, whole_model[i].error);
    }
    switch (options_.target) {
      case TuneTarget::kLoss:
        return least;
      case TuneTarget::kRelativeL2:
        return std::sqrt(least);
      case TuneTarget::kMass:
        return 1.0 - least;
    }
    return least;
  }
  std::vector<std::string> granularities() const {
    if (options_.by != "best") return {options_.by};
    return {"head", "layer", "model"};
  }

  // A target of which the measured heads say all: the model only says what it takes.
  TunedLength meet_sum() {
    const double budget = options_.target == TuneTarget::kMass ? 1.0 - options_.value
                                                               : options_.value * options_.value;
    std::optional<Try> best;
    Json reached;
    for (const std::string& by : granularities()) {
      consider(attempt(by, solve_budget(chains(by), budget), budget), by, best, reached);
    }
    return taken(*best, reached);
  }

  // Solves for a budget of predicted KL, measures that of the whole model, and corrects the budget.
  TunedLength meet_loss() {
    std::optional<Try> best;
    Json reached;
    double least = std::numeric_limits<double>::infinity();
    double budget = options_.value;
    const std::size_t first_step = steps_;
    for (const std::string& by : granularities()) {
      const std::vector<TuneChain> units = chains(by);
      std::vector<std::pair<std::vector<std::vector<std::size_t>>, double>> tried;  // their KL
      double low = 0.0;  // largest budget known to meet the target
      double high = std::numeric_limits<double>::infinity();
      while (tried.size() < kMaxTries && low < kSameBudget * high) {
        const TuneSolution solution = solve_budget(units, budget);
        const auto known = std::ranges::find(
            tried, solution.choice, [](const auto& one) -> const auto& { return one.first; });
        const bool is_new = known == tried.end();
        if (is_new) {
          Try one = attempt(by, solution, budget);
          tried.emplace_back(solution.choice, one.outcome.kl);
          least = std::min(least, one.outcome.kl);
          if (one.outcome.kl <= options_.value) consider(std::move(one), by, best, reached);
        }
        const double kl = is_new ? tried.back().second : known->second;
        const bool meets = kl <= options_.value;
        if (meets && (kl >= kCloseEnough * options_.value || solution.price == 0.0)) break;
        (meets ? low : high) = budget;
        if (!meets && solution.error == 0.0) break;  // rounding alone is above the target
        double next = budget * std::clamp(kAim * options_.value / std::max(kl, 1e-12), 0.1, 10.0);
        // Where single settings are far apart, budgets may go on to say the same.
        if (!is_new || next <= low || next >= high) {
          next = std::isfinite(high) ? std::sqrt(std::max(low, 0.01 * high) * high) : 10.0 * low;
        }
        budget = next;
      }
    }
    steps_ = first_step + granularities().size() * kMaxTries;
    if (best) return taken(*best, reached);
    log_warning(
        "{}={} at {} tokens: no setting that was tried meets it, the best has a KL of {:.4g}; "
        "all heads stay dense",
        target_name(options_.target), options_.value, measurer_.seqlen(), least);
    TuneSolution none;  // every head dense
    none.choice = {{0}};
    TunedLength length = length_of(none);
    length.measured = measured(length, "model", none, 0.0, dense());
    return length;
  }

  const TuneOptions& options_;
  std::vector<TunedSetting> settings_;  // [0] is dense
  TuneMeasurer measurer_;
  std::optional<TunedFile> older_;
  std::vector<double> effects_;  // [num_layers]; empty until measured
  std::size_t steps_ = 0;
  std::size_t total_ = 0;
};

}  // namespace

TunedFile tune(const TuneOptions& options) { return Tuner(options).run(); }

}  // namespace s2o
