// What `s2o tune` measures of a model: settings on every head of a layer, what a layer's error does
// to the predictions, and the whole model with a choice of settings. docs/tuning.md.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "lib/methods/tuned/tuned_file.h"
#include "lib/model/tokens.h"
#include "lib/model/weights.h"
#include "lib/prefill/prefill_backend.h"
#include "lib/tune/tune.h"
#include "lib/tune/tune_journal.h"

namespace s2o {

// One way to run the whole model, and what it does to its predictions; means over the texts.
struct ModelOutcome {
  double kl = 0.0;    // from dense, nats
  double loss = 0.0;  // held out, nats
  double planning_ms = 0.0;
  double attention_ms = 0.0;
  double pair_density = 1.0;
};

// Squared error over squared reference. An all-zero output that is right errs by nothing.
inline double relative_error(double error, double reference) {
  return error == 0.0 ? 0.0 : error / reference;
}

class TuneMeasurer {
 public:
  // Called before each prefill or more; `what` comes next. May throw to end the measuring.
  using Step = std::function<void(const std::string& what)>;

  // Reads the model and the texts. settings[0] is dense. InputError for texts that are shorter
  // than the longest length. Both references must outlive this.
  TuneMeasurer(const TuneOptions& options, const std::vector<TunedSetting>& settings, Step step);

  const TunedModel& id() const { return id_; }
  std::size_t num_texts() const { return texts_.size(); }

  // Opens the device and the journal (options.resume); before everything below.
  void prepare();
  // Of a tuned file: device, commit and texts.
  nlohmann::ordered_json context() const;

  // Prefills every text with dense attention, and what probes are missing of its layers.
  void enter_length(std::int64_t seqlen);
  // Of the length at hand.
  std::int64_t seqlen() const { return seqlen_; }
  const ModelOutcome& dense() const { return dense_; }
  // [num_q_heads]
  const std::vector<HeadProbe>& probes(std::size_t text, int layer, std::size_t setting) const;

  // KL of the model by the squared relative error of each layer alone, [num_layers]; how much a
  // layer matters is taken to be the same at other lengths, where the whole is measured again.
  std::vector<double> measure_effects();

  // The whole model with a setting for every head.
  ModelOutcome run(const TunedLength& length);

 private:
  struct Text {
    std::string name;
    TokenFile file;
    std::vector<std::int32_t> tokens;     // of the length at hand
    std::vector<std::int64_t> positions;  // whose logits are compared
    std::vector<float> dense_hidden;
    std::vector<float> dense_logits;  // filled when first needed
  };

  nlohmann::ordered_json header() const;
  std::vector<LayerMethod> all_layers(const TunedSetting& setting) const;
  void add_outcome(const PrefillRun& run, double kl, ModelOutcome& mean) const;
  double divergence(Text& text, const std::vector<float>& hidden);
  double layer_error(std::size_t text, int layer, std::size_t setting) const;
  std::size_t probed_setting(std::size_t text, int layer) const;

  const TuneOptions& options_;
  const std::vector<TunedSetting>& settings_;
  Step step_;
  std::vector<std::string> names_;  // of the settings, in the journal
  std::shared_ptr<const Model> model_;
  TunedModel id_;
  std::vector<Text> texts_;
  std::unique_ptr<PrefillBackend> backend_;
  std::optional<TuneJournal> journal_;
  std::int64_t seqlen_ = 0;
  ModelOutcome dense_;
};

}  // namespace s2o
