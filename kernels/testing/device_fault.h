// A kernel that fails, to see what follows. Tests only, CUDA builds only.
#pragma once

namespace s2o::testing {

// The next CUDA call of this process on the current device that looks reports the failure; until
// the device is reset, so do all others.
void launch_failing_kernel();

}  // namespace s2o::testing
