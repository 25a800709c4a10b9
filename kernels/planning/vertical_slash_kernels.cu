// Kernel entries and launches of MInference's columns and windows.
#include "kernels/planning/cuda_planning_kernels.h"
#include "kernels/planning/dispatch.cuh"
#include "kernels/planning/minference/vertical_slash.cuh"

namespace s2o {
namespace device {

__global__ void __launch_bounds__(kCutThreads)
    top_entries_kernel(const __grid_constant__ TopEntryArgs args) {
  top_entries(args);
}
__global__ void __launch_bounds__(kWindowThreads)
    tile_windows_kernel(const __grid_constant__ WindowArgs args) {
  tile_windows(args);
}
__global__ void __launch_bounds__(kWindowThreads)
    tile_columns_kernel(const __grid_constant__ WindowArgs args) {
  tile_columns(args);
}

}  // namespace device

void CudaPlanningKernels::top_entries(const TopEntryArgs& args) {
  device::launch_blocks(device::top_entries_kernel, args.num_heads, device::kCutThreads,
                        sizeof(device::SharedCut), stream_, "planning: top entries", args);
}

void CudaPlanningKernels::tile_windows(const WindowArgs& args) {
  const std::int64_t heads = args.num_heads;
  const int tiles = args.end_tile - args.first_tile;
  device::launch_blocks(device::tile_windows_kernel,
                        heads * device::ceil_div(tiles, device::kWindowThreads),
                        device::kWindowThreads, 0, stream_, "planning: windows", args);
  constexpr int kWarps = device::kWindowThreads / 32;
  device::launch_blocks(device::tile_columns_kernel, (heads * tiles + kWarps - 1) / kWarps,
                        device::kWindowThreads, sizeof(device::SharedColumns), stream_,
                        "planning: columns", args);
}

}  // namespace s2o
