// Energies of blocks by warpgroup products.
#include "kernels/planning/block_energy/energy_rows_sm90.cuh"

namespace s2o::device {

bool run_op_sm90(const PlanDevice& device, const BlockEnergyArgs& args, const Elements& elements) {
  // Beyond a million tokens of RBS with its second branch the energies leave no room for a ring.
  if (energy_stages_sm90(args, elements.head_dim) == 0) return false;
  dispatch_elements(elements, [&]<class Element, int kHeadDim>() {
    args.lifts == nullptr
        ? device.launch_sm90<EnergyRowsSm90Kernel<Element, kHeadDim, 1>>(args, elements)
        : device.launch_sm90<EnergyRowsSm90Kernel<Element, kHeadDim, 2>>(args, elements);
  });
  return true;
}

}  // namespace s2o::device
