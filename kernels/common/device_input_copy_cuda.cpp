#include "kernels/common/device_input_copy.h"

namespace s2o {

DeviceInputCopy::DeviceInputCopy(const Problem& problem, KernelDType dtype, const std::uint16_t* q,
                                 const std::uint16_t* k, const std::uint16_t* v) {
  const auto elements = [&problem](int num_heads) {
    return static_cast<std::size_t>(problem.row_offset(num_heads, 0));
  };
  q_.upload(q, elements(problem.num_q_heads), "upload q");
  k_.upload(k, elements(problem.num_kv_heads), "upload k");
  v_.upload(v, elements(problem.num_kv_heads), "upload v");
  cuda_check(cudaDeviceSynchronize(), "upload of the input");
  input_ = {.problem = problem, .dtype = dtype, .q = q_.data(), .k = k_.data(), .v = v_.data()};
}

}  // namespace s2o
