// Plans that were written on a device, fetched for counting work and for checks.
#pragma once

#include <cstddef>
#include <functional>

#include "kernels/common/device_plan.h"
#include "lib/plan/sparse_plan.h"

namespace s2o {

// Copies `bytes` from where the plan lies (a device, or the host in tests) to host memory.
using CopyToHost = std::function<void(void* target, const void* source, std::size_t bytes)>;

enum class FetchedArrays {
  kAll,
  kWithoutTokens,  // no gather_indices: they are large, and work of unmasked gathers is a count
};

// Makes a batch (planner.h) of the plan anew.
using PlanBatch = std::function<void(int batch)>;

// Items of a tile follow each other without gaps in the result, whatever room the planner left.
// Tokens of a plan in several batches are those of the batches one after the other. `replan` is
// called for every batch of several whose items or wanted tokens share memory (planner.h).
SparsePlan fetch_plan(const Problem& problem, const DevicePlan& plan, const CopyToHost& copy,
                      FetchedArrays arrays, const PlanBatch& replan);

}  // namespace s2o
