// Planning kernels on a CUDA stream, each operation timed by events: where a planner's time goes.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "kernels/common/stream.h"
#include "kernels/planning/cuda_planning_kernels.h"

namespace s2o {

class TimedKernels final : public PlanningKernels {
 public:
  TimedKernels(const Stream& stream, PlanningVariant variant)
      : stream_(stream), kernels_(stream.get(), variant) {}

  // After the stream was waited for: ms of all calls of each operation.
  std::map<std::string, double> milliseconds() const;

  void clear(void* array, std::size_t bytes) override {
    time("clear", [&] { kernels_.clear(array, bytes); });
  }
  void enqueue(const AnyOp& op) override {
    time(op_name(op.op), [&] { kernels_.enqueue(op); });
  }

 private:
  struct Call {
    std::string name;
    Event begin, end;
  };
  template <class Enqueue>
  void time(const char* name, const Enqueue& enqueue_work) {
    Call& call = calls_.emplace_back();
    call.name = name;
    call.begin.record(stream_);
    enqueue_work();
    call.end.record(stream_);
  }

  const Stream& stream_;
  CudaPlanningKernels kernels_;
  std::vector<Call> calls_;
};

}  // namespace s2o
