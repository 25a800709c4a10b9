// Where a run gets its device from. Tests of faults are linked with other definitions of these
// functions (app/tests/faults).
#pragma once

#include <memory>
#include <string>

#include "lib/eval/backend.h"
#include "lib/prefill/prefill_backend.h"

namespace s2o {

// make_backend and make_prefill_backend.
std::unique_ptr<Backend> open_backend(const DeviceChoice& device, const std::string& kernel);
std::unique_ptr<PrefillBackend> open_prefill(PrefillModel model, const DeviceChoice& device,
                                             const std::string& kernel);

}  // namespace s2o
