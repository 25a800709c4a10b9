// An array in memory of its own, for libraries that cannot be asked for one: outputs that they
// adopt by DLPack.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

namespace s2o::python {

class OwnArray {
 public:
  // `dtype` "fp32", "bf16" or "fp16"; `device` kCpu or the number of a CUDA device.
  // UnsupportedError with the bytes needed and free.
  OwnArray(std::vector<std::int64_t> shape, std::string dtype, int device);

  const std::vector<std::int64_t>& shape() const { return shape_; }
  const std::string& dtype() const { return dtype_; }
  int device() const { return device_; }
  void* data() const { return memory_.get(); }
  // Waits for the default stream, in which it is written.
  void finish() const;

 private:
  std::vector<std::int64_t> shape_;
  std::string dtype_;
  int device_;
  std::shared_ptr<void> memory_;
};

// As CUDA builds have them; without CUDA an UnsupportedError that says so.
std::shared_ptr<void> device_memory(int device, std::size_t bytes);
void wait_for_default_stream(int device);

}  // namespace s2o::python
