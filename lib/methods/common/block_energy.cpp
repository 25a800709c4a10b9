#include "lib/methods/common/block_energy.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "kernels/common/parallel.h"

namespace s2o {

LogitMatrix query_tile_rows(const AttentionInput& input, const SparsePlan& plan, int plan_head,
                            int tile) {
  const TileRows rows = tile_rows(input.problem, plan.header, tile);
  const int pack = plan.header.pack;
  const int head_dim = input.problem.head_dim;
  LogitMatrix result(rows.end_slot - rows.first_slot, head_dim);
  for (std::int64_t slot = rows.first_slot; slot < rows.end_slot; ++slot) {
    const int q_head = plan_head * pack + static_cast<int>(slot % pack);
    result.row(slot - rows.first_slot) = Eigen::Map<const Eigen::RowVectorXf>(
        input.q_head(q_head) + slot / pack * head_dim, head_dim);
  }
  return result;
}

std::vector<LogitMatrix> block_mean_keys(const AttentionInput& input, int block,
                                         const Rounder& round) {
  const Problem& problem = input.problem;
  std::vector<LogitMatrix> means(static_cast<std::size_t>(problem.num_kv_heads));
  parallel_for(problem.num_kv_heads, [&](std::int64_t kv_head) {
    const std::vector<float> pooled =
        pooled_means(input.k_head(static_cast<int>(kv_head)), problem.seqlen, problem.head_dim,
                     block, PoolDivisor::kRealTokens, round);
    means[static_cast<std::size_t>(kv_head)] = Eigen::Map<const LogitMatrix>(
        pooled.data(), num_blocks(problem.seqlen, block), problem.head_dim);
  });
  return means;
}

std::vector<float> tile_energies(const Eigen::Ref<const LogitMatrix>& logits,
                                 std::span<const std::int32_t> row_blocks, int num_candidates) {
  const auto num_rows = static_cast<Eigen::Index>(row_blocks.size());
  const auto blocks_of = [&](Eigen::Index row) {
    return std::min<Eigen::Index>(row_blocks[static_cast<std::size_t>(row)], num_candidates);
  };
  float largest = -std::numeric_limits<float>::infinity();
  for (Eigen::Index row = 0; row < num_rows; ++row) {
    if (blocks_of(row) > 0) {
      largest = std::max(largest, logits.row(row).head(blocks_of(row)).maxCoeff());
    }
  }
  std::vector<float> energies(static_cast<std::size_t>(num_candidates), 0.0f);
  std::vector<float> terms;
  for (Eigen::Index row = 0; row < num_rows; ++row) {
    const float* first = logits.row(row).data();
    terms.assign(first, first + blocks_of(row));
    exp_shifted(terms, largest);
    for (std::size_t j = 0; j < terms.size(); ++j) energies[j] += terms[j];
  }
  return energies;
}

void select_by_energy(std::span<const float> energies, float alpha, std::uint8_t* selected) {
  if (energies.empty()) return;
  const float cut = alpha * *std::max_element(energies.begin(), energies.end());
  for (std::size_t j = 0; j < energies.size(); ++j) {
    if (energies[j] >= cut) selected[j] = 1;
  }
}

ForcedBlocks forced_blocks_of(const ParamSet& params) {
  return {.sink_blocks = static_cast<int>(params.get_int("sink_blocks")),
          .window_blocks = static_cast<int>(params.get_int("window_blocks")),
          .last_tiles = static_cast<int>(params.get_int("last_tiles"))};
}

void force_blocks(const ForcedBlocks& forced, int first_block, int last_block, bool is_last_tile,
                  std::uint8_t* selected) {
  const int window_begin = is_last_tile ? 0 : std::max(first_block - forced.window_blocks + 1, 0);
  const int sink_end = std::min(forced.sink_blocks, last_block + 1);
  std::fill(selected, selected + sink_end, std::uint8_t{1});
  for (int j = window_begin; j <= last_block; ++j) selected[j] = 1;
}

float quantile_linear(std::vector<float> values, double fraction) {
  std::sort(values.begin(), values.end());
  const double place = fraction * static_cast<double>(values.size() - 1);
  const auto below = static_cast<std::size_t>(place);
  const std::size_t above = std::min(below + 1, values.size() - 1);
  const auto share = static_cast<float>(place - static_cast<double>(below));
  return values[below] + share * (values[above] - values[below]);
}

std::vector<float> block_radii(const float* keys, std::int64_t seqlen, int head_dim, int block) {
  const std::int64_t complete = seqlen / block;
  const std::vector<float> means =
      pooled_means(keys, complete * block, head_dim, block, PoolDivisor::kRealTokens, Rounder());
  std::vector<float> radii(static_cast<std::size_t>(complete));
  for (std::int64_t b = 0; b < complete; ++b) {
    const Eigen::Map<const Eigen::RowVectorXf> mean(means.data() + b * head_dim, head_dim);
    const Eigen::Map<const LogitMatrix> rows(keys + b * block * head_dim, block, head_dim);
    radii[static_cast<std::size_t>(b)] =
        std::sqrt((rows.rowwise() - mean).rowwise().squaredNorm().maxCoeff());
  }
  return radii;
}

std::vector<float> radius_weights(const std::vector<float>& radii) {
  std::vector<float> weights(radii.size(), 0.0f);
  if (radii.empty()) return weights;
  const float low = quantile_linear(radii, 0.5);
  const float high = quantile_linear(radii, 0.9);
  for (std::size_t b = 0; b < radii.size(); ++b) {
    weights[b] = high > low ? std::clamp((radii[b] - low) / (high - low), 0.0f, 1.0f)
                            : (radii[b] > low ? 1.0f : 0.0f);
  }
  return weights;
}

std::vector<float> radius_lifts(const std::vector<float>& radii) {
  std::vector<float> lifts = radius_weights(radii);
  for (std::size_t b = 0; b < radii.size(); ++b) lifts[b] *= radii[b];
  return lifts;
}

}  // namespace s2o
