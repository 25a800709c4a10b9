#include "kernels/attention/kernel_choice.h"

#include <cmath>
#include <limits>
#include <numbers>

#include "kernels/attention/attention_kernels.h"
#include "kernels/attention/attention_quantised.h"
#include "kernels/common/error.h"

namespace s2o {
namespace {

[[noreturn]] void unsupported(AttentionKernel kernel, const std::string& what) {
  throw UnsupportedError(std::string(attention_kernel_name(kernel)) + ": " + what);
}

bool is_common_head_dim(int head_dim) { return head_dim == 64 || head_dim == 128; }

bool has_head_dim(AttentionKernel kernel, int head_dim) {
  return is_common_head_dim(head_dim) ||
         (kernel == AttentionKernel::kSm80 && (head_dim == 96 || head_dim == 256));
}

// What only head_dim 64 and 128 have.
void need_common_head_dim(AttentionKernel kernel, const Problem& problem, const std::string& what) {
  if (is_common_head_dim(problem.head_dim)) return;
  unsupported(kernel, what + " with head_dim " + std::to_string(problem.head_dim) +
                          ", supported are 64 and 128");
}

void check_problem(AttentionKernel kernel, const Problem& problem) {
  if (!has_head_dim(kernel, problem.head_dim)) {
    unsupported(kernel, "head_dim is " + std::to_string(problem.head_dim) + ", supported are 64" +
                            (kernel == AttentionKernel::kSm80 ? ", 96, 128 and 256" : " and 128"));
  }
  if (!std::isfinite(problem.softmax_scale) || problem.softmax_scale <= 0.0f) {
    unsupported(kernel, "softmax_scale is " + std::to_string(problem.softmax_scale) +
                            ", expected a positive number");
  }
  // Rows are addressed by 32-bit indices; byte offsets are 64-bit.
  const std::int64_t rows = problem.seqlen * problem.num_q_heads;
  if (rows > std::numeric_limits<std::int32_t>::max()) {
    unsupported(kernel, std::to_string(problem.num_q_heads) + " query heads x " +
                            std::to_string(problem.seqlen) + " tokens are " + std::to_string(rows) +
                            " rows, supported are 2147483647");
  }
}

}  // namespace

const char* attention_kernel_name(AttentionKernel kernel) {
  return kernel == AttentionKernel::kSm80 ? "attention_sm80" : "attention_sm90";
}

AttentionKernel kernel_with_head_dim(AttentionKernel kernel, int head_dim) {
  return has_head_dim(kernel, head_dim) ? kernel : AttentionKernel::kSm80;
}

TileShape choose_tile(AttentionKernel kernel, const Problem& problem, const PlanView& plan,
                      bool fp32_accuracy) {
  check_problem(kernel, problem);
  if (plan.block_m != 64 && plan.block_m != 128) {
    unsupported(kernel,
                "block_m is " + std::to_string(plan.block_m) + ", supported are 64 and 128");
  }
  if (plan.block_n < 64 || plan.block_n % 64 != 0) {
    unsupported(kernel,
                "block_n is " + std::to_string(plan.block_n) + ", supported are multiples of 64");
  }
  if (plan.pack != 1 && plan.pack != problem.group_size()) {
    unsupported(kernel, "pack is " + std::to_string(plan.pack) + ", supported are 1 and " +
                            std::to_string(problem.group_size()) + " (the group size)");
  }
  const bool folds_blocks =
      plan.fold.kind == Compensation::kBlocks || plan.fold.kind == Compensation::kBlocksVariance;
  if (folds_blocks && plan.fold.fold_block > kMaxFoldBlock) {
    unsupported(kernel, "fold_block is " + std::to_string(plan.fold.fold_block) +
                            ", supported are 1 to " + std::to_string(kMaxFoldBlock));
  }
  if (plan.fold.kind != Compensation::kNone)
    need_common_head_dim(kernel, problem, "folded columns");
  TileShape shape{.tile_m = plan.block_m, .tile_n = 64, .pv_terms = 1};
  // A larger step inside the Hopper kernel: fewer barriers and longer products.
  if (kernel == AttentionKernel::kSm90 && plan.block_n % 128 == 0) shape.tile_n = 128;
  if (plan.pv_skip_threshold > 0.0f) {
    // The decision needs all logits of a plan step before the first exponential.
    if (plan.block_n > 128) {
      unsupported(kernel, "the PV skip with block_n " + std::to_string(plan.block_n) +
                              ", supported are 64 and 128");
    }
    if (plan.stop.tau > 0.0f) unsupported(kernel, "the PV skip together with an early stop");
    shape.tile_n = plan.block_n;
    if (shape.tile_n == 128) need_common_head_dim(kernel, problem, "the PV skip with block_n 128");
  }
  if (fp32_accuracy) {
    if (kernel != AttentionKernel::kSm80 || plan.block_m != 64 || shape.tile_n != 64) {
      unsupported(kernel, "fp32 accuracy needs attention_sm80 with block_m 64 and 64-key steps");
    }
    shape.pv_terms = 3;
  }
  return shape;
}

TileShape choose_quantised_tile(AttentionKernel kernel, const Problem& problem,
                                const PlanView& plan) {
  if (kernel != AttentionKernel::kSm90) {
    unsupported(kernel, "compute is fp8, supported is stored; fp8 needs attention_sm90");
  }
  if (problem.head_dim != 128) {
    unsupported(kernel, "compute fp8 with head_dim " + std::to_string(problem.head_dim) +
                            ", supported is 128");
  }
  if (plan.block_n % 128 != 0) {
    unsupported(kernel, "compute fp8 with block_n " + std::to_string(plan.block_n) +
                            ", supported are multiples of 128");
  }
  return choose_tile(kernel, problem, plan, /*fp32_accuracy=*/false);
}

AttentionKernelArgs kernel_args(const Problem& problem, const PlanView& plan) {
  AttentionKernelArgs args;
  args.num_tiles = plan.num_plan_heads * plan.num_q_tiles;
  args.seqlen = problem.seqlen;
  args.num_q_tiles = plan.num_q_tiles;
  args.plan_heads_per_kv_head = plan.num_plan_heads / problem.num_kv_heads;
  args.pack = plan.pack;
  args.block_n = plan.block_n;
  args.scale_log2 = problem.softmax_scale * std::numbers::log2e_v<float>;
  args.window_sink = plan.window_sink;
  args.window_size = plan.window_size;
  args.pv_skip_threshold = plan.pv_skip_threshold;
  args.pv_skip_exempt = plan.pv_skip_exempt;
  args.stop = plan.stop;
  args.fold = plan.fold;
  return args;
}

}  // namespace s2o
