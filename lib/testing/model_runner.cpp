#include "lib/testing/model_runner.h"

#include <limits>

#include "kernels/attention/attention_quantised.h"
#include "kernels/attention/quantise.h"
#include "kernels/common/tile_order.h"
#include "kernels/testing/attention_model.h"
#include "kernels/testing/quantised_model.h"
#include "lib/input/storage_bits.h"

namespace s2o::testing {

std::vector<std::uint16_t> to_16_bit(const std::vector<float>& values, KernelDType dtype) {
  return s2o::to_16_bit(values,
                        dtype == KernelDType::kBf16 ? StorageDType::kBF16 : StorageDType::kF16);
}

KernelResult run_on_model(AttentionKernel kernel, const AttentionInput& input,
                          const SparsePlan& plan, bool fp32_accuracy, std::uint64_t seed) {
  return run_on_model(kernel, input, PlanPointers(plan).view(), fp32_accuracy, seed);
}

KernelResult run_on_model(AttentionKernel kernel, const AttentionInput& input, const PlanView& view,
                          bool fp32_accuracy, std::uint64_t seed, bool output_16) {
  const Problem& problem = input.problem;
  const TileShape tile = choose_tile(kernel, problem, view, fp32_accuracy);
  const KernelDType dtype =
      input.dtype == StorageDType::kF16 ? KernelDType::kFp16 : KernelDType::kBf16;
  const auto q = to_16_bit(input.q, dtype);
  const auto k = to_16_bit(input.k, dtype);
  const auto v = to_16_bit(input.v, dtype);
  const float nan = std::numeric_limits<float>::quiet_NaN();
  KernelResult result;
  result.out.assign(input.q.size(), nan);
  result.lse.assign(static_cast<std::size_t>(problem.seqlen * problem.num_q_heads), nan);
  const std::size_t num_tiles =
      static_cast<std::size_t>(view.num_plan_heads) * static_cast<std::size_t>(view.num_q_tiles);
  result.stats.assign(static_cast<std::size_t>(view.num_passes) * num_tiles, {-1, -1, -1, -1});
  std::vector<std::uint16_t> out_16(output_16 ? input.q.size() : 0, 0xffff);  // NaN

  for (int p = 0; p < view.num_passes; ++p) {
    const std::vector<std::int32_t> order =
        tile_launch_order(problem, view, view.passes[p], /*l2_bytes=*/1 << 20);
    std::int32_t next_tile = 0;
    AttentionKernelArgs args = kernel_args(problem, view);
    args.q = q.data();
    args.k = k.data();
    args.v = v.data();
    const bool writes_16 = output_16 && p + 1 == view.num_passes;
    args.out_fp32 = writes_16 ? nullptr : result.out.data();
    args.out_16 = writes_16 ? out_16.data() : nullptr;
    args.lse = result.lse.data();
    args.resume_out = p > 0 ? result.out.data() : nullptr;
    args.stats = result.stats.data() + static_cast<std::size_t>(p) * num_tiles;
    args.tile_order = order.data();
    args.next_tile = &next_tile;
    args.pass = view.passes[p];
    model_attention(kernel, args, problem, dtype, tile, seed);
    if (view.fold.kind != Compensation::kNone && view.passes[p].fold_end != nullptr) {
      args.resume_out = result.out.data();
      model_fold(args, problem, dtype, tile.tile_m, seed);
    }
  }
  if (output_16) from_16_bit(out_16, input.dtype, result.out.data());
  return result;
}

KernelResult run_quantised_on_model(const AttentionInput& input, const SparsePlan& plan,
                                    QuantiseRule rule, std::uint64_t seed) {
  const Problem& problem = input.problem;
  const PlanPointers pointers(plan);
  const PlanView view = pointers.view();
  choose_quantised_tile(AttentionKernel::kSm90, problem, view);
  const auto q = to_16_bit(input.q, KernelDType::kBf16);
  const auto k = to_16_bit(input.k, KernelDType::kBf16);
  const auto v = to_16_bit(input.v, KernelDType::kBf16);
  const bool wide_values = has_wide_values(view);
  std::vector<unsigned char> memory(
      static_cast<std::size_t>(quantised_bytes(problem, wide_values)) + 256, 0xff);
  const QuantisedInput quantised =
      place_quantised(problem, wide_values,
                      memory.data() + 256 - reinterpret_cast<std::uintptr_t>(memory.data()) % 256);
  model_quantise({.problem = problem, .q = q.data(), .k = k.data(), .v = v.data()}, rule,
                 quantised);
  check_head_scales(problem, quantised.key_scale);
  const float nan = std::numeric_limits<float>::quiet_NaN();
  KernelResult result;
  result.out.assign(input.q.size(), nan);
  result.lse.assign(static_cast<std::size_t>(problem.seqlen * problem.num_q_heads), nan);
  const std::size_t num_tiles = static_cast<std::size_t>(plan.num_tiles());
  result.stats.assign(static_cast<std::size_t>(view.num_passes) * num_tiles, {-1, -1, -1, -1});
  for (int p = 0; p < view.num_passes; ++p) {
    const std::vector<std::int32_t> order =
        tile_launch_order(problem, view, view.passes[p], /*l2_bytes=*/1 << 20);
    std::int32_t next_tile = 0;
    AttentionKernelArgs args = kernel_args(problem, view);
    args.out_fp32 = result.out.data();
    args.lse = result.lse.data();
    args.resume_out = p > 0 ? result.out.data() : nullptr;
    args.stats = result.stats.data() + static_cast<std::size_t>(p) * num_tiles;
    args.tile_order = order.data();
    args.next_tile = &next_tile;
    args.pass = view.passes[p];
    model_attention_quantised(args, problem, quantised, seed);
  }
  return result;
}

}  // namespace s2o::testing
