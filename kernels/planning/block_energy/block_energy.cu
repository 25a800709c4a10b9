// Operations of methods that select blocks by energy.
#include "kernels/planning/block_energy/block_radius.cuh"
#include "kernels/planning/block_energy/energy_rows.cuh"

namespace s2o::device {

void run_op(const PlanDevice& device, const BlockEnergyArgs& args, const Elements& elements) {
  dispatch_elements(elements, [&]<class Element, int kHeadDim>() {
    device.launch<EnergyRowsKernel<Element, kHeadDim>>(args);
  });
}

void run_op(const PlanDevice& device, const BlockRadiusArgs& args, const Elements& elements) {
  dispatch_elements(elements, [&]<class Element, int kHeadDim>() {
    device.launch<BlockRadiusKernel<Element, kHeadDim>>(args);
  });
  device.launch<RadiusLiftsKernel>(args);
}

}  // namespace s2o::device
