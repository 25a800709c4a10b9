// Keeps kernels inside their arrays. Host-safe.
#pragma once

#include "kernels/common/plan_view.h"
#include "kernels/common/problem.h"

namespace s2o {

// Throws Error naming pass, head, tile and index when anything in the plan (host pointers) points
// outside Q, K, V, the outputs or the plan's own arrays. One pass over every array; what a plan
// means beyond that (causality, permutations, no key twice) is check_plan's.
void check_plan_bounds(const Problem& problem, const PlanView& plan);
// The part of it that needs no array: Error when the header was made for another problem.
void check_plan_header(const Problem& problem, const PlanView& plan);

}  // namespace s2o
