#include "lib/tune/tune.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>
#include <limits>
#include <map>
#include <numeric>
#include <optional>
#include <utility>

#include "kernels/common/parallel.h"
#include "lib/core/error.h"
#include "lib/core/log.h"
#include "lib/core/printable.h"
#include "lib/core/strict_json.h"
#include "lib/core/text.h"
#include "lib/core/version.h"
#include "lib/model/tokens.h"
#include "lib/model/weights.h"
#include "lib/prefill/measures.h"
#include "lib/prefill/prefill_backend.h"
#include "lib/prefill/prompts.h"
#include "lib/tune/solver.h"
#include "lib/tune/tune_journal.h"

namespace s2o {
namespace {

using Json = nlohmann::ordered_json;

constexpr std::array kTargetNames = {"loss", "relative_l2", "mass"};
// A layer's effect on the model is measured where its output is this wrong: enough to be seen
// beside rounding, not so much that errors would not add up any more.
constexpr double kProbedError = 0.02;  // squared, relative
constexpr double kLeastError = 1e-6;   // of which a layer's effect can still be seen
// Budgets tried until the whole model meets a target of loss: errors add up only nearly.
constexpr int kMaxTries = 5;          // for each granularity
constexpr double kCloseEnough = 0.9;  // of the target
constexpr double kAim = 0.95;         // of the target, where the next budget is meant to lead

std::string target_text(const TuneOptions& options) {
  return fmt::format("{}={}", kTargetNames[static_cast<std::size_t>(options.target)],
                     options.value);
}

// Settings of the methods asked for; the first is dense, which nothing is lost by.
std::vector<TunedSetting> expand_methods(const std::vector<std::string>& methods) {
  const Method& dense = find_method("dense");
  std::vector<TunedSetting> settings = {
      {&dense, std::make_shared<const ParamSet>(dense.info().params)}};
  for (const std::string& text : methods) {
    const std::string path = "--method " + text;
    Json entry = {{"name", text}};
    if (text.starts_with("{")) {
      try {
        entry = parse_strict_json(text);
      } catch (const JsonTextError& error) {
        throw ConfigError(fmt::format("{}: {}", path, error.what()));
      }
    }
    if (!entry.contains("name") || !entry["name"].is_string()) {
      throw ConfigError(path + ": expected a method, or {\"name\": ..., parameters}");
    }
    const Method& method = find_method(entry["name"].get<std::string>());
    const MethodInfo& info = method.info();
    if (&method == &find_method("tuned") || info.is_oracle) {
      throw ConfigError(fmt::format("{}: {} cannot be tuned", path, info.name));
    }
    if (!info.knob.empty() && !entry.contains(info.knob)) entry[info.knob] = info.knob_sweep;
    for (ParamSet& params : expand_settings(method, entry, path)) {
      TunedSetting setting = {&method, std::make_shared<const ParamSet>(std::move(params))};
      if (std::find(settings.begin(), settings.end(), setting) == settings.end()) {
        settings.push_back(std::move(setting));
      }
    }
  }
  if (settings.size() == 1) throw ConfigError("--method: expected one that is not dense");
  return settings;
}

class Tuner {
 public:
  explicit Tuner(const TuneOptions& options)
      : options_(options), settings_(expand_methods(options.methods)) {
    check_options();
    for (const TunedSetting& setting : settings_) {
      names_.push_back(setting.method->info().name + " " + json_text(setting.params->to_json()));
    }
    model_ = load_model(options.model);
    const ModelConfig& config = model_->config;
    id_ = {.name = config.name,
           .id = weights_id(options.model),
           .num_layers = config.num_layers,
           .num_q_heads = config.num_q_heads,
           .num_kv_heads = config.num_kv_heads,
           .head_dim = config.head_dim};
    if (options.extend) take_older();
    read_texts();
    backend_ = make_prefill_backend(
        {.config = config, .weights = model_, .cublas_folder = options.cublas_folder},
        options.device, options.kernel);
    journal_.emplace(options.out.string() + ".measured.jsonl", header(), options.resume);
  }

  TunedFile run() {
    std::vector<std::int64_t> seqlens = options_.seqlens;
    std::ranges::sort(seqlens);
    const auto layers = static_cast<std::size_t>(id_.num_layers);
    const bool by_loss = options_.target == TuneTarget::kLoss;
    total_ = seqlens.size() * (texts_.size() + granularities().size() * (by_loss ? kMaxTries : 1)) +
             (by_loss && effects_.empty() ? layers : 0);
    backend_->prepare(seqlens.back());
    TunedFile file{
        .model = id_,
        .context = context(),
        .target = {{kTargetNames[static_cast<std::size_t>(options_.target)], options_.value}},
        .objective = options_.objective,
        .settings = settings_};
    for (const std::int64_t seqlen : seqlens) {
      enter_length(seqlen);
      if (by_loss && effects_.empty()) measure_effects();
      file.lengths.push_back(options_.target == TuneTarget::kLoss ? meet_loss() : meet_sum());
    }
    merge_older(file);
    write_tuned_file(options_.out, file);
    return file;
  }

 private:
  // One way to run the whole model, and what it does to its predictions.
  struct Outcome {
    double kl = 0.0;
    double loss = 0.0;  // held out, nats
    double planning_ms = 0.0;
    double attention_ms = 0.0;
    double pair_density = 1.0;
  };
  struct Text {
    std::string name;
    TokenFile file;
    std::vector<std::int32_t> tokens;     // of the length at hand
    std::vector<std::int64_t> positions;  // whose logits are compared
    std::vector<float> dense_hidden;
    std::vector<float> dense_logits;  // filled when first needed
  };

  void check_options() const {
    if (options_.seqlens.empty()) throw ConfigError("--seqlen: expected at least one length");
    if (options_.tokens.empty()) throw ConfigError("--tokens: expected at least one file");
    if (options_.by != "best" && options_.by != "head" && options_.by != "layer" &&
        options_.by != "model") {
      throw ConfigError(
          fmt::format("--by: found '{}', expected best, head, layer or model", options_.by));
    }
    if (options_.objective != "time" && options_.objective != "density") {
      throw ConfigError(
          fmt::format("--objective: found '{}', expected time or density", options_.objective));
    }
  }

  // Everything that what is measured depends on.
  Json header() const {
    Json texts = Json::array();
    for (const Text& text : texts_) texts.push_back(tokens_hash(text.tokens));
    return {{"model", id_.id},
            {"texts", texts},
            {"density", options_.objective == "density"},
            {"logit_positions", options_.logit_positions},
            {"kernel", backend_->kernel()},
            {"commit", git_commit()}};
  }

  Json context() {
    Json texts = Json::array();
    for (const Text& text : texts_)
      texts.push_back({{"tokens", text.name}, {"hash", tokens_hash(text.tokens)}});
    Json context = {{"s2o_version", version()}, {"git_commit", git_commit()}};
    context.update(backend_->context());
    context["texts"] = texts;
    context["offset"] = options_.offset;
    context["logit_positions"] = options_.logit_positions;
    return context;
  }

  void read_texts() {
    const std::int64_t longest = std::ranges::max(options_.seqlens);
    for (const std::filesystem::path& path : options_.tokens) {
      Text text{.name = path.filename().string(), .file = read_token_file(path)};
      text.tokens = select_tokens(text.file, options_.offset, longest, model_->config.vocab_size);
      texts_.push_back(std::move(text));
    }
  }

  void take_older() {
    older_ = read_tuned_file(options_.out);
    if (older_->model.id != id_.id) {
      throw ConfigError(fmt::format("{}: for weights {} ({}), --model has {} ({})",
                                    options_.out.string(), older_->model.id, older_->model.name,
                                    id_.id, id_.name));
    }
    const Json target = {{kTargetNames[static_cast<std::size_t>(options_.target)], options_.value}};
    if (older_->target != target || older_->objective != options_.objective) {
      throw ConfigError(fmt::format("{}: for the target {} at least {}, expected {} and {}",
                                    options_.out.string(), json_text(older_->target),
                                    older_->objective, json_text(target), options_.objective));
    }
    if (older_->context.contains("effects")) {
      effects_ = older_->context["effects"].get<std::vector<double>>();
    }
  }

  void merge_older(TunedFile& file) const {
    if (!effects_.empty()) file.context["effects"] = effects_;
    if (!older_) return;
    std::vector<int> numbers;  // of the older settings
    for (const TunedSetting& setting : older_->settings) {
      const auto known = std::find(file.settings.begin(), file.settings.end(), setting);
      numbers.push_back(static_cast<int>(known - file.settings.begin()));
      if (known == file.settings.end()) file.settings.push_back(setting);
    }
    for (TunedLength length : older_->lengths) {
      const bool is_new = std::ranges::any_of(
          file.lengths, [&](const TunedLength& one) { return one.seqlen == length.seqlen; });
      if (is_new) continue;
      for (std::vector<int>& heads : length.layers) {
        for (int& head : heads) head = numbers[static_cast<std::size_t>(head)];
      }
      file.lengths.push_back(std::move(length));
    }
    std::ranges::sort(file.lengths, {}, &TunedLength::seqlen);
  }

  // ---- measuring ----

  void step(const std::string& what) {
    if (options_.progress) options_.progress(std::min(steps_, total_), total_, what);
    log_info("{}", what);
    ++steps_;
    throw_if_cancelled();
  }

  std::vector<LayerMethod> all_layers(const TunedSetting& setting) const {
    return std::vector<LayerMethod>(static_cast<std::size_t>(id_.num_layers),
                                    {setting.method, setting.params.get()});
  }

  // Prefills every text with dense attention, and what probes are missing of its layers.
  void enter_length(std::int64_t seqlen) {
    seqlen_ = seqlen;
    dense_ = {};
    for (std::size_t t = 0; t < texts_.size(); ++t) {
      Text& text = texts_[t];
      step(fmt::format("{} settings on every head, {} tokens of {}", settings_.size(), seqlen,
                       text.name));
      text.tokens = select_tokens(text.file, options_.offset, seqlen, model_->config.vocab_size);
      text.positions =
          logit_rows({.name = text.name, .tokens = text.tokens}, options_.logit_positions);
      text.dense_logits.clear();
      std::vector<std::size_t> missing;  // settings that some layer misses
      ProbeRequest request;
      for (int layer = 0; layer < id_.num_layers; ++layer) {
        bool is_missing = false;
        for (std::size_t i = 0; i < settings_.size(); ++i) {
          if (journal_->probes(seqlen, t, layer, names_[i]) != nullptr) continue;
          is_missing = true;
          if (std::ranges::find(missing, i) == missing.end()) missing.push_back(i);
        }
        if (is_missing) request.layers.push_back(layer);
      }
      for (const std::size_t i : missing) {
        request.settings.push_back({settings_[i].method, settings_[i].params.get()});
      }
      request.pair_density = options_.objective == "density";
      request.done = [&](int layer, const std::vector<std::vector<HeadProbe>>& probes) {
        for (std::size_t i = 0; i < missing.size(); ++i) {
          journal_->add_probes(seqlen, t, layer, names_[missing[i]], probes[i]);
        }
      };
      const PrefillRun run = backend_->run(text.tokens, all_layers(settings_[0]),
                                           {.hidden_positions = text.positions,
                                            .losses = true,
                                            .densities = false,
                                            .probes = &request},
                                           {.warmup = 1, .repeats = 1, .cpu_repeats = 1}, {});
      text.dense_hidden = run.hidden;
      add_outcome(run, 0.0, dense_);
    }
  }

  static double last_of(const PrefillRun& run, double PrefillSplit::*part) {
    return run.repeats.empty() ? 0.0 : run.repeats.back().*part;
  }
  void add_outcome(const PrefillRun& run, double kl, Outcome& mean) const {
    const double share = 1.0 / static_cast<double>(texts_.size());
    mean.kl += share * kl;
    if (!run.losses.empty()) mean.loss += share * mean_of(run.losses);
    mean.planning_ms += share * last_of(run, &PrefillSplit::planning_ms);
    mean.attention_ms += share * last_of(run, &PrefillSplit::attention_ms);
    if (run.layers.empty()) return;
    double density = 0.0;
    for (const PrefillLayer& layer : run.layers) density += layer.pair_density;
    mean.pair_density += share * (density / static_cast<double>(run.layers.size()) - 1.0);
  }

  double divergence(Text& text, const std::vector<float>& hidden) {
    const auto width = static_cast<std::size_t>(model_->config.hidden_size);
    const auto vocab = static_cast<std::size_t>(model_->config.vocab_size);
    const std::size_t rows = text.positions.size();
    const auto chunk = static_cast<std::size_t>(PrefillBackend::kLogitRows);
    const auto read = [&](const std::vector<float>& from, std::size_t first, float* to) {
      const std::size_t count = std::min(chunk, rows - first);
      backend_->logits_of(std::span(from).subspan(first * width, count * width),
                          {to, count * vocab});
      return std::span<const float>(to, count * vocab);
    };
    if (text.dense_logits.empty()) {
      text.dense_logits.resize(rows * vocab);
      for (std::size_t first = 0; first < rows; first += chunk) {
        read(text.dense_hidden, first, text.dense_logits.data() + first * vocab);
      }
    }
    std::vector<float> logits(std::min(chunk, rows) * vocab);
    LogitDivergence divergence;
    for (std::size_t first = 0; first < rows; first += chunk) {
      const std::span<const float> found = read(hidden, first, logits.data());
      divergence.add(found, std::span(text.dense_logits).subspan(first * vocab, found.size()),
                     model_->config.vocab_size);
    }
    return divergence.kl_mean();
  }

  // Squared error of a layer, relative, with each setting in all of its heads; mean over texts.
  double layer_error(int layer, std::size_t setting) const {
    double sum = 0.0;
    for (std::size_t t = 0; t < texts_.size(); ++t) {
      double error = 0.0;
      double reference = 0.0;
      for (const HeadProbe& head : probes(t, layer, setting)) {
        error += head.error;
        reference += head.reference;
      }
      sum += error / reference;
    }
    return sum / static_cast<double>(texts_.size());
  }
  const std::vector<HeadProbe>& probes(std::size_t text, int layer, std::size_t setting) const {
    return *journal_->probes(seqlen_, text, layer, names_[setting]);
  }

  // KL of the model by the error of each layer alone, at the shortest length: how much a layer
  // matters is taken to be the same at others, where the whole is measured again.
  void measure_effects() {
    std::vector<double> effects;
    for (int layer = 0; layer < id_.num_layers; ++layer) {
      std::optional<double> effect = journal_->effect(layer);
      step(fmt::format("effect of layer {} on predictions, {} tokens", layer, seqlen_));
      if (!effect) {
        const std::size_t setting = probed_setting(layer);
        const double error = layer_error(layer, setting);
        std::vector<LayerMethod> layers = all_layers(settings_[0]);
        layers[static_cast<std::size_t>(layer)] = {settings_[setting].method,
                                                   settings_[setting].params.get()};
        Text& text = texts_[static_cast<std::size_t>(layer) % texts_.size()];
        const PrefillRun run = backend_->run(
            text.tokens, layers, {.hidden_positions = text.positions, .densities = false},
            {.warmup = 1, .repeats = 0, .cpu_repeats = 1}, {});
        effect = error > kLeastError ? divergence(text, run.hidden) / error : 0.0;
        journal_->add_effect(layer, *effect);
      }
      effects.push_back(*effect);
    }
    // A layer that seems to have none has less than can be seen; one that nothing makes wrong here
    // may be wrong at another length.
    const double mean =
        std::accumulate(effects.begin(), effects.end(), 0.0) / static_cast<double>(effects.size());
    for (double& effect : effects) effect = effect == 0.0 ? mean : std::max(effect, 0.01 * mean);
    effects_ = std::move(effects);
  }

  std::size_t probed_setting(int layer) const {
    std::size_t best = 1;
    double best_distance = std::numeric_limits<double>::infinity();
    for (std::size_t i = 1; i < settings_.size(); ++i) {
      const double error = layer_error(layer, i);
      if (!(error > 0.0)) continue;
      const double distance = std::abs(std::log(error / kProbedError));
      if (distance < best_distance) best = i;
      best_distance = std::min(best_distance, distance);
    }
    return best;
  }

  // ---- solving ----

  // What takes settings; errors add up to what the target limits. By head, the query heads of a KV
  // head are a chain: neighbours with one setting run together.
  std::vector<TuneChain> chains(const std::string& by) const {
    std::vector<TuneChain> chains;
    TuneUnit whole_model(settings_.size());
    const int group_size = id_.num_q_heads / id_.num_kv_heads;
    for (int layer = 0; layer < id_.num_layers; ++layer) {
      TuneUnit whole_layer(settings_.size());
      for (int head = 0; head < id_.num_q_heads; ++head) {
        const TuneUnit unit = unit_of(layer, head);
        add(unit, whole_layer);
        if (by != "head") continue;
        if (head % group_size == 0) chains.push_back({.starts = starts_of(layer)});
        chains.back().units.push_back(unit);
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
    const double share = 1.0 / static_cast<double>(texts_.size());
    for (std::size_t t = 0; t < texts_.size(); ++t) {
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
    if (options_.objective != "time" || id_.num_q_heads < 2) return starts;
    for (std::size_t i = 0; i < settings_.size(); ++i) {
      double more = 0.0;
      for (std::size_t t = 0; t < texts_.size(); ++t) {
        for (const HeadProbe& probe : probes(t, layer, i)) more += probe.alone_ms - cost_of(probe);
      }
      starts[i] = std::max(0.0, more / static_cast<double>(texts_.size()) /
                                    static_cast<double>(id_.num_q_heads - 1));
    }
    return starts;
  }

  double cost_of(const HeadProbe& probe) const {
    return options_.objective == "time" ? probe.plan_ms + probe.attention_ms : probe.pair_density;
  }
  double error_of(const HeadProbe& probe, int layer, double reference) const {
    const double error = probe.error / reference;
    switch (options_.target) {
      case TuneTarget::kLoss:
        return error * effects_[static_cast<std::size_t>(layer)];
      case TuneTarget::kRelativeL2:
        return error / id_.num_layers;
      case TuneTarget::kMass:
        return std::max(0.0, 1.0 - probe.mass) / (id_.num_layers * id_.num_q_heads);
    }
    return error;
  }

  TunedLength length_of(const TuneSolution& solution) const {
    std::vector<std::size_t> choice;  // of the units
    for (const std::vector<std::size_t>& chain : solution.choice) {
      choice.insert(choice.end(), chain.begin(), chain.end());
    }
    TunedLength length{.seqlen = seqlen_};
    const auto num_heads = static_cast<std::size_t>(id_.num_layers * id_.num_q_heads);
    for (std::size_t head = 0; head < num_heads; ++head) {
      if (head % static_cast<std::size_t>(id_.num_q_heads) == 0) length.layers.emplace_back();
      length.layers.back().push_back(static_cast<int>(choice[head * choice.size() / num_heads]));
    }
    return length;
  }

  Outcome verify(const TunedLength& length) {
    std::vector<LayerMethod> layers = all_layers(settings_[0]);
    for (std::size_t i = 0; i < layers.size(); ++i) {
      layers[i].heads =
          group_heads(settings_, length.layers[i], id_.num_q_heads / id_.num_kv_heads);
    }
    Outcome mean;
    for (Text& text : texts_) {
      const PrefillRun run =
          backend_->run(text.tokens, layers, {.hidden_positions = text.positions, .losses = true},
                        {.warmup = 1, .repeats = 1, .cpu_repeats = 1}, {});
      add_outcome(run, divergence(text, run.hidden), mean);
    }
    return mean;
  }

  Json measured(const TunedLength& length, const std::string& by, const TuneSolution& solution,
                double budget, const Outcome& outcome) const {
    std::map<std::string, int> heads;
    for (const std::vector<int>& layer : length.layers) {
      for (const int setting : layer) {
        ++heads[settings_[static_cast<std::size_t>(setting)].method->info().name];
      }
    }
    return {{"kl_from_dense", outcome.kl},
            {"loss_over_dense", outcome.loss - dense_.loss},
            {"pair_density", outcome.pair_density},
            {"planning_ms", outcome.planning_ms},
            {"attention_ms", outcome.attention_ms},
            {"dense_attention_ms", dense_.attention_ms},
            {"predicted_cost", solution.cost},
            {"predicted_error", solution.error},
            {"budget", budget},
            {"price", solution.price},
            {"by", by},
            {"heads", heads}};
  }

  double cost_of(const Outcome& outcome) const {
    return options_.objective == "time" ? outcome.planning_ms + outcome.attention_ms
                                        : outcome.pair_density;
  }

  struct Try {
    TunedLength length;
    Outcome outcome;
  };
  // Runs the whole model with a solution.
  Try attempt(const std::string& by, const TuneSolution& solution, double budget) {
    step(fmt::format("the whole model, {} tokens, settings by {}", seqlen_, by));
    Try one{.length = length_of(solution)};
    one.outcome = verify(one.length);
    one.length.measured = measured(one.length, by, solution, budget, one.outcome);
    log_info(
        "  budget {:.3g}: KL {:.4g}, {:.1f} + {:.1f} ms, predicted cost {:.1f}, dense {:.1f} ms",
        budget, one.outcome.kl, one.outcome.planning_ms, one.outcome.attention_ms, solution.cost,
        dense_.attention_ms);
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
  static TunedLength taken(Try& best, const Json& reached) {
    best.length.measured["reached_by"] = reached;
    return std::move(best.length);
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
      std::vector<std::vector<std::vector<std::size_t>>> tried;
      double low = 0.0;  // largest budget known to meet the target
      double high = std::numeric_limits<double>::infinity();
      for (int i = 0; i < kMaxTries; ++i) {
        const TuneSolution solution = solve_budget(units, budget);
        const bool is_known = std::ranges::find(tried, solution.choice) != tried.end();
        if (is_known) break;  // budgets this near differ by no head
        tried.push_back(solution.choice);
        Try one = attempt(by, solution, budget);
        const double kl = one.outcome.kl;
        least = std::min(least, kl);
        const bool meets = kl <= options_.value;
        if (meets) consider(std::move(one), by, best, reached);
        if (meets && (kl >= kCloseEnough * options_.value || solution.price == 0.0)) break;
        (meets ? low : high) = budget;
        double next = budget * std::clamp(kAim * options_.value / std::max(kl, 1e-12), 0.1, 10.0);
        if (next <= low || next >= high) {
          next = std::isfinite(high) ? std::sqrt(std::max(low, 0.01 * high) * high) : 10.0 * low;
        }
        budget = next;
      }
    }
    steps_ = first_step + granularities().size() * kMaxTries;
    if (best) return taken(*best, reached);
    log_warning(
        "{} at {} tokens: no setting that was tried meets it, the best has a KL of {:.4g}; "
        "all heads stay dense",
        target_text(options_), seqlen_, least);
    TuneSolution dense;
    dense.choice = {{0}};
    TunedLength length = length_of(dense);
    length.measured = measured(length, "model", dense, 0.0, dense_);
    return length;
  }

  const TuneOptions& options_;
  std::vector<TunedSetting> settings_;  // [0] is dense
  std::vector<std::string> names_;      // of the settings, in the journal
  std::shared_ptr<const Model> model_;
  TunedModel id_;
  std::optional<TunedFile> older_;
  std::vector<Text> texts_;
  std::unique_ptr<PrefillBackend> backend_;
  std::optional<TuneJournal> journal_;
  std::vector<double> effects_;  // [num_layers]; empty until measured
  std::int64_t seqlen_ = 0;      // the length at hand
  Outcome dense_;                // of it
  std::size_t steps_ = 0;
  std::size_t total_ = 0;
};

}  // namespace

void parse_tune_target(const std::string& text, const std::string& path, TuneOptions& options) {
  const std::size_t sign = text.find('=');
  const std::string name = text.substr(0, sign);
  const auto known = std::ranges::find(kTargetNames, name);
  const char* const begin =
      text.data() + std::min(text.size(), sign == std::string::npos ? text.size() : sign + 1);
  const char* const end = text.data() + text.size();
  const auto parsed = std::from_chars(begin, end, options.value);
  const double most = name == "loss" ? 100.0 : 1.0;
  if (known == kTargetNames.end() || begin == end || parsed.ec != std::errc() ||
      parsed.ptr != end || !(options.value > 0.0 && options.value <= most)) {
    throw ConfigError(fmt::format(
        "{}: found '{}', expected loss=NATS, relative_l2=SHARE or mass=SHARE, such as loss=0.01",
        path, text));
  }
  options.target = static_cast<TuneTarget>(known - kTargetNames.begin());
}

TunedFile tune(const TuneOptions& options) { return Tuner(options).run(); }

}  // namespace s2o
