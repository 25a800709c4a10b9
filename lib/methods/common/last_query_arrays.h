// Arrays of the operation last_queries (kernels/planning/last_queries/ops.h) in the workspace of a
// planner, and its arguments.
#pragma once

#include "kernels/common/ceil_div.h"
#include "kernels/common/device_input.h"
#include "kernels/planning/last_queries/ops.h"
#include "lib/planning/workspace.h"

namespace s2o {

struct LastQueryArrays {
  Workspace::Array<float> largest, normalisers, mass, distance_mass, chunk_diagonals;
  std::int64_t num_keys = 0;
  std::int32_t num_queries = 0;
  std::int32_t num_chunks = 0;

  LastQueryArrays() = default;
  // Mass by distance is for a causal softmax over all keys.
  LastQueryArrays(Workspace& workspace, const Problem& problem, std::int64_t queries,
                  std::int64_t keys, bool by_distance)
      : num_keys(keys),
        num_queries(static_cast<std::int32_t>(queries)),
        num_chunks(ceil_div<std::int32_t>(keys, kLastQueryChunk)) {
    const std::int64_t heads = problem.num_q_heads;
    largest = workspace.add<float>(heads * (num_chunks + 1) * kLastQueries);
    normalisers = workspace.add<float>(heads * (num_chunks + 1) * kLastQueries);
    mass = workspace.add<float>(heads * keys);
    if (!by_distance) return;
    distance_mass = workspace.add<float>(heads * problem.seqlen);
    chunk_diagonals = workspace.add<float>(heads * num_chunks * kLastQueryDiagonals);
  }

  LastQueryArgs args(const DeviceInput& input, std::uint32_t* bad_row,
                     std::int32_t rows_per_head) const {
    return {.q = input.q,
            .k = input.k,
            .seqlen = input.problem.seqlen,
            .num_keys = num_keys,
            .num_queries = num_queries,
            .num_q_heads = input.problem.num_q_heads,
            .group_size = input.problem.group_size(),
            .num_chunks = num_chunks,
            .scale = input.problem.softmax_scale,
            .causal = distance_mass.size() > 0,
            .largest = largest.data(),
            .normalisers = normalisers.data(),
            .mass = mass.data(),
            .distance_mass = distance_mass.data(),
            .chunk_diagonals = chunk_diagonals.data(),
            .bad_row = bad_row,
            .rows_per_head = rows_per_head};
  }
};

}  // namespace s2o
