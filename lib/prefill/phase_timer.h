// Where the time of a stream goes, by events between its phases. CUDA builds only.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "kernels/common/stream.h"
#include "lib/prefill/prefill_backend.h"

namespace s2o {

enum class Phase : std::uint8_t { kLinear, kAttention, kPlanning, kRest };

// Events are made once and reused; a mark costs the device about a microsecond.
class PhaseTimer {
 public:
  explicit PhaseTimer(cudaStream_t stream) : stream_(stream) {}

  void begin() {
    count_ = 0;
    enter(Phase::kRest);
  }
  // What is enqueued from here on belongs to `phase`.
  void enter(Phase phase) {
    if (count_ > 0 && marks_[count_ - 1].phase == phase) return;
    if (count_ == marks_.size()) marks_.emplace_back();
    marks_[count_].phase = phase;
    marks_[count_].begin.record(stream_);
    ++count_;
  }
  void end() { end_.record(stream_); }

  // Waits for the end. Gaps between phases belong to the one before.
  PrefillSplit split() const {
    PrefillSplit split;
    split.total_ms = static_cast<double>(end_.milliseconds_since(marks_.front().begin));
    for (std::size_t i = 0; i < count_; ++i) {
      const Event& next = i + 1 < count_ ? marks_[i + 1].begin : end_;
      part(split, marks_[i].phase) += static_cast<double>(next.milliseconds_since(marks_[i].begin));
    }
    split.rest_ms = split.total_ms - split.linear_ms - split.attention_ms - split.planning_ms;
    return split;
  }

 private:
  struct Mark {
    Phase phase = Phase::kRest;
    Event begin;
  };
  static double& part(PrefillSplit& split, Phase phase) {
    if (phase == Phase::kLinear) return split.linear_ms;
    if (phase == Phase::kAttention) return split.attention_ms;
    if (phase == Phase::kPlanning) return split.planning_ms;
    return split.rest_ms;
  }

  cudaStream_t stream_;
  std::vector<Mark> marks_;
  std::size_t count_ = 0;
  Event end_;
};

}  // namespace s2o
