// cuBLASLt, opened when it is first needed: a build starts and lists its devices on machines that
// do not have it. CUDA builds only.
#pragma once

#include <cublasLt.h>

#include <memory>
#include <string>

namespace s2o {

// The functions in use. They keep the library open.
struct CublasLt {
  decltype(&cublasLtCreate) create = nullptr;
  decltype(&cublasLtDestroy) destroy = nullptr;
  decltype(&cublasLtGetVersion) version = nullptr;
  decltype(&cublasLtGetStatusString) status_text = nullptr;
  decltype(&cublasLtMatmul) matmul = nullptr;
  decltype(&cublasLtMatmulDescCreate) desc_create = nullptr;
  decltype(&cublasLtMatmulDescDestroy) desc_destroy = nullptr;
  decltype(&cublasLtMatmulDescSetAttribute) desc_set = nullptr;
  decltype(&cublasLtMatrixLayoutCreate) layout_create = nullptr;
  decltype(&cublasLtMatrixLayoutDestroy) layout_destroy = nullptr;
  decltype(&cublasLtMatmulPreferenceCreate) preference_create = nullptr;
  decltype(&cublasLtMatmulPreferenceDestroy) preference_destroy = nullptr;
  decltype(&cublasLtMatmulPreferenceSetAttribute) preference_set = nullptr;
  decltype(&cublasLtMatmulAlgoGetHeuristic) heuristic = nullptr;

  std::string file;  // as it was found

  // CudaError "<what>: <text of the status>" unless it succeeded.
  void check(cublasStatus_t status, const std::string& what) const;
};

// Looks in `folder` if that is not empty (a folder with the library, or one that holds NVIDIA's pip
// packages), else where the system's loader looks, then in the usual folders of the toolkit.
// UnsupportedError that lists what was tried.
std::shared_ptr<const CublasLt> open_cublas_lt(const std::string& folder);

}  // namespace s2o
