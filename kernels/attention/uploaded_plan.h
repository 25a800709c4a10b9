// A host plan copied to the device. Host-safe header; exists in CUDA builds (S2O_HAS_CUDA).
#pragma once

#include <cstdint>
#include <memory>

#include "kernels/common/plan_view.h"
#include "kernels/common/problem.h"
#include "kernels/planning/planner.h"

namespace s2o {

class UploadedPlan {
 public:
  UploadedPlan();
  ~UploadedPlan();
  UploadedPlan(const UploadedPlan&) = delete;
  UploadedPlan& operator=(const UploadedPlan&) = delete;

  // Copies and waits for everything on the device; `plan` holds host pointers and may be released
  // afterwards. Memory grows only. Error naming head, tile and index for a plan that points outside
  // the problem. `l2_bytes` of the device decides the order of tiles.
  void upload(const Problem& problem, const PlanView& plan, std::int64_t l2_bytes);
  // Releases the memory.
  void clear();
  // Valid until the next upload.
  const DevicePlan& device_plan() const;
  std::int64_t bytes() const;

 private:
  struct Memory;
  std::unique_ptr<Memory> memory_;
};

}  // namespace s2o
