#include "kernels/model/matrix_product.h"

#include <map>

#include "kernels/common/device_buffer.h"
#include "kernels/model/cublas_lt_cuda.h"

namespace s2o {
namespace {

constexpr int kMaxSuggestions = 16;

std::string text_of(const ProductShape& shape) {
  return "matrix product [" + std::to_string(shape.rows) + ", " +
         std::to_string(shape.in_features) + "] x [" + std::to_string(shape.in_features) + ", " +
         std::to_string(shape.out_features) + "]";
}

}  // namespace

struct MatrixProducts::State {
  // What the library wants to know about one shape, and its suggestions, best first.
  struct Plan {
    cublasLtMatmulDesc_t desc = nullptr;
    cublasLtMatrixLayout_t weight = nullptr, x = nullptr, y = nullptr;
    std::vector<cublasLtMatmulHeuristicResult_t> suggestions;
  };

  std::shared_ptr<const CublasLt> lt;
  cublasLtHandle_t handle = nullptr;
  cublasLtMatmulPreference_t preference = nullptr;
  DeviceBytes workspace;
  std::map<ProductShape, Plan> plans;

  explicit State(const std::string& folder) : lt(open_cublas_lt(folder)) {
    lt->check(lt->create(&handle), "cublasLtCreate");
    lt->check(lt->preference_create(&preference), "cublasLtMatmulPreferenceCreate");
    const std::uint64_t bytes = kWorkspaceBytes;
    lt->check(lt->preference_set(preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &bytes,
                                 sizeof(bytes)),
              "cublasLtMatmulPreferenceSetAttribute");
  }
  ~State() {
    for (auto& [shape, plan] : plans) release(plan);
    if (preference != nullptr) lt->preference_destroy(preference);
    if (handle != nullptr) lt->destroy(handle);
  }

  void release(Plan& plan) const {
    if (plan.desc != nullptr) lt->desc_destroy(plan.desc);
    for (cublasLtMatrixLayout_t layout : {plan.weight, plan.x, plan.y}) {
      if (layout != nullptr) lt->layout_destroy(layout);
    }
  }

  // The library counts columns first: y^T = weight^T' x^T, where weight is stored transposed.
  Plan& plan_of(const ProductShape& shape) {
    if (const auto known = plans.find(shape); known != plans.end()) return known->second;
    Plan& plan = plans[shape];
    const auto rows = static_cast<std::uint64_t>(shape.rows);
    const auto out = static_cast<std::uint64_t>(shape.out_features);
    const auto in = static_cast<std::uint64_t>(shape.in_features);
    const cublasOperation_t transposed = CUBLAS_OP_T;
    lt->check(lt->desc_create(&plan.desc, CUBLAS_COMPUTE_32F, CUDA_R_32F),
              "cublasLtMatmulDescCreate");
    lt->check(lt->desc_set(plan.desc, CUBLASLT_MATMUL_DESC_TRANSA, &transposed, sizeof(transposed)),
              "cublasLtMatmulDescSetAttribute");
    lt->check(lt->layout_create(&plan.weight, CUDA_R_16BF, in, out, shape.in_features),
              "cublasLtMatrixLayoutCreate");
    lt->check(lt->layout_create(&plan.x, CUDA_R_16BF, in, rows, shape.in_features),
              "cublasLtMatrixLayoutCreate");
    lt->check(lt->layout_create(&plan.y, shape.fp32_output ? CUDA_R_32F : CUDA_R_16BF, out, rows,
                                shape.out_stride > 0 ? shape.out_stride : shape.out_features),
              "cublasLtMatrixLayoutCreate");
    plan.suggestions.resize(kMaxSuggestions);
    int found = 0;
    lt->check(lt->heuristic(handle, plan.desc, plan.weight, plan.x, plan.y, plan.y, preference,
                            kMaxSuggestions, plan.suggestions.data(), &found),
              text_of(shape) + ": cublasLtMatmulAlgoGetHeuristic of version " + version());
    plan.suggestions.resize(static_cast<std::size_t>(found));
    if (found == 0) throw UnsupportedError(text_of(shape) + ": cuBLAS has no algorithm for it");
    return plan;
  }

  std::string version() const {
    const std::size_t number = lt->version();  // 130100 for 13.1.0
    return std::to_string(number / 10000) + "." + std::to_string(number / 100 % 100) + "." +
           std::to_string(number % 100);
  }
};

MatrixProducts::MatrixProducts(const std::string& folder)
    : state_(std::make_unique<State>(folder)) {}
MatrixProducts::~MatrixProducts() = default;

void MatrixProducts::prepare() {
  state_->workspace.reserve(static_cast<std::size_t>(kWorkspaceBytes), "workspace of cuBLAS");
}

std::string MatrixProducts::version() const { return state_->version(); }

int MatrixProducts::num_suggestions(const ProductShape& shape) {
  return static_cast<int>(state_->plan_of(shape).suggestions.size());
}

void MatrixProducts::run(const ProductShape& shape, const void* x, const void* weight, void* y,
                         CudaStream stream) {
  run_suggestion(shape, 0, x, weight, y, stream);
}

void MatrixProducts::run_suggestion(const ProductShape& shape, int index, const void* x,
                                    const void* weight, void* y, CudaStream stream) {
  State& s = *state_;
  const State::Plan& plan = s.plan_of(shape);
  const float alpha = 1.0f;
  const float beta = 0.0f;
  const auto& suggestion = plan.suggestions.at(static_cast<std::size_t>(index));
  s.lt->check(
      s.lt->matmul(s.handle, plan.desc, &alpha, weight, plan.weight, x, plan.x, &beta, y, plan.y, y,
                   plan.y, &suggestion.algo, s.workspace.data(), s.workspace.bytes(), stream),
      text_of(shape) + ": cublasLtMatmul");
}

}  // namespace s2o
