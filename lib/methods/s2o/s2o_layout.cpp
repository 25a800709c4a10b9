#include "lib/methods/s2o/s2o_layout.h"

#include <algorithm>
#include <limits>
#include <numeric>
#include <string>

#include "kernels/common/ceil_div.h"
#include "kernels/common/error.h"
#include "kernels/planning/s2o/ops.h"

namespace s2o {
namespace {

// Scores of several rows are computed and ranked together within this many bytes.
constexpr std::int64_t kScoreBytes = std::int64_t{1} << 30;
constexpr std::int64_t kScoreAlignment = 64;  // entries; rows end inside their padding

std::int64_t order_length(const HistoryShape& shape,
                          const std::vector<std::int32_t>& kept_fractions, std::int64_t list,
                          std::int64_t segment) {
  HistoryShape own = shape;
  if (!kept_fractions.empty()) own.kept_fraction = kept_fractions[static_cast<std::size_t>(list)];
  return own.order_length(segment);
}

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

bool has_listed_orders(const HistoryShape& shape) {
  std::int64_t listed = 0;
  std::int64_t keys = 0;
  for (std::int32_t segment = 0; segment < shape.num_segments; ++segment) {
    const std::int64_t room = shape.order_length(segment);
    const std::int64_t length = shape.history_length(segment);
    if (room > kClassOrderRoom || length > kClassOrderHistory) return false;
    listed += room;
    keys += length;
  }
  return static_cast<double>(listed) <= kListedShare * static_cast<double>(keys);
}

S2oLayout::S2oLayout(const HistoryShape& shape, const PlannerLimits& limits,
                     const std::vector<std::int32_t>& kept_fractions)
    : has_classes(has_listed_orders(shape)) {
  row_offsets.assign(1, 0);
  for (std::int64_t segment = 0; segment < shape.num_segments; ++segment) {
    const std::int64_t length = shape.history_length(segment);
    row_offsets.push_back(row_offsets.back() + ceil_div(length, kScoreAlignment) * kScoreAlignment);
    history_per_list += length;
    ordered_per_list += shape.order_length(segment);
  }
  add_order_batches(
      shape,
      limits.list_bytes_per_token * shape.seqlen / static_cast<std::int64_t>(sizeof(std::int32_t)),
      kept_fractions);
  const std::int64_t bytes =
      std::min(limits.scratch_bytes > 0 ? limits.scratch_bytes : kScoreBytes,
               kScoreBytesPerToken * (has_classes ? 2 : 1) * shape.seqlen * shape.num_lists());
  const std::int64_t limit = std::max<std::int64_t>(bytes / score_bytes(), 1);
  for (OrderBatch& batch : batches) add_score_batches(shape, limit, batch);
}

// `limit` entries of a list, in the mean.
void S2oLayout::add_order_batches(const HistoryShape& shape, std::int64_t limit,
                                  const std::vector<std::int32_t>& kept_fractions) {
  const std::int64_t num_lists = shape.num_lists();
  const auto lists = static_cast<std::size_t>(num_lists);
  const auto num_segments = static_cast<std::size_t>(shape.num_segments);
  std::vector<std::int64_t> entries(lists, 0);  // of the batch so far
  std::vector<std::int64_t> rooms(lists, 0);
  std::vector<std::int64_t> lengths(lists);
  list_offsets.resize(lists * num_segments);
  batches.emplace_back();
  for (std::int32_t segment = 0; segment < shape.num_segments; ++segment) {
    for (std::size_t list = 0; list < lists; ++list) {
      lengths[list] = order_length(shape, kept_fractions, static_cast<std::int64_t>(list), segment);
    }
    const std::int64_t before = std::reduce(entries.begin(), entries.end());
    if (before > 0 && before + std::reduce(lengths.begin(), lengths.end()) > limit * num_lists) {
      batches.push_back({.first_segment = segment, .end_segment = segment, .rows = {}});
      std::ranges::fill(entries, 0);
    }
    order_offsets.push_back(entries[0]);
    for (std::size_t list = 0; list < lists; ++list) {
      list_offsets[list * num_segments + static_cast<std::size_t>(segment)] = entries[list];
      entries[list] += lengths[list];
      rooms[list] = std::max(rooms[list], entries[list]);
    }
    batches.back().end_segment = segment + 1;
  }
  order_per_list = rooms[0];
  for (std::size_t list = 0; list < lists; ++list) {
    for (std::size_t segment = 0; segment < num_segments; ++segment) {
      list_offsets[list * num_segments + segment] += order_entries;
    }
    order_entries += rooms[list];
  }
}

void S2oLayout::add_score_batches(const HistoryShape& shape, std::int64_t limit,
                                  OrderBatch& batch) {
  // Whole tiles of rows, so that no product is computed for a row of another batch.
  const auto step =
      static_cast<std::int32_t>(std::max<std::int64_t>(kScoreRowTile / shape.lists_per_kv_head, 1));
  const auto entries = [&](std::int32_t first, std::int32_t end) {
    return (row_offsets[static_cast<std::size_t>(end)] -
            row_offsets[static_cast<std::size_t>(first)]) *
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
      batch.rows.push_back({.first_kv_head = kv_head,
                            .num_kv_heads = std::min(at_once, shape.num_kv_heads - kv_head),
                            .first_segment = first,
                            .end_segment = end,
                            .first_offset = row_offsets[static_cast<std::size_t>(first)],
                            .keys_per_list = of_kv_head / shape.lists_per_kv_head});
      score_entries = std::max(score_entries, of_kv_head * batch.rows.back().num_kv_heads);
    }
    first = end;
  }
}

PlanSkeleton s2o_plan_skeleton(const Problem& problem, const S2oSettings& settings,
                               const HistoryShape& shape, const S2oLayout& layout,
                               const std::vector<std::int32_t>& kept_fractions) {
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
  history.head_taus = settings.head_taus();
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
      const std::int64_t length = order_length(shape, kept_fractions, list, segment);
      if (length > 0) {
        history.items.push_back({.begin = layout.order_offset(list, segment),
                                 .count = static_cast<std::int32_t>(length),
                                 .kind = ItemKind::kGather,
                                 .mask = MaskClass::kNone,
                                 .stoppable = settings.may_stop(head)});
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
