#include "lib/methods/s2o/s2o_layout.h"

#include <algorithm>
#include <limits>
#include <string>

#include "kernels/common/ceil_div.h"
#include "kernels/common/error.h"
#include "kernels/planning/s2o/ops.h"

namespace s2o {
namespace {

// Scores of several rows are computed and ranked together within this many bytes.
constexpr std::int64_t kScoreBytes = std::int64_t{1} << 30;
constexpr std::int64_t kScoreAlignment = 64;  // entries; rows end inside their padding

}  // namespace

HistoryShape s2o_history_shape(const Problem& problem, const S2oSettings& settings) {
  if (settings.segment_size < 1 || settings.segment_size % settings.block_m != 0) {
    throw UnsupportedError("planning of s2o: segment_size is " +
                           std::to_string(settings.segment_size) +
                           ", expected a multiple of block_m " + std::to_string(settings.block_m));
  }
  // A token and its class share a 32-bit word while they are sorted.
  constexpr std::int64_t kMaxSeqlen = std::int64_t{1} << 24;
  if (problem.seqlen > kMaxSeqlen) {
    throw UnsupportedError("planning of s2o: seqlen is " + std::to_string(problem.seqlen) +
                           ", supported are at most " + std::to_string(kMaxSeqlen));
  }
  if (settings.query_guide != QueryGuide::kNone && settings.segment_size > kMaxGuidedSegment) {
    throw UnsupportedError("planning of s2o: segment_size with a query guide is " +
                           std::to_string(settings.segment_size) + ", supported are at most " +
                           std::to_string(kMaxGuidedSegment));
  }
  HistoryShape shape;
  shape.seqlen = problem.seqlen;
  shape.segment_size = settings.segment_size;
  shape.local_window = settings.local_window;
  shape.max_depth = settings.max_depth;
  shape.kept_fraction = settings.kept_fraction;
  shape.num_segments = ceil_div<std::int32_t>(problem.seqlen, settings.segment_size);
  shape.num_kv_heads = problem.num_kv_heads;
  shape.lists_per_kv_head = settings.share_key_order_in_group ? 1 : problem.group_size();
  return shape;
}

std::int32_t ScoreBatch::num_row_tiles(const HistoryShape& shape, int row_tile) const {
  return ceil_div<std::int32_t>(
      static_cast<std::int64_t>(end_segment - first_segment) * shape.lists_per_kv_head, row_tile);
}
std::int32_t ScoreBatch::num_key_chunks(const HistoryShape& shape, int key_chunk) const {
  return ceil_div<std::int32_t>(shape.history_length(end_segment - 1), key_chunk);
}

S2oLayout::S2oLayout(const HistoryShape& shape, const PlannerLimits& limits) {
  score_offsets.assign(1, 0);
  for (std::int64_t segment = 0; segment < shape.num_segments; ++segment) {
    const std::int64_t length = shape.history_length(segment);
    score_offsets.push_back(score_offsets.back() +
                            ceil_div(length, kScoreAlignment) * kScoreAlignment);
    history_per_list += length;
    ordered_per_list += shape.order_length(segment);
  }
  add_order_batches(shape, limits.list_bytes_per_token * shape.seqlen /
                               static_cast<std::int64_t>(sizeof(std::int32_t)));
  const std::int64_t score_bytes =
      std::min(limits.scratch_bytes > 0 ? limits.scratch_bytes : kScoreBytes,
               kScoreBytesPerToken * shape.seqlen * shape.num_lists());
  const std::int64_t limit =
      std::max<std::int64_t>(score_bytes / static_cast<std::int64_t>(sizeof(std::uint16_t)), 1);
  for (OrderBatch& batch : batches) add_score_batches(shape, limit, batch);
}

// `limit` entries of a list.
void S2oLayout::add_order_batches(const HistoryShape& shape, std::int64_t limit) {
  std::int64_t entries = 0;
  batches.emplace_back();
  for (std::int32_t segment = 0; segment < shape.num_segments; ++segment) {
    const std::int64_t length = shape.order_length(segment);
    if (entries > 0 && entries + length > limit) {
      batches.push_back({.first_segment = segment, .end_segment = segment, .scores = {}});
      entries = 0;
    }
    order_offsets.push_back(entries);
    entries += length;
    batches.back().end_segment = segment + 1;
    order_per_list = std::max(order_per_list, entries);
  }
}

void S2oLayout::add_score_batches(const HistoryShape& shape, std::int64_t limit,
                                  OrderBatch& batch) {
  // Whole tiles of rows, so that no product is computed for a row of another batch.
  const auto step =
      static_cast<std::int32_t>(std::max<std::int64_t>(kScoreRowTile / shape.lists_per_kv_head, 1));
  const auto entries = [&](std::int32_t first, std::int32_t end) {
    return (score_offsets[static_cast<std::size_t>(end)] -
            score_offsets[static_cast<std::size_t>(first)]) *
           shape.lists_per_kv_head;
  };
  for (std::int32_t first = batch.first_segment; first < batch.end_segment;) {
    std::int32_t end = std::min(first + step, batch.end_segment);
    while (end < batch.end_segment) {
      const std::int32_t longer = std::min(end + step, batch.end_segment);
      if (entries(first, longer) * shape.num_kv_heads > limit) break;
      end = longer;
    }
    const std::int64_t of_kv_head = std::max<std::int64_t>(entries(first, end), 1);
    const auto at_once = static_cast<std::int32_t>(
        std::clamp<std::int64_t>(limit / of_kv_head, 1, shape.num_kv_heads));
    for (std::int32_t kv_head = 0; kv_head < shape.num_kv_heads; kv_head += at_once) {
      batch.scores.push_back({.first_kv_head = kv_head,
                              .num_kv_heads = std::min(at_once, shape.num_kv_heads - kv_head),
                              .first_segment = first,
                              .end_segment = end,
                              .first_offset = score_offsets[static_cast<std::size_t>(first)],
                              .scores_per_list = of_kv_head / shape.lists_per_kv_head});
      score_entries = std::max(score_entries, of_kv_head * batch.scores.back().num_kv_heads);
    }
    first = end;
  }
}

PlanSkeleton s2o_plan_skeleton(const Problem& problem, const S2oSettings& settings,
                               const HistoryShape& shape, const S2oLayout& layout) {
  PlanSkeleton plan;
  plan.header.block_m = settings.block_m;
  plan.header.block_n = settings.block_n;
  plan.header.num_plan_heads = problem.num_q_heads;
  plan.header.num_q_tiles = ceil_div<int>(problem.seqlen, settings.block_m);
  plan.header.num_passes = settings.query_guide == QueryGuide::kNone ? 1 : 2;
  plan.header.stop = settings.stop;
  plan.header.fold = settings.fold;
  plan.passes.resize(static_cast<std::size_t>(plan.header.num_passes));
  PassSkeleton& own = plan.passes.front();
  PassSkeleton& history = plan.passes.back();
  for (PassSkeleton& pass : plan.passes) pass.item_offsets.assign(1, 0);
  for (int head = 0; head < problem.num_q_heads; ++head) {
    const std::int64_t list =
        settings.share_key_order_in_group ? head / problem.group_size() : head;
    for (std::int64_t tile = 0; tile < plan.header.num_q_tiles; ++tile) {
      const std::int64_t segment = tile * settings.block_m / settings.segment_size;
      const std::int64_t begin = segment * settings.segment_size;
      const std::int64_t end = std::min((tile + 1) * settings.block_m, problem.seqlen);
      own.items.push_back({.begin = begin,
                           .count = static_cast<std::int32_t>(end - begin),
                           .kind = ItemKind::kRun,
                           .mask = MaskClass::kCausal});
      const std::int64_t window_begin = shape.history_length(segment);
      if (window_begin < begin) {
        history.items.push_back(
            {.begin = window_begin, .count = static_cast<std::int32_t>(begin - window_begin)});
      }
      const std::int64_t length = shape.order_length(segment);
      if (length > 0) {
        history.items.push_back({.begin = list * layout.order_per_list +
                                          layout.order_offsets[static_cast<std::size_t>(segment)],
                                 .count = static_cast<std::int32_t>(length),
                                 .kind = ItemKind::kGather,
                                 .mask = MaskClass::kNone,
                                 .stoppable = true});
      }
      for (PassSkeleton& pass : plan.passes) {
        pass.item_offsets.push_back(static_cast<std::int64_t>(pass.items.size()));
      }
      if (settings.fold.kind != Compensation::kNone) {
        history.fold_end.push_back(static_cast<std::int32_t>(begin));
      }
    }
  }
  return plan;
}

}  // namespace s2o
