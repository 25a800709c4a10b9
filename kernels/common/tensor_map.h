// Tensor maps: 128 opaque bytes that tell the Hopper copy engine where a tensor lies. Host-safe.
#pragma once

#include <cstdint>

namespace s2o::device {

// Encoded by the driver for the device (tensor_map_cuda.cu) and by the tests for the CPU model.
// Boxes are 64 columns x the rows of a tile x 1 head, 128-byte swizzle, zeros outside the tensor.
struct alignas(64) TensorMap {
  unsigned char bytes[128];
};

// What a map describes: a 16-bit tensor [num_heads, num_rows, num_columns] whose rows follow each
// other and whose heads are `head_stride` elements apart.
struct MappedTensor {
  const void* base = nullptr;
  std::int64_t num_heads = 0;
  std::int64_t num_rows = 0;
  std::int64_t num_columns = 0;
  std::int64_t head_stride = 0;
};
inline MappedTensor mapped_heads(const void* base, std::int64_t num_heads, std::int64_t seqlen,
                                 std::int64_t head_dim) {
  return {base, num_heads, seqlen, head_dim, seqlen * head_dim};
}

// Of K and V, [num_kv_heads, seqlen, head_dim].
struct TensorMaps {
  TensorMap k;
  TensorMap v;
};

}  // namespace s2o::device
