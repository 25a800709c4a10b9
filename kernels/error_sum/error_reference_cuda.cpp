#include "kernels/error_sum/error_reference.h"

namespace s2o {

ErrorReference::ErrorReference(int num_heads, std::int64_t count, const float* reference,
                               CudaStream stream)
    : num_heads_(num_heads), count_(count) {
  const auto heads = static_cast<std::size_t>(num_heads);
  reference_.resize(heads * static_cast<std::size_t>(count), "reference output");
  partial_.resize(heads * kErrorSumBlocks, "error sums");
  sums_.resize(heads, "error sums");
  cuda_check(cudaMemcpyAsync(reference_.data(), reference,
                             static_cast<std::size_t>(reference_.size_bytes()),
                             cudaMemcpyDeviceToDevice, stream),
             "keep the reference output");
}

std::vector<ErrorSums> ErrorReference::error_sums(const float* out, CudaStream stream) {
  launch_error_sums(num_heads_, count_, out, reference_.data(), partial_.data(), sums_.data(),
                    stream);
  cuda_check(cudaStreamSynchronize(stream), "error sums");
  std::vector<ErrorSums> sums(static_cast<std::size_t>(num_heads_));
  sums_.download(sums.data(), "download error sums");
  return sums;
}

}  // namespace s2o
