#include <algorithm>
#include <string>
#include <vector>

#include "kernels/attention/attention_kernels.h"
#include "kernels/attention/attention_quantised.h"
#include "kernels/attention/prepared_attention.h"
#include "kernels/attention/quantise.h"
#include "kernels/common/plan_bounds.h"
#include "kernels/common/tensor_map_cuda.h"

namespace s2o {
namespace {

void check_output(const AttentionOutput& output) {
  if ((output.out_fp32 == nullptr) != (output.out_16 == nullptr) && output.lse != nullptr &&
      output.stats != nullptr) {
    return;
  }
  throw Error("attention: the output needs lse, stats and one of out_fp32 and out_16");
}

// Elements of one array of block sums: the larger of the two kinds of sets, of which a pass uses
// the front.
std::int64_t num_block_sums(const Problem& problem, const PlanView& header) {
  return problem.seqlen / header.fold.fold_block * problem.head_dim *
         std::max(header.num_plan_heads, problem.num_kv_heads);
}
// Keys, values and, for the variance, squared keys.
int arrays_of_sums(const FoldRule& fold) {
  return fold.kind == Compensation::kBlocksVariance ? 3 : 2;
}

}  // namespace

void download_and_check_head_scales(const Problem& problem, const float* scales) {
  std::vector<float> found(static_cast<std::size_t>(num_head_scales(problem)));
  cuda_check(cudaMemcpy(found.data(), scales, found.size() * sizeof(float), cudaMemcpyDeviceToHost),
             "download scales of heads");
  check_head_scales(problem, found.data());
}

PreparedAttention::PreparedAttention(const DeviceInfo& device, AttentionKernel kernel,
                                     const DeviceInput& input, const DevicePlan& plan,
                                     const AttentionOutput& output, AttentionScratch& scratch,
                                     bool fp32_accuracy, std::optional<QuantiseRule> quantise)
    // The three-term product exists in the portable kernel only, which runs on every device.
    : kernel_(fp32_accuracy ? AttentionKernel::kSm80
                            : kernel_with_head_dim(kernel, input.problem.head_dim)),
      num_multiprocessors_(device.num_multiprocessors),
      input_(input),
      plan_(plan),
      output_(output),
      scratch_(scratch),
      tile_(quantise ? choose_quantised_tile(kernel_, input.problem, plan.header)
                     : choose_tile(kernel_, input.problem, plan.header, fp32_accuracy)),
      quantise_(quantise) {
  check_plan_header(input.problem, plan.header);
  check_output(output);
  reserve_scratch();
  if (kernel_ == AttentionKernel::kSm90) make_maps(input.dtype);
}

void PreparedAttention::make_maps(KernelDType dtype) {
  const Problem& problem = input_.problem;
  const bool bf16 = dtype == KernelDType::kBf16;
  // Maps count 16 bits: two of the 8-bit numbers.
  const int columns = quantise_ ? problem.head_dim / 2 : problem.head_dim;
  const auto map_of = [&](const void* base, int num_heads, int num_columns, int box_rows) {
    return make_tensor_map(device::mapped_heads(base, num_heads, problem.seqlen, num_columns), bf16,
                           box_rows);
  };
  const void* const q = quantise_ ? static_cast<const void*>(quantised_.q) : input_.q;
  const void* const k = quantise_ ? static_cast<const void*>(quantised_.k) : input_.k;
  maps_.q = map_of(q, problem.num_q_heads, columns, tile_.tile_m);
  maps_.keys.k = map_of(k, problem.num_kv_heads, columns, tile_.tile_n);
  if (!quantise_ || wide_values()) {
    maps_.keys.v = map_of(quantise_ ? static_cast<const void*>(quantised_.v_rows) : input_.v,
                          problem.num_kv_heads, problem.head_dim, tile_.tile_n);
    return;
  }
  const std::int64_t keys = quantised_padding(problem.seqlen) / 2;
  maps_.keys.v = make_tensor_map({.base = quantised_.v_columns,
                                  .num_heads = problem.num_kv_heads,
                                  .num_rows = problem.head_dim,
                                  .num_columns = keys,
                                  .head_stride = problem.head_dim * keys},
                                 bf16, problem.head_dim);
}

void PreparedAttention::reserve_scratch() {
  const PlanView& header = plan_.header;
  const auto reserve = [this](auto& buffer, std::int64_t count, const char* what) {
    if (static_cast<std::int64_t>(buffer.size()) < count) {
      buffer.resize(static_cast<std::size_t>(count), what);
    }
    workspace_bytes_ += count * static_cast<std::int64_t>(sizeof(*buffer.data()));
  };
  const std::int64_t num_tiles =
      static_cast<std::int64_t>(header.num_plan_heads) * header.num_q_tiles;
  workspace_bytes_ = num_tiles * header.num_passes * static_cast<std::int64_t>(sizeof(TileStats));
  reserve(scratch_.next_tile, static_cast<std::int64_t>(header.num_passes) * num_batches(),
          "tile counters");
  if (output_.out_fp32 == nullptr && (header.num_passes > 1 || folds())) {
    reserve(scratch_.state, input_.problem.row_offset(input_.problem.num_q_heads, 0),
            "output in fp32");
  }
  if (quantise_) {
    PlanView view = header;
    view.passes = plan_.passes.data();
    const bool wide_values = has_wide_values(view);
    reserve(scratch_.quantised, quantised_bytes(input_.problem, wide_values),
            "Q, K and V in 8 bits");
    quantised_ = place_quantised(input_.problem, wide_values, scratch_.quantised.data());
    if (output_.head_scales != nullptr) {
      place_head_scales(input_.problem, output_.head_scales, quantised_);
    }
  }
  if (!folds()) return;
  const std::int64_t elements =
      num_block_sums(input_.problem, header) * arrays_of_sums(header.fold);
  reserve(scratch_.sums, elements, "folded columns: block sums");
  if (header.fold.kind == Compensation::kCentroid) return;
  reserve(scratch_.columns, elements, "folded columns: whole blocks");
}

void PreparedAttention::launch_pass(const AttentionKernelArgs& args, CudaStream stream) const {
  const bool bf16 = input_.dtype == KernelDType::kBf16;
  const int d = input_.problem.head_dim;
  if (quantise_) {
    QuantisedKernelArgs quantised{args};
    quantised.q = quantised_.q;
    quantised.k = quantised_.k;
    quantised.v = wide_values() ? static_cast<const void*>(quantised_.v_rows)
                                : static_cast<const void*>(quantised_.v_columns);
    quantised.logit_scale = quantised_.logit_scale;
    quantised.lse_shift = quantised_.lse_shift;
    quantised.value_scale = quantised_.value_scale;
    (wide_values() ? launch_attention_sm90_wide_values : launch_attention_sm90_quantised)(
        quantised, maps_, input_.dtype, tile_, num_multiprocessors_, stream);
  } else if (kernel_ == AttentionKernel::kSm90) {
    (bf16 ? launch_attention_sm90_bf16 : launch_attention_sm90_fp16)(args, maps_, d, tile_,
                                                                     num_multiprocessors_, stream);
  } else {
    (bf16 ? launch_attention_sm80_bf16 : launch_attention_sm80_fp16)(args, d, tile_, stream);
  }
}

void PreparedAttention::launch_fold(const AttentionKernelArgs& args, int num_sets,
                                    CudaStream stream) const {
  const FoldRule& fold = plan_.header.fold;
  const std::int64_t array = num_block_sums(input_.problem, plan_.header);
  const bool squares = fold.kind == Compensation::kBlocksVariance;
  float* const sums = scratch_.sums.data();
  BlockSumsView view = {.k = sums,
                        .v = sums + array,
                        .k_squared = squares ? sums + 2 * array : nullptr,
                        .num_blocks = input_.problem.seqlen / fold.fold_block};
  if (fold.kind != Compensation::kCentroid) {
    view.mean_k = scratch_.columns.data();
    view.mean_v = view.mean_k + array;
    view.variance = squares ? view.mean_k + 2 * array : nullptr;
  }
  const bool bf16 = input_.dtype == KernelDType::kBf16;
  (bf16 ? launch_fold_bf16 : launch_fold_fp16)(args, view, num_sets, input_.problem.head_dim,
                                               tile_.tile_m, stream);
}

void PreparedAttention::enqueue_quantise(CudaStream stream) const {
  if (quantise_) launch_quantise(input_, *quantise_, quantised_, stream);
}

void PreparedAttention::check_quantised() const {
  if (quantise_) download_and_check_head_scales(input_.problem, quantised_.key_scale);
}

void PreparedAttention::enqueue(CudaStream stream) const {
  if (num_batches() > 1) {
    throw Error("attention: the plan is in " + std::to_string(num_batches()) +
                " batches, expected 1: its lists are never in memory together");
  }
  enqueue_batch(0, stream);
}

void PreparedAttention::enqueue_batch(int batch, CudaStream stream) const {
  const PlanView& header = plan_.header;
  if (batch < 0 || batch >= num_batches()) {
    throw Error("attention: batch " + std::to_string(batch) + " of a plan in " +
                std::to_string(num_batches()));
  }
  std::int32_t* const counters = scratch_.next_tile.data() + batch * header.num_passes;
  cuda_check(
      cudaMemsetAsync(counters, 0,
                      static_cast<std::size_t>(header.num_passes) * sizeof(std::int32_t), stream),
      "reset tile counters");
  float* const state = output_.out_fp32 != nullptr ? output_.out_fp32 : scratch_.state.data();
  const std::int64_t num_tiles =
      static_cast<std::int64_t>(header.num_plan_heads) * header.num_q_tiles;
  for (int p = 0; p < header.num_passes; ++p) {
    const PassView& pass = plan_.passes[static_cast<std::size_t>(p)];
    const bool pass_folds = folds() && pass.fold_end != nullptr;
    AttentionKernelArgs args = kernel_args(input_.problem, header);
    args.q = input_.q;
    args.k = input_.k;
    args.v = input_.v;
    args.lse = output_.lse;
    args.resume_out = p > 0 ? state : nullptr;
    args.stats = output_.stats + p * num_tiles;
    args.tile_order = plan_.tile_orders[static_cast<std::size_t>(p)] + plan_.batch_begin(batch);
    args.num_tiles = plan_.batch_end(batch) - plan_.batch_begin(batch);
    args.next_tile = counters + p;
    args.pass = pass;
    // The last launch writes the output; those before it leave their state.
    const auto write = [&](bool last) {
      args.out_fp32 = last && output_.out_16 != nullptr ? nullptr : state;
      args.out_16 = last ? output_.out_16 : nullptr;
    };
    const bool last_pass = p + 1 == header.num_passes;
    write(last_pass && !pass_folds);
    launch_pass(args, stream);
    if (!pass_folds) continue;
    args.resume_out = state;
    write(last_pass);
    // Sums of blocks in the order of tokens are the same for every batch: computed once.
    const int num_sets = pass.key_order != nullptr ? header.num_plan_heads
                         : batch == 0              ? input_.problem.num_kv_heads
                                                   : 0;
    launch_fold(args, num_sets, stream);
  }
}

}  // namespace s2o
