// The kernels that planners are made of. Host-safe: planners are host code over this interface,
// which enqueues on a CUDA stream (cuda_planning_kernels.h) or runs the same device code on the CPU
// model (tests).
#pragma once

#include <cstddef>

#include "kernels/attention/launch_plan.h"
#include "kernels/planning/block_energy/ops.h"
#include "kernels/planning/flexprefill/ops.h"
#include "kernels/planning/last_queries/ops.h"
#include "kernels/planning/minference/ops.h"
#include "kernels/planning/pooled/ops.h"
#include "kernels/planning/s2o/cluster_ops.h"
#include "kernels/planning/s2o/ops.h"
#include "kernels/planning/s2o/query_order_ops.h"
#include "kernels/planning/xattention/ops.h"

namespace s2o {

class PlanningKernels {
 public:
  virtual ~PlanningKernels() = default;
  virtual void clear(void* array, std::size_t bytes) = 0;

  // S2O (s2o_args.h).
  virtual void mean_queries(const MeanQueryArgs& args, KernelDType dtype, int head_dim) = 0;
  virtual void key_scores(const KeyScoreArgs& args, KernelDType dtype, int head_dim) = 0;
  virtual void rank_history(const RankArgs& args) = 0;
  virtual void order_queries(const QueryOrderArgs& args, KernelDType dtype, int head_dim) = 0;
  // S2O's rankings beyond the mean (ranking_args.h).
  virtual void block_moments(const MomentArgs& args, KernelDType dtype, int head_dim) = 0;
  virtual void estimate_lse(const LseArgs& args, KernelDType dtype, int head_dim) = 0;
  virtual void cluster_queries(const ClusterArgs& args, KernelDType dtype, int head_dim) = 0;
  virtual void cluster_scores(const ClusterScoreArgs& args, KernelDType dtype, int head_dim) = 0;

  // Methods that select blocks (block_args.h).
  virtual void pool_blocks(const PoolArgs& args, KernelDType dtype, int head_dim) = 0;
  virtual void column_means(const ColumnMeanArgs& args, KernelDType dtype, int head_dim) = 0;
  virtual void block_scores(const BlockScoreArgs& args, KernelDType dtype, int head_dim) = 0;
  virtual void select_rows(const SelectArgs& args, KernelDType dtype) = 0;

  // XAttention (xattention_args.h).
  virtual void stride_sums(const XAttentionSumArgs& args, KernelDType dtype, int head_dim) = 0;
  virtual void stride_mass(const XAttentionMassArgs& args, KernelDType dtype) = 0;

  // Methods that select blocks by energy (energy_args.h).
  virtual void energy_rows(const BlockEnergyArgs& args, KernelDType dtype, int head_dim) = 0;
  virtual void radius_lifts(const BlockRadiusArgs& args, KernelDType dtype, int head_dim) = 0;

  // Methods that estimate from the last queries (last_query_args.h).
  virtual void last_queries(const LastQueryArgs& args, KernelDType dtype, int head_dim) = 0;
  virtual void order_segments(const SegmentOrderArgs& args) = 0;

  // MInference (vertical_slash_args.h).
  virtual void top_entries(const TopEntryArgs& args) = 0;
  virtual void tile_windows(const WindowArgs& args) = 0;

  // FlexPrefill (flex_args.h).
  virtual void flex_heads(const FlexHeadArgs& args, KernelDType dtype, int head_dim) = 0;
  virtual void scale_query_means(const FlexMeanArgs& args, KernelDType dtype, int head_dim) = 0;
  virtual void flex_cuts(const FlexRowArgs& args, KernelDType dtype) = 0;
  virtual void flex_items(const FlexRowArgs& args) = 0;
};

}  // namespace s2o
