#include "lib/model/capture.h"

#include <fmt/format.h>

#include <algorithm>
#include <memory>
#include <numeric>
#include <string>
#include <utility>

#include "lib/core/atomic_file.h"
#include "lib/core/error.h"
#include "lib/core/memory.h"
#include "lib/input/capture_file.h"
#include "lib/model/tokens.h"

namespace s2o {
namespace {

// An output that cannot be written must not cost the user a whole prefill.
void check_output(const std::filesystem::path& out) {
  const Format& format = format_of(out);
  if (!format.can_write()) {
    throw UnsupportedError(
        fmt::format("{}: s2o cannot write the {} format", out.string(), format.name()));
  }
  const AtomicFile probe(out);  // created and removed again
}

std::vector<int> checked_layers(std::vector<int> layers, const ModelConfig& config) {
  if (layers.empty()) {
    layers.resize(static_cast<std::size_t>(config.num_layers));
    std::iota(layers.begin(), layers.end(), 0);
  }
  std::sort(layers.begin(), layers.end());
  for (std::size_t i = 0; i < layers.size(); ++i) {
    if (layers[i] < 0 || layers[i] >= config.num_layers) {
      throw ConfigError(fmt::format("layers: found {}, expected layers in [0, {}) (of {})",
                                    layers[i], config.num_layers, config.folder.string()));
    }
    if (i > 0 && layers[i] == layers[i - 1]) {
      throw ConfigError(fmt::format("layers: {} occurs twice", layers[i]));
    }
  }
  return layers;
}

// The captured layers are held until the file is written, in fp32 and as stored.
std::uint64_t capture_bytes(const ModelConfig& config, std::int64_t seqlen, std::size_t layers) {
  const double elements = static_cast<double>(layers) * static_cast<double>(seqlen) *
                          config.head_dim * (config.num_q_heads + 2.0 * config.num_kv_heads);
  return static_cast<std::uint64_t>(elements * (sizeof(float) + sizeof(std::uint16_t)));
}

}  // namespace

CaptureSummary capture(const CaptureOptions& options) {
  check_output(options.out);
  const std::shared_ptr<const Model> model = load_model(options.model);
  CaptureSummary summary;
  summary.layers = checked_layers(options.layers, model->config);
  const TokenFile file = read_token_file(options.tokens);
  const std::int64_t seqlen = options.seqlen != 0
                                  ? options.seqlen
                                  : static_cast<std::int64_t>(file.ids.size()) - options.offset;
  const std::vector<std::int32_t> tokens =
      select_tokens(file, options.offset, seqlen, model->config.vocab_size);
  require_memory(prefill_bytes(model->config, seqlen) +
                     capture_bytes(model->config, seqlen, summary.layers.size()),
                 fmt::format("capture of {} layers at {} tokens", summary.layers.size(), seqlen));

  Prefill prefill(
      model, tokens,
      {.dtype = options.dtype,
       .allow_nonfinite = options.allow_nonfinite,
       .name = fmt::format("{}/{}", model->config.name, options.tokens.stem().string())});
  const int total = summary.layers.back() + 1;
  std::vector<AttentionInput> inputs;
  for (const int layer : summary.layers) {
    const int first = prefill.next_layer();
    prefill.run_to(layer, dense_attention, [&](int done, int) {
      if (options.progress) options.progress(first + done, total);
    });
    inputs.push_back(prefill.layer_input());
  }
  if (options.progress) options.progress(total, total);
  write_capture(options.out, inputs,
                {{"model", model->config.name},
                 {"tokens", options.tokens.filename().string()},
                 {"offset", std::to_string(options.offset)},
                 {"seqlen", std::to_string(seqlen)},
                 {"dtype", std::string(storage_dtype_name(options.dtype))}});
  summary.problem = inputs.front().problem;
  summary.times = prefill.times();
  summary.file_bytes = std::filesystem::file_size(options.out);
  return summary;
}

}  // namespace s2o
