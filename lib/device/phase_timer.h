// Where the time of a stream goes, by events between its phases. CUDA builds only.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "kernels/common/stream.h"

namespace s2o {

enum class Phase : std::uint8_t { kLinear, kPlanning, kAttention, kCommunication, kRest };

// begin, then enter as often as wanted, then end; then the times can be read, as often as wanted.
// Events are made once and reused; a mark costs the device about a microsecond.
class PhaseTimer {
 public:
  explicit PhaseTimer(cudaStream_t stream) : stream_(stream) {}

  void begin(Phase phase) {
    count_ = 0;
    ended_ = false;
    mark(phase);
  }
  // What is enqueued from here on belongs to `phase`.
  void enter(Phase phase) {
    if (count_ == 0 || ended_) throw Error("PhaseTimer: enter without begin");
    if (marks_[count_ - 1].phase != phase) mark(phase);
  }
  void end() {
    if (count_ == 0 || ended_) throw Error("PhaseTimer: end without begin");
    end_.record(stream_);
    ended_ = true;
  }

  // Milliseconds of all stretches of a phase. Waits for the end; gaps between phases belong to the
  // one before.
  double milliseconds(Phase phase) const {
    check_ended();
    double sum = 0.0;
    for (std::size_t i = 0; i < count_; ++i) {
      if (marks_[i].phase != phase) continue;
      const Event& next = i + 1 < count_ ? marks_[i + 1].begin : end_;
      sum += static_cast<double>(next.milliseconds_since(marks_[i].begin));
    }
    return sum;
  }
  double total_milliseconds() const {
    check_ended();
    return static_cast<double>(end_.milliseconds_since(marks_.front().begin));
  }

 private:
  struct Mark {
    Phase phase = Phase::kRest;
    Event begin;
  };
  void mark(Phase phase) {
    if (count_ == marks_.size()) marks_.emplace_back();
    marks_[count_].phase = phase;
    marks_[count_].begin.record(stream_);
    ++count_;
  }
  void check_ended() const {
    if (!ended_) throw Error("PhaseTimer: no measurement has ended");
  }

  cudaStream_t stream_;
  std::vector<Mark> marks_;
  std::size_t count_ = 0;
  bool ended_ = false;
  Event end_;
};

}  // namespace s2o
