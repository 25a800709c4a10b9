// Building blocks of MeanPooling and PBS-Attn: block scores from mean queries and mean keys, the
// row-wise top-cdf rule, and the permutation of keys inside segments.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "lib/config/params.h"
#include "lib/methods/common/block_selection.h"

namespace s2o {

// The block sizes that the kernels' tiles allow: 16, 32, 64 or 128.
ParamSpec pooled_block_size_spec();

// A[i, j] = r(r(qhat_i . khat_j) * scale), [T, T] row-major with T = ceil(seqlen / block).
// NOTE: means of a partial last block divide by `block`, as if padded with zeros.
// q, k [seqlen, head_dim]
std::vector<float> pooled_scores(const float* q, const float* k, std::int64_t seqlen, int head_dim,
                                 int block, float scale, const Rounder& round);

// Row top-cdf, cross-in: probabilities in descending order (ties by lower index) are kept until
// their running sum first reaches `threshold`, the crossing item included; if it never does,
// NOTHING is kept. threshold == 1 means "all": a running sum in floating point may miss 1.
// ORs into selected [probability.size()].
void select_cross_in(std::span<const float> probability, double threshold, std::uint8_t* selected);

// Softmax over the first `allowed` scores of a row, then select_cross_in among them. The mass base
// is those blocks alone; the forced blocks of the method come on top.
void select_pooled_row(std::span<const float> scores, std::int64_t allowed, double threshold,
                       std::uint8_t* selected);

// ORs what it keeps of a row's causal blocks, whose probabilities it gets, into selected [row + 1].
using PooledRowRule =
    std::function<void(std::span<const float> probability, std::uint8_t* selected)>;
// The plan of a method that keeps blocks of every row by the softmax of its pooled_scores; block 0
// and the diagonal come on top, and `compensation` of params.
SparsePlan plan_pooled_rows(const AttentionInput& input, const ParamSet& params, int block,
                            const PooledRowRule& rule);

// Keys of complete segments: floor(seqlen / segment) * segment.
inline std::int64_t complete_segments_end(std::int64_t seqlen, std::int64_t segment) {
  return seqlen / segment * segment;
}

// Storage slot -> original token: inside each complete segment the tokens by descending mass, ties
// by lower token; a trailing partial segment keeps its order.
// mass [complete_segments_end] -> [seqlen]
std::vector<std::int32_t> order_inside_segments(std::span<const float> mass, std::int64_t seqlen,
                                                std::int64_t segment);

// Rows of a [seqlen, head_dim] matrix in storage order.
std::vector<float> gather_rows(const float* x, std::span<const std::int32_t> order, int head_dim);

// The storage block that holds original token 0.
std::int64_t block_of_token_zero(std::span<const std::int32_t> order, int block);

}  // namespace s2o
