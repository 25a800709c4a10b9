#include "lib/model/weights.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <fstream>
#include <functional>
#include <string>
#include <vector>

#include "lib/core/error.h"
#include "lib/input/formats/format.h"
#include "lib/model/tests/model_folder.h"

namespace s2o {
namespace {

using nlohmann::json;
using testing::HasSubstr;
using testing_support::copy_model;
using testing_support::data_folder;
using testing_support::edit_config;
using testing_support::message_of;
using testing_support::TempFolder;
using testing_support::write_file;

using Tensors = std::vector<HostTensor>;

HostTensor* find(Tensors& tensors, const std::string& name) {
  for (HostTensor& tensor : tensors) {
    if (tensor.info.name == name) return &tensor;
  }
  throw std::logic_error(name);
}

// Rewrites model.safetensors of a copied fixture.
void edit_weights(const std::filesystem::path& folder, const std::function<void(Tensors&)>& edit) {
  const std::filesystem::path path = folder / "model.safetensors";
  Tensors tensors;
  {
    const auto file = open_tensor_file(path);
    for (const TensorInfo& info : file->tensors()) tensors.push_back(file->read(info.name));
  }
  edit(tensors);
  format_of(path).write(path, tensors);
}

TEST(LoadModel, shipped_model_has_documented_parameters) {
  const auto model = load_model(data_folder() / "tiny-llama");
  EXPECT_EQ(model->layers.size(), 4u);
  EXPECT_EQ(model->embedding.info.dtype, DType::kBF16);
  EXPECT_EQ(model->output.weight.data.get(), model->embedding.data.get()) << "tied";
  std::int64_t parameters = model->embedding.num_elements() + 256;
  for (const LayerWeights& layer : model->layers) {
    parameters += 2 * 256;
    for (const Linear* linear :
         {&layer.q, &layer.k, &layer.v, &layer.o, &layer.gate, &layer.up, &layer.down}) {
      parameters += linear->weight.num_elements();
    }
  }
  EXPECT_NEAR(static_cast<double>(parameters), 5.84e6, 0.005e6);
}

TEST(LoadModel, sharded_model_reads_every_layer) {
  const auto model = load_model(testing_support::fixture_model("llama3_rope"));
  EXPECT_EQ(model->layers.size(), 3u);
  EXPECT_EQ(model->output.out_features(), 101);
}

TEST(LoadModel, missing_weight_is_named_with_shape_and_nearest) {
  const TempFolder folder;
  copy_model("llama_untied", folder.path());
  edit_weights(folder.path(), [](Tensors& tensors) {
    find(tensors, "model.layers.2.self_attn.k_proj.weight")->info.name =
        "model.layers.2.self_attn.k_prj.weight";
  });
  const std::string message = message_of<InputError>([&] { load_model(folder.path()); });
  EXPECT_THAT(message, HasSubstr("model.safetensors"));
  EXPECT_THAT(message, HasSubstr("tensor 'model.layers.2.self_attn.k_proj.weight': missing"));
  EXPECT_THAT(message, HasSubstr("[40, 32]"));
  EXPECT_THAT(message, HasSubstr("'model.layers.2.self_attn.k_prj.weight'"));
}

TEST(LoadModel, untied_model_without_output_projection_is_refused) {
  const TempFolder folder;
  copy_model("llama_tied", folder.path());
  edit_config(folder.path(), [](json& c) { c["tie_word_embeddings"] = false; });
  EXPECT_THAT(message_of<InputError>([&] { load_model(folder.path()); }),
              HasSubstr("tensor 'lm_head.weight': missing, expected [101, 32]"));
}

TEST(LoadModel, tied_model_ignores_stored_output_projection) {
  const TempFolder folder;
  copy_model("llama_untied", folder.path());
  edit_config(folder.path(), [](json& c) { c["tie_word_embeddings"] = true; });
  const auto model = load_model(folder.path());
  EXPECT_EQ(model->output.weight.data.get(), model->embedding.data.get());
}

TEST(LoadModel, wrong_shape_names_found_and_expected) {
  const TempFolder folder;
  copy_model("llama_untied", folder.path());
  edit_weights(folder.path(), [](Tensors& tensors) {
    find(tensors, "model.layers.1.mlp.down_proj.weight")->info.shape = {44, 32};
  });
  const std::string message = message_of<InputError>([&] { load_model(folder.path()); });
  EXPECT_THAT(message, HasSubstr("tensor 'model.layers.1.mlp.down_proj.weight'"));
  EXPECT_THAT(message, HasSubstr("shape is [44, 32], expected [32, 44]"));
}

TEST(LoadModel, every_size_of_the_config_is_checked_against_the_weights) {
  for (const char* key : {"hidden_size", "intermediate_size", "vocab_size", "num_attention_heads",
                          "num_key_value_heads", "head_dim", "num_hidden_layers"}) {
    SCOPED_TRACE(key);
    const TempFolder folder;
    copy_model("qwen3", folder.path());
    edit_config(folder.path(), [key](json& c) {
      c.erase("layer_types");
      c[key] = 2 * c[key].get<int>();
    });
    EXPECT_THAT(message_of<InputError>([&] { load_model(folder.path()); }),
                HasSubstr("model.safetensors: tensor 'model."));
  }
}

TEST(LoadModel, wrong_dtype_is_refused) {
  const TempFolder folder;
  copy_model("llama_untied", folder.path());
  edit_weights(folder.path(), [](Tensors& tensors) {
    find(tensors, "model.norm.weight")->info.dtype = DType::kI16;
  });
  EXPECT_THAT(message_of<InputError>([&] { load_model(folder.path()); }),
              HasSubstr("tensor 'model.norm.weight': dtype is I16, expected F32, F16 or BF16"));
}

TEST(LoadModel, missing_bias_is_refused) {
  const TempFolder folder;
  copy_model("llama_tied", folder.path());
  edit_config(folder.path(), [](json& c) { c["attention_bias"] = true; });
  EXPECT_THAT(message_of<InputError>([&] { load_model(folder.path()); }),
              HasSubstr("tensor 'model.layers.0.self_attn.q_proj.bias': missing, expected [32]"));
}

TEST(LoadModel, missing_shard_is_named) {
  const TempFolder folder;
  copy_model("llama3_rope", folder.path());
  std::filesystem::remove(folder / "model-00002-of-00002.safetensors");
  EXPECT_THAT(message_of<InputError>([&] { load_model(folder.path()); }),
              HasSubstr("model-00002-of-00002.safetensors' is missing"));
}

TEST(LoadModel, index_without_a_weight_is_refused) {
  const TempFolder folder;
  copy_model("llama3_rope", folder.path());
  const auto path = folder / "model.safetensors.index.json";
  json index = json::parse(std::ifstream(path));
  index["weight_map"].erase("model.norm.weight");
  write_file(path, index.dump());
  EXPECT_THAT(message_of<InputError>([&] { load_model(folder.path()); }),
              HasSubstr("index.json: tensor 'model.norm.weight': missing, expected [32]"));
}

TEST(LoadModel, folder_without_weights_names_what_it_looked_for) {
  const TempFolder folder;
  copy_model("llama_tied", folder.path());
  std::filesystem::remove(folder / "model.safetensors");
  EXPECT_THAT(message_of<InputError>([&] { load_model(folder.path()); }),
              HasSubstr("expected model.safetensors or model.safetensors.index.json"));
}

}  // namespace
}  // namespace s2o
