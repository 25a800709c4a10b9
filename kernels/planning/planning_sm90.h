// Launchers of the planning kernels that use instructions of sm_90a only. Host-safe.
//
// Each takes the arguments of the kernel of the same name of PlanningKernels and throws CudaError
// when the launch is refused.
#pragma once

#include "kernels/attention/attention_launch.h"
#include "kernels/planning/block_energy/ops.h"
#include "kernels/planning/s2o/cluster_ops.h"
#include "kernels/planning/xattention/ops.h"

namespace s2o {

void launch_stride_sums_sm90(const XAttentionSumArgs& args, KernelDType dtype, int head_dim,
                             CudaStream stream);
void launch_estimate_lse_sm90(const LseArgs& args, KernelDType dtype, int head_dim,
                              CudaStream stream);
void launch_cluster_scores_sm90(const ClusterScoreArgs& args, KernelDType dtype, int head_dim,
                                CudaStream stream);
// False where the energies of two tiles leave no room for a ring in shared memory: beyond a million
// tokens of RBS with its second branch. The kernel for sm_80 plans those.
bool energy_rows_sm90_takes(const BlockEnergyArgs& args, int head_dim);
void launch_energy_rows_sm90(const BlockEnergyArgs& args, KernelDType dtype, int head_dim,
                             CudaStream stream);

}  // namespace s2o
