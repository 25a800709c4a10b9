#include "kernels/attention/launch_sm90.cuh"

namespace s2o {

void launch_attention_sm90_fp16(const AttentionKernelArgs& args, const device::AttentionMaps& maps,
                                int head_dim, TileShape tile, int num_multiprocessors,
                                CudaStream stream) {
  device::launch_attention_sm90<device::Fp16>(args, maps, head_dim, tile, num_multiprocessors,
                                              stream);
}

}  // namespace s2o
