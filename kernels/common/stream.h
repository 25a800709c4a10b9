// CUDA streams and events that release themselves. CUDA builds only.
#pragma once

#include <cuda_runtime.h>

#include <utility>

#include "kernels/common/cuda_check.h"

namespace s2o {

class Stream {
 public:
  Stream() { cuda_check(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "new stream"); }
  ~Stream() {
    if (stream_ != nullptr) cudaStreamDestroy(stream_);
  }
  Stream(Stream&& other) noexcept : stream_(std::exchange(other.stream_, nullptr)) {}
  Stream& operator=(Stream&& other) noexcept {
    std::swap(stream_, other.stream_);
    return *this;
  }

  cudaStream_t get() const { return stream_; }
  // Waits for everything in the stream; a kernel that failed throws here.
  void synchronize() const { cuda_check(cudaStreamSynchronize(stream_), "wait for the stream"); }

 private:
  cudaStream_t stream_ = nullptr;
};

class Event {
 public:
  Event() { cuda_check(cudaEventCreate(&event_), "new event"); }
  ~Event() {
    if (event_ != nullptr) cudaEventDestroy(event_);
  }
  Event(Event&& other) noexcept : event_(std::exchange(other.event_, nullptr)) {}
  Event& operator=(Event&& other) noexcept {
    std::swap(event_, other.event_);
    return *this;
  }

  void record(const Stream& stream) { record(stream.get()); }
  void record(cudaStream_t stream) { cuda_check(cudaEventRecord(event_, stream), "record event"); }
  // What is enqueued in `stream` from here on waits for the last record.
  void hold(cudaStream_t stream) const {
    cuda_check(cudaStreamWaitEvent(stream, event_, 0), "wait for event in a stream");
  }
  // Waits until the device got there.
  void synchronize() const { cuda_check(cudaEventSynchronize(event_), "wait for event"); }
  // Waits for this event; milliseconds since `begin`, about 0.5 us exact.
  float milliseconds_since(const Event& begin) const {
    cuda_check(cudaEventSynchronize(event_), "wait for event");
    float elapsed_ms = 0.0f;
    cuda_check(cudaEventElapsedTime(&elapsed_ms, begin.event_, event_), "time between events");
    return elapsed_ms;
  }

 private:
  cudaEvent_t event_ = nullptr;
};

}  // namespace s2o
