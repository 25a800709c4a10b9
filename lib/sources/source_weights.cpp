// Q, K, V of a model on a token sequence: CPU prefill of the weights, captured post-RoPE.
//
// One prefill per (model, tokens, seqlen) serves all layers: cells come in ascending order of their
// layer, and each goes on where the one before it stopped. Between cells only the residual stream
// [seqlen, hidden_size] is kept (in fp32), never a captured layer.
#include <fmt/format.h>

#include <algorithm>
#include <memory>
#include <mutex>
#include <numeric>
#include <string>
#include <utility>
#include <vector>

#include "lib/config/json_reader.h"
#include "lib/core/error.h"
#include "lib/core/log.h"
#include "lib/model/prefill.h"
#include "lib/model/tokens.h"
#include "lib/sources/source.h"

namespace s2o {
namespace {

// Shared by the cells of one entry. Cells may be loaded in any order and repeatedly: going back
// starts the prefill again.
class PrefillSession {
 public:
  PrefillSession(std::shared_ptr<const Model> model, std::vector<std::int32_t> tokens,
                 int last_layer, PrefillOptions options)
      : model_(std::move(model)),
        tokens_(std::move(tokens)),
        last_layer_(last_layer),
        options_(std::move(options)) {}

  AttentionInput load(std::int64_t seqlen, int layer) {
    const std::lock_guard lock(mutex_);
    // Owned here meanwhile: an exception in the middle of a layer must not leave a state behind.
    std::unique_ptr<Prefill> prefill = std::move(prefill_);
    if (!prefill || prefill->seqlen() != seqlen || prefill->next_layer() > layer) {
      prefill.reset();
      const std::vector<std::int32_t> tokens(tokens_.begin(), tokens_.begin() + seqlen);
      prefill = std::make_unique<Prefill>(model_, tokens, options_);
    }
    const int first = prefill->next_layer();
    prefill->run_to(layer, dense_attention, [&](int done, int total) {
      log_info("{}: {} tokens: prefill of layer {} ({} of {})", options_.name, seqlen,
               first + done - 1, done, total);
    });
    AttentionInput input = prefill->layer_input();
    if (layer != last_layer_) prefill_ = std::move(prefill);
    return input;
  }

 private:
  std::shared_ptr<const Model> model_;
  std::vector<std::int32_t> tokens_;  // of the longest seqlen
  int last_layer_;
  PrefillOptions options_;
  std::mutex mutex_;
  std::unique_ptr<Prefill> prefill_;
};

std::vector<int> read_layers(const JsonReader& reader, int num_layers) {
  std::vector<int> layers(static_cast<std::size_t>(num_layers));
  std::iota(layers.begin(), layers.end(), 0);
  const std::vector<std::int64_t> chosen = reader.get_ints("layers", /*required=*/false);
  if (chosen.empty()) return layers;
  layers.clear();
  for (const std::int64_t layer : chosen) {
    if (layer < 0 || layer >= num_layers) {
      throw ConfigError(fmt::format("{}: found {}, expected layers in [0, {}) (the model's)",
                                    reader.path_of("layers"), layer, num_layers));
    }
    layers.push_back(static_cast<int>(layer));
  }
  std::sort(layers.begin(), layers.end());
  return layers;
}

}  // namespace

std::vector<InputCell> expand_weights_source(const nlohmann::ordered_json& entry,
                                             const std::string& path,
                                             const SourceOptions& options) {
  const JsonReader reader(entry, path,
                          {"source", "name", "model", "tokens", "seqlen", "layers", "offset"});
  const std::filesystem::path folder = options.base_folder / reader.get_string("model");
  const std::filesystem::path tokens_path = options.base_folder / reader.get_string("tokens");
  const std::vector<std::int64_t> seqlens = reader.get_ints("seqlen", /*required=*/true, 1);
  const std::int64_t offset = reader.get_int("offset", 0, 0);

  const std::shared_ptr<const Model> model = load_model(folder);
  const std::vector<int> layers = read_layers(reader, model->config.num_layers);
  const std::string name = reader.get_string(
      "name", fmt::format("{}/{}", model->config.name, tokens_path.stem().string()));
  const TokenFile token_file = read_token_file(tokens_path);
  const std::int64_t longest = *std::max_element(seqlens.begin(), seqlens.end());
  auto session = std::make_shared<PrefillSession>(
      model, select_tokens(token_file, offset, longest, model->config.vocab_size), layers.back(),
      PrefillOptions{
          .dtype = options.dtype, .allow_nonfinite = options.allow_nonfinite, .name = name});

  InputIdentity identity;
  identity.origin["model"] = reader.get_string("model");
  identity.origin["token_file"] = reader.get_string("tokens");
  identity.origin["offset"] = offset;
  identity.facts["source"] = "weights";
  add_file_identity(identity, "model_", file_identity(folder));
  identity.facts["dtype"] = storage_dtype_name(options.dtype);

  std::vector<InputCell> cells;
  for (const std::int64_t seqlen : seqlens) {
    identity.facts["tokens_hash"] =
        tokens_hash(select_tokens(token_file, offset, seqlen, model->config.vocab_size));
    for (const int layer : layers) {
      cells.push_back({.name = name,
                       .layer = layer,
                       .seqlen = seqlen,
                       .names_layer = true,
                       .identity = identity,
                       .load = [session, seqlen, layer] { return session->load(seqlen, layer); }});
    }
  }
  return cells;
}

}  // namespace s2o
