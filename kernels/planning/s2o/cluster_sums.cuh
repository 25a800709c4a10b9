// What the two kernels of scores from clusters share (cluster_scores.cuh, cluster_scores_sm90.cuh):
// the log-sum-exp over the clusters of a key, and what is told about the scores of a row.
//
// The logits of a key and the kMaxClusters clusters of a row lie over a quad of lanes as in
// kMaxClusters / 8 tiles of an accumulator fragment, of whose two rows `i` is the key's.
#pragma once

#include "kernels/planning/s2o/cluster_ops.h"
#include "kernels/planning/shared/platform_planning.cuh"

namespace s2o::device {

// Logits are relative to this many powers of two, so that the sum of a key is a normal number when
// its largest logit lies in (-150, 80). Else the sum is repeated relative to the largest.
inline constexpr float kLogitShift = 40.0f;
S2O_DEVICE bool is_normal_sum(float sum) { return sum > 0x1p-110f && sum < 0x1p100f; }

// This lane's part of the sum.
S2O_DEVICE float cluster_sum(const float (*logit)[4], int i, float reference) {
  float x[kMaxClusters / 4];
#pragma unroll
  for (int j = 0; j < kMaxClusters / 4; ++j) {
    x[j] = exp2_fast(logit[j / 2][2 * i + j % 2] - reference);
  }
#pragma unroll
  for (int width = kMaxClusters / 8; width > 0; width /= 2) {
#pragma unroll
    for (int j = 0; j < width; ++j) x[j] += x[j + width];
  }
  return x[0];
}
// log2 of the whole sum, relative to the largest logit.
S2O_DEVICE float careful_cluster_score(const float (*logit)[4], int i) {
  float largest = kNegativeInfinity;
#pragma unroll
  for (int n = 0; n < kMaxClusters / 8; ++n) {
    largest = max_of(largest, max_of(logit[n][2 * i], logit[n][2 * i + 1]));
  }
  largest = quad_max(largest);
  return largest + log2_fast(quad_sum(cluster_sum(logit, i, largest)));
}

// Called by one lane a row and part of its keys.
S2O_DEVICE void publish_score_range(const KeyScoreArgs& args, int list, int segment, float largest,
                                    float smallest) {
  const auto row = static_cast<std::uint32_t>(list * args.shape.num_segments + segment);
  atomic_max(&args.ranges[row].largest, ordered_bits(largest));
  atomic_max(&args.ranges[row].smallest_complement, ~ordered_bits(smallest));
  const bool finite =
      absolute(largest) < -kNegativeInfinity && absolute(smallest) < -kNegativeInfinity;
  if (!finite) atomic_max(args.bad_row, ~row);
}

}  // namespace s2o::device
