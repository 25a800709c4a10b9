#include "app/python/src/own_array.h"

#include <cstddef>
#include <utility>

#include "app/python/src/call.h"
#include "lib/core/memory.h"

namespace s2o::python {

OwnArray::OwnArray(std::vector<std::int64_t> shape, std::string dtype, int device)
    : shape_(std::move(shape)), dtype_(std::move(dtype)), device_(device) {
  std::size_t bytes = dtype_ == "fp32" ? 4 : 2;
  for (const std::int64_t extent : shape_) bytes *= static_cast<std::size_t>(extent);
  if (device_ != kCpu) {
    memory_ = device_memory(device_, bytes);
    return;
  }
  require_memory(bytes, "output");
  memory_ =
      std::shared_ptr<void>(::operator new(bytes), [](void* data) { ::operator delete(data); });
}

void OwnArray::finish() const {
  if (device_ != kCpu) wait_for_default_stream(device_);
}

}  // namespace s2o::python
