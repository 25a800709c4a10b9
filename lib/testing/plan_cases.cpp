#include "lib/testing/plan_cases.h"

#include <algorithm>
#include <array>
#include <numeric>

#include "lib/core/random.h"

namespace s2o::testing {
namespace {

struct KindName {
  PlanKind kind;
  const char* name;
};
constexpr std::array<KindName, 14> kKinds = {{
    {PlanKind::kDense, "dense"},
    {PlanKind::kBlocks, "blocks"},
    {PlanKind::kUnalignedRuns, "unaligned_runs"},
    {PlanKind::kKeyOrder, "key_order"},
    {PlanKind::kWindow, "window"},
    {PlanKind::kS2o, "s2o"},
    {PlanKind::kS2oPatience, "s2o_patience"},
    {PlanKind::kS2oTwoPasses, "s2o_two_passes"},
    {PlanKind::kPacked, "packed"},
    {PlanKind::kPvSkip, "pv_skip"},
    {PlanKind::kHoles, "holes"},
    {PlanKind::kFoldCentroid, "fold_centroid"},
    {PlanKind::kFoldBlocks, "fold_blocks"},
    {PlanKind::kFoldVariance, "fold_variance"},
}};

class CaseBuilder {
 public:
  CaseBuilder(const PlanCase& plan_case, const AttentionInput& input, std::uint64_t seed)
      : kind_(plan_case.kind),
        input_(input),
        problem_(input.problem),
        random_(seed, static_cast<std::uint64_t>(plan_case.kind)),
        plan_(input.problem, plan_case.block_m, plan_case.block_n,
              plan_case.kind == PlanKind::kPacked ? input.problem.group_size() : 1) {}

  SparsePlan build() {
    if (kind_ == PlanKind::kWindow) {
      plan_.header.window_sink = 5;
      plan_.header.window_size = 90;
    }
    if (kind_ == PlanKind::kPvSkip) plan_.header.pv_skip_threshold = 4.0f;
    if (kind_ == PlanKind::kKeyOrder) shuffle_keys();
    if (is_s2o()) return build_s2o();
    if (is_fold()) plan_.header.fold = fold_rule();
    PlanBuilder builder(plan_);
    for (int head = 0; head < plan_.header.num_plan_heads; ++head) {
      for (int tile = 0; tile < plan_.header.num_q_tiles; ++tile) add_tile(builder, head, tile);
    }
    builder.finish(plan_.passes[0]);
    return std::move(plan_);
  }

 private:
  bool is_s2o() const {
    return kind_ == PlanKind::kS2o || kind_ == PlanKind::kS2oPatience ||
           kind_ == PlanKind::kS2oTwoPasses;
  }
  bool is_fold() const {
    return kind_ == PlanKind::kFoldCentroid || kind_ == PlanKind::kFoldBlocks ||
           kind_ == PlanKind::kFoldVariance;
  }
  FoldRule fold_rule() const {
    return {.kind = kind_ == PlanKind::kFoldCentroid ? Compensation::kCentroid
                    : kind_ == PlanKind::kFoldBlocks ? Compensation::kBlocks
                                                     : Compensation::kBlocksVariance,
            .fold_block = kind_ == PlanKind::kFoldVariance ? 40 : 64,
            .round_bf16 = kind_ == PlanKind::kFoldBlocks};
  }
  std::int64_t draw(std::int64_t n) { return random_.below(counter_++, n); }

  void add_causal(PlanBuilder& builder, int head, int tile, std::int64_t begin, std::int64_t end) {
    if (end <= begin) return;
    builder.add(head, tile,
                {.begin = begin,
                 .count = static_cast<std::int32_t>(end - begin),
                 .kind = ItemKind::kRun,
                 .mask = kind_ == PlanKind::kWindow ? MaskClass::kWindow : MaskClass::kCausal});
  }

  void add_tile(PlanBuilder& builder, int head, int tile) {
    const TileRows rows = tile_rows(problem_, plan_.header, tile);
    switch (kind_) {
      case PlanKind::kBlocks:
      case PlanKind::kPvSkip: {
        std::vector<std::uint8_t> selected(static_cast<std::size_t>(problem_.seqlen / 128 + 1));
        for (std::uint8_t& block : selected) block = draw(2) == 0 ? 1 : 0;
        selected[static_cast<std::size_t>(rows.last_position / 128)] = 1;
        add_key_blocks(problem_, plan_, builder, head, tile, selected.data(), 128);
        break;
      }
      case PlanKind::kUnalignedRuns:
        add_unaligned(builder, head, tile, rows);
        break;
      case PlanKind::kHoles:
        if (tile % 2 == 1)
          add_causal(builder, head, tile, rows.first_position + 9, rows.last_position + 1);
        break;
      case PlanKind::kKeyOrder:
        // Every key slot, in two runs: which tokens they hold only the mask knows.
        add_causal(builder, head, tile, 0, problem_.seqlen / 3);
        add_causal(builder, head, tile, problem_.seqlen / 3, problem_.seqlen);
        break;
      case PlanKind::kFoldCentroid:
      case PlanKind::kFoldBlocks:
      case PlanKind::kFoldVariance:
        add_folded(builder, head, tile, rows);
        break;
      default:
        add_causal(builder, head, tile, 0, rows.last_position + 1);
    }
  }

  // Windows of up to 64 keys, then some of the keys between them as a masked gather.
  void add_unaligned(PlanBuilder& builder, int head, int tile, const TileRows& rows) {
    const std::int64_t end = rows.last_position + 1;
    std::vector<std::int32_t> columns;
    for (std::int64_t begin = draw(30); begin < end;) {
      const std::int64_t length = std::min<std::int64_t>(1 + draw(64), end - begin);
      add_causal(builder, head, tile, begin, begin + length);
      const std::int64_t gap = 1 + draw(60);
      for (std::int64_t key = begin + length; key < std::min(begin + length + gap, end); key += 3) {
        columns.push_back(static_cast<std::int32_t>(key));
      }
      begin += length + gap;
    }
    std::vector<std::int32_t>& indices = plan_.passes[0].gather_indices;
    if (columns.empty()) return;
    builder.add(head, tile,
                {.begin = static_cast<std::int64_t>(indices.size()),
                 .count = static_cast<std::int32_t>(columns.size()),
                 .kind = ItemKind::kGather,
                 .mask = MaskClass::kCausal});
    indices.insert(indices.end(), columns.begin(), columns.end());
  }

  // A visited run and a visited gather below the fold end, and the own tile. The gather leaves
  // stretches of 150 keys alone: columns of whole blocks.
  void add_folded(PlanBuilder& builder, int head, int tile, const TileRows& rows) {
    const std::int64_t end = rows.first_position;
    plan_.passes[0].fold_end.push_back(static_cast<std::int32_t>(end));
    if (end > 0) {
      const std::int64_t length = std::min<std::int64_t>(70, end);
      builder.add(head, tile, {.begin = 0, .count = static_cast<std::int32_t>(length)});
      std::vector<std::int32_t>& indices = plan_.passes[0].gather_indices;
      const auto first = static_cast<std::int64_t>(indices.size());
      for (std::int64_t key = length; key < end; ++key) {
        if (key / 150 % 2 == 0 && draw(3) == 0) indices.push_back(static_cast<std::int32_t>(key));
      }
      const auto count =
          static_cast<std::int32_t>(static_cast<std::int64_t>(indices.size()) - first);
      if (count > 0) {
        builder.add(head, tile, {.begin = first, .count = count, .kind = ItemKind::kGather});
      }
    }
    add_causal(builder, head, tile, end, rows.last_position + 1);
  }

  void shuffle(std::vector<std::int32_t>& values, std::size_t begin, std::size_t end) {
    for (std::size_t i = end; i > begin + 1; --i) {
      const auto other =
          begin + static_cast<std::size_t>(draw(static_cast<std::int64_t>(i - begin)));
      std::swap(values[i - 1], values[other]);
    }
  }

  std::vector<std::int32_t> shuffled_positions(std::int64_t segment) {
    const auto n = static_cast<std::size_t>(problem_.seqlen);
    std::vector<std::int32_t> order(n * static_cast<std::size_t>(plan_.header.num_plan_heads));
    for (std::size_t start = 0; start < order.size(); start += n) {
      std::iota(order.begin() + static_cast<std::ptrdiff_t>(start),
                order.begin() + static_cast<std::ptrdiff_t>(start + n), 0);
      for (std::size_t begin = 0; begin < n; begin += static_cast<std::size_t>(segment)) {
        shuffle(order, start + begin,
                start + std::min(begin + static_cast<std::size_t>(segment), n));
      }
    }
    return order;
  }
  void shuffle_keys() { plan_.passes[0].key_order = shuffled_positions(200); }

  SparsePlan build_s2o() {
    const std::int64_t segment = 2 * plan_.header.block_m;
    const bool two_passes = kind_ == PlanKind::kS2oTwoPasses;
    plan_.header.stop =
        kind_ == PlanKind::kS2oPatience
            ? StopRule{.tau = 0.3f, .reduce = StopReduce::kMax, .patience = 2, .min_steps = 3}
            : StopRule{.tau = 0.08f};
    if (two_passes) plan_.passes.resize(2);
    PlanPass& history = plan_.passes.back();
    history.query_order = shuffled_positions(segment);
    PlanBuilder own_builder(plan_);
    PlanBuilder history_builder(plan_);
    PlanBuilder& history_target = two_passes ? history_builder : own_builder;
    for (int head = 0; head < plan_.header.num_plan_heads; ++head) {
      for (int tile = 0; tile < plan_.header.num_q_tiles; ++tile) {
        const TileRows rows = tile_rows(problem_, plan_.header, tile);
        const std::int64_t begin = rows.first_slot / segment * segment;
        const std::int64_t end = std::min(begin + segment, problem_.seqlen);
        add_causal(own_builder, head, tile, begin, two_passes ? rows.last_position + 1 : end);
        if (begin == 0) continue;
        add_ranked_history(history_target, history, head, tile, begin);
        // Something that must still run after a stop.
        history_target.add(head, tile, {.begin = begin - 17, .count = 17});
      }
    }
    own_builder.finish(plan_.passes.front());
    if (two_passes) history_builder.finish(history);
    return std::move(plan_);
  }

  // Keys [0, end - 17) by descending score with one query of the tile: gains fall.
  void add_ranked_history(PlanBuilder& builder, PlanPass& pass, int head, int tile,
                          std::int64_t end) {
    const int d = problem_.head_dim;
    const float* q = input_.q_head(head) + (end + tile % 3) % problem_.seqlen * d;
    const float* k = input_.k_head(head / problem_.group_size());
    std::vector<float> score(static_cast<std::size_t>(end - 17));
    for (std::size_t x = 0; x < score.size(); ++x) {
      for (int i = 0; i < d; ++i)
        score[x] += q[i] * k[x * static_cast<std::size_t>(d) + static_cast<std::size_t>(i)];
    }
    std::vector<std::int32_t> order(score.size());
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(), [&score](std::int32_t a, std::int32_t b) {
      return score[static_cast<std::size_t>(a)] > score[static_cast<std::size_t>(b)];
    });
    builder.add(head, tile,
                {.begin = static_cast<std::int64_t>(pass.gather_indices.size()),
                 .count = static_cast<std::int32_t>(order.size()),
                 .kind = ItemKind::kGather,
                 .mask = MaskClass::kNone,
                 .stoppable = true});
    pass.gather_indices.insert(pass.gather_indices.end(), order.begin(), order.end());
  }

  PlanKind kind_;
  const AttentionInput& input_;
  const Problem& problem_;
  CounterRandom random_;
  std::uint64_t counter_ = 0;
  SparsePlan plan_;
};

}  // namespace

std::vector<PlanKind> all_plan_kinds() {
  std::vector<PlanKind> kinds;
  for (const KindName& entry : kKinds) kinds.push_back(entry.kind);
  return kinds;
}

std::string plan_kind_name(PlanKind kind) {
  for (const KindName& entry : kKinds) {
    if (entry.kind == kind) return entry.name;
  }
  return "unknown";
}

std::string plan_case_name(const PlanCase& c) {
  return plan_kind_name(c.kind) + "_" + std::to_string(c.shape.seqlen) + "x" +
         std::to_string(c.shape.num_q_heads) + "q" + std::to_string(c.shape.num_kv_heads) + "kv_d" +
         std::to_string(c.shape.head_dim) + "_" + std::to_string(c.block_m) + "x" +
         std::to_string(c.block_n);
}

SparsePlan make_plan(const PlanCase& plan_case, const AttentionInput& input, std::uint64_t seed) {
  return CaseBuilder(plan_case, input, seed).build();
}

}  // namespace s2o::testing
