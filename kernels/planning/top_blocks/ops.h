// Arguments of the operation behind TopBlocks (lib/methods/top_blocks). Host-safe.
#pragma once

#include <cstdint>

#include "kernels/planning/pooled/ops.h"

namespace s2o {

struct TopBlocksRowArgs {
  RowArgs rows;
  std::int32_t topk = 1;  // blocks of a row, beside the forced ones
};

}  // namespace s2o
