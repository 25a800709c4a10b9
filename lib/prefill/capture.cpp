#include "lib/prefill/capture.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <cstring>
#include <memory>
#include <string>
#include <utility>

#include "lib/core/atomic_file.h"
#include "lib/core/error.h"
#include "lib/core/memory.h"
#include "lib/core/printable.h"
#include "lib/input/capture_file.h"
#include "lib/model/tokens.h"
#include "lib/prefill/prefill_backend.h"

namespace s2o {
namespace {

// An output that cannot be written must not cost the user a whole prefill.
void check_output(const CaptureOptions& options) {
  const bool logits_alone = options.layers.empty() && options.logit_rows > 0;
  output_format(options.out, logits_alone ? 1 : 3);
  const AtomicFile probe(options.out);  // created and removed again
}

std::vector<CapturedLayer> checked_layers(const CaptureOptions& options,
                                          const ModelConfig& config) {
  std::vector<CapturedLayer> layers = options.layers;
  if (layers.empty() && options.logit_rows == 0) {
    for (int i = 0; i < config.num_layers; ++i) layers.push_back({i});
  }
  std::sort(layers.begin(), layers.end(),
            [](const auto& a, const auto& b) { return a.layer < b.layer; });
  for (std::size_t i = 0; i < layers.size(); ++i) {
    const auto [layer, kv_group] = layers[i];
    if (layer < 0 || layer >= config.num_layers) {
      throw ConfigError(fmt::format("layers: found {}, expected layers in [0, {}) (of {})", layer,
                                    config.num_layers, config.folder.string()));
    }
    if (kv_group < -1 || kv_group >= config.num_kv_heads) {
      throw ConfigError(fmt::format("layers: found {}:{}, expected a KV group in [0, {}) (of {})",
                                    layer, kv_group, config.num_kv_heads, config.folder.string()));
    }
    if (i > 0 && layer == layers[i - 1].layer) {
      throw ConfigError(fmt::format("layers: {} occurs twice", layer));
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

HostTensor logits_tensor(const std::vector<float>& logits, std::int64_t rows) {
  HostTensor tensor;
  tensor.info = {.name = "logits",
                 .dtype = DType::kF32,
                 .shape = {rows, static_cast<std::int64_t>(logits.size()) / rows},
                 .num_bytes = logits.size() * sizeof(float)};
  tensor.data = {std::shared_ptr<void>(), reinterpret_cast<const std::byte*>(logits.data())};
  return tensor;
}

}  // namespace

CapturedLayer parse_captured_layer(const std::string& text, const std::string& path) {
  // The whole of [begin, end) as a number >= 0.
  const auto is_number = [](const char* begin, const char* end, int& value) {
    const auto [next, error] = std::from_chars(begin, end, value);
    return error == std::errc() && next == end && value >= 0;
  };
  CapturedLayer result;
  const char* const begin = text.data();
  const char* const end = begin + text.size();
  const char* const colon = std::find(begin, end, ':');
  if (is_number(begin, colon, result.layer) &&
      (colon == end || is_number(colon + 1, end, result.kv_group))) {
    return result;
  }
  throw ConfigError(fmt::format(
      "{}: found '{}', expected a layer as in 3, or one of its KV groups as in 3:1", path, text));
}

CaptureSummary capture(const CaptureOptions& options) {
  check_output(options);
  const std::shared_ptr<const Model> model = load_model(options.model);
  const ModelConfig& config = model->config;
  const std::vector<CapturedLayer> layers = checked_layers(options, config);
  const TokenFile file = read_token_file(options.tokens);
  const std::int64_t seqlen = options.seqlen != 0
                                  ? options.seqlen
                                  : static_cast<std::int64_t>(file.ids.size()) - options.offset;
  const std::vector<std::int32_t> tokens =
      select_tokens(file, options.offset, seqlen, config.vocab_size);
  if (options.logit_rows < 0 || options.logit_rows > seqlen) {
    throw ConfigError(fmt::format("logits: found {}, expected a number of rows in [0, {}]",
                                  options.logit_rows, seqlen));
  }
  require_memory(capture_bytes(config, seqlen, layers.size()),
                 fmt::format("capture of {} layers at {} tokens", layers.size(), seqlen));

  const std::unique_ptr<PrefillBackend> backend = make_prefill_backend(
      {.config = config,
       .weights = model,
       .dtype = options.dtype,
       .name = fmt::format("{}/{}", config.name, options.tokens.stem().string()),
       .allow_nonfinite = options.allow_nonfinite,
       .cublas_folder = options.cublas_folder},
      options.device);
  const Method& dense = find_method("dense");
  const ParamSet params(dense.info().params);
  PrefillWanted wanted;
  for (const CapturedLayer& layer : layers) wanted.layers.push_back(layer.layer);
  for (std::int64_t row = seqlen - options.logit_rows; row < seqlen; ++row) {
    wanted.logit_positions.push_back(row);
  }
  const std::vector<LayerMethod> methods(static_cast<std::size_t>(config.num_layers),
                                         {&dense, &params});
  PrefillRun run = backend->run(tokens, methods, wanted,
                                {.warmup = 0, .repeats = 0, .cpu_repeats = 1}, options.progress);
  for (std::size_t i = 0; i < layers.size(); ++i) {
    if (layers[i].kv_group < 0) continue;
    AttentionInput& input = run.layer_inputs[i];
    const int group = input.problem.group_size();
    input = head_slice(input, {.first = layers[i].kv_group * group, .count = group});
  }
  std::vector<HostTensor> others;
  if (options.logit_rows > 0) others.push_back(logits_tensor(run.logits, options.logit_rows));
  write_capture(options.out, run.layer_inputs,
                {{"model", printable(config.name)},
                 {"tokens", printable(options.tokens.filename().string())},
                 {"offset", std::to_string(options.offset)},
                 {"seqlen", std::to_string(seqlen)},
                 {"dtype", std::string(storage_dtype_name(options.dtype))},
                 {"device", backend->name()}},
                std::move(others));
  return {.layers = wanted.layers,
          .seqlen = seqlen,
          .file_bytes = std::filesystem::file_size(options.out)};
}

}  // namespace s2o
