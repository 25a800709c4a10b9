// Tensor maps of a launch of the Hopper attention kernel. Host-safe.
#pragma once

#include "kernels/common/tensor_map.h"

namespace s2o::device {

struct AttentionMaps {
  TensorMap q;      // [num_q_heads, seqlen, head_dim], boxes of a tile of queries
  TensorMaps keys;  // boxes of a step of keys
};

}  // namespace s2o::device
