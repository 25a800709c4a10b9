// The device code of the planners on the CPU model of a GPU (simt.h). Host-safe. Tests only.
#pragma once

#include <cstdint>
#include <memory>

#include "kernels/planning/op.h"

namespace s2o::testing {

// `seed` decides the schedule of the first launch; each further one has its own.
std::unique_ptr<PlanningKernels> model_planning_kernels(
    std::uint64_t seed, PlanningVariant variant = PlanningVariant::kSm80);

}  // namespace s2o::testing
