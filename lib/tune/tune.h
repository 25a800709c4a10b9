// `s2o tune`: measures what settings of methods cost and lose on every head of a model, and chooses
// for each the one that meets a budget at the least sum of costs (solver.h). docs/tuning.md.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <string>
#include <vector>

#include "lib/config/run_config.h"
#include "lib/input/attention_input.h"
#include "lib/methods/tuned/tuned_file.h"

namespace s2o {

// What all heads together may lose.
enum class TuneTarget {
  kLoss,        // KL from dense, nats: the loss that is added where dense predictions are the truth
  kRelativeL2,  // root of the mean over layers of |out - dense|^2 / |dense|^2
  kMass,        // least mean over heads of the softmax mass of the visited keys
};

struct TuneOptions {
  std::filesystem::path model;                // Hugging Face model directory
  std::vector<std::filesystem::path> tokens;  // texts; errors and costs are means over them
  std::int64_t offset = 0;                    // first token of each that is used
  std::vector<std::int64_t> seqlens;
  // Each the name of a method, whose sweep is taken, or an entry of a config's "methods".
  std::vector<std::string> methods;
  TuneTarget target = TuneTarget::kLoss;
  double value = 0.0;
  std::string objective = "time";  // or "density", of pairs
  int logit_positions = 512;       // rows of each text whose logits are compared with dense
  // Of what each takes a setting: every "head", every "layer" or the whole "model"; "best": that of
  // the three which the model runs fastest.
  std::string by = "best";
  bool resume = false;  // take what earlier runs have measured
  bool extend = false;  // keep other lengths of `out`, and the effects of layers
  DeviceChoice device;
  std::string kernel = "auto";
  std::string cublas_folder;
  std::filesystem::path out;
  // `done` of `total` steps are done, `what` comes next; may be empty.
  std::function<void(std::size_t done, std::size_t total, const std::string& what)> progress;
};

// "loss=0.01". ConfigError "<path>: ..." for anything else.
void parse_tune_target(const std::string& text, const std::string& path, TuneOptions& options);

// Writes and returns the file. What was measured lies in `<out>.measured.jsonl`, also after an
// InterruptedError. ConfigError for methods that cannot be tuned and settings that an
// older file contradicts; InputError for texts that are too short; UnsupportedError as
// make_prefill_backend.
TunedFile tune(const TuneOptions& options);

}  // namespace s2o
