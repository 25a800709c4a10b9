#include "lib/testing/model_planning.h"

#include <cstring>
#include <memory>
#include <stdexcept>
#include <vector>

#include "kernels/testing/planning_model.h"
#include "lib/plan/device_plan.h"
#include "lib/testing/model_runner.h"

namespace s2o::testing {
namespace {

// Tokens that a tile of a plan visits.
std::vector<bool> visited_keys(const Problem& problem, const SparsePlan& plan, int head, int tile) {
  std::vector<bool> visited(static_cast<std::size_t>(problem.seqlen), false);
  for (const PlanPass& pass : plan.passes) {
    const auto index = static_cast<std::size_t>(plan.tile_index(head, tile));
    for (std::int64_t i = pass.item_offsets[index]; i < pass.item_offsets[index + 1]; ++i) {
      const PlanItem& item = pass.items[static_cast<std::size_t>(i)];
      for (std::int64_t slot = item.begin; slot < item.begin + item.count; ++slot) {
        std::int64_t key = slot;
        if (item.kind == ItemKind::kGather) {
          key = pass.gather_indices[static_cast<std::size_t>(slot)];
        } else if (!pass.key_order.empty()) {
          key = pass.key_order[static_cast<std::size_t>(head * problem.seqlen + slot)];
        }
        visited[static_cast<std::size_t>(key)] = true;
      }
    }
  }
  return visited;
}

}  // namespace

ModelPlan plan_on_model(Planner& planner, const AttentionInput& input, std::uint64_t seed) {
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
  const std::unique_ptr<PlanningKernels> kernels = model_planning_kernels(seed);
  planner.plan(
      {.problem = input.problem, .dtype = dtype, .q = q.data(), .k = k.data(), .v = v.data()},
      *kernels);
  const CopyToHost copy = [](void* target, const void* source, std::size_t bytes) {
    std::memcpy(target, source, bytes);
  };
  ModelPlan result{.plan =
                       fetch_plan(input.problem, planner.device_plan(), copy, FetchedArrays::kAll)};
  if (planner.error_word() != nullptr) result.error_word = *planner.error_word();
  return result;
}

PlanDifference compare_plans(const Problem& problem, const SparsePlan& plan,
                             const SparsePlan& reference) {
  PlanDifference difference;
  for (int head = 0; head < reference.header.num_plan_heads; ++head) {
    for (int tile = 0; tile < reference.header.num_q_tiles; ++tile) {
      const auto got = visited_keys(problem, plan, head, tile);
      const auto expected = visited_keys(problem, reference, head, tile);
      ++difference.tiles;
      bool differs = false;
      for (std::size_t key = 0; key < got.size(); ++key) {
        difference.keys += expected[key] ? 1 : 0;
        difference.extra_keys += got[key] && !expected[key] ? 1 : 0;
        difference.missing_keys += !got[key] && expected[key] ? 1 : 0;
        differs = differs || got[key] != expected[key];
      }
      difference.differing_tiles += differs ? 1 : 0;
    }
  }
  return difference;
}

}  // namespace s2o::testing
