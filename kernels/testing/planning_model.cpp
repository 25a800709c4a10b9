#include "kernels/testing/planning_model.h"

#include <cstring>

#include "kernels/planning/run_op.h"

namespace s2o::testing {
namespace {

class ModelPlanningKernels final : public PlanningKernels {
 public:
  ModelPlanningKernels(std::uint64_t seed, PlanningVariant variant)
      : seed_(seed), variant_(variant) {}

  void clear(void* array, std::size_t bytes) override {
    if (bytes > 0) std::memset(array, 0, bytes);
  }
  void enqueue(const AnyOp& op) override {
    device::run_any_op(device::ModelPlanDevice{&seed_}, variant_, op);
  }

 private:
  std::uint64_t seed_;
  const PlanningVariant variant_;
};

}  // namespace

std::unique_ptr<PlanningKernels> model_planning_kernels(std::uint64_t seed,
                                                        PlanningVariant variant) {
  return std::make_unique<ModelPlanningKernels>(seed, variant);
}

}  // namespace s2o::testing
