#include "kernels/attention/launch_fold.cuh"

namespace s2o {

void launch_fold_fp16(const AttentionKernelArgs& args, const BlockSumsView& sums, int num_sets,
                      int head_dim, int tile_m, CudaStream stream) {
  device::launch_fold<device::Fp16>(args, sums, num_sets, head_dim, tile_m, stream);
}

}  // namespace s2o
