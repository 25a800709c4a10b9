// The shared list of attention problems that every kernel variant is judged on: shapes at the edges
// of tiles, and every part a plan can have. Tests only.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "lib/plan/sparse_plan.h"
#include "lib/testing/inputs.h"

namespace s2o::testing {

enum class PlanKind {
  kDense,
  kBlocks,         // random blocks of 128 keys, in order
  kUnalignedRuns,  // windows of 64 keys that start anywhere, then a masked gather
  kKeyOrder,       // runs over permuted keys
  kWindow,         // sink and sliding window
  kS2o,            // permuted queries, own segment, gather with early stop (mean)
  kS2oPatience,    // the same with the largest gain, patience and minimum steps
  kS2oTwoPasses,   // own segment in natural order, then the history with permuted queries
  kPacked,         // the query heads of a group share a tile
  kPvSkip,         // steps far below the running maximum add nothing
  kHoles,          // tiles without items and rows without keys
  kFoldCentroid,
  kFoldBlocks,
  kFoldVariance,
};
std::vector<PlanKind> all_plan_kinds();
std::string plan_kind_name(PlanKind kind);

struct PlanCase {
  PlanKind kind;
  Shape shape;
  int block_m;
  int block_n;
};
std::string plan_case_name(const PlanCase& plan_case);

// A valid plan (check_plan passes) that depends on nothing but the case and the seed.
SparsePlan make_plan(const PlanCase& plan_case, const AttentionInput& input, std::uint64_t seed);

}  // namespace s2o::testing
