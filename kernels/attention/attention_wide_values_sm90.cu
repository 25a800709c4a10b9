#include "kernels/attention/launch_quantised_sm90.cuh"

namespace s2o {

void launch_attention_sm90_wide_values(const QuantisedKernelArgs& args,
                                       const device::AttentionMaps& maps, KernelDType output,
                                       TileShape tile, int num_multiprocessors, CudaStream stream) {
  device::launch_quantised<true>(args, maps, output, tile, num_multiprocessors, stream);
}

}  // namespace s2o
