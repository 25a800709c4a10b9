#include "lib/prefill/head_probes.h"

#include <cuda_runtime.h>

#include "kernels/common/parallel.h"
#include "lib/metrics/mean_mass.h"
#include "lib/prefill/layer_attention.h"

namespace s2o {
namespace {

std::unique_ptr<PlannedMethod> planned(const CudaDevice& device, const Problem& problem,
                                       StorageDType dtype, const LayerMethod& setting) {
  return std::make_unique<PlannedMethod>(device, problem, dtype, *setting.method, *setting.params,
                                         PlannerLimits{.l2_bytes = device.info.l2_bytes});
}

}  // namespace

HeadProbes::HeadProbes(const CudaDevice& device, CudaStream stream, const Problem& problem,
                       StorageDType dtype, const ProbeRequest& request)
    : request_(request),
      problem_(problem),
      stream_(stream),
      timer_(stream),
      dense_(device, problem, dtype, find_method("dense"), ParamSet(),
             PlannerLimits{.l2_bytes = device.info.l2_bytes}) {
  const Problem of_one = head_slice(problem, {.first = 0, .count = 1});
  for (const LayerMethod& setting : request.settings) {
    probes_.push_back({.all = planned(device, problem, dtype, setting),
                       .one = planned(device, of_one, dtype, setting)});
  }
  const auto rows = static_cast<std::size_t>(problem.seqlen * problem.num_q_heads);
  const auto size = rows * static_cast<std::size_t>(problem.head_dim);
  const auto heads = static_cast<std::size_t>(problem.num_q_heads);
  reference_.resize(size, "dense output");
  out_.resize(size, "output of probes");
  reference_lse_.resize(rows, "dense lse");
  lse_.resize(rows, "lse of probes");
  partial_.resize(heads * kErrorSumBlocks, "error sums");
  sums_.resize(heads, "error sums");
  host_reference_.resize(rows);
  host_lse_.resize(rows);
}

HeadProbes::Times HeadProbes::run(PlannedMethod& method, const DeviceInput& input,
                                  AttentionOutput output) {
  timer_.begin(Phase::kPlanning);
  method.enqueue(input, output, scratch_, stream_, &timer_);
  timer_.end();
  method.check(stream_);
  return {.plan_ms = timer_.milliseconds(Phase::kPlanning),
          .attention_ms = timer_.milliseconds(Phase::kAttention)};
}

std::vector<std::vector<HeadProbe>> HeadProbes::measure(const DeviceInput& input) {
  run(dense_, input, {.out_fp32 = reference_.data(), .lse = reference_lse_.data()});
  reference_lse_.download(host_reference_.data(), "download of lse");
  std::vector<std::vector<HeadProbe>> all;
  for (Probe& probe : probes_) {
    throw_if_cancelled();
    const AttentionOutput output = {.out_fp32 = out_.data(), .lse = lse_.data()};
    if (!probe.is_warm) run(*probe.all, input, output);
    const Times together = run(*probe.all, input, output);
    std::vector<HeadProbe> heads(static_cast<std::size_t>(problem_.num_q_heads));
    Times sum;
    for (int head = 0; head < problem_.num_q_heads; ++head) {
      const DeviceInput of_head = head_slice(input, {.first = head, .count = 1});
      const AttentionOutput out_of_head = {.out_fp32 = out_.data() + problem_.row_offset(head, 0),
                                           .lse = lse_.data() + head * problem_.seqlen};
      if (!probe.is_warm) run(*probe.one, of_head, out_of_head);
      probe.is_warm = true;
      const Times times = run(*probe.one, of_head, out_of_head);
      HeadProbe& found = heads[static_cast<std::size_t>(head)];
      found.plan_ms = times.plan_ms;
      found.attention_ms = times.attention_ms;
      found.alone_ms = times.plan_ms + times.attention_ms;
      sum.plan_ms += times.plan_ms;
      sum.attention_ms += times.attention_ms;
      if (request_.pair_density) {
        found.pair_density = probe.one->count(of_head, stream_).work.pair_density();
      }
    }
    launch_error_sums(problem_.num_q_heads, problem_.seqlen * problem_.head_dim, out_.data(),
                      reference_.data(), partial_.data(), sums_.data(), stream_);
    cuda_check(cudaStreamSynchronize(stream_), "error sums of probes");
    std::vector<ErrorSums> sums(heads.size());
    sums_.download(sums.data(), "download of error sums");
    lse_.download(host_lse_.data(), "download of lse");
    parallel_for(problem_.num_q_heads, [&](std::int64_t head) {
      HeadProbe& found = heads[static_cast<std::size_t>(head)];
      found.plan_ms *= sum.plan_ms > 0.0 ? together.plan_ms / sum.plan_ms : 0.0;
      found.attention_ms *= together.attention_ms / sum.attention_ms;
      found.error = sums[static_cast<std::size_t>(head)].error;
      found.reference = sums[static_cast<std::size_t>(head)].reference;
      const std::int64_t first = head * problem_.seqlen;
      found.mass =
          mean_mass(host_lse_.data() + first, host_reference_.data() + first, problem_.seqlen);
    });
    all.push_back(std::move(heads));
  }
  return all;
}

}  // namespace s2o
