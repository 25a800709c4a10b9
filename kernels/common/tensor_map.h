// Tensor maps: 128 opaque bytes that tell the Hopper copy engine where a tensor lies. Host-safe.
#pragma once

namespace s2o::device {

// Encoded by the driver for the device (tensor_map_cuda.cpp) and by the tests for the CPU model.
// Boxes are 64 columns x the rows of a tile x 1 head, 128-byte swizzle, zeros outside the tensor.
struct alignas(64) TensorMap {
  unsigned char bytes[128];
};

// Of K and V, [num_kv_heads, seqlen, head_dim].
struct TensorMaps {
  TensorMap k;
  TensorMap v;
};

}  // namespace s2o::device
