// Arguments of the operation behind MeanPooling (lib/methods/mean_pooling). Host-safe.
#pragma once

#include <cstdint>

#include "kernels/planning/pooled/ops.h"

namespace s2o {

struct MeanPoolingRowArgs {
  RowArgs rows;
  float threshold = 0.0f;  // share of a row's mass
};

}  // namespace s2o
