// Plans that were written on a device, fetched for counting work and for checks.
#pragma once

#include <cstddef>
#include <functional>

#include "kernels/planning/planner.h"
#include "lib/plan/sparse_plan.h"

namespace s2o {

// Copies `bytes` from where the plan lies (a device, or the host in tests) to host memory.
using CopyToHost = std::function<void(void* target, const void* source, std::size_t bytes)>;

enum class FetchedArrays {
  kAll,
  kWithoutTokens,  // no gather_indices: they are large, and work of unmasked gathers is a count
};

// Items of a tile follow each other without gaps in the result, whatever room the planner left.
SparsePlan fetch_plan(const Problem& problem, const DevicePlan& plan, const CopyToHost& copy,
                      FetchedArrays arrays);

}  // namespace s2o
