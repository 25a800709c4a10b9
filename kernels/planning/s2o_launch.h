// Launchers of the kernels that plan S2O. Host-safe. Each enqueues on `stream`, allocates nothing,
// and throws CudaError when the launch is refused.
#pragma once

#include "kernels/attention/attention_launch.h"
#include "kernels/planning/s2o_args.h"

namespace s2o {

void launch_mean_queries(const MeanQueryArgs& args, KernelDType dtype, int head_dim,
                         CudaStream stream);
void launch_key_scores(const KeyScoreArgs& args, KernelDType dtype, int head_dim,
                       CudaStream stream);
void launch_rank_history(const RankArgs& args, CudaStream stream);

}  // namespace s2o
