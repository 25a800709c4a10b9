#include "kernels/testing/model_planning.h"

#include <cstring>
#include <stdexcept>
#include <vector>

#include "kernels/planning/block_scores.cuh"
#include "kernels/planning/energy_rows.cuh"
#include "kernels/planning/key_scores.cuh"
#include "kernels/planning/last_queries.cuh"
#include "kernels/planning/mean_queries.cuh"
#include "kernels/planning/pool_blocks.cuh"
#include "kernels/planning/rank_history.cuh"
#include "kernels/planning/select_rows.cuh"
#include "kernels/testing/model_runner.h"
#include "kernels/testing/simt.h"
#include "lib/plan/device_plan.h"

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
  explicit ModelPlanningKernels(std::uint64_t seed) : seed_(seed) {}

  void clear(void* array, std::size_t bytes) override {
    if (bytes > 0) std::memset(array, 0, bytes);
  }

  void mean_queries(const MeanQueryArgs& args, KernelDType dtype, int head_dim) override {
    dispatch(dtype, head_dim, [&]<class Element, int kHeadDim>() {
      launch(args.shape.num_lists() * args.shape.num_segments, device::kMeanThreads,
             sizeof(device::SharedMeans<kHeadDim>),
             [&] { device::MeanQueries<Element, kHeadDim>(args).run(); });
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

  void energy_rows(const EnergyArgs& args, KernelDType dtype, int head_dim) override {
    dispatch(dtype, head_dim, [&]<class Element, int kHeadDim>() {
      launch(args.num_plan_heads * args.num_q_tiles, device::kEnergyThreads,
             static_cast<std::size_t>(device::energy_bytes<kHeadDim>(args.num_blocks)),
             [&] { device::EnergyRows<Element, kHeadDim>(args).run(); });
    });
  }
  void radius_lifts(const RadiusArgs& args, KernelDType dtype, int head_dim) override {
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
      constexpr std::size_t kBytes = sizeof(device::SharedLastQueries<kHeadDim>);
      launch(blocks, device::kLastQueryThreads, kBytes, [&] { Pass(args).reduce_chunk(); });
      launch(args.num_q_heads, kLastQueries, 16, [&] { device::combine_last_queries(args); });
      launch(blocks, device::kLastQueryThreads, kBytes, [&] { Pass(args).sum_chunk(); });
    });
  }
  void order_segments(const SegmentOrderArgs& args) override {
    const auto segments = static_cast<int>((args.seqlen + args.segment - 1) / args.segment);
    launch(args.num_heads * segments, device::kSegmentOrderThreads,
           sizeof(float) * static_cast<std::size_t>(args.segment),
           [&] { device::order_segment(args); });
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
};

// Tokens that a tile of a plan visits.
std::vector<bool> visited_keys(const Problem& problem, const SparsePlan& plan, int head, int tile) {
  std::vector<bool> visited(static_cast<std::size_t>(problem.seqlen), false);
  for (const PlanPass& pass : plan.passes) {
    const auto index = static_cast<std::size_t>(plan.tile_index(head, tile));
    for (std::int64_t i = pass.item_offsets[index]; i < pass.item_offsets[index + 1]; ++i) {
      const PlanItem& item = pass.items[static_cast<std::size_t>(i)];
      for (std::int64_t slot = item.begin; slot < item.begin + item.count; ++slot) {
        std::int64_t key = slot;
        if (item.kind == ItemKind::kGather) {
          key = pass.gather_indices[static_cast<std::size_t>(slot)];
        } else if (!pass.key_order.empty()) {
          key = pass.key_order[static_cast<std::size_t>(head * problem.seqlen + slot)];
        }
        visited[static_cast<std::size_t>(key)] = true;
      }
    }
  }
  return visited;
}

}  // namespace

ModelPlan plan_on_model(Planner& planner, const AttentionInput& input, std::uint64_t seed) {
  const KernelDType dtype =
      input.dtype == StorageDType::kF16 ? KernelDType::kFp16 : KernelDType::kBf16;
  const auto q = to_16_bit(input.q, dtype);
  const auto k = to_16_bit(input.k, dtype);
  const auto v = to_16_bit(input.v, dtype);
  Workspace& workspace = planner.workspace();
  // As aligned as device memory.
  std::vector<std::byte> memory(static_cast<std::size_t>(workspace.bytes()) + 256, std::byte{0xff});
  void* base = memory.data();
  std::size_t space = memory.size();
  if (std::align(256, static_cast<std::size_t>(workspace.bytes()), base, space) == nullptr) {
    throw std::runtime_error("plan_on_model: no aligned memory");
  }
  workspace.bind(base);
  for (const Workspace::Constant& constant : workspace.constants()) {
    if (constant.bytes.empty()) continue;
    std::memcpy(static_cast<std::byte*>(base) + constant.offset, constant.bytes.data(),
                constant.bytes.size());
  }
  ModelPlanningKernels kernels(seed);
  planner.plan(
      {.problem = input.problem, .dtype = dtype, .q = q.data(), .k = k.data(), .v = v.data()},
      kernels);
  const CopyToHost copy = [](void* target, const void* source, std::size_t bytes) {
    std::memcpy(target, source, bytes);
  };
  ModelPlan result{.plan =
                       fetch_plan(input.problem, planner.device_plan(), copy, FetchedArrays::kAll)};
  if (planner.error_word() != nullptr) result.error_word = *planner.error_word();
  return result;
}

PlanDifference compare_plans(const Problem& problem, const SparsePlan& plan,
                             const SparsePlan& reference) {
  PlanDifference difference;
  for (int head = 0; head < reference.header.num_plan_heads; ++head) {
    for (int tile = 0; tile < reference.header.num_q_tiles; ++tile) {
      const auto got = visited_keys(problem, plan, head, tile);
      const auto expected = visited_keys(problem, reference, head, tile);
      ++difference.tiles;
      bool differs = false;
      for (std::size_t key = 0; key < got.size(); ++key) {
        difference.keys += expected[key] ? 1 : 0;
        difference.extra_keys += got[key] && !expected[key] ? 1 : 0;
        difference.missing_keys += !got[key] && expected[key] ? 1 : 0;
        differs = differs || got[key] != expected[key];
      }
      difference.differing_tiles += differs ? 1 : 0;
    }
  }
  return difference;
}

}  // namespace s2o::testing
