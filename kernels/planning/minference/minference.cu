// Operations of MInference.
#include "kernels/planning/minference/vertical_slash.cuh"

namespace s2o::device {

void run_op(const PlanDevice& device, const TopEntryArgs& args, const Elements& /*elements*/) {
  device.launch<TopEntriesKernel>(args);
}

void run_op(const PlanDevice& device, const WindowArgs& args, const Elements& /*elements*/) {
  device.launch<TileWindowsKernel>(args);
  device.launch<TileColumnsKernel>(args);
}

}  // namespace s2o::device
