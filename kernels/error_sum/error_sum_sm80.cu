// Two launches: kErrorSumBlocks blocks a head sum strided elements, then one warp a head sums the
// blocks. Bound by reading both tensors once.
#include "kernels/common/cuda_check.h"
#include "kernels/error_sum/error_sum.h"

namespace s2o {
namespace {

constexpr int kThreads = 256;

struct Sums {
  double error, reference, output, dot, max_abs_error;
  long long nonfinite;

  __device__ void clear() {
    error = reference = output = dot = max_abs_error = 0.0;
    nonfinite = 0;
  }
  __device__ void add_element(float out, float wanted) {
    const double o = out;
    const double d = wanted;
    const double difference = fabs(o - d);
    error += difference * difference;
    reference += d * d;
    output += o * o;
    dot += o * d;
    max_abs_error = larger(max_abs_error, difference);
    nonfinite += isfinite(out) ? 0 : 1;
  }
  __device__ void add(const Sums& other) {
    error += other.error;
    reference += other.reference;
    output += other.output;
    dot += other.dot;
    max_abs_error = larger(max_abs_error, other.max_abs_error);
    nonfinite += other.nonfinite;
  }
  // NOTE: fmax would drop a NaN.
  static __device__ double larger(double a, double b) { return isnan(a) || b <= a ? a : b; }
  // Sum over the warp, in every lane; the order of additions is fixed.
  __device__ void add_lanes() {
    for (int mask = 16; mask > 0; mask /= 2) {
      Sums other;
      other.error = __shfl_xor_sync(0xffffffffu, error, mask);
      other.reference = __shfl_xor_sync(0xffffffffu, reference, mask);
      other.output = __shfl_xor_sync(0xffffffffu, output, mask);
      other.dot = __shfl_xor_sync(0xffffffffu, dot, mask);
      other.max_abs_error = __shfl_xor_sync(0xffffffffu, max_abs_error, mask);
      other.nonfinite = __shfl_xor_sync(0xffffffffu, nonfinite, mask);
      add(other);
    }
  }
  __device__ void store(ErrorSums& target) const {
    target.error = error;
    target.reference = reference;
    target.output = output;
    target.dot = dot;
    target.max_abs_error = max_abs_error;
    target.nonfinite = nonfinite;
  }
  __device__ void load(const ErrorSums& source) {
    error = source.error;
    reference = source.reference;
    output = source.output;
    dot = source.dot;
    max_abs_error = source.max_abs_error;
    nonfinite = source.nonfinite;
  }
};

// Block (b, head) sums elements b * kThreads + thread, stepping by the grid.
__global__ void __launch_bounds__(kThreads)
    partial_sums_kernel(std::int64_t count, const float* __restrict__ out,
                        const float* __restrict__ reference, ErrorSums* __restrict__ partial) {
  __shared__ Sums s_warps[kThreads / 32];
  const std::int64_t head = blockIdx.y;
  const float* const head_out = out + head * count;
  const float* const head_reference = reference + head * count;
  Sums sums;
  sums.clear();
  for (std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < count;
       i += static_cast<std::int64_t>(gridDim.x) * kThreads) {
    sums.add_element(__ldg(head_out + i), __ldg(head_reference + i));
  }
  sums.add_lanes();
  if (threadIdx.x % 32 == 0) s_warps[threadIdx.x / 32] = sums;
  __syncthreads();
  if (threadIdx.x != 0) return;
  for (int warp = 1; warp < kThreads / 32; ++warp) sums.add(s_warps[warp]);
  sums.store(partial[head * gridDim.x + blockIdx.x]);
}

__global__ void __launch_bounds__(32)
    final_sums_kernel(const ErrorSums* __restrict__ partial, ErrorSums* __restrict__ sums) {
  Sums total;
  total.clear();
  for (int block = static_cast<int>(threadIdx.x); block < kErrorSumBlocks; block += 32) {
    Sums part;
    part.load(partial[blockIdx.x * kErrorSumBlocks + block]);
    total.add(part);
  }
  total.add_lanes();
  if (threadIdx.x == 0) total.store(sums[blockIdx.x]);
}

}  // namespace

void launch_error_sums(int num_heads, std::int64_t count, const float* out, const float* reference,
                       ErrorSums* partial, ErrorSums* sums, CUstream_st* stream) {
  if (num_heads == 0) return;
  const auto heads = static_cast<unsigned>(num_heads);
  partial_sums_kernel<<<dim3(kErrorSumBlocks, heads), kThreads, 0, stream>>>(count, out, reference,
                                                                             partial);
  cuda_check(cudaGetLastError(), "error sums: launch");
  final_sums_kernel<<<heads, 32, 0, stream>>>(partial, sums);
  cuda_check(cudaGetLastError(), "error sums: launch of the last step");
}

}  // namespace s2o
