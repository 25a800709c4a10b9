#include "kernels/testing/planning_model.h"

#include <cstring>

#include "kernels/planning/block_energy/block_radius.cuh"
#include "kernels/planning/block_energy/energy_rows.cuh"
#include "kernels/planning/block_energy/energy_rows_sm90.cuh"
#include "kernels/planning/flexprefill/flex_heads.cuh"
#include "kernels/planning/flexprefill/flex_rows.cuh"
#include "kernels/planning/last_queries/last_queries.cuh"
#include "kernels/planning/minference/vertical_slash.cuh"
#include "kernels/planning/pooled/block_scores.cuh"
#include "kernels/planning/pooled/pool_blocks.cuh"
#include "kernels/planning/pooled/select_rows.cuh"
#include "kernels/planning/s2o/block_moments.cuh"
#include "kernels/planning/s2o/cluster_queries.cuh"
#include "kernels/planning/s2o/cluster_scores.cuh"
#include "kernels/planning/s2o/cluster_scores_sm90.cuh"
#include "kernels/planning/s2o/estimate_lse.cuh"
#include "kernels/planning/s2o/estimate_lse_sm90.cuh"
#include "kernels/planning/s2o/key_scores.cuh"
#include "kernels/planning/s2o/mean_queries.cuh"
#include "kernels/planning/s2o/query_order.cuh"
#include "kernels/planning/s2o/rank_history.cuh"
#include "kernels/planning/xattention/stride_mass.cuh"
#include "kernels/planning/xattention/stride_sums.cuh"
#include "kernels/planning/xattention/stride_sums_sm90.cuh"
#include "kernels/testing/simt.h"

namespace s2o::testing {
namespace {

template <class Body>
void dispatch(KernelDType dtype, int head_dim, const Body& body) {
  using device::Bf16;
  using device::Fp16;
  if (dtype == KernelDType::kBf16) {
    head_dim == 64 ? body.template operator()<Bf16, 64>() : body.template operator()<Bf16, 128>();
  } else {
    head_dim == 64 ? body.template operator()<Fp16, 64>() : body.template operator()<Fp16, 128>();
  }
}

class ModelPlanningKernels final : public PlanningKernels {
 public:
  ModelPlanningKernels(std::uint64_t seed, PlanningVariant variant)
      : seed_(seed), variant_(variant) {}

  void clear(void* array, std::size_t bytes) override {
    if (bytes > 0) std::memset(array, 0, bytes);
  }

  void mean_queries(const MeanQueryArgs& args, KernelDType dtype, int head_dim) override {
    dispatch(dtype, head_dim, [&]<class Element, int kHeadDim>() {
      const auto run = [&]<bool kNormalizers>() {
        launch(args.shape.num_lists() * args.shape.num_segments, device::kMeanThreads,
               sizeof(device::SharedMeans<kHeadDim, kNormalizers>),
               [&] { device::MeanQueries<Element, kHeadDim, kNormalizers>(args).run(); });
      };
      args.lse == nullptr ? run.template operator()<false>() : run.template operator()<true>();
    });
  }
  void key_scores(const KeyScoreArgs& args, KernelDType dtype, int head_dim) override {
    const int blocks = args.num_batch_kv_heads * args.num_row_tiles * args.num_key_chunks;
    dispatch(dtype, head_dim, [&]<class Element, int kHeadDim>() {
      const auto run = [&]<bool kDiagonal>() {
        launch(blocks, device::kScoreThreads, sizeof(device::SharedScores<kHeadDim, kDiagonal>),
               [&] { device::KeyScores<Element, kHeadDim, kDiagonal>(args).run(); });
      };
      args.variances == nullptr ? run.template operator()<false>()
                                : run.template operator()<true>();
    });
  }
  void rank_history(const RankArgs& args) override {
    launch(args.num_batch_lists * (args.end_segment - args.first_segment), device::kRankThreads,
           sizeof(device::SharedRank), [&] { device::RankHistory(args).run(); });
  }

  void order_queries(const QueryOrderArgs& args, KernelDType dtype, int head_dim) override {
    const int segments = args.shape.num_segments;
    dispatch(dtype, head_dim, [&]<class Element, int kHeadDim>() {
      launch(args.num_sources() * segments, device::kGuideThreads,
             sizeof(device::SharedGuideSums<kHeadDim>),
             [&] { device::sum_segment<Element, kHeadDim>(args); });
      launch(args.num_sources(), kHeadDim, 16, [&] { device::make_guides<kHeadDim>(args); });
      launch(args.num_q_heads * segments, device::kGuideThreads,
             sizeof(float) * static_cast<std::size_t>(args.shape.segment_size),
             [&] { device::order_queries<Element, kHeadDim>(args); });
    });
  }
  void block_moments(const MomentArgs& args, KernelDType dtype, int head_dim) override {
    dispatch(dtype, head_dim, [&]<class Element, int kHeadDim>() {
      launch(args.num_heads * args.num_blocks, device::kMomentThreads,
             sizeof(device::SharedMoments<kHeadDim>),
             [&] { device::BlockMoments<Element, kHeadDim>(args).run(); });
    });
  }
  void estimate_lse(const LseArgs& args, KernelDType dtype, int head_dim) override {
    dispatch(dtype, head_dim, [&]<class Element, int kHeadDim>() {
      if (variant_ == PlanningVariant::kSm90) {
        const device::LseMaps maps = device::lse_maps(args, kHeadDim, device::model_tensor_map);
        launch(args.num_q_heads / args.group_size * args.num_blocks,
               device::product_threads(device::kLseConsumers),
               sizeof(device::SharedLseSm90<kHeadDim>),
               [&] { device::EstimateLseSm90<Element, kHeadDim>(args, maps).run(); });
        return;
      }
      launch(args.num_q_heads * args.num_blocks, device::kLseThreads,
             sizeof(device::SharedLse<kHeadDim>),
             [&] { device::EstimateLse<Element, kHeadDim>(args).run(); });
    });
  }
  void cluster_queries(const ClusterArgs& args, KernelDType dtype, int head_dim) override {
    dispatch(dtype, head_dim, [&]<class Element, int kHeadDim>() {
      launch(args.shape.num_lists() * args.shape.num_segments, device::kClusterThreads,
             sizeof(device::SharedClusters<kHeadDim>),
             [&] { device::ClusterQueries<Element, kHeadDim>(args).run(); });
    });
  }
  void cluster_scores(const ClusterScoreArgs& args, KernelDType dtype, int head_dim) override {
    const KeyScoreArgs& rows = args.rows;
    dispatch(dtype, head_dim, [&]<class Element, int kHeadDim>() {
      if (variant_ == PlanningVariant::kSm90) {
        constexpr int kChunkKeys = 256;  // so that a few keys are several chunks
        const device::ClusterGridSm90 grid =
            device::cluster_grid_sm90(rows, kHeadDim, kChunkKeys, device::model_tensor_map);
        launch(rows.num_batch_kv_heads * grid.num_row_tiles * grid.num_key_chunks,
               device::product_threads(device::kClusterConsumers),
               sizeof(device::SharedClusterScoresSm90<kHeadDim>),
               [&] { device::ClusterScoresSm90<Element, kHeadDim>(args, grid).run(); });
        return;
      }
      launch(rows.num_batch_kv_heads * rows.num_row_tiles * rows.num_key_chunks,
             device::kClusterScoreThreads, sizeof(device::SharedClusterScores<kHeadDim>),
             [&] { device::ClusterScores<Element, kHeadDim>(args).run(); });
    });
  }

  void pool_blocks(const PoolArgs& args, KernelDType dtype, int head_dim) override {
    dispatch(dtype, head_dim, [&]<class Element, int kHeadDim>() {
      launch(args.num_heads * args.num_blocks, device::kPoolThreads,
             sizeof(device::SharedPool<kHeadDim>),
             [&] { device::PoolBlocks<Element, kHeadDim>(args).run(); });
    });
  }
  void column_means(const ColumnMeanArgs& args, KernelDType dtype, int head_dim) override {
    dispatch(dtype, head_dim, [&]<class Element, int kHeadDim>() {
      launch(args.num_heads * args.num_parts, device::kPoolThreads,
             sizeof(device::SharedPool<kHeadDim>),
             [&] { device::column_sums_part<Element, kHeadDim>(args); });
      launch(args.num_heads, kHeadDim, 16,
             [&] { device::column_means_head<Element, kHeadDim>(args); });
    });
  }
  void block_scores(const BlockScoreArgs& args, KernelDType dtype, int head_dim) override {
    const int blocks = args.num_heads * device::ceil_div(args.num_rows, device::kBlockScoreTile) *
                       device::ceil_div(args.num_kv_blocks, device::kBlockScoreTile);
    dispatch(dtype, head_dim, [&]<class Element, int kHeadDim>() {
      launch(blocks, device::kBlockScoreThreads, sizeof(device::SharedBlockScores<kHeadDim>),
             [&] { device::BlockScores<Element, kHeadDim>(args).run(); });
    });
  }
  void select_rows(const SelectArgs& args, KernelDType dtype) override {
    const int warps = device::select_warps(args.num_kv_blocks);
    const int blocks = device::ceil_div(args.num_heads * args.num_rows, warps);
    dispatch(dtype, 64, [&]<class Element, int kHeadDim>() {
      launch(blocks, 32 * warps,
             static_cast<std::size_t>(warps * device::select_bytes(args.num_kv_blocks)),
             [&] { device::SelectRow<Element>(args, warps).run(); });
    });
  }

  void stride_sums(const XAttentionSumArgs& args, KernelDType dtype, int head_dim) override {
    const int blocks = args.num_q_heads * (args.end_tile - args.first_tile) * args.num_chunks;
    dispatch(dtype, head_dim, [&]<class Element, int kHeadDim>() {
      if (variant_ == PlanningVariant::kSm90) {
        const device::StrideMaps maps =
            device::stride_maps(args, kHeadDim, device::model_tensor_map);
        device::dispatch_stride_columns(args.columns_per_block, [&]<int kColumns>() {
          launch(blocks, device::product_threads(device::kStrideConsumers),
                 sizeof(device::SharedStrideSm90),
                 [&] { device::StrideSumsSm90<Element, kHeadDim, kColumns>(args, maps).run(); });
        });
        return;
      }
      launch(blocks, device::kStrideThreads, sizeof(device::SharedStride),
             [&] { device::StrideSums<Element, kHeadDim>(args).run(); });
    });
  }
  void stride_mass(const XAttentionMassArgs& args, KernelDType dtype) override {
    dispatch(dtype, 64, [&]<class Element, int kHeadDim>() {
      const auto run = [&]<int kColumns>() {
        launch(args.num_q_heads * args.num_blocks, device::kStrideMassThreads,
               sizeof(device::SharedStrideMass),
               [&] { device::StrideMass<Element, kColumns>(args).run(); });
      };
      args.columns_per_block == 8    ? run.template operator()<8>()
      : args.columns_per_block == 16 ? run.template operator()<16>()
                                     : run.template operator()<32>();
    });
  }

  void energy_rows(const BlockEnergyArgs& args, KernelDType dtype, int head_dim) override {
    dispatch(dtype, head_dim, [&]<class Element, int kHeadDim>() {
      if (variant_ == PlanningVariant::kSm90) {
        const device::EnergyGridSm90 grid =
            device::energy_grid_sm90(args, kHeadDim, device::model_tensor_map);
        const auto run = [&]<int kBranches>() {
          launch(
              device::energy_blocks_sm90(args), device::kEnergyThreadsSm90,
              static_cast<std::size_t>(device::energy_bytes_sm90(args, kHeadDim, grid.num_stages)),
              [&] { device::EnergyRowsSm90<Element, kHeadDim, kBranches>(args, grid).run(); });
        };
        args.lifts == nullptr ? run.template operator()<1>() : run.template operator()<2>();
        return;
      }
      launch(args.num_plan_heads * (args.end_tile - args.first_tile), device::kEnergyThreads,
             static_cast<std::size_t>(device::energy_bytes<kHeadDim>(args.num_blocks)),
             [&] { device::EnergyRows<Element, kHeadDim>(args).run(); });
    });
  }
  void radius_lifts(const BlockRadiusArgs& args, KernelDType dtype, int head_dim) override {
    dispatch(dtype, head_dim, [&]<class Element, int kHeadDim>() {
      launch(args.num_kv_heads * args.num_blocks, device::kRadiusThreads,
             sizeof(device::SharedRadius<kHeadDim>),
             [&] { device::block_radius<Element, kHeadDim>(args); });
    });
    launch(args.num_kv_heads, device::kLiftThreads,
           sizeof(float) * (static_cast<std::size_t>(args.num_blocks) + 4),
           [&] { device::radius_lifts_head(args); });
  }
  void last_queries(const LastQueryArgs& args, KernelDType dtype, int head_dim) override {
    dispatch(dtype, head_dim, [&]<class Element, int kHeadDim>() {
      using Pass = device::LastQueryPass<Element, kHeadDim>;
      const int blocks = args.num_q_heads * args.num_chunks;
      const std::size_t bytes = device::last_query_bytes<kHeadDim>(args);
      launch(blocks, device::kLastQueryThreads, bytes, [&] { Pass(args).reduce_chunk(); });
      launch(args.num_q_heads, kLastQueries, 16, [&] { device::combine_last_queries(args); });
      launch(blocks, device::kLastQueryThreads, bytes, [&] { Pass(args).sum_chunk(); });
    });
    if (args.distance_mass == nullptr) return;
    const auto distances =
        static_cast<int>((args.seqlen + device::kDistanceThreads - 1) / device::kDistanceThreads);
    launch(args.num_q_heads * distances, device::kDistanceThreads, 16,
           [&] { device::combine_distances(args); });
  }
  void order_segments(const SegmentOrderArgs& args) override {
    const auto segments = static_cast<int>((args.seqlen + args.segment - 1) / args.segment);
    launch(args.num_heads * segments, device::kSegmentOrderThreads,
           sizeof(float) * static_cast<std::size_t>(args.segment),
           [&] { device::order_segment(args); });
  }
  void top_entries(const TopEntryArgs& args) override {
    launch(args.num_heads, device::kCutThreads, sizeof(device::SharedCut),
           [&] { device::top_entries(args); });
  }
  void tile_windows(const WindowArgs& args) override {
    const int tiles = args.end_tile - args.first_tile;
    launch(args.num_heads * device::ceil_div(tiles, device::kWindowThreads), device::kWindowThreads,
           16, [&] { device::tile_windows(args); });
    launch(device::ceil_div(args.num_heads * tiles, device::kWindowThreads / 32),
           device::kWindowThreads, sizeof(device::SharedColumns),
           [&] { device::tile_columns(args); });
  }
  void flex_heads(const FlexHeadArgs& args, KernelDType dtype, int head_dim) override {
    dispatch(dtype, head_dim, [&]<class Element, int kHeadDim>() {
      launch(args.num_heads, device::kCutThreads, device::flex_bytes<kHeadDim>(args.num_blocks),
             [&] { device::FlexHead<Element, kHeadDim>(args).run(); });
    });
  }
  void scale_query_means(const FlexMeanArgs& args, KernelDType dtype, int head_dim) override {
    const int elements = args.num_heads * args.num_blocks * head_dim;
    dispatch(dtype, head_dim, [&]<class Element, int kHeadDim>() {
      launch(device::ceil_div(elements, device::kFlexThreads), device::kFlexThreads, 16,
             [&] { device::scale_query_means<Element, kHeadDim>(args); });
    });
  }
  void flex_cuts(const FlexRowArgs& args, KernelDType dtype) override {
    dispatch(dtype, 64, [&]<class Element, int kHeadDim>() {
      launch(device::ceil_div(args.num_heads * args.num_blocks, device::kFlexWarps),
             device::kFlexThreads, 16, [&] { device::flex_softmax<Element>(args); });
    });
    launch(args.num_heads, device::kCutThreads, sizeof(device::SharedCut),
           [&] { device::flex_cut(args); });
  }
  void flex_items(const FlexRowArgs& args) override {
    const int words = device::ceil_div(args.num_blocks, 32);
    launch(device::ceil_div(args.num_heads * args.num_blocks, device::kFlexWarps),
           device::kFlexThreads, static_cast<std::size_t>(device::kFlexWarps * words * 4),
           [&] { device::flex_items(args); });
  }

 private:
  template <class Body>
  void launch(int num_blocks, int num_threads, std::size_t shared_bytes, const Body& body) {
    if (num_blocks == 0) return;
    simt::launch({.num_blocks = num_blocks,
                  .num_threads = num_threads,
                  .shared_bytes = shared_bytes,
                  .seed = seed_++},
                 body);
  }

  std::uint64_t seed_;
  const PlanningVariant variant_;
};

}  // namespace

std::unique_ptr<PlanningKernels> model_planning_kernels(std::uint64_t seed,
                                                        PlanningVariant variant) {
  return std::make_unique<ModelPlanningKernels>(seed, variant);
}

}  // namespace s2o::testing
