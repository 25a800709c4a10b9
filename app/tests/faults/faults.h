// Faults of a device at a chosen call, for s2o_faults: the binary s2o with other definitions of
// app/open_device.h. Tests only.
//
//   S2O_TEST_FAULTS=KIND@CALL,...   calls of this process, from 1: set_input and plan_and_run of a
//                                   backend, prepare and run of a prefill
//   memory   the call finds no device memory
//   kernel   a kernel before the call faults, which ends the device for the process
//   amid     the same once a prefill is at work
//   device   the same, and fresh processes find no device
//
// A fault that happened is taken out of the variable, so that the next process meets the others. On
// a CUDA device faults are real: memory is taken away, a kernel traps, CUDA_VISIBLE_DEVICES hides
// the device. Of a prefill over several GPUs, all this happens to the last one.
#pragma once

#include <functional>
#include <string>

namespace s2o::testing {

class Faults {
 public:
  // Throws what opening a device that is gone does. CUDA devices count from 0.
  explicit Faults(int cuda_device = 0);
  // Before a call of a backend on "cpu" or "cuda"; `call` makes it.
  void at_call(const std::string& device, const std::function<void()>& call);
  // In a call, when some of its work is done.
  void at_progress(const std::string& device);
  // Of a simulated device.
  const std::string& lost() const { return lost_; }

 private:
  void fault(const std::string& device);

  int cuda_device_;
  int calls_ = 0;
  bool is_due_ = false;  // in the call that runs
  std::string lost_;
};

}  // namespace s2o::testing
