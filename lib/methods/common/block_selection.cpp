#include "lib/methods/common/block_selection.h"

#include <Eigen/Core>
#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>
#include <numeric>

#include "kernels/common/bf16.h"
#include "kernels/common/parallel.h"

namespace s2o {
namespace {

using RowMatrix = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

// Sorts ascending as (score descending, index ascending); total even with NaN, which comes last.
std::uint64_t rank_key(float score, std::uint32_t index) {
  std::uint32_t ordered = 0;
  if (!std::isnan(score)) {
    const auto bits = std::bit_cast<std::uint32_t>(score + 0.0f);  // -0 and +0 are a tie
    ordered = (bits & 0x80000000u) != 0 ? ~bits : bits | 0x80000000u;
  }
  return (static_cast<std::uint64_t>(~ordered) << 32) | index;
}

std::vector<std::uint64_t> rank_keys(std::span<const float> scores) {
  std::vector<std::uint64_t> keys(scores.size());
  for (std::size_t i = 0; i < scores.size(); ++i) {
    keys[i] = rank_key(scores[i], static_cast<std::uint32_t>(i));
  }
  return keys;
}

std::vector<std::int32_t> indices_of(std::span<const std::uint64_t> keys) {
  std::vector<std::int32_t> indices(keys.size());
  for (std::size_t i = 0; i < keys.size(); ++i) {
    indices[i] = static_cast<std::int32_t>(keys[i] & 0xffffffffu);
  }
  return indices;
}

}  // namespace

float Rounder::operator()(float x) const {
  switch (dtype_) {
    case StorageDType::kBF16:
      return round_bf16(x);
    case StorageDType::kF16:
      return round_fp16(x);
    case StorageDType::kF32:
      break;
  }
  return x;
}

void Rounder::apply(std::span<float> values) const {
  // One loop per type, so that the compiler can vectorise it.
  if (dtype_ == StorageDType::kBF16) {
    for (float& value : values) value = round_bf16(value);
  } else if (dtype_ == StorageDType::kF16) {
    for (float& value : values) value = round_fp16(value);
  }
}

ParamSpec rounding_spec() {
  return ParamSpec::choice("rounding", "official", {"official", "fp32"},
                           "official: estimates rounded where the original code rounds (level A); "
                           "fp32: never (level B)");
}

Rounder make_rounder(const ParamSet& params, const AttentionInput& input) {
  return params.get_choice("rounding") == "official" ? Rounder(input.dtype) : Rounder();
}

std::vector<float> pooled_means(const float* x, std::int64_t seqlen, int head_dim, int block,
                                PoolDivisor divisor, const Rounder& round) {
  const std::int64_t count = num_blocks(seqlen, block);
  std::vector<float> means(static_cast<std::size_t>(count * head_dim));
  for (std::int64_t b = 0; b < count; ++b) {
    const std::int64_t first = b * block;
    const std::int64_t real = std::min<std::int64_t>(block, seqlen - first);
    Eigen::Map<Eigen::ArrayXf> mean(means.data() + b * head_dim, head_dim);
    mean.setZero();
    for (std::int64_t t = first; t < first + real; ++t) {
      mean += Eigen::Map<const Eigen::ArrayXf>(x + t * head_dim, head_dim);
    }
    mean /= static_cast<float>(divisor == PoolDivisor::kRealTokens ? real : block);
  }
  round.apply(means);
  return means;
}

void rounded_scores(const float* a, std::int64_t num_a, const float* b, std::int64_t num_b,
                    std::int64_t head_dim, const Rounder& round, float* out) {
  const Eigen::Map<const RowMatrix> a_matrix(a, num_a, head_dim);
  const Eigen::Map<const RowMatrix> b_matrix(b, num_b, head_dim);
  Eigen::Map<RowMatrix>(out, num_a, num_b).noalias() = a_matrix * b_matrix.transpose();
  round.apply(std::span(out, static_cast<std::size_t>(num_a * num_b)));
}

void scale_rounded(std::span<float> x, float factor, const Rounder& round) {
  for (float& value : x) value *= factor;
  round.apply(x);
}

void exp_shifted(std::span<float> x, float shift) {
  // Whole aligned chunks of a fixed size: on a plain buffer, elements before the first aligned
  // address and after the last whole vector would take the scalar exp, which rounds differently.
  constexpr std::size_t kChunk = 64;
  Eigen::Array<float, kChunk, 1> chunk = Eigen::Array<float, kChunk, 1>::Zero();
  for (std::size_t first = 0; first < x.size(); first += kChunk) {
    const std::size_t count = std::min(kChunk, x.size() - first);
    std::copy_n(x.begin() + static_cast<std::ptrdiff_t>(first), count, chunk.data());
    chunk = (chunk - shift).exp();
    // exp(-inf) must be exactly 0; the vectorised exp may return the smallest normal instead.
    chunk = (chunk > std::numeric_limits<float>::min()).select(chunk, 0.0f);
    std::copy_n(chunk.data(), count, x.begin() + static_cast<std::ptrdiff_t>(first));
  }
}

bool softmax_row(std::span<float> row) {
  Eigen::Map<Eigen::ArrayXf> x(row.data(), static_cast<Eigen::Index>(row.size()));
  const float largest =
      x.size() == 0 ? -std::numeric_limits<float>::infinity() : x.maxCoeff<Eigen::PropagateNaN>();
  if (!std::isfinite(largest)) {
    x.setZero();
    return false;
  }
  exp_shifted(row, largest);
  // fp64 and in order: a vectorised sum would depend on the address of the buffer.
  x /= static_cast<float>(std::accumulate(row.begin(), row.end(), 0.0));
  return true;
}

std::vector<std::int32_t> order_descending(std::span<const float> scores) {
  std::vector<std::uint64_t> keys = rank_keys(scores);
  std::sort(keys.begin(), keys.end());
  return indices_of(keys);
}

std::vector<std::int32_t> top_indices(std::span<const float> scores, std::int64_t count) {
  std::vector<std::uint64_t> keys = rank_keys(scores);
  const auto kept = static_cast<std::ptrdiff_t>(
      std::clamp<std::int64_t>(count, 0, static_cast<std::int64_t>(keys.size())));
  std::nth_element(keys.begin(), keys.begin() + kept, keys.end());
  keys.resize(static_cast<std::size_t>(kept));
  std::sort(keys.begin(), keys.end());
  return indices_of(keys);
}

std::optional<std::int64_t> cross_in_count(std::span<const float> sorted, float target) {
  double sum = 0.0;
  for (std::size_t i = 0; i < sorted.size(); ++i) {
    sum += sorted[i];
    if (static_cast<float>(sum) >= target) return static_cast<std::int64_t>(i) + 1;
  }
  return std::nullopt;
}

std::int64_t cross_out_count(std::span<const float> sorted, float target, const Rounder& stored) {
  double sum = 0.0;
  std::int64_t count = 0;
  for (const float score : sorted) {
    sum += score;
    if (!(stored(static_cast<float>(sum)) <= target)) break;
    ++count;
  }
  return count;
}

SparsePlan plan_from_block_masks(const Problem& problem, int block_m, int block_n,
                                 const std::vector<BlockMask>& masks) {
  SparsePlan plan(problem, block_m, block_n);
  PlanBuilder builder(plan);
  parallel_for(problem.num_q_heads, [&](std::int64_t head) {
    for (int tile = 0; tile < plan.header.num_q_tiles; ++tile) {
      add_key_blocks(problem, plan, builder, static_cast<int>(head), tile,
                     masks[static_cast<std::size_t>(head)].row(tile), block_n);
    }
  });
  builder.finish(plan.passes[0]);
  return plan;
}

ParamSpec compensation_spec() {
  return ParamSpec::choice(
      "compensation", "none", {"none", "centroid", "blocks", "blocks_variance"},
      "how unvisited past key blocks enter the output: not, as one mean column, one per block, or "
      "one per block with the variance of its logits");
}

Compensation compensation_of(const ParamSet& params) {
  const std::string& kind = params.get_choice("compensation");
  return kind == "none"       ? Compensation::kNone
         : kind == "centroid" ? Compensation::kCentroid
         : kind == "blocks"   ? Compensation::kBlocks
                              : Compensation::kBlocksVariance;
}

}  // namespace s2o
