// Settings, selection rules and device planner of FlexPrefill (definition: flexprefill.cpp).
// T = number of blocks of the sequence.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "lib/methods/common/block_selection.h"
#include "lib/planning/tile_planner.h"

namespace s2o {

struct FlexPrefillSettings {
  int block;                // tokens
  double gamma;             // share of attention mass
  double tau;               // heads whose estimate is closer than this are query aware
  std::int64_t min_blocks;  // least columns and least diagonals
  bool dense;               // every causal block: the sequence is within the least budget
  PlannedFold fold;         // what stands in for the keys that are not visited
};

// Whether the kernels of kernels/planning/flexprefill can hold so many blocks.
bool flexprefill_plans_on_device(const Problem& problem, const FlexPrefillSettings& settings);
std::unique_ptr<Planner> flexprefill_planner(const Problem& problem,
                                             const FlexPrefillSettings& settings,
                                             const PlannerLimits& limits);

// Tokens needed for a mass of gamma: 1 + the prefix sums of `mass`, sorted descending, that are
// still <= gamma. mass [seqlen], sums to 1.
std::int64_t flexprefill_token_count(std::span<const float> mass, double gamma);

// Blocks for that many tokens: floor(tokens / 128) + 1 WHATEVER the block size, raised to
// min_blocks, then cut to max_blocks.
std::int64_t flexprefill_block_count(std::int64_t num_tokens, std::int64_t min_blocks,
                                     std::int64_t max_blocks);

// Mass of the key blocks. mass_by_key [seqlen] -> [T]
std::vector<float> flexprefill_column_mass(std::span<const float> mass_by_key, int block);
// Mass of the block diagonals: bin t holds the distances seqlen-1-c, c in [t * block, (t+1) *
// block), and stands for block diagonal T-1-t. mass_by_distance [seqlen] -> [T]
std::vector<float> flexprefill_diagonal_mass(std::span<const float> mass_by_distance, int block);

// sqrt(Jensen-Shannon divergence), natural logs, no epsilon: an exactly zero entry gives NaN.
double flexprefill_js_distance(std::span<const float> estimated, std::span<const float> observed);

// Selects the best num_columns block columns and num_diagonals block diagonals (bins as above);
// column 0 and the main diagonal always rank first.
void flexprefill_select_vertical_slash(std::span<const float> column_mass,
                                       std::span<const float> diagonal_mass,
                                       std::int64_t num_columns, std::int64_t num_diagonals,
                                       BlockMask& mask);

// Selects from all rows together, best first, the blocks whose inclusive running sum is <= gamma *
// T. probability [T, T], each row a softmax over its causal blocks.
void flexprefill_select_query_aware(std::span<const float> probability, double gamma,
                                    BlockMask& mask);

}  // namespace s2o
