#include "app/open_device.h"

#include <utility>

namespace s2o {

std::unique_ptr<Backend> open_backend(const DeviceChoice& device, const std::string& kernel) {
  return make_backend(device, kernel);
}

std::unique_ptr<PrefillBackend> open_prefill(PrefillModel model, const DeviceChoice& device,
                                             const std::string& kernel) {
  return make_prefill_backend(std::move(model), device, kernel);
}

}  // namespace s2o
