// The linear layers of a model on a device, by cuBLASLt. Host-safe header; exists in CUDA builds
// (S2O_HAS_CUDA).
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "kernels/common/cuda_stream.h"

namespace s2o {

// y [rows, out_features] = x [rows, in_features] weight^T: bf16 factors, sums in fp32.
struct ProductShape {
  std::int64_t rows = 0;
  std::int64_t out_features = 0;
  std::int64_t in_features = 0;
  bool fp32_output = false;     // else bf16
  std::int64_t out_stride = 0;  // elements between rows of y; 0: out_features

  auto operator<=>(const ProductShape&) const = default;
  double flops() const {
    return 2.0 * static_cast<double>(rows) * static_cast<double>(out_features) *
           static_cast<double>(in_features);
  }
};

class MatrixProducts {
 public:
  // Opens the library; see open_cublas_lt for `folder`.
  explicit MatrixProducts(const std::string& folder);
  ~MatrixProducts();
  MatrixProducts(const MatrixProducts&) = delete;
  MatrixProducts& operator=(const MatrixProducts&) = delete;

  // What Hopper's kernels use at most; more changes nothing.
  static constexpr std::int64_t kWorkspaceBytes = 64 << 20;
  // Allocates the workspace.
  void prepare();
  std::string version() const;  // "13.1.0"

  // Enqueues a product of device arrays. The first one of a shape asks the library for an
  // algorithm, which the same library on the same device always answers in the same way.
  // x [rows, in_features], weight [out_features, in_features], both bf16 and 16-byte aligned.
  void run(const ProductShape& shape, const void* x, const void* weight, void* y,
           CudaStream stream);

  // For benchmarks: as run, with the library's `index`-th suggestion.
  int num_suggestions(const ProductShape& shape);
  void run_suggestion(const ProductShape& shape, int index, const void* x, const void* weight,
                      void* y, CudaStream stream);

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace s2o
