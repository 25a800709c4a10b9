// The check of rows on a device against its definition, at every head_dim that there is.
#include "kernels/row_check/row_check.h"

#include <gtest/gtest.h>

#include "kernels/common/device_input_copy.h"
#include "lib/input/storage_bits.h"
#include "lib/testing/device_runner.h"

namespace s2o {
namespace {

TEST(GpuRowCheck, is_its_definition) {
  const CudaStatus status = query_cuda();
  if (!status.problem.empty()) GTEST_SKIP() << status.problem;
  const std::vector<std::int64_t> rows = {0, 17, 1023, 1024, 2499};
  for (const int head_dim : {64, 96, 128, 256}) {
    for (const StorageDType dtype : {StorageDType::kBF16, StorageDType::kF16}) {
      SCOPED_TRACE("head_dim " + std::to_string(head_dim) + ", " +
                   std::string(storage_dtype_name(dtype)));
      const AttentionInput input =
          testing::structured_input({2500, 6, 1, head_dim}, "mixed", dtype);
      const testing::DeviceInputs bits(input);
      const DeviceInputCopy copy(input.problem, bits.dtype(), bits.rows().q, bits.rows().k,
                                 bits.rows().v);
      // Q in the place of an output: it is wrong everywhere.
      const std::vector<RowError> expected = row_errors_ref(
          input.problem, input.q.data(), input.k.data(), input.v.data(), input.q.data(), rows);
      DeviceBuffer<std::int64_t> device_rows;
      device_rows.upload(rows.data(), rows.size(), "rows");
      DeviceBuffer<float> partial;
      const int num_rows = static_cast<int>(rows.size());
      partial.resize(static_cast<std::size_t>(row_check_partials(input.problem, num_rows)),
                     "parts");
      DeviceBuffer<RowError> errors;
      errors.resize(expected.size(), "errors");
      launch_row_check({.input = copy.input(),
                        .out = copy.input().q,
                        .rows = device_rows.data(),
                        .num_rows = num_rows,
                        .partial = partial.data(),
                        .errors = errors.data()},
                       nullptr);
      cuda_check(cudaDeviceSynchronize(), "check of rows");
      std::vector<RowError> found(expected.size());
      errors.download(found.data(), "errors");
      for (std::size_t i = 0; i < expected.size(); ++i) {
        EXPECT_NEAR(found[i].error, expected[i].error, 1e-3 * expected[i].error) << i;
        EXPECT_NEAR(found[i].reference, expected[i].reference, 1e-3 * expected[i].reference) << i;
      }
    }
  }
}

}  // namespace
}  // namespace s2o
