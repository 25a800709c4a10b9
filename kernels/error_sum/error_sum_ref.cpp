#include <cmath>

#include "kernels/common/parallel.h"
#include "kernels/error_sum/error_sum.h"

namespace s2o {
namespace {

// The larger value; a NaN on either side wins, so that it cannot hide.
double larger(double a, double b) { return std::isnan(a) || b <= a ? a : b; }

}  // namespace

ErrorSums& ErrorSums::operator+=(const ErrorSums& other) {
  error += other.error;
  reference += other.reference;
  output += other.output;
  dot += other.dot;
  max_abs_error = larger(max_abs_error, other.max_abs_error);
  nonfinite += other.nonfinite;
  return *this;
}

std::vector<ErrorSums> error_sums_ref(int num_heads, std::int64_t count, const float* out,
                                      const float* reference) {
  std::vector<ErrorSums> heads(static_cast<std::size_t>(num_heads));
  parallel_for(num_heads, [&](std::int64_t head) {
    const float* head_out = out + head * count;
    const float* head_reference = reference + head * count;
    ErrorSums sums;
    for (std::int64_t i = 0; i < count; ++i) {
      const double o = head_out[i];
      const double d = head_reference[i];
      const double difference = std::abs(o - d);
      sums.error += difference * difference;
      sums.reference += d * d;
      sums.output += o * o;
      sums.dot += o * d;
      sums.max_abs_error = larger(sums.max_abs_error, difference);
      sums.nonfinite += std::isfinite(head_out[i]) ? 0 : 1;
    }
    heads[static_cast<std::size_t>(head)] = sums;
  });
  return heads;
}

}  // namespace s2o
