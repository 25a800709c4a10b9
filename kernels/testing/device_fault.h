// A kernel that fails, to see what follows. Tests only, CUDA builds only.
#pragma once

namespace s2o::testing {

// The next CUDA call of this process on `device` that looks reports the failure; until the device
// is reset, so do all others. The current device of the thread stays.
void launch_failing_kernel(int device);

}  // namespace s2o::testing
