#include "lib/model/weights.h"

#include <fmt/format.h>

#include <memory>
#include <set>
#include <string>
#include <system_error>
#include <vector>

#include "lib/core/error.h"
#include "lib/core/log.h"
#include "lib/core/text.h"
#include "lib/input/formats/format.h"

namespace s2o {
namespace {

using Shape = std::vector<std::int64_t>;

// The tensors of a model directory, with a record of which ones were used.
class WeightFile {
 public:
  explicit WeightFile(const std::filesystem::path& folder) : path_(find(folder)) {
    file_ = open_tensor_file(path_);
    for (const TensorInfo& info : file_->tensors()) unused_.insert(info.name);
  }

  HostTensor read(const std::string& name, const Shape& shape) {
    if (unused_.erase(name) == 0) {
      const std::string nearest = nearest_name(name, {unused_.begin(), unused_.end()});
      throw InputError(fmt::format("{}: tensor '{}': missing, expected {} (from config.json){}",
                                   path_.string(), name, shape_text(shape),
                                   nearest.empty() ? "" : "; nearest name: '" + nearest + "'"));
    }
    HostTensor tensor = file_->read(name);
    if (tensor.info.shape != shape) {
      throw InputError(fmt::format("{}: tensor '{}': shape is {}, expected {} (from config.json)",
                                   tensor.file, name, shape_text(tensor.info.shape),
                                   shape_text(shape)));
    }
    const DType dtype = tensor.info.dtype;
    if (dtype != DType::kF32 && dtype != DType::kF16 && dtype != DType::kBF16) {
      throw InputError(fmt::format("{}: tensor '{}': dtype is {}, expected F32, F16 or BF16",
                                   tensor.file, name, dtype_name(dtype)));
    }
    return tensor;
  }

  // For a tensor that is legitimately there and has no use.
  void ignore(const std::string& name) { unused_.erase(name); }

  void warn_about_unused() {
    // Derived from the config; old checkpoints store it.
    std::erase_if(unused_, [](const auto& name) { return name.ends_with("rotary_emb.inv_freq"); });
    if (unused_.empty()) return;
    log_warning("{}: {} tensors are not part of the architecture and are ignored, e.g. '{}'",
                path_.string(), unused_.size(), *unused_.begin());
  }

 private:
  // Where both exist, transformers takes the single file.
  static std::filesystem::path find(const std::filesystem::path& folder) {
    for (const char* name : {"model.safetensors", "model.safetensors.index.json"}) {
      std::error_code ignored;  // what cannot be asked here fails with a message when it is opened
      if (std::filesystem::exists(folder / name, ignored)) return folder / name;
    }
    throw InputError(
        fmt::format("{}: no weights, expected model.safetensors or model.safetensors.index.json",
                    folder.string()));
  }

  std::filesystem::path path_;
  std::unique_ptr<TensorFile> file_;
  std::set<std::string> unused_;
};

class Loader {
 public:
  explicit Loader(const ModelConfig& config) : config_(config), files_(config.folder) {}

  std::shared_ptr<const Model> load() {
    auto model = std::make_shared<Model>();
    model->config = config_;
    const std::int64_t hidden = config_.hidden_size;
    model->embedding = files_.read("model.embed_tokens.weight", {config_.vocab_size, hidden});
    for (int layer = 0; layer < config_.num_layers; ++layer) {
      model->layers.push_back(read_layer(fmt::format("model.layers.{}.", layer)));
    }
    model->final_norm = vector("model.norm.weight", hidden);
    if (config_.tie_word_embeddings) {
      model->output.weight = model->embedding;
      files_.ignore("lm_head.weight");
    } else {
      model->output.weight = files_.read("lm_head.weight", {config_.vocab_size, hidden});
    }
    files_.warn_about_unused();
    return model;
  }

 private:
  std::vector<float> vector(const std::string& name, std::int64_t size) {
    return files_.read(name, {size}).to_float();
  }

  Linear linear(const std::string& name, std::int64_t out, std::int64_t in, bool has_bias) {
    Linear result;
    result.weight = files_.read(name + ".weight", {out, in});
    if (has_bias) result.bias = vector(name + ".bias", out);
    return result;
  }

  LayerWeights read_layer(const std::string& prefix) {
    const std::int64_t hidden = config_.hidden_size;
    const std::int64_t inner = config_.intermediate_size;
    const std::int64_t q_size = static_cast<std::int64_t>(config_.num_q_heads) * config_.head_dim;
    const std::int64_t kv_size = static_cast<std::int64_t>(config_.num_kv_heads) * config_.head_dim;
    const bool bias = config_.qkv_bias;
    LayerWeights layer;
    layer.input_norm = vector(prefix + "input_layernorm.weight", hidden);
    layer.q = linear(prefix + "self_attn.q_proj", q_size, hidden, bias);
    layer.k = linear(prefix + "self_attn.k_proj", kv_size, hidden, bias);
    layer.v = linear(prefix + "self_attn.v_proj", kv_size, hidden, bias);
    layer.o = linear(prefix + "self_attn.o_proj", hidden, q_size, config_.output_bias);
    if (config_.qk_norm) {
      layer.q_norm = vector(prefix + "self_attn.q_norm.weight", config_.head_dim);
      layer.k_norm = vector(prefix + "self_attn.k_norm.weight", config_.head_dim);
    }
    layer.post_attention_norm = vector(prefix + "post_attention_layernorm.weight", hidden);
    layer.gate = linear(prefix + "mlp.gate_proj", inner, hidden, config_.mlp_bias);
    layer.up = linear(prefix + "mlp.up_proj", inner, hidden, config_.mlp_bias);
    layer.down = linear(prefix + "mlp.down_proj", hidden, inner, config_.mlp_bias);
    return layer;
  }

  const ModelConfig& config_;
  WeightFile files_;
};

}  // namespace

std::shared_ptr<const Model> load_model(const std::filesystem::path& folder) {
  const ModelConfig config = read_model_config(folder);
  return Loader(config).load();
}

}  // namespace s2o
