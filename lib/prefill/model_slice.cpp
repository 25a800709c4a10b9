#include "lib/prefill/model_slice.h"

#include <fmt/format.h>

#include <cstring>

#include "lib/core/error.h"

namespace s2o {
namespace {

[[noreturn]] void throw_indivisible(const ModelConfig& config, int count, const std::string& what) {
  throw UnsupportedError(fmt::format("parallel {}: {}: {}", count, config.name, what));
}

// Multiples of 8, because products write rows of logits in vectors.
std::int64_t vocab_border(const ModelConfig& config, int index, int count) {
  if (index == count) return config.vocab_size;
  return static_cast<std::int64_t>(config.vocab_size) * index / count / 8 * 8;
}

SliceRange scaled(const SliceRange& range, std::int64_t factor) {
  return {range.first * factor, range.count * factor};
}

Linear row_slice(const Linear& linear, const SliceRange& rows) {
  Linear part = {.weight = slice_rows(linear.weight, rows)};
  if (!linear.bias.empty()) {
    const auto begin = linear.bias.begin() + rows.first;
    part.bias.assign(begin, begin + rows.count);
  }
  return part;
}

Linear column_slice(const Linear& linear, const SliceRange& columns) {
  return {.weight = slice_columns(linear.weight, columns), .bias = linear.bias};
}

}  // namespace

ModelSlice slice_model(const ModelConfig& config, int index, int count) {
  const int q = config.num_q_heads;
  const int kv = config.num_kv_heads;
  if (count == 1) {
    return {.q_heads = {0, q},
            .kv_heads = {0, kv},
            .inner = {0, config.intermediate_size},
            .vocab = {0, config.vocab_size}};
  }
  if (q % count != 0)
    throw_indivisible(config, count, fmt::format("{} query heads do not divide", q));
  if (kv % count != 0 && count % kv != 0) {
    throw_indivisible(
        config, count,
        fmt::format("{} KV heads neither divide nor can be repeated evenly (use {} GPUs, or a "
                    "divisor or multiple of {})",
                    kv, kv, kv));
  }
  if (config.intermediate_size % (8 * count) != 0) {
    throw_indivisible(config, count,
                      fmt::format("intermediate_size {} does not divide into multiples of 8",
                                  config.intermediate_size));
  }
  ModelSlice slice = {.index = index, .count = count};
  slice.q_heads = {static_cast<std::int64_t>(q) / count * index, q / count};
  slice.kv_heads = {static_cast<std::int64_t>(kv) * index / count, kv >= count ? kv / count : 1};
  slice.inner = {static_cast<std::int64_t>(config.intermediate_size) / count * index,
                 config.intermediate_size / count};
  slice.vocab.first = vocab_border(config, index, count);
  slice.vocab.count = vocab_border(config, index + 1, count) - slice.vocab.first;
  return slice;
}

ModelConfig slice_config(const ModelConfig& config, const ModelSlice& slice) {
  ModelConfig part = config;
  part.num_q_heads = static_cast<int>(slice.q_heads.count);
  part.num_kv_heads = static_cast<int>(slice.kv_heads.count);
  part.intermediate_size = static_cast<int>(slice.inner.count);
  part.vocab_size = static_cast<int>(slice.vocab.count);
  return part;
}

HostTensor slice_rows(const HostTensor& matrix, const SliceRange& rows) {
  HostTensor part = matrix;
  const std::size_t row_bytes =
      matrix.info.num_bytes / static_cast<std::size_t>(matrix.info.shape[0]);
  part.info.shape[0] = rows.count;
  part.info.num_bytes = row_bytes * static_cast<std::size_t>(rows.count);
  part.data = std::shared_ptr<const std::byte>(
      matrix.data, matrix.data.get() + row_bytes * static_cast<std::size_t>(rows.first));
  return part;
}

HostTensor slice_columns(const HostTensor& matrix, const SliceRange& columns) {
  HostTensor part = matrix;
  const auto rows = static_cast<std::size_t>(matrix.info.shape[0]);
  const std::size_t element = dtype_bytes(matrix.info.dtype);
  const std::size_t whole_row = matrix.info.num_bytes / rows;
  const std::size_t part_row = element * static_cast<std::size_t>(columns.count);
  const std::size_t begin = element * static_cast<std::size_t>(columns.first);
  part.info.shape[1] = columns.count;
  part.info.num_bytes = rows * part_row;
  const std::shared_ptr<std::byte[]> copy(new std::byte[part.info.num_bytes]);
  for (std::size_t row = 0; row < rows; ++row) {
    std::memcpy(copy.get() + row * part_row, matrix.data.get() + row * whole_row + begin, part_row);
  }
  part.data = std::shared_ptr<const std::byte>(copy, copy.get());
  return part;
}

LayerWeights slice_layer(const LayerWeights& layer, int head_dim, const ModelSlice& slice) {
  const SliceRange q = scaled(slice.q_heads, head_dim);
  const SliceRange kv = scaled(slice.kv_heads, head_dim);
  return {.input_norm = layer.input_norm,
          .post_attention_norm = layer.post_attention_norm,
          .q_norm = layer.q_norm,
          .k_norm = layer.k_norm,
          .q = row_slice(layer.q, q),
          .k = row_slice(layer.k, kv),
          .v = row_slice(layer.v, kv),
          .o = column_slice(layer.o, q),
          .gate = row_slice(layer.gate, slice.inner),
          .up = row_slice(layer.up, slice.inner),
          .down = column_slice(layer.down, slice.inner)};
}

}  // namespace s2o
