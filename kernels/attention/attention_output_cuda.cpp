#include <algorithm>

#include "kernels/attention/attention_output.h"
#include "kernels/common/bf16.h"

namespace s2o {

AttentionBuffers::AttentionBuffers(const Problem& problem, const PlanView& header,
                                   OutputType type) {
  const auto num_outputs = static_cast<std::size_t>(problem.row_offset(problem.num_q_heads, 0));
  if (type == OutputType::kFp32) {
    out_fp32_.resize(num_outputs, "output in fp32");
  } else {
    out_16_.resize(num_outputs, "output");
  }
  lse_.resize(num_outputs / static_cast<std::size_t>(problem.head_dim), "lse");
  stats_.resize(static_cast<std::size_t>(header.num_passes) *
                    static_cast<std::size_t>(header.num_plan_heads) *
                    static_cast<std::size_t>(header.num_q_tiles),
                "tile statistics");
}

AttentionOutput AttentionBuffers::output() {
  return {.out_fp32 = out_fp32_.data(),
          .out_16 = out_16_.data(),
          .lse = lse_.data(),
          .stats = stats_.data()};
}

void AttentionBuffers::poison(CudaStream stream) {
  const auto poison = [stream](void* data, std::int64_t bytes) {
    if (bytes == 0) return;
    cuda_check(cudaMemsetAsync(data, 0xff, static_cast<std::size_t>(bytes), stream),
               "poison the output");
  };
  poison(out_fp32_.data(), out_fp32_.size_bytes());
  poison(out_16_.data(), out_16_.size_bytes());
  poison(lse_.data(), lse_.size_bytes());
}

std::vector<float> AttentionBuffers::read_out(KernelDType dtype) const {
  std::vector<float> out(std::max(out_fp32_.size(), out_16_.size()));
  if (out_16_.size() == 0) {
    out_fp32_.download(out.data(), "download the output");
    return out;
  }
  std::vector<std::uint16_t> bits(out.size());
  out_16_.download(bits.data(), "download the output");
  std::transform(bits.begin(), bits.end(), out.begin(), [dtype](std::uint16_t value) {
    return dtype == KernelDType::kBf16 ? bf16_to_float(value) : fp16_to_float(value);
  });
  return out;
}

std::vector<float> AttentionBuffers::read_lse() const {
  std::vector<float> lse(lse_.size());
  lse_.download(lse.data(), "download lse");
  return lse;
}

std::vector<TileStats> AttentionBuffers::read_stats() const {
  std::vector<TileStats> stats(stats_.size());
  stats_.download(stats.data(), "download tile statistics");
  return stats;
}

}  // namespace s2o
