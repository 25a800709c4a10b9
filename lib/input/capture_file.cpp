#include "lib/input/capture_file.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <cstring>
#include <iterator>
#include <set>
#include <utility>

#include "kernels/common/bf16.h"

namespace s2o {
namespace {

constexpr std::string_view kPrefix = "layer.";
constexpr std::array<std::string_view, 3> kTensors = {"q", "k", "v"};

// The layer in "layer.12.q"; -1 when the name is no such name.
int layer_of(const std::string& name) {
  if (!name.starts_with(kPrefix)) return -1;
  int layer = -1;
  std::from_chars(name.data() + kPrefix.size(), name.data() + name.size(), layer);
  if (layer < 0) return -1;
  // Writing the name again also refuses "layer.007.q" and "layer.1.query".
  for (const std::string_view tensor : kTensors) {
    if (name == capture_tensor_name(layer, tensor)) return layer;
  }
  return -1;
}

// The values as the dtype stores them; fp32 is not copied: `values` must outlive the result.
HostTensor stored(const std::vector<float>& values, const std::string& name, int heads,
                  const AttentionInput& input) {
  HostTensor tensor;
  tensor.info.name = name;
  tensor.info.shape = {heads, input.problem.seqlen, input.problem.head_dim};
  if (input.dtype == StorageDType::kF32) {
    tensor.info.dtype = DType::kF32;
    tensor.info.num_bytes = values.size() * sizeof(float);
    tensor.data = {std::shared_ptr<void>(), reinterpret_cast<const std::byte*>(values.data())};
    return tensor;
  }
  const bool is_bf16 = input.dtype == StorageDType::kBF16;
  tensor.info.dtype = is_bf16 ? DType::kBF16 : DType::kF16;
  tensor.info.num_bytes = values.size() * sizeof(std::uint16_t);
  std::shared_ptr<std::byte[]> bytes(new std::byte[tensor.info.num_bytes]);
  for (std::size_t i = 0; i < values.size(); ++i) {
    const std::uint16_t bits = is_bf16 ? float_to_bf16(values[i]) : float_to_fp16(values[i]);
    std::memcpy(bytes.get() + i * sizeof bits, &bits, sizeof bits);
  }
  tensor.data = {bytes, bytes.get()};
  return tensor;
}

template <class Name>
void add_tensors(std::vector<HostTensor>& tensors, const AttentionInput& input, Name&& name_of) {
  const Problem& problem = input.problem;
  tensors.push_back(stored(input.q, name_of("q"), problem.num_q_heads, input));
  tensors.push_back(stored(input.k, name_of("k"), problem.num_kv_heads, input));
  tensors.push_back(stored(input.v, name_of("v"), problem.num_kv_heads, input));
}

}  // namespace

std::string capture_tensor_name(int layer, std::string_view tensor) {
  return fmt::format("{}{}.{}", kPrefix, layer, tensor);
}

std::vector<int> captured_layers(const TensorFile& file) {
  std::set<int> layers;
  for (const TensorInfo& info : file.tensors()) {
    if (const int layer = layer_of(info.name); layer >= 0) layers.insert(layer);
  }
  return {layers.begin(), layers.end()};
}

void write_capture(const std::filesystem::path& path, const std::vector<AttentionInput>& inputs,
                   const TensorMetadata& metadata, std::vector<HostTensor> others) {
  std::vector<HostTensor> tensors;
  for (const AttentionInput& input : inputs) {
    add_tensors(tensors, input, [&input](std::string_view tensor) {
      return capture_tensor_name(input.layer, tensor);
    });
  }
  std::move(others.begin(), others.end(), std::back_inserter(tensors));
  output_format(path, tensors.size()).write(path, tensors, metadata);
}

void write_dump(const std::filesystem::path& path, const AttentionInput& input,
                const TensorMetadata& metadata) {
  std::vector<HostTensor> tensors;
  add_tensors(tensors, input, [](std::string_view tensor) { return std::string(tensor); });
  output_format(path, tensors.size()).write(path, tensors, metadata);
}

}  // namespace s2o
