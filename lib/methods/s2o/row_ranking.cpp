#include "lib/methods/s2o/row_ranking.h"

#include <Eigen/Dense>
#include <algorithm>
#include <bit>
#include <cmath>
#include <cstddef>
#include <numbers>

#include "kernels/common/bf16.h"
#include "kernels/common/ceil_div.h"
#include "kernels/common/e4m3.h"
#include "kernels/common/parallel.h"

namespace s2o {
namespace {

using RowMatrixXf = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
using Rows = Eigen::Map<const RowMatrixXf>;

constexpr float kLog2E = std::numbers::log2e_v<float>;
constexpr int kRowGroups = 8;

float rounded(float x) { return e4m3_to_float(float_to_e4m3(x)); }

// Power of two at the size of a quarter of x.
float quarter_power(float x) {
  const float y = std::max(x, 1e-20f) * 0.35355339f;  // sqrt(2) / 4: rounds the exponent
  return std::bit_cast<float>(std::bit_cast<std::uint32_t>(y) & 0x7f800000u);
}

// Exponent and two bits of the mantissa: quarters of an octave.
int leading_bits(float weight) {
  static_assert(kClassesPerOctave == 4);
  return static_cast<int>(std::bit_cast<std::uint32_t>(weight * std::exp2(kScoreBias)) >> 21);
}

}  // namespace

RowRanking::RowRanking(const AttentionInput& input, const RowRankingSettings& settings)
    : input_(input),
      settings_(settings),
      num_tiles_(ceil_div(input.problem.seqlen, kRankedRows)),
      profiles_(static_cast<std::size_t>(input.problem.num_kv_heads)),
      log2_normalizer_(static_cast<std::size_t>(input.problem.num_q_heads * input.problem.seqlen)) {
  parallel_for(input.problem.num_kv_heads, [&](std::int64_t kv_head) {
    profiles_[static_cast<std::size_t>(kv_head)] = make_profile(static_cast<int>(kv_head));
  });
  parallel_for(input.problem.num_q_heads * num_tiles_, [&](std::int64_t task) {
    estimate(static_cast<int>(task / num_tiles_), task % num_tiles_);
  });
  const TileSet probes = probe_tiles(static_cast<std::int32_t>(num_tiles_), settings.num_probes);
  reaches_.assign(static_cast<std::size_t>(input.problem.num_q_heads),
                  static_cast<std::int32_t>(input.problem.seqlen));
  parallel_for(input.problem.num_q_heads, [&](std::int64_t head) {
    const bool has_probes =
        settings.of(static_cast<int>(head)).reach_limit > 0.0f && probes.count() > 0;
    if (!has_probes) return;
    std::int32_t& reach = reaches_[static_cast<std::size_t>(head)];
    reach = kNothingFar;
    for (std::int32_t i = 0; i < probes.count(); ++i) {
      reach = std::max(reach, reach_of_probe(static_cast<int>(head), probes.at(i)));
    }
  });
}

std::int64_t RowRanking::history_length(std::int64_t tile) const {
  return std::max<std::int64_t>(tile * kRankedRows - settings_.local_window, 0);
}

RowRanking::Profile RowRanking::make_profile(int kv_head) const {
  const Problem& problem = input_.problem;
  const int d = problem.head_dim;
  const std::int64_t count = std::min<std::int64_t>(problem.seqlen, kProfileTokens);
  const Rows keys(input_.k_head(kv_head), problem.seqlen, d);
  Eigen::VectorXd mean = Eigen::VectorXd::Zero(d);
  Eigen::VectorXd square = Eigen::VectorXd::Zero(d);
  Eigen::VectorXd query = Eigen::VectorXd::Zero(d);
  for (std::int64_t i = 0; i < count; ++i) {
    const std::int64_t token = profile_token(i, problem.seqlen);
    mean += keys.row(token).cast<double>().transpose();
    for (int h = 0; h < problem.group_size(); ++h) {
      const Rows q(input_.q_head(kv_head * problem.group_size() + h), problem.seqlen, d);
      query += q.row(token).cast<double>().cwiseAbs2().transpose();
    }
  }
  mean /= static_cast<double>(count);
  query /= static_cast<double>(count * problem.group_size());
  for (std::int64_t i = 0; i < count; ++i) {
    const std::int64_t token = profile_token(i, problem.seqlen);
    square += (keys.row(token).cast<double>().transpose() - mean).cwiseAbs2();
  }
  const Eigen::VectorXf deviation = (square / static_cast<double>(count)).cwiseSqrt().cast<float>();
  const Eigen::VectorXf strength = deviation.cwiseProduct(query.cwiseSqrt().cast<float>());

  Profile profile;
  for (int i = 0; i < d; ++i) profile.dims.push_back(i);
  std::stable_sort(profile.dims.begin(), profile.dims.end(),
                   [&](int a, int b) { return strength(a) > strength(b); });
  profile.dims.resize(static_cast<std::size_t>(std::min(d, kRankedDims)));
  std::sort(profile.dims.begin(), profile.dims.end());
  const Eigen::VectorXf mean32 = mean.cast<float>();
  profile.key_mean.assign(mean32.data(), mean32.data() + d);
  for (const int dim : profile.dims) {
    const float unit = quarter_power(deviation(dim));
    profile.key_scale.push_back(1.0f / unit);
    profile.query_scale.push_back(unit * problem.softmax_scale * kLog2E);
  }
  const std::size_t num_dims = profile.dims.size();
  profile.packed.resize(static_cast<std::size_t>(problem.seqlen) * num_dims);
  for (std::int64_t key = 0; key < problem.seqlen; ++key) {
    for (std::size_t i = 0; i < num_dims; ++i) {
      const int dim = profile.dims[i];
      profile.packed[static_cast<std::size_t>(key) * num_dims + i] =
          rounded((keys(key, dim) - mean32(dim)) * profile.key_scale[i]);
    }
  }
  return profile;
}

void RowRanking::estimate(int q_head, std::int64_t tile) {
  const Problem& problem = input_.problem;
  const int d = problem.head_dim;
  const std::int64_t begin = tile * kRankedRows;
  const std::int64_t end = std::min<std::int64_t>(begin + kRankedRows, problem.seqlen);
  const std::int64_t history = history_length(tile);
  const std::int64_t sink = std::min(settings_.sink, history);
  const std::int64_t stride = row_sample_stride(problem.seqlen);
  const std::int64_t first_sample = ceil_div(settings_.sink, stride);
  const std::int64_t samples = std::max<std::int64_t>(history / stride - first_sample, 0);
  const Rows keys(input_.k_head(q_head / problem.group_size()), problem.seqlen, d);
  const Rows queries(input_.q_head(q_head) + begin * d, end - begin, d);
  // The sink, then the window and the tile itself, then samples.
  RowMatrixXf near(sink + end - history, d);
  near.topRows(sink) = keys.topRows(sink);
  near.bottomRows(end - history) = keys.middleRows(history, end - history);
  RowMatrixXf sampled(samples, d);
  for (std::int64_t i = 0; i < samples; ++i) {
    sampled.row(i) = keys.row(sampled_key(first_sample + i, stride));
  }
  const float scale = problem.softmax_scale * kLog2E;
  const RowMatrixXf near_logits = queries * near.transpose() * scale;
  RowMatrixXf sampled_logits = queries * sampled.transpose() * scale;
  if (samples > 0) {
    sampled_logits.array() +=
        std::log2(static_cast<float>(history - settings_.sink) / static_cast<float>(samples));
  }
  for (std::int64_t r = 0; r < end - begin; ++r) {
    const auto visible = near_logits.row(r).head(sink + begin - history + r + 1);
    float largest = visible.maxCoeff();
    if (samples > 0) largest = std::max(largest, sampled_logits.row(r).maxCoeff());
    const auto mass = [largest](float x) { return std::exp2(x - largest); };
    const float near_sum = visible.unaryExpr(mass).sum();
    const float far_sum = samples > 0 ? sampled_logits.row(r).unaryExpr(mass).sum() : 0.0f;
    log2_normalizer_[static_cast<std::size_t>(q_head * problem.seqlen + begin + r)] =
        largest + std::log2(near_sum + far_sum);
  }
}

std::int32_t RowRanking::reach_of_probe(int q_head, std::int64_t tile) const {
  const RowLimits limits = settings_.of(q_head);
  const auto history = static_cast<std::int32_t>(history_length(tile));
  const auto groups = static_cast<std::size_t>(num_key_groups(history));
  std::vector<float> mass(groups);
  for_each_key(q_head, tile, [&](std::int64_t key, const Eigen::VectorXf& scores) {
    if (key < settings_.sink) return;
    const auto rows = static_cast<int>(scores.size());
    float own = 0.0f;
    for (int r = 0; r < rows; ++r) {
      if (is_probed(r)) own += std::exp2(scores(r) - kScoreBias);
    }
    own /= static_cast<float>(num_probed(rows));
    if (own >= limits.least_mass) mass[static_cast<std::size_t>(key / kKeyGroup)] += own;
  });
  float lost = 0.0f;  // without the groups so far, oldest first
  for (std::size_t group = kLeadingGroups; group < groups; ++group) {
    lost += mass[group];
    if (lost > limits.reach_limit) {
      return history - static_cast<std::int32_t>(group) * kKeyGroup;
    }
  }
  for (std::size_t group = 0; group < std::min<std::size_t>(kLeadingGroups, groups); ++group) {
    lost += mass[group];
  }
  return lost > limits.reach_limit ? 0 : kNothingFar;
}

std::int32_t RowRanking::reach(int q_head) const {
  return reaches_[static_cast<std::size_t>(q_head)];
}

std::int32_t RowRanking::reach(int q_head, std::int64_t tile) const {
  return is_whole_tile(tile, num_tiles_) ? static_cast<std::int32_t>(input_.problem.seqlen)
                                         : reach(q_head);
}

bool RowRanking::is_ranked(int q_head, std::int64_t tile, std::int64_t key) const {
  const std::int32_t own = reach(q_head, tile);
  if (key < settings_.sink) return true;
  if (own == kNothingFar) return false;
  const auto group = static_cast<int>(key / kKeyGroup);
  return group < kLeadingGroups ||
         group >= first_group_within(static_cast<int>(history_length(tile)), own);
}

template <class Visit>
void RowRanking::for_each_key(int q_head, std::int64_t tile, const Visit& visit) const {
  const Problem& problem = input_.problem;
  const int d = problem.head_dim;
  const Profile& profile = profiles_[static_cast<std::size_t>(q_head / problem.group_size())];
  const std::size_t num_dims = profile.dims.size();
  const std::int64_t begin = tile * kRankedRows;
  const std::int64_t rows = std::min<std::int64_t>(kRankedRows, problem.seqlen - begin);
  const std::int64_t history = history_length(tile);
  // Products come in two halves of 32 columns, rounded to fp16 after each; the normaliser is in
  // the second.
  const auto half = static_cast<Eigen::Index>(std::min<std::size_t>(num_dims, kPackedColumns / 2));
  const auto rest = static_cast<Eigen::Index>(num_dims) - half;
  RowMatrixXf queries(rows, static_cast<Eigen::Index>(num_dims));
  Eigen::VectorXf shift(rows);
  for (std::int64_t r = 0; r < rows; ++r) {
    const float* q = input_.q_head(q_head) + (begin + r) * d;
    for (std::size_t i = 0; i < num_dims; ++i) {
      queries(r, static_cast<Eigen::Index>(i)) =
          rounded(q[profile.dims[i]] * profile.query_scale[i]);
    }
    float dot = 0.0f;
    for (int i = 0; i < d; ++i) dot += q[i] * profile.key_mean[static_cast<std::size_t>(i)];
    const float normalizer =
        log2_normalizer_[static_cast<std::size_t>(q_head * problem.seqlen + begin + r)];
    const float exact = kScoreBias - (normalizer - dot * (problem.softmax_scale * kLog2E));
    const float high = rounded(exact / kShiftHigh) * kShiftHigh;
    shift(r) = high + rounded((exact - high) / kShiftLow) * kShiftLow;
  }
  constexpr std::int64_t kChunk = 512;
  for (std::int64_t first = 0; first < history; first += kChunk) {
    const std::int64_t count = std::min(kChunk, history - first);
    const Rows keys(profile.packed.data() + first * static_cast<std::int64_t>(num_dims), count,
                    static_cast<Eigen::Index>(num_dims));
    RowMatrixXf scores = keys.leftCols(half) * queries.leftCols(half).transpose();
    scores = scores.unaryExpr([](float x) { return round_fp16(x); });
    scores += keys.rightCols(rest) * queries.rightCols(rest).transpose();
    scores.rowwise() += shift.transpose();
    for (std::int64_t x = 0; x < count; ++x) {
      visit(first + x, Eigen::VectorXf(scores.row(x).transpose().unaryExpr(
                           [](float score) { return round_fp16(score); })));
    }
  }
}

std::vector<float> RowRanking::weights(int q_head, std::int64_t tile) const {
  std::vector<float> result(static_cast<std::size_t>(history_length(tile)));
  for_each_key(q_head, tile, [&](std::int64_t key, const Eigen::VectorXf& scores) {
    float sum = 0.0f;
    for (int g = 0; g < kRowGroups; ++g) {
      float largest = -1e30f;
      for (Eigen::Index r = g; r < scores.size(); r += kRowGroups) {
        largest = std::max(largest, scores(r));
      }
      sum += std::exp2(largest);
    }
    result[static_cast<std::size_t>(key)] = sum * std::exp2(-kScoreBias);
  });
  return result;
}

int RowRanking::class_of(int q_head, float weight, std::int64_t key) const {
  if (key < settings_.sink) return kRowClasses - 1;
  return std::clamp(leading_bits(weight) - leading_bits(settings_.of(q_head).floor) + 1, 0,
                    kRowClasses - 2);
}

std::vector<std::int32_t> RowRanking::order(int q_head, std::int64_t tile,
                                            std::int64_t room) const {
  const std::int64_t history = history_length(tile);
  std::vector<std::int32_t> result;
  if (history == 0) return result;
  const std::vector<float> weight = weights(q_head, tile);
  std::vector<std::vector<std::int32_t>> classes(kRowClasses);
  for (std::int64_t key = 0; key < history; ++key) {
    if (!is_ranked(q_head, tile, key)) continue;
    const int c = class_of(q_head, weight[static_cast<std::size_t>(key)], key);
    classes[static_cast<std::size_t>(c)].push_back(static_cast<std::int32_t>(key));
  }
  for (int c = kRowClasses - 1; c > 0; --c) {
    const auto& keys = classes[static_cast<std::size_t>(c)];
    result.insert(result.end(), keys.begin(), keys.end());
  }
  if (static_cast<std::int64_t>(result.size()) > room) {
    result.resize(static_cast<std::size_t>(room));
  }
  return result;
}

}  // namespace s2o
