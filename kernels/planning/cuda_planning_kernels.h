// Planning kernels on a CUDA stream. Host-safe header; exists in CUDA builds (S2O_HAS_CUDA). Every
// call throws CudaError when the launch is refused.
#pragma once

#include "kernels/attention/attention_launch.h"
#include "kernels/planning/planner.h"
#include "kernels/planning/planning_kernels.h"

namespace s2o {

class CudaPlanningKernels final : public PlanningKernels {
 public:
  CudaPlanningKernels(CudaStream stream, PlanningVariant variant)
      : stream_(stream), variant_(variant) {}
  void clear(void* array, std::size_t bytes) override;
  void mean_queries(const MeanQueryArgs& args, KernelDType dtype, int head_dim) override;
  void key_scores(const KeyScoreArgs& args, KernelDType dtype, int head_dim) override;
  void rank_history(const RankArgs& args) override;
  void order_queries(const QueryOrderArgs& args, KernelDType dtype, int head_dim) override;
  void block_moments(const MomentArgs& args, KernelDType dtype, int head_dim) override;
  void estimate_lse(const LseArgs& args, KernelDType dtype, int head_dim) override;
  void cluster_queries(const ClusterArgs& args, KernelDType dtype, int head_dim) override;
  void cluster_scores(const ClusterScoreArgs& args, KernelDType dtype, int head_dim) override;
  void pool_blocks(const PoolArgs& args, KernelDType dtype, int head_dim) override;
  void column_means(const ColumnMeanArgs& args, KernelDType dtype, int head_dim) override;
  void block_scores(const BlockScoreArgs& args, KernelDType dtype, int head_dim) override;
  void select_rows(const SelectArgs& args, KernelDType dtype) override;
  void stride_sums(const XAttentionSumArgs& args, KernelDType dtype, int head_dim) override;
  void stride_mass(const XAttentionMassArgs& args, KernelDType dtype) override;
  void energy_rows(const BlockEnergyArgs& args, KernelDType dtype, int head_dim) override;
  void radius_lifts(const BlockRadiusArgs& args, KernelDType dtype, int head_dim) override;
  void last_queries(const LastQueryArgs& args, KernelDType dtype, int head_dim) override;
  void order_segments(const SegmentOrderArgs& args) override;
  void top_entries(const TopEntryArgs& args) override;
  void tile_windows(const WindowArgs& args) override;
  void flex_heads(const FlexHeadArgs& args, KernelDType dtype, int head_dim) override;
  void scale_query_means(const FlexMeanArgs& args, KernelDType dtype, int head_dim) override;
  void flex_cuts(const FlexRowArgs& args, KernelDType dtype) override;
  void flex_items(const FlexRowArgs& args) override;

 private:
  CudaStream stream_;
  PlanningVariant variant_;
};

}  // namespace s2o
