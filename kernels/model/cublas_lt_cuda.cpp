#include "kernels/model/cublas_lt_cuda.h"

#include <dlfcn.h>

#include <vector>

#include "kernels/common/error.h"

namespace s2o {
namespace {

const std::string kLibrary = "libcublasLt.so." + std::to_string(CUBLAS_VER_MAJOR);

std::vector<std::string> candidates(const std::string& folder) {
  const std::string cu = "cu" + std::to_string(CUBLAS_VER_MAJOR);
  if (!folder.empty()) {
    return {folder + "/" + kLibrary,
            folder + "/lib/" + kLibrary,
            folder + "/lib64/" + kLibrary,
            folder + "/" + cu + "/lib/" + kLibrary,
            folder + "/cublas/lib/" + kLibrary,
            folder + "/nvidia/" + cu + "/lib/" + kLibrary,
            folder + "/nvidia/cublas/lib/" + kLibrary};
  }
  const std::string versioned = "/usr/local/cuda-" + std::to_string(CUBLAS_VER_MAJOR);
  return {kLibrary, "/usr/local/cuda/lib64/" + kLibrary, "/usr/local/cuda/lib/" + kLibrary,
          versioned + "/lib64/" + kLibrary, versioned + ".0/lib64/" + kLibrary};
}

template <class Function>
void find(void* library, const std::string& file, const char* name, Function& function) {
  function = reinterpret_cast<Function>(dlsym(library, name));
  if (function == nullptr) throw UnsupportedError(file + ": has no function " + name);
}

CublasLt functions_of(void* library, const std::string& file) {
  CublasLt lt;
  lt.file = file;
  find(library, file, "cublasLtCreate", lt.create);
  find(library, file, "cublasLtDestroy", lt.destroy);
  find(library, file, "cublasLtGetVersion", lt.version);
  find(library, file, "cublasLtGetStatusString", lt.status_text);
  find(library, file, "cublasLtMatmul", lt.matmul);
  find(library, file, "cublasLtMatmulDescCreate", lt.desc_create);
  find(library, file, "cublasLtMatmulDescDestroy", lt.desc_destroy);
  find(library, file, "cublasLtMatmulDescSetAttribute", lt.desc_set);
  find(library, file, "cublasLtMatrixLayoutCreate", lt.layout_create);
  find(library, file, "cublasLtMatrixLayoutDestroy", lt.layout_destroy);
  find(library, file, "cublasLtMatmulPreferenceCreate", lt.preference_create);
  find(library, file, "cublasLtMatmulPreferenceDestroy", lt.preference_destroy);
  find(library, file, "cublasLtMatmulPreferenceSetAttribute", lt.preference_set);
  find(library, file, "cublasLtMatmulAlgoGetHeuristic", lt.heuristic);
  return lt;
}

}  // namespace

void CublasLt::check(cublasStatus_t status, const std::string& what) const {
  if (status == CUBLAS_STATUS_SUCCESS) return;
  throw CudaError(what + ": " + status_text(status));
}

std::shared_ptr<const CublasLt> open_cublas_lt(const std::string& folder) {
  std::string tried;
  for (const std::string& file : candidates(folder)) {
    // Never closed: its threads and the context that it registers with outlive every user.
    void* const library = dlopen(file.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (library != nullptr) return std::make_shared<CublasLt>(functions_of(library, file));
    tried += (tried.empty() ? "" : ", ") + file;
  }
  throw UnsupportedError(
      "the linear layers of a model need cuBLAS of CUDA " + std::to_string(CUBLAS_VER_MAJOR) +
      ", and none was found (tried " + tried +
      "); install it with the toolkit or as a pip package, and name its folder with --cublas");
}

}  // namespace s2o
