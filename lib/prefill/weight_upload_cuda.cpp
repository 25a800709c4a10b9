#include <cuda_runtime.h>
#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <vector>

#include "kernels/common/device_buffer.h"
#include "kernels/common/parallel.h"
#include "kernels/common/pinned_buffer.h"
#include "kernels/common/stream.h"
#include "kernels/model/model_kernels.h"
#include "lib/core/error.h"
#include "lib/prefill/weight_upload.h"

namespace s2o {
namespace {

constexpr std::size_t kStagingBytes = 32 << 20;
constexpr float kRandomDeviation = 0.02f;

// Reading the file into one buffer overlaps with copying the other to the device.
class Uploader {
 public:
  explicit Uploader(CudaStream stream) : stream_(stream) {}

  // Rounds to bf16. The rows of `tensor` go to `target` on.
  void matrix(const HostTensor& tensor, std::uint16_t* target) {
    const DType dtype = tensor.info.dtype;
    const std::size_t element = dtype_bytes(dtype);
    for (std::size_t offset = 0; offset < tensor.info.num_bytes; offset += kStagingBytes) {
      const std::size_t bytes = std::min(kStagingBytes, tensor.info.num_bytes - offset);
      const std::byte* const staged = stage(tensor.data.get() + offset, bytes);
      std::uint16_t* const place = target + offset / element;
      const auto count = static_cast<std::int64_t>(bytes / element);
      if (dtype == DType::kBF16) {
        copy(place, staged, bytes);
      } else {
        // One conversion buffer is enough: copies and conversions follow each other in the stream.
        unconverted_.resize(kStagingBytes, "conversion of weights");
        copy(unconverted_.data(), staged, bytes);
        convert(dtype, place, count);
      }
      sent();
    }
  }

  void vector(const std::vector<float>& values, float* target) {
    if (values.empty()) return;
    const std::size_t bytes = values.size() * sizeof(float);
    if (bytes > kStagingBytes) throw Error("weights: a vector exceeds the staging buffer");
    copy(target, stage(reinterpret_cast<const std::byte*>(values.data()), bytes), bytes);
    sent();
  }

  // Features of `linear` from row `first` of a fused matrix on.
  void linear(const Linear& linear, const PlacedLinear& target, std::int64_t first) {
    matrix(linear.weight, target.weight + first * target.in_features);
    if (target.bias != nullptr) vector(linear.bias, target.bias + first);
  }

  void finish() { cuda_check(cudaStreamSynchronize(stream_), "upload of weights"); }

 private:
  struct Slot {
    PinnedBuffer buffer{kStagingBytes};
    Event free;
    bool used = false;
  };

  // Copies to the next buffer, once the device has read what it held.
  const std::byte* stage(const std::byte* source, std::size_t bytes) {
    throw_if_cancelled();
    Slot& slot = slots_[next_];
    if (slot.used) slot.free.synchronize();
    constexpr std::size_t kPiece = 1 << 20;  // on all threads: pages of the mapping are read here
    parallel_for(static_cast<std::int64_t>((bytes + kPiece - 1) / kPiece), [&](std::int64_t i) {
      const std::size_t begin = static_cast<std::size_t>(i) * kPiece;
      std::memcpy(slot.buffer.data() + begin, source + begin, std::min(kPiece, bytes - begin));
    });
    return slot.buffer.data();
  }
  void sent() {
    Slot& slot = slots_[next_];
    slot.free.record(stream_);
    slot.used = true;
    next_ = 1 - next_;
  }
  void copy(void* target, const std::byte* source, std::size_t bytes) {
    cuda_check(cudaMemcpyAsync(target, source, bytes, cudaMemcpyHostToDevice, stream_),
               "upload of weights");
  }
  void convert(DType dtype, std::uint16_t* target, std::int64_t count) {
    if (dtype == DType::kF32) {
      launch_fp32_to_bf16(reinterpret_cast<const float*>(unconverted_.data()), target, count,
                          stream_);
    } else if (dtype == DType::kF16) {
      launch_fp16_to_bf16(reinterpret_cast<const std::uint16_t*>(unconverted_.data()), target,
                          count, stream_);
    } else {
      throw UnsupportedError(
          fmt::format("weights: dtype is {}, expected F32, F16 or BF16", dtype_name(dtype)));
    }
  }

  CudaStream stream_;
  Slot slots_[2];
  int next_ = 0;
  DeviceBuffer<std::byte> unconverted_;
};

}  // namespace

void upload_weights(const Model& model, const PlacedWeights& target, CudaStream stream) {
  Uploader uploader(stream);
  uploader.matrix(model.embedding, target.embedding);
  for (std::size_t i = 0; i < model.layers.size(); ++i) {
    const LayerWeights& layer = model.layers[i];
    const PlacedLayer& place = target.layers[i];
    uploader.vector(layer.input_norm, place.input_norm);
    uploader.vector(layer.post_attention_norm, place.post_attention_norm);
    uploader.vector(layer.q_norm, place.q_norm);
    uploader.vector(layer.k_norm, place.k_norm);
    uploader.linear(layer.q, place.qkv, 0);
    uploader.linear(layer.k, place.qkv, layer.q.out_features());
    uploader.linear(layer.v, place.qkv, layer.q.out_features() + layer.k.out_features());
    uploader.linear(layer.o, place.o, 0);
    uploader.linear(layer.gate, place.gate_up, 0);
    uploader.linear(layer.up, place.gate_up, layer.gate.out_features());
    uploader.linear(layer.down, place.down, 0);
  }
  uploader.vector(model.final_norm, target.final_norm);
  if (target.output.weight != target.embedding) {
    uploader.matrix(model.output.weight, target.output.weight);
  }
  uploader.finish();
}

void make_random_weights(std::uint64_t seed, const PlacedWeights& target, int hidden_size,
                         int head_dim, CudaStream stream) {
  Uploader uploader(stream);
  std::uint64_t matrix = 0;
  const auto fill = [&](std::uint16_t* weight, std::int64_t count) {
    launch_random_normal({.out = weight,
                          .count = count,
                          .seed = seed,
                          .matrix = matrix++,
                          .deviation = kRandomDeviation},
                         stream);
  };
  const auto linear = [&](const PlacedLinear& place) {
    fill(place.weight, place.out_features * place.in_features);
    if (place.bias == nullptr) return;
    uploader.vector(std::vector<float>(static_cast<std::size_t>(place.out_features), 0.0f),
                    place.bias);
  };
  const auto ones = [&](float* place, int size) {
    if (place != nullptr) {
      uploader.vector(std::vector<float>(static_cast<std::size_t>(size), 1.0f), place);
    }
  };
  fill(target.embedding, target.output.out_features * target.output.in_features);
  for (const PlacedLayer& place : target.layers) {
    ones(place.input_norm, hidden_size);
    ones(place.post_attention_norm, hidden_size);
    ones(place.q_norm, head_dim);
    ones(place.k_norm, head_dim);
    for (const PlacedLinear* part : {&place.qkv, &place.o, &place.gate_up, &place.down}) {
      linear(*part);
    }
  }
  ones(target.final_norm, hidden_size);
  if (target.output.weight != target.embedding) linear(target.output);
  uploader.finish();
}

}  // namespace s2o
