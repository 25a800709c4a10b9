#include "lib/testing/model_planning.h"

#include <cstring>
#include <memory>
#include <stdexcept>
#include <vector>

#include "kernels/testing/planning_model.h"
#include "lib/plan/fetch_plan.h"
#include "lib/testing/model_runner.h"

namespace s2o::testing {
ModelPlan plan_on_model(Planner& planner, const AttentionInput& input, std::uint64_t seed,
                        PlanningVariant variant) {
  const KernelDType dtype =
      input.dtype == StorageDType::kF16 ? KernelDType::kFp16 : KernelDType::kBf16;
  const auto q = to_16_bit(input.q, dtype);
  const auto k = to_16_bit(input.k, dtype);
  const auto v = to_16_bit(input.v, dtype);
  Workspace& workspace = planner.workspace();
  // As aligned as device memory.
  std::vector<std::byte> memory(static_cast<std::size_t>(workspace.bytes()) + 256, std::byte{0xff});
  void* base = memory.data();
  std::size_t space = memory.size();
  if (std::align(256, static_cast<std::size_t>(workspace.bytes()), base, space) == nullptr) {
    throw std::runtime_error("plan_on_model: no aligned memory");
  }
  workspace.bind(base);
  for (const Workspace::Constant& constant : workspace.constants()) {
    if (constant.bytes.empty()) continue;
    std::memcpy(static_cast<std::byte*>(base) + constant.offset, constant.bytes.data(),
                constant.bytes.size());
  }
  const std::unique_ptr<PlanningKernels> kernels = model_planning_kernels(seed, variant);
  const DeviceInput on_host = {
      .problem = input.problem, .dtype = dtype, .q = q.data(), .k = k.data(), .v = v.data()};
  const PlanBatch plan_batch = [&](int batch) {
    batch == 0 ? planner.plan(on_host, *kernels) : planner.plan_next(batch, on_host, *kernels);
  };
  for (int batch = 0; batch < planner.num_batches(); ++batch) plan_batch(batch);
  const CopyToHost copy = [](void* target, const void* source, std::size_t bytes) {
    std::memcpy(target, source, bytes);
  };
  ModelPlan result{.plan = fetch_plan(input.problem, planner.device_plan(), copy,
                                      FetchedArrays::kAll, plan_batch)};
  if (planner.error_word() != nullptr) result.error_word = *planner.error_word();
  return result;
}

}  // namespace s2o::testing
