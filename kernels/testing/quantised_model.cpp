#include "kernels/testing/quantised_model.h"

#include <functional>
#include <vector>

#include "kernels/attention/mainloop_sm90.cuh"
#include "kernels/attention/quantise.cuh"
#include "kernels/testing/simt.h"

namespace s2o::testing {
namespace {

using device::Bf16;
using device::QuantiseArgs;
using device::StepDecision;

// One block; its shared memory is the caller's.
void launch_block(int num_threads, const std::function<void()>& body) {
  simt::launch({.num_blocks = 1, .num_threads = num_threads, .shared_bytes = 16, .seed = 1}, body);
}

template <class Traits>
void launch(const QuantisedKernelArgs& args, const device::AttentionMaps& maps,
            std::uint64_t seed) {
  simt::launch({.num_blocks = 2,
                .num_threads = Traits::kThreads,
                .shared_bytes = sizeof(device::SharedSm90<Traits>),
                .seed = seed},
               [&] { device::attention_sm90_body<Traits>(args, maps); });
}

}  // namespace

void model_quantise(const DeviceInput& input, QuantiseRule rule, const QuantisedInput& output) {
  const Problem& problem = input.problem;
  const QuantiseArgs args = device::quantise_args(input, rule, output);
  std::vector<float> statistics(
      static_cast<std::size_t>(device::kQuantiseThreads / 32 * (device::kQuantisePart + 2)));
  for (int head = 0; head < problem.num_kv_heads; ++head) {
    for (int part = 0; part < kQuantiseParts; ++part) {
      launch_block(device::kQuantiseThreads,
                   [&] { device::quantise_statistics<Bf16>(args, head, part, statistics.data()); });
    }
    device::SharedScales shared{};
    launch_block(device::kQuantiseThreads, [&] { device::quantise_scales(args, head, shared); });
  }
  const std::int64_t items =
      device::quantise_items(problem.seqlen, problem.num_q_heads, problem.num_kv_heads);
  alignas(16) unsigned char values[16 * (device::kQuantisedColumns + 4)];
  for (std::int64_t item = 0; item < items; ++item) {
    launch_block(32, [&] { device::quantise_warp<Bf16>(args, item, values); });
  }
}

void model_attention_quantised(const AttentionKernelArgs& stored, const Problem& problem,
                               const QuantisedInput& input, std::uint64_t seed) {
  QuantisedKernelArgs args{stored};
  args.q = input.q;
  args.k = input.k;
  const bool wide_values = input.v_rows != nullptr;
  args.v = wide_values ? static_cast<const void*>(input.v_rows)
                       : static_cast<const void*>(input.v_columns);
  args.logit_scale = input.logit_scale;
  args.lse_shift = input.lse_shift;
  args.value_scale = input.value_scale;
  const auto rows_of = [&](const void* base, int heads, int columns) {
    return device::model_tensor_map(device::mapped_heads(base, heads, problem.seqlen, columns),
                                    128);
  };
  const std::int64_t keys = quantised_padding(problem.seqlen) / 2;
  const device::AttentionMaps maps{
      .q = rows_of(input.q, problem.num_q_heads, problem.head_dim / 2),
      .keys = {.k = rows_of(input.k, problem.num_kv_heads, problem.head_dim / 2),
               .v = wide_values ? rows_of(input.v_rows, problem.num_kv_heads, problem.head_dim)
                                : device::model_tensor_map({.base = input.v_columns,
                                                            .num_heads = problem.num_kv_heads,
                                                            .num_rows = problem.head_dim,
                                                            .num_columns = keys,
                                                            .head_stride = problem.head_dim * keys},
                                                           problem.head_dim)}};
  device::with_decision_sm90(args, [&]<StepDecision kDecision>() {
    if (wide_values) {
      launch<device::QuantisedTraits<Bf16, true, 128, kDecision>>(args, maps, seed);
    } else if constexpr (kDecision != StepDecision::kEarlyStop) {
      launch<device::QuantisedTraits<Bf16, false, 128, kDecision>>(args, maps, seed);
    }
  });
}

}  // namespace s2o::testing
