// FlashPrefill V2 (arXiv 2608.19758, code qhfan/FlashPrefillv2) and its predecessor FlashPrefill V1
// (arXiv 2603.06199, code qhfan/FlashPrefill).
//
// Faithful: estimate, selection, forced blocks and mean correction as the released code computes
// them, V2's sequence-first packing of the query heads of a group included.
//
// Deviates: the plan works in steps of 128 keys (the release: 64) and visits blocks in ascending
// order (the release: descending); the release's fall-backs to dense for short prompts and for the
// first layers are off, since every layer is measured; fp16 inputs fold unrounded means.
//
// Defaults: the V2 paper's, one setting for all models. It states neither last_tiles (8 is the
// README's) nor dense layers (none here). V1's published Llama-3.1-8B setting is version "v1",
// alpha 0.18, last_tiles 2, mean_correction false; the correction is V2's, but works with both.
// Level A ("official") rounds the block means to the activation type; level B keeps fp32.
//
// Definition. Key blocks have B = 128 tokens, kbar_j is the mean key of block j. V2: a query tile
// is 128 consecutive packed rows of a KV head, row r being position r / g of query head r mod g of
// its group, with one selection for all of them; t0 and t1 are the positions of its first and last
// row. V1: a tile is 128 positions of one query head.
//
// 1. x[r, j] = softmax_scale * (q_r . kbar_j). V2: for j < A = floor((t1 + 1) / B), and row r takes
//    part iff it sees the first key of j. V1: for j <= floor(t0 / B), and row t takes part iff it
//    sees the last key of j; rows beyond the sequence are zero queries.
//
// 2. S_j = sum_r exp(x[r, j] - M), M the maximum over all participating (r, j) of the tile.
//
// 3. Keep j iff S_j >= alpha * max_j S_j, or j < sink_blocks,
//    or floor(t0 / B) - window_blocks < j <= floor(t1 / B), or the tile is one of the last
//    `last_tiles` (dense).
//
// 4. Mean correction: every block j < floor(t0 / B) that is not kept enters as one column with key
//    kbar_j, value vbar_j and logit bias ln B, so each visible key counts exactly once.
#include "lib/methods/flash_prefill/flash_prefill.h"

#include <fmt/format.h>

#include <vector>

#include "kernels/common/parallel.h"
#include "lib/core/error.h"
#include "lib/methods/common/block_selection.h"
#include "lib/methods/common/device_planning.h"
#include "lib/methods/method.h"

namespace s2o {
namespace {

constexpr int kBlock = 128;  // keys of a block, and rows of a query tile
constexpr double kMaxBlocks = 1 << 24;

// Steps 1 and 2 of V2 for one packed tile.
std::vector<float> v2_energies(const AttentionInput& input, const SparsePlan& plan, int plan_head,
                               int tile, const LogitMatrix& mean_keys) {
  const TileRows rows = tile_rows(input.problem, plan.header, tile);
  const int candidates = v2_candidates(rows.last_position, kBlock);
  std::vector<std::int32_t> row_blocks;
  for (std::int64_t slot = rows.first_slot; slot < rows.end_slot; ++slot) {
    row_blocks.push_back(v2_row_blocks(slot / plan.header.pack, kBlock));
  }
  const LogitMatrix logits = input.problem.softmax_scale *
                             query_tile_rows(input, plan, plan_head, tile) *
                             mean_keys.topRows(candidates).transpose();
  return tile_energies(logits, row_blocks, candidates);
}

// Steps 1 and 2 of V1 for one tile of a query head.
std::vector<float> v1_energies(const AttentionInput& input, const SparsePlan& plan, int q_head,
                               int tile, const LogitMatrix& mean_keys) {
  const int candidates = tile + 1;
  const LogitMatrix q = query_tile_rows(input, plan, q_head, tile);
  LogitMatrix logits = LogitMatrix::Zero(kBlock, candidates);
  logits.topRows(q.rows()) =
      input.problem.softmax_scale * q * mean_keys.topRows(candidates).transpose();
  std::vector<std::int32_t> row_blocks;
  for (int row = 0; row < kBlock; ++row) {
    row_blocks.push_back(v1_row_blocks(static_cast<std::int64_t>(tile) * kBlock + row, kBlock));
  }
  return tile_energies(logits, row_blocks, candidates);
}

void check_correction(const ParamSet& params) {
  if (!params.get_bool("mean_correction")) return;
  const std::string& compensation = params.get_choice("compensation");
  if (compensation == "none" || compensation == "blocks") return;
  throw ConfigError(
      fmt::format("compensation: found '{}' with mean_correction true; expected 'none' or "
                  "'blocks', or mean_correction false",
                  compensation));
}

// Step 4, or any other compensation in its place.
PlannedFold fold_of(const ParamSet& params, StorageDType dtype) {
  if (!params.get_bool("mean_correction")) return planned_fold(params, kBlock);
  check_correction(params);
  return {.rule = {.kind = Compensation::kBlocks,
                   .fold_block = kBlock,
                   .round_bf16 = params.get_choice("rounding") == "official" &&
                                 dtype == StorageDType::kBF16}};
}

FlashPrefillSettings settings_of(const ParamSet& params, StorageDType dtype) {
  return {.is_v2 = params.get_choice("version") == "v2",
          .alpha = static_cast<float>(params.get_real("alpha")),
          .forced = forced_blocks_of(params),
          .fold = fold_of(params, dtype)};
}

class FlashPrefill final : public Method {
 public:
  const MethodInfo& info() const override {
    static const MethodInfo kInfo = {
        .name = "flash_prefill",
        .title = "FlashPrefill",
        .source = "FlashPrefill V2, arXiv 2608.19758; V1, arXiv 2603.06199",
        .summary =
            "key blocks whose energy against mean keys is within alpha of the loudest; the "
            "rest enters as block means",
        .params =
            {ParamSpec::real("alpha", 0.1,
                             "keep blocks with energy >= alpha * the tile's maximum; 0 is dense "
                             "(V1's Llama-3.1-8B value is 0.18)",
                             0.0, 1.0),
             ParamSpec::integer("sink_blocks", 2, "first key blocks, always kept", 0, kMaxBlocks),
             ParamSpec::integer("window_blocks", 4,
                                "key blocks up to and including the diagonal, always kept", 1,
                                kMaxBlocks),
             ParamSpec::integer("last_tiles", 8,
                                "dense query tiles at the end (n_last; V1's value is 2)", 0,
                                kMaxBlocks),
             ParamSpec::boolean("mean_correction", true,
                                "fold every unselected past block in as its mean (off in V1); same "
                                "as compensation 'blocks', with the official rounding"),
             ParamSpec::choice(
                 "version", "v2", {"v2", "v1"},
                 "v2: packed tiles, one mask per KV head; v1: one mask per query head"),
             rounding_spec(), compensation_spec()},
        .knob = "alpha",
        .knob_sweep = {0.001, 0.004, 0.015, 0.04, 0.1, 0.25, 1.0},
        .full_budget = {.exists = true, .params = {{"alpha", 0.0}}},
        .device =
            {.settings =
                 {{{"alpha", 0.9}, {"sink_blocks", 1}, {"window_blocks", 2}, {"last_tiles", 2}},
                  {{"alpha", 0.98}, {"version", "v1"}, {"window_blocks", 1}, {"last_tiles", 1}},
                  {{"alpha", 0.9},
                   {"last_tiles", 1},
                   {"mean_correction", false},
                   {"compensation", "centroid"}},
                  {{"alpha", 0.0}}},
             .tie_share = 0.005},
    };
    return kInfo;
  }

  void check(const ParamSet& params) const override { check_correction(params); }

  SparsePlan plan_cpu(const PlanContext& context, const ParamSet& params) const override {
    const AttentionInput& input = context.input;
    const Problem& problem = input.problem;
    const FlashPrefillSettings settings = settings_of(params, input.dtype);
    const bool is_v2 = settings.is_v2;
    const ForcedBlocks& forced = settings.forced;

    SparsePlan plan(problem, kBlock, kBlock, is_v2 ? problem.group_size() : 1);
    PlanBuilder builder(plan);
    const std::vector<LogitMatrix> mean_keys =
        block_mean_keys(input, kBlock, make_rounder(params, input));
    parallel_for(plan.num_tiles(), [&](std::int64_t index) {
      const int head = static_cast<int>(index / plan.header.num_q_tiles);
      const int tile = static_cast<int>(index % plan.header.num_q_tiles);
      const int kv_head = is_v2 ? head : head / problem.group_size();
      const LogitMatrix& means = mean_keys[static_cast<std::size_t>(kv_head)];
      const bool is_last = tile >= plan.header.num_q_tiles - forced.last_tiles;
      std::vector<std::uint8_t> selected(static_cast<std::size_t>(means.rows()), 0);
      if (!is_last) {
        select_by_energy(is_v2 ? v2_energies(input, plan, head, tile, means)
                               : v1_energies(input, plan, head, tile, means),
                         settings.alpha, selected.data());
      }
      const TileRows rows = tile_rows(problem, plan.header, tile);
      force_blocks(forced, static_cast<int>(rows.first_position / kBlock),
                   static_cast<int>(rows.last_position / kBlock), is_last, selected.data());
      add_key_blocks(problem, plan, builder, head, tile, selected.data(), kBlock);
    });
    builder.finish(plan.passes[0]);
    apply_fold(settings.fold, problem, plan);
    return plan;
  }

  std::unique_ptr<Planner> device_planner(const DevicePlanningRequest& request) const override {
    if (!rounds_officially(request)) return nullptr;
    return flash_prefill_planner(request.problem, settings_of(request.params, request.dtype),
                                 request.limits);
  }
};

}  // namespace

const Method& method_flash_prefill() {
  static const FlashPrefill kMethod;
  return kMethod;
}

}  // namespace s2o
