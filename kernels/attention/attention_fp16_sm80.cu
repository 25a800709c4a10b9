#include "kernels/attention/launch_sm80.cuh"

namespace s2o {

void launch_attention_sm80_fp16(const AttentionKernelArgs& args, int head_dim, TileShape tile,
                                CudaStream stream) {
  device::launch_attention_sm80<device::Fp16>(args, head_dim, tile, stream);
}

}  // namespace s2o
