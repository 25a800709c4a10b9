#include "kernels/planning/block_planners.h"

#include <algorithm>
#include <string>

#include "kernels/common/error.h"
#include "kernels/planning/last_queries/ops.h"
#include "kernels/planning/op.h"
#include "kernels/planning/pooled/ops.h"

namespace s2o {
namespace {

// Rows of block scores are computed and selected within this many bytes.
constexpr std::int64_t kScoreBytes = std::int64_t{1} << 29;
constexpr std::int64_t kColumnAlignment = 64;

std::int32_t ceil_div(std::int64_t a, std::int64_t b) {
  return static_cast<std::int32_t>((a + b - 1) / b);
}

void check_block(const char* method, int block) {
  if (block == 64 || block == 128) return;
  throw UnsupportedError(std::string("planning of ") + method + ": block size is " +
                         std::to_string(block) + ", supported on the device are 64 and 128");
}

// Strips of rows whose scores fit kScoreBytes.
struct ScoreStrips {
  std::int32_t num_rows = 0;
  std::int32_t row_stride = 0;
  std::int32_t rows_at_once = 0;

  ScoreStrips(int num_heads, std::int32_t num_q_blocks, std::int32_t num_kv_blocks)
      : num_rows(num_q_blocks),
        row_stride(static_cast<std::int32_t>(ceil_div(num_kv_blocks, kColumnAlignment) *
                                             kColumnAlignment)) {
    const std::int64_t bytes_per_row = std::int64_t{2} * num_heads * row_stride;
    rows_at_once = static_cast<std::int32_t>(std::clamp<std::int64_t>(
        kScoreBytes / bytes_per_row / 64 * 64, 64, ceil_div(num_q_blocks, 64) * std::int64_t{64}));
    rows_at_once = std::min(rows_at_once, num_q_blocks);
  }
  std::int64_t entries(int num_heads) const {
    return static_cast<std::int64_t>(num_heads) * rows_at_once * row_stride;
  }
};

// Pools, scores and selects; what differs between the methods is in the arguments.
class PooledPlanner : public TilePlanner {
 public:
  PlanningCost cost() const override {
    const double d = problem_.head_dim;
    const double rows = static_cast<double>(problem_.seqlen) * d;
    const double heads = problem_.num_q_heads;
    const double pairs = 0.5 * heads * q_blocks_ * kv_blocks_;
    return {.flops = rows * (heads + problem_.num_kv_heads) + 2.0 * pairs * d,
            .bytes = 2.0 * rows * (heads + problem_.num_kv_heads) + 2.0 * 2.0 * pairs};
  }

 protected:
  PooledPlanner(const Problem& problem, int block_m, int block_n, int k_heads,
                const PlannedFold& fold, const ItemRoom& room, std::int64_t l2_bytes)
      : TilePlanner(
            problem, block_m, block_n, /*pack=*/1, fold,
            [block_m, block_n](int tile) {
              return max_items_of_row(
                  ceil_div((static_cast<std::int64_t>(tile) + 1) * block_m, block_n));
            },
            room, l2_bytes),
        q_blocks_(ceil_div(problem.seqlen, block_m)),
        kv_blocks_(ceil_div(problem.seqlen, block_n)),
        k_heads_(k_heads),
        strips_(problem.num_q_heads, q_blocks_, kv_blocks_) {
    const std::int64_t d = problem.head_dim;
    mean_q_ = workspace_.add<std::uint16_t>(problem.num_q_heads * q_blocks_ * d);
    mean_k_ = workspace_.add<std::uint16_t>(static_cast<std::int64_t>(k_heads) * kv_blocks_ * d);
    scores_ = workspace_.add<std::uint16_t>(strips_.entries(problem.num_q_heads));
  }

  PoolArgs pool_queries(const DeviceInput& input) const {
    return {.x = input.q,
            .means = mean_q_.data(),
            .seqlen = problem_.seqlen,
            .block = header_.block_m,
            .num_blocks = q_blocks_,
            .num_heads = problem_.num_q_heads};
  }
  PoolArgs pool_keys(const DeviceInput& input) const {
    return {.x = input.k,
            .means = mean_k_.data(),
            .seqlen = problem_.seqlen,
            .block = header_.block_n,
            .num_blocks = kv_blocks_,
            .num_heads = k_heads_,
            .heads_per_source = k_heads_ / problem_.num_kv_heads};
  }

  // What select_rows must know of the method.
  virtual SelectArgs row_rule() const = 0;

  void plan_tiles(const TileBatch& batch, const DeviceInput& input,
                  PlanningKernels& kernels) const override {
    SelectArgs select = row_rule();
    const int heads = problem_.num_q_heads;
    for (std::int32_t first = batch.first_tile; first < batch.end_tile;
         first += strips_.rows_at_once) {
      const std::int32_t rows = std::min(strips_.rows_at_once, batch.end_tile - first);
      kernels.run(BlockScoreArgs{.q = mean_q_.data(),
                                 .k = mean_k_.data(),
                                 .scores = scores_.data(),
                                 .num_heads = heads,
                                 .heads_per_k = heads / k_heads_,
                                 .num_q_blocks = q_blocks_,
                                 .num_kv_blocks = kv_blocks_,
                                 .first_row = first,
                                 .num_rows = rows,
                                 .row_stride = strips_.row_stride,
                                 .block_m = header_.block_m,
                                 .block_n = header_.block_n,
                                 .scale = problem_.softmax_scale},
                  input.elements());
      select.scores = scores_.data();
      select.num_heads = heads;
      select.num_q_blocks = q_blocks_;
      select.num_kv_blocks = kv_blocks_;
      select.first_row = first;
      select.num_rows = rows;
      select.row_stride = strips_.row_stride;
      select.block_m = header_.block_m;
      select.block_n = header_.block_n;
      select.seqlen = problem_.seqlen;
      select.item_offsets = item_offsets_.data();
      select.items = items_.data();
      select.item_counts = item_counts_.data();
      select.bad_row = bad_row_.data();
      kernels.run(select, input.elements());
    }
  }

  const std::int32_t q_blocks_;
  const std::int32_t kv_blocks_;
  const int k_heads_;
  const ScoreStrips strips_;
  Workspace::Array<std::uint16_t> mean_q_, mean_k_, scores_;
};

class MeanPoolingPlanner final : public PooledPlanner {
 public:
  MeanPoolingPlanner(const Problem& problem, const MeanPoolingDeviceSettings& settings,
                     std::int64_t l2_bytes)
      : PooledPlanner(problem, settings.block, settings.block, problem.num_kv_heads, settings.fold,
                      settings.room, l2_bytes),
        threshold_(settings.threshold) {}

  void plan(const DeviceInput& input, PlanningKernels& kernels) const override {
    kernels.clear(bad_row_.data(), bad_row_.size_bytes());
    PoolArgs queries = pool_queries(input);
    PoolArgs keys = pool_keys(input);
    queries.divide_by_block = keys.divide_by_block = true;
    kernels.run(queries, input.elements());
    kernels.run(keys, input.elements());
    plan_next(0, input, kernels);
  }

 private:
  SelectArgs row_rule() const override {
    return {.rule = RowRule::kMeanPooling, .threshold = threshold_};
  }

  const float threshold_;
};

class PbsPlanner final : public PooledPlanner {
 public:
  PbsPlanner(const Problem& problem, const PbsDeviceSettings& settings, std::int64_t l2_bytes)
      : PooledPlanner(problem, settings.block, settings.block, problem.num_q_heads, settings.fold,
                      settings.room, l2_bytes),
        settings_(settings),
        num_keys_(problem.seqlen / settings.segment * settings.segment),
        num_chunks_(ceil_div(num_keys_, kLastQueryChunk)) {
    const std::int64_t heads = problem.num_q_heads;
    largest_ = workspace_.add<float>(heads * (num_chunks_ + 1) * kLastQueries);
    normalisers_ = workspace_.add<float>(heads * (num_chunks_ + 1) * kLastQueries);
    mass_ = workspace_.add<float>(heads * num_keys_);
    sink_block_ = workspace_.add<std::int32_t>(heads);
    key_order_ = workspace_.add<std::int32_t>(heads * problem.seqlen);
  }

  void plan(const DeviceInput& input, PlanningKernels& kernels) const override {
    kernels.clear(bad_row_.data(), bad_row_.size_bytes());
    kernels.run(LastQueryArgs{.q = input.q,
                              .k = input.k,
                              .seqlen = problem_.seqlen,
                              .num_keys = num_keys_,
                              .num_queries = settings_.block,
                              .num_q_heads = problem_.num_q_heads,
                              .group_size = problem_.group_size(),
                              .num_chunks = num_chunks_,
                              .scale = problem_.softmax_scale,
                              .largest = largest_.data(),
                              .normalisers = normalisers_.data(),
                              .mass = mass_.data(),
                              .bad_row = bad_row_.data(),
                              .rows_per_head = header_.num_q_tiles},
                input.elements());
    kernels.run(SegmentOrderArgs{.mass = mass_.data(),
                                 .order = key_order_.data(),
                                 .sink_block = sink_block_.data(),
                                 .seqlen = problem_.seqlen,
                                 .num_keys = num_keys_,
                                 .num_heads = problem_.num_q_heads,
                                 .segment = settings_.segment,
                                 .block = settings_.block},
                input.elements());
    PoolArgs queries = pool_queries(input);
    PoolArgs keys = pool_keys(input);
    queries.divide_by_block = keys.divide_by_block = true;
    keys.order = key_order_.data();
    kernels.run(queries, input.elements());
    kernels.run(keys, input.elements());
    plan_next(0, input, kernels);
  }

 private:
  SelectArgs row_rule() const override {
    return {.rule = RowRule::kPbsAttn,
            .threshold = settings_.threshold,
            .segment_blocks = settings_.segment / settings_.block,
            .sink_block = sink_block_.data()};
  }

  const PbsDeviceSettings settings_;
  const std::int64_t num_keys_;
  const std::int32_t num_chunks_;
  Workspace::Array<float> largest_, normalisers_, mass_;
  Workspace::Array<std::int32_t> sink_block_;
};

class SpargePlanner final : public PooledPlanner {
 public:
  SpargePlanner(const Problem& problem, const SpargeDeviceSettings& settings, std::int64_t l2_bytes)
      : PooledPlanner(problem, settings.block_m, settings.block_n, problem.num_kv_heads,
                      settings.fold, settings.room, l2_bytes),
        settings_(settings) {
    header_.pv_skip_threshold = settings.pv_skip_threshold;
    header_.pv_skip_exempt = settings.pv_skip_exempt;
    num_parts_ = ceil_div(problem.seqlen, kColumnSumRows);
    partial_sums_ = workspace_.add<float>(static_cast<std::int64_t>(problem.num_kv_heads) *
                                          num_parts_ * problem.head_dim);
    mean_key_ = workspace_.add<std::uint16_t>(static_cast<std::int64_t>(problem.num_kv_heads) *
                                              problem.head_dim);
    q_similar_ =
        workspace_.add<std::uint8_t>(static_cast<std::int64_t>(problem.num_q_heads) * q_blocks_);
    k_similar_ =
        workspace_.add<std::uint8_t>(static_cast<std::int64_t>(problem.num_kv_heads) * kv_blocks_);
  }

  void plan(const DeviceInput& input, PlanningKernels& kernels) const override {
    kernels.clear(bad_row_.data(), bad_row_.size_bytes());
    kernels.run(ColumnMeanArgs{.x = input.k,
                               .partial_sums = partial_sums_.data(),
                               .means = mean_key_.data(),
                               .seqlen = problem_.seqlen,
                               .num_heads = problem_.num_kv_heads,
                               .num_parts = num_parts_},
                input.elements());
    PoolArgs queries = pool_queries(input);
    PoolArgs keys = pool_keys(input);
    queries.similar = q_similar_.data();
    keys.similar = k_similar_.data();
    keys.offset = mean_key_.data();
    queries.similarity_threshold = keys.similarity_threshold = settings_.similarity_threshold;
    kernels.run(queries, input.elements());
    kernels.run(keys, input.elements());
    plan_next(0, input, kernels);
  }

 private:
  SelectArgs row_rule() const override {
    // In fp32, as upstream: .29 of 100 blocks is 29, not 28.
    const auto top = static_cast<std::int32_t>(settings_.share * static_cast<float>(kv_blocks_));
    return {.rule = RowRule::kSpargeAttn,
            .threshold = settings_.share,
            .q_similar = q_similar_.data(),
            .k_similar = k_similar_.data(),
            .heads_per_k = problem_.group_size(),
            .by_mass = settings_.by_mass,
            .keep_first = settings_.attention_sink,
            .top_count = std::max(top, 1)};
  }

  const SpargeDeviceSettings settings_;
  std::int32_t num_parts_ = 0;
  Workspace::Array<float> partial_sums_;
  Workspace::Array<std::uint16_t> mean_key_;
  Workspace::Array<std::uint8_t> q_similar_, k_similar_;
};

}  // namespace

std::unique_ptr<Planner> make_mean_pooling_planner(const Problem& problem,
                                                   const MeanPoolingDeviceSettings& settings,
                                                   std::int64_t l2_bytes) {
  check_block("mean_pooling", settings.block);
  return std::make_unique<MeanPoolingPlanner>(problem, settings, l2_bytes);
}

std::unique_ptr<Planner> make_pbs_planner(const Problem& problem, const PbsDeviceSettings& settings,
                                          std::int64_t l2_bytes) {
  check_block("pbs_attn", settings.block);
  if (settings.segment > kMaxOrderedSegment || settings.segment % settings.block != 0 ||
      problem.seqlen <= settings.segment) {
    throw UnsupportedError("planning of pbs_attn: segment_size is " +
                           std::to_string(settings.segment) +
                           ", supported on the device are multiples of the block size up to " +
                           std::to_string(kMaxOrderedSegment) + ", below seqlen");
  }
  return std::make_unique<PbsPlanner>(problem, settings, l2_bytes);
}

std::unique_ptr<Planner> make_sparge_planner(const Problem& problem,
                                             const SpargeDeviceSettings& settings,
                                             std::int64_t l2_bytes) {
  check_block("sparge_attn", settings.block_m);
  check_block("sparge_attn", settings.block_n);
  return std::make_unique<SpargePlanner>(problem, settings, l2_bytes);
}

}  // namespace s2o
