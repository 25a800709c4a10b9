// Device memory that releases itself: the only place that allocates. CUDA builds only.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "kernels/common/cuda_check.h"

namespace s2o {

// Bytes obtained from cudaMalloc: 256-byte aligned. Grows only.
class DeviceBytes {
 public:
  DeviceBytes() = default;
  ~DeviceBytes() { release(); }
  DeviceBytes(DeviceBytes&& other) noexcept
      : data_(std::exchange(other.data_, nullptr)), bytes_(std::exchange(other.bytes_, 0)) {}
  DeviceBytes& operator=(DeviceBytes&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(bytes_, other.bytes_);
    return *this;
  }

  // At least `bytes`; the contents are lost when the buffer grows. UnsupportedError with the bytes
  // needed and free when the device has too little memory. `what` names the array.
  void reserve(std::size_t bytes, const char* what) {
    if (bytes <= bytes_) return;
    release();
    const cudaError_t status = cudaMalloc(&data_, bytes);
    if (status == cudaErrorMemoryAllocation) {
      (void)cudaGetLastError();
      data_ = nullptr;
      std::size_t free_bytes = 0;
      std::size_t total_bytes = 0;
      cuda_check(cudaMemGetInfo(&free_bytes, &total_bytes), "free device memory");
      throw UnsupportedError(std::string(what) + ": needs " + std::to_string(bytes) +
                             " bytes of device memory, " + std::to_string(free_bytes) + " of " +
                             std::to_string(total_bytes) + " are free");
    }
    cuda_check(status, what);
    bytes_ = bytes;
  }
  void* data() const { return data_; }
  std::size_t bytes() const { return bytes_; }

 private:
  void release() {
    if (data_ != nullptr) cudaFree(data_);
    data_ = nullptr;
    bytes_ = 0;
  }

  void* data_ = nullptr;
  std::size_t bytes_ = 0;
};

// A device array of trivially copyable elements.
template <class T>
class DeviceBuffer {
 public:
  // Empty where that fails.
  void resize(std::size_t count, const char* what) {
    size_ = 0;
    bytes_.reserve(count * sizeof(T), what);
    size_ = count;
  }
  // Copies from pageable host memory; returns when the copy is done.
  void upload(const T* source, std::size_t count, const char* what) {
    resize(count, what);
    if (count == 0) return;
    cuda_check(cudaMemcpy(bytes_.data(), source, count * sizeof(T), cudaMemcpyHostToDevice), what);
  }
  void upload(const std::vector<T>& source, const char* what) {
    upload(source.data(), source.size(), what);
  }
  void download(T* target, const char* what) const {
    if (size_ == 0) return;
    cuda_check(cudaMemcpy(target, bytes_.data(), size_ * sizeof(T), cudaMemcpyDeviceToHost), what);
  }
  T* data() const { return static_cast<T*>(bytes_.data()); }
  std::size_t size() const { return size_; }
  std::int64_t size_bytes() const { return static_cast<std::int64_t>(size_ * sizeof(T)); }

 private:
  DeviceBytes bytes_;
  std::size_t size_ = 0;
};

}  // namespace s2o
