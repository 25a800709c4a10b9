// One allocation for all arrays of a planner, so that its size is known before it is made. CUDA
// builds only.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/common/device_buffer.h"

namespace s2o {

class DeviceArena {
 public:
  // An array of `count` elements; valid after allocate().
  template <class T>
  class Array {
   public:
    T* data() const { return count_ == 0 ? nullptr : static_cast<T*>(arena_->at(offset_)); }
    std::size_t size() const { return count_; }
    std::size_t size_bytes() const { return count_ * sizeof(T); }
    // From pageable host memory; returns when the copy is done.
    void upload(const T* source, std::size_t count, const char* what) const {
      if (count == 0) return;
      cuda_check(cudaMemcpy(data(), source, count * sizeof(T), cudaMemcpyHostToDevice), what);
    }
    void download(T* target, const char* what) const {
      if (count_ == 0) return;
      cuda_check(cudaMemcpy(target, data(), size_bytes(), cudaMemcpyDeviceToHost), what);
    }
    void clear(cudaStream_t stream, const char* what) const {
      if (count_ > 0) cuda_check(cudaMemsetAsync(data(), 0, size_bytes(), stream), what);
    }

   private:
    friend class DeviceArena;
    const DeviceArena* arena_ = nullptr;
    std::size_t offset_ = 0;
    std::size_t count_ = 0;
  };

  DeviceArena() = default;
  DeviceArena(const DeviceArena&) = delete;
  DeviceArena& operator=(const DeviceArena&) = delete;

  template <class T>
  Array<T> add(std::int64_t count) {
    Array<T> array;
    array.arena_ = this;
    array.offset_ = bytes_;
    array.count_ = static_cast<std::size_t>(count);
    constexpr std::size_t kAlignment = 256;
    bytes_ += (array.size_bytes() + kAlignment - 1) / kAlignment * kAlignment;
    return array;
  }
  std::int64_t bytes() const { return static_cast<std::int64_t>(bytes_); }
  void allocate(const char* what) { memory_.reserve(bytes_, what); }

 private:
  void* at(std::size_t offset) const { return static_cast<std::byte*>(memory_.data()) + offset; }

  std::size_t bytes_ = 0;
  DeviceBytes memory_;
};

}  // namespace s2o
