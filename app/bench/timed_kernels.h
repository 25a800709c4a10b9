// Planning kernels on a CUDA stream, each call timed by events: where a planner's time goes.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "kernels/common/stream.h"
#include "kernels/planning/cuda_planning_kernels.h"

namespace s2o {

class TimedKernels final : public PlanningKernels {
 public:
  TimedKernels(const Stream& stream, PlanningVariant variant)
      : stream_(stream), kernels_(stream.get(), variant) {}

  // After the stream was waited for: ms of all calls of each kernel.
  std::map<std::string, double> milliseconds() const;

  void clear(void* array, std::size_t bytes) override {
    time("clear", [&] { kernels_.clear(array, bytes); });
  }
  void mean_queries(const MeanQueryArgs& args, KernelDType dtype, int head_dim) override {
    time("mean_queries", [&] { kernels_.mean_queries(args, dtype, head_dim); });
  }
  void key_scores(const KeyScoreArgs& args, KernelDType dtype, int head_dim) override {
    time("key_scores", [&] { kernels_.key_scores(args, dtype, head_dim); });
  }
  void rank_history(const RankArgs& args) override {
    time("rank_history", [&] { kernels_.rank_history(args); });
  }
  void order_queries(const QueryOrderArgs& args, KernelDType dtype, int head_dim) override {
    time("order_queries", [&] { kernels_.order_queries(args, dtype, head_dim); });
  }
  void block_moments(const MomentArgs& args, KernelDType dtype, int head_dim) override {
    time("block_moments", [&] { kernels_.block_moments(args, dtype, head_dim); });
  }
  void estimate_lse(const LseArgs& args, KernelDType dtype, int head_dim) override {
    time("estimate_lse", [&] { kernels_.estimate_lse(args, dtype, head_dim); });
  }
  void cluster_queries(const ClusterArgs& args, KernelDType dtype, int head_dim) override {
    time("cluster_queries", [&] { kernels_.cluster_queries(args, dtype, head_dim); });
  }
  void cluster_scores(const ClusterScoreArgs& args, KernelDType dtype, int head_dim) override {
    time("cluster_scores", [&] { kernels_.cluster_scores(args, dtype, head_dim); });
  }
  void pool_blocks(const PoolArgs& args, KernelDType dtype, int head_dim) override {
    time("pool_blocks", [&] { kernels_.pool_blocks(args, dtype, head_dim); });
  }
  void column_means(const ColumnMeanArgs& args, KernelDType dtype, int head_dim) override {
    time("column_means", [&] { kernels_.column_means(args, dtype, head_dim); });
  }
  void block_scores(const BlockScoreArgs& args, KernelDType dtype, int head_dim) override {
    time("block_scores", [&] { kernels_.block_scores(args, dtype, head_dim); });
  }
  void select_rows(const SelectArgs& args, KernelDType dtype) override {
    time("select_rows", [&] { kernels_.select_rows(args, dtype); });
  }
  void stride_sums(const XAttentionSumArgs& args, KernelDType dtype, int head_dim) override {
    time("stride_sums", [&] { kernels_.stride_sums(args, dtype, head_dim); });
  }
  void stride_mass(const XAttentionMassArgs& args, KernelDType dtype) override {
    time("stride_mass", [&] { kernels_.stride_mass(args, dtype); });
  }
  void energy_rows(const BlockEnergyArgs& args, KernelDType dtype, int head_dim) override {
    time("energy_rows", [&] { kernels_.energy_rows(args, dtype, head_dim); });
  }
  void radius_lifts(const BlockRadiusArgs& args, KernelDType dtype, int head_dim) override {
    time("radius_lifts", [&] { kernels_.radius_lifts(args, dtype, head_dim); });
  }
  void last_queries(const LastQueryArgs& args, KernelDType dtype, int head_dim) override {
    time("last_queries", [&] { kernels_.last_queries(args, dtype, head_dim); });
  }
  void order_segments(const SegmentOrderArgs& args) override {
    time("order_segments", [&] { kernels_.order_segments(args); });
  }
  void top_entries(const TopEntryArgs& args) override {
    time("top_entries", [&] { kernels_.top_entries(args); });
  }
  void tile_windows(const WindowArgs& args) override {
    time("tile_windows", [&] { kernels_.tile_windows(args); });
  }
  void flex_heads(const FlexHeadArgs& args, KernelDType dtype, int head_dim) override {
    time("flex_heads", [&] { kernels_.flex_heads(args, dtype, head_dim); });
  }
  void scale_query_means(const FlexMeanArgs& args, KernelDType dtype, int head_dim) override {
    time("scale_query_means", [&] { kernels_.scale_query_means(args, dtype, head_dim); });
  }
  void flex_cuts(const FlexRowArgs& args, KernelDType dtype) override {
    time("flex_cuts", [&] { kernels_.flex_cuts(args, dtype); });
  }
  void flex_items(const FlexRowArgs& args) override {
    time("flex_items", [&] { kernels_.flex_items(args); });
  }

 private:
  struct Call {
    std::string name;
    Event begin, end;
  };
  template <class Enqueue>
  void time(const char* name, const Enqueue& enqueue) {
    Call& call = calls_.emplace_back();
    call.name = name;
    call.begin.record(stream_);
    enqueue();
    call.end.record(stream_);
  }

  const Stream& stream_;
  CudaPlanningKernels kernels_;
  std::vector<Call> calls_;
};

}  // namespace s2o
