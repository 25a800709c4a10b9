#include "lib/tune/measure.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <span>
#include <utility>

#include "lib/core/atomic_file.h"
#include "lib/core/file_identity.h"
#include "lib/core/printable.h"
#include "lib/core/version.h"
#include "lib/prefill/measures.h"
#include "lib/prefill/prompts.h"

namespace s2o {
namespace {

using Json = nlohmann::ordered_json;

// A layer's effect on the model is measured where its output is this wrong: enough to be seen
// beside rounding, not so much that errors would not add up any more.
constexpr double kProbedError = 0.02;  // squared, relative
constexpr double kLeastError = 1e-6;   // of which a layer's effect can still be seen

double last_of(const PrefillRun& run, double PrefillSplit::*part) {
  return run.repeats.empty() ? 0.0 : run.repeats.back().*part;
}

}  // namespace

TuneMeasurer::TuneMeasurer(const TuneOptions& options, const std::vector<TunedSetting>& settings,
                           Step step)
    : options_(options),
      settings_(settings),
      step_(std::move(step)),
      model_(load_model(options.model)) {
  for (const TunedSetting& setting : settings_) {
    names_.push_back(setting.method->info().name + " " + json_text(setting.params->to_json()));
  }
  const ModelConfig& config = model_->config;
  id_ = {.name = config.name,
         .id = weights_id(options.model),
         .num_layers = config.num_layers,
         .num_q_heads = config.num_q_heads,
         .num_kv_heads = config.num_kv_heads,
         .head_dim = config.head_dim};
  const std::int64_t longest = std::ranges::max(options_.seqlens);
  for (const std::filesystem::path& path : options_.tokens) {
    Text text{.name = path.filename().string(), .file = read_token_file(path)};
    text.tokens = select_tokens(text.file, options_.offset, longest, config.vocab_size);
    texts_.push_back(std::move(text));
  }
}

void TuneMeasurer::prepare() {
  // What takes minutes must not end in a file that cannot be written.
  static_cast<void>(AtomicFile(options_.out));
  backend_ = make_prefill_backend(
      {.config = model_->config, .weights = model_, .cublas_folder = options_.cublas_folder},
      options_.device, options_.kernel);
  journal_.emplace(options_.out.string() + ".measured.jsonl", header(),
                   static_cast<std::size_t>(id_.num_q_heads), options_.resume);
  backend_->prepare(std::ranges::max(options_.seqlens));
}

// Everything that what is measured depends on.
Json TuneMeasurer::header() const {
  Json texts = Json::array();
  for (const Text& text : texts_) texts.push_back(tokens_hash(text.tokens));
  return {{"model", id_.id},
          {"config", file_identity(options_.model / "config.json").hash},
          {"texts", texts},
          {"density", options_.objective == "density"},
          {"logit_positions", options_.logit_positions},
          {"device", backend_->context()["device"]},
          {"kernel", backend_->kernel()},
          {"commit", git_commit()}};
}

Json TuneMeasurer::context() const {
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

std::vector<LayerMethod> TuneMeasurer::all_layers(const TunedSetting& setting) const {
  return std::vector<LayerMethod>(static_cast<std::size_t>(id_.num_layers),
                                  {setting.method, setting.params.get()});
}

void TuneMeasurer::enter_length(std::int64_t seqlen) {
  seqlen_ = seqlen;
  dense_ = {};
  for (std::size_t t = 0; t < texts_.size(); ++t) {
    Text& text = texts_[t];
    step_(fmt::format("{} settings on every head, {} tokens of {}", settings_.size(), seqlen,
                      text.name));
    text.tokens = select_tokens(text.file, options_.offset, seqlen, model_->config.vocab_size);
    text.positions =
        logit_rows({.name = text.name, .tokens = text.tokens}, options_.logit_positions);
    text.dense_logits.clear();
    std::vector<std::size_t> missing;  // settings that some layer misses
    std::vector<bool> is_listed(settings_.size());
    ProbeRequest request;
    for (int layer = 0; layer < id_.num_layers; ++layer) {
      bool is_missing = false;
      for (std::size_t i = 0; i < settings_.size(); ++i) {
        if (journal_->probes(seqlen, t, layer, names_[i]) != nullptr) continue;
        is_missing = true;
        if (!is_listed[i]) missing.push_back(i);
        is_listed[i] = true;
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

void TuneMeasurer::add_outcome(const PrefillRun& run, double kl, ModelOutcome& mean) const {
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

double TuneMeasurer::divergence(Text& text, const std::vector<float>& hidden) {
  const auto width = static_cast<std::size_t>(model_->config.hidden_size);
  const auto vocab = static_cast<std::size_t>(model_->config.vocab_size);
  const std::size_t rows = text.positions.size();
  const auto chunk = static_cast<std::size_t>(PrefillBackend::kLogitRows);
  const auto read = [&](const std::vector<float>& from, std::size_t first, float* to) {
    const std::size_t count = std::min(chunk, rows - first);
    backend_->logits_of(std::span(from).subspan(first * width, count * width), {to, count * vocab});
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

// Squared error of a layer, relative, with a setting in all of its heads.
double TuneMeasurer::layer_error(std::size_t text, int layer, std::size_t setting) const {
  double error = 0.0;
  double reference = 0.0;
  for (const HeadProbe& head : probes(text, layer, setting)) {
    error += head.error;
    reference += head.reference;
  }
  return relative_error(error, reference);
}

const std::vector<HeadProbe>& TuneMeasurer::probes(std::size_t text, int layer,
                                                   std::size_t setting) const {
  return *journal_->probes(seqlen_, text, layer, names_[setting]);
}

std::vector<double> TuneMeasurer::measure_effects() {
  std::vector<double> effects;
  for (int layer = 0; layer < id_.num_layers; ++layer) {
    std::optional<double> effect = journal_->effect(seqlen_, layer);
    step_(fmt::format("effect of layer {} on predictions, {} tokens", layer, seqlen_));
    if (!effect) {
      const std::size_t t = static_cast<std::size_t>(layer) % texts_.size();
      const std::size_t setting = probed_setting(t, layer);
      const double error = layer_error(t, layer, setting);
      std::vector<LayerMethod> layers = all_layers(settings_[0]);
      layers[static_cast<std::size_t>(layer)] = {settings_[setting].method,
                                                 settings_[setting].params.get()};
      Text& text = texts_[t];
      const PrefillRun run = backend_->run(text.tokens, layers,
                                           {.hidden_positions = text.positions, .densities = false},
                                           {.warmup = 1, .repeats = 0, .cpu_repeats = 1}, {});
      // A KL of almost nothing may be below 0 by rounding.
      effect = error > kLeastError ? std::max(0.0, divergence(text, run.hidden)) / error : 0.0;
      journal_->add_effect(seqlen_, layer, *effect);
    }
    effects.push_back(*effect);
  }
  // A layer that seems to have none has less than can be seen; one that nothing makes wrong here
  // may be wrong at another length.
  const double mean =
      std::accumulate(effects.begin(), effects.end(), 0.0) / static_cast<double>(effects.size());
  for (double& effect : effects) effect = effect == 0.0 ? mean : std::max(effect, 0.01 * mean);
  return effects;
}

// Whose error is nearest to what a layer's effect is measured at.
std::size_t TuneMeasurer::probed_setting(std::size_t text, int layer) const {
  std::size_t best = 1;
  double best_distance = std::numeric_limits<double>::infinity();
  for (std::size_t i = 1; i < settings_.size(); ++i) {
    const double error = layer_error(text, layer, i);
    if (!(error > 0.0)) continue;
    const double distance = std::abs(std::log(error / kProbedError));
    if (distance < best_distance) best = i;
    best_distance = std::min(best_distance, distance);
  }
  return best;
}

ModelOutcome TuneMeasurer::run(const TunedLength& length) {
  std::vector<LayerMethod> layers = all_layers(settings_[0]);
  for (std::size_t i = 0; i < layers.size(); ++i) {
    layers[i].heads = group_heads(settings_, length.layers[i], id_.num_q_heads / id_.num_kv_heads);
  }
  ModelOutcome mean;
  for (Text& text : texts_) {
    const PrefillRun run =
        backend_->run(text.tokens, layers, {.hidden_positions = text.positions, .losses = true},
                      {.warmup = 1, .repeats = 1, .cpu_repeats = 1}, {});
    add_outcome(run, divergence(text, run.hidden), mean);
  }
  return mean;
}

}  // namespace s2o
