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

void upload_weights(const Model& model, const ModelSlice& slice, const PlacedWeights& target,
                    CudaStream stream) {
  Uploader uploader(stream);
  uploader.matrix(model.embedding, target.embedding);
  for (std::size_t i = 0; i < model.layers.size(); ++i) {
    const LayerWeights layer = slice.is_whole()
                                   ? model.layers[i]
                                   : slice_layer(model.layers[i], model.config.head_dim, slice);
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
  if (!target.is_tied) {
    uploader.matrix(slice_rows(model.output.weight, slice.vocab), target.output.weight);
  }
  uploader.finish();
}

void make_random_weights(std::uint64_t seed, const ModelConfig& config, const ModelSlice& slice,
                         const PlacedWeights& target, CudaStream stream) {
  Uploader uploader(stream);
  const std::int64_t hidden = config.hidden_size;
  std::uint64_t matrix = 0;
  const auto fill = [&](std::uint16_t* out, std::int64_t count, std::int64_t first,
                        std::int64_t width, std::int64_t stride) {
    launch_random_normal({.out = out,
                          .count = count,
                          .first = first,
                          .width = width,
                          .stride = stride,
                          .seed = seed,
                          .matrix = matrix,
                          .deviation = kRandomDeviation},
                         stream);
  };
  const auto no_bias = [&](const PlacedLinear& place) {
    if (place.bias == nullptr) return;
    uploader.vector(std::vector<float>(static_cast<std::size_t>(place.out_features), 0.0f),
                    place.bias);
  };
  // Blocks of rows of a matrix [.., hidden], one after the other.
  const auto rows = [&](const PlacedLinear& place, const std::vector<SliceRange>& blocks) {
    std::uint16_t* out = place.weight;
    for (const SliceRange& block : blocks) {
      fill(out, block.count * hidden, block.first * hidden, 0, 0);
      out += block.count * hidden;
    }
    ++matrix;
    no_bias(place);
  };
  const auto columns = [&](const PlacedLinear& place, std::int64_t first, std::int64_t stride) {
    fill(place.weight, place.out_features * place.in_features, first, place.in_features, stride);
    ++matrix;
    no_bias(place);
  };
  const auto ones = [&](float* place, int size) {
    if (place != nullptr) {
      uploader.vector(std::vector<float>(static_cast<std::size_t>(size), 1.0f), place);
    }
  };
  const std::int64_t head_dim = config.head_dim;
  const std::int64_t q = config.num_q_heads * head_dim;
  const std::int64_t kv = config.num_kv_heads * head_dim;
  const std::int64_t inner = config.intermediate_size;
  const SliceRange own_q = {slice.q_heads.first * head_dim, slice.q_heads.count * head_dim};
  const SliceRange own_kv = {slice.kv_heads.first * head_dim, slice.kv_heads.count * head_dim};
  fill(target.embedding, config.vocab_size * hidden, 0, 0, 0);
  ++matrix;
  for (const PlacedLayer& place : target.layers) {
    ones(place.input_norm, config.hidden_size);
    ones(place.post_attention_norm, config.hidden_size);
    ones(place.q_norm, config.head_dim);
    ones(place.k_norm, config.head_dim);
    rows(place.qkv,
         {own_q, {q + own_kv.first, own_kv.count}, {q + kv + own_kv.first, own_kv.count}});
    columns(place.o, own_q.first, q);
    rows(place.gate_up, {slice.inner, {inner + slice.inner.first, slice.inner.count}});
    columns(place.down, slice.inner.first, inner);
  }
  ones(target.final_norm, config.hidden_size);
  if (!target.is_tied) rows(target.output, {slice.vocab});
  uploader.finish();
}

}  // namespace s2o
