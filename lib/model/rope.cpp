#include "lib/model/rope.h"

#include <algorithm>
#include <cmath>
#include <cstddef>

#include "kernels/common/parallel.h"

namespace s2o {

RopeTable::RopeTable(const RopeFrequencies& frequencies, std::int64_t seqlen)
    : half_(static_cast<std::int64_t>(frequencies.inverse.size())),
      cos_(static_cast<std::size_t>(half_ * seqlen)),
      sin_(static_cast<std::size_t>(half_ * seqlen)) {
  constexpr std::int64_t kPositions = 256;  // of one task
  parallel_for((seqlen + kPositions - 1) / kPositions, [&](std::int64_t task) {
    const std::int64_t end = std::min(seqlen, (task + 1) * kPositions);
    for (std::int64_t position = task * kPositions; position < end; ++position) {
      for (std::int64_t i = 0; i < half_; ++i) {
        const float angle = static_cast<float>(position) * frequencies.inverse[i];
        cos_[position * half_ + i] = std::cos(angle) * frequencies.scale;
        sin_[position * half_ + i] = std::sin(angle) * frequencies.scale;
      }
    }
  });
}

void RopeTable::rotate(float* row, std::int64_t position) const {
  const float* cos = cos_.data() + position * half_;
  const float* sin = sin_.data() + position * half_;
  for (std::int64_t i = 0; i < half_; ++i) {
    const float first = row[i];
    const float second = row[i + half_];
    row[i] = first * cos[i] - second * sin[i];
    row[i + half_] = second * cos[i] + first * sin[i];
  }
}

}  // namespace s2o
