// From a plan to kernel launches: which tile shape runs it, in which order its tiles start, and the
// arguments of every pass. Host code without CUDA, so it is tested everywhere.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "kernels/attention/kernel_args.h"
#include "kernels/common/plan_view.h"
#include "kernels/common/problem.h"

namespace s2o {

enum class AttentionKernel : std::uint8_t { kSm80, kSm90 };

// "attention_sm80", "attention_sm90".
const char* attention_kernel_name(AttentionKernel kernel);

// `kernel` where it has this head_dim, else the portable one, which has more (96 and 256) and runs
// on every device.
AttentionKernel kernel_with_head_dim(AttentionKernel kernel, int head_dim);

// Tile of one kernel instance.
struct TileShape {
  int tile_m = 0;    // query rows, equal to the plan's block_m
  int tile_n = 0;    // keys of one step inside the kernel; divides the plan's block_n
  int pv_terms = 1;  // 16-bit terms of P: 1, or 3 for fp32 accuracy
  bool operator==(const TileShape&) const = default;
};

// The instance of `kernel` that runs the plan. Throws UnsupportedError naming the value found and
// the values supported. `fp32_accuracy` asks for the three-term product (sm80 kernel, block_m 64).
TileShape choose_tile(AttentionKernel kernel, const Problem& problem, const PlanView& plan,
                      bool fp32_accuracy);

// Arguments that do not depend on where arrays live; the caller fills in the pointers.
AttentionKernelArgs kernel_args(const Problem& problem, const PlanView& plan);

}  // namespace s2o
