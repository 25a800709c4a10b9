#include "lib/methods/sparge_attn/sparge_attn.h"

#include "kernels/planning/sparge_attn/ops.h"
#include "lib/methods/common/pooled_planner.h"

namespace s2o {
namespace {

class SpargePlanner final : public PooledPlanner {
 public:
  SpargePlanner(const Problem& problem, const SpargeSettings& settings, const PlannerLimits& limits)
      : PooledPlanner(problem, settings.block_m, settings.block_n, problem.num_kv_heads,
                      settings.fold, limits),
        settings_(settings) {
    header_.pv_skip_threshold = settings.pv_skip_threshold;
    header_.pv_skip_exempt = settings.pv_skip_exempt;
    num_parts_ = ceil_div<std::int32_t>(problem.seqlen, kColumnSumRows);
    partial_sums_ = workspace_.add<float>(static_cast<std::int64_t>(problem.num_kv_heads) *
                                          num_parts_ * problem.head_dim);
    mean_key_ = workspace_.add<std::uint16_t>(static_cast<std::int64_t>(problem.num_kv_heads) *
                                              problem.head_dim);
    q_similar_ =
        workspace_.add<std::uint8_t>(static_cast<std::int64_t>(problem.num_q_heads) * q_blocks_);
    k_similar_ =
        workspace_.add<std::uint8_t>(static_cast<std::int64_t>(problem.num_kv_heads) * kv_blocks_);
  }

 private:
  void prepare(const DeviceInput& input, PlanningKernels& kernels) const override {
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
    queries.similarity_threshold = keys.similarity_threshold =
        static_cast<float>(settings_.simthreshd);
    kernels.run(queries, input.elements());
    kernels.run(keys, input.elements());
  }

  void select_rows(const RowArgs& rows, const DeviceInput& input,
                   PlanningKernels& kernels) const override {
    const SpargeBudget& budget = settings_.budget;
    // In fp32, as upstream: .29 of 100 blocks is 29, not 28.
    const auto top =
        static_cast<std::int32_t>(static_cast<float>(budget.topk) * static_cast<float>(kv_blocks_));
    kernels.run(SpargeRowArgs{.rows = rows,
                              .q_similar = q_similar_.data(),
                              .k_similar = k_similar_.data(),
                              .heads_per_k = problem_.group_size(),
                              .by_mass = budget.cdfthreshd.has_value(),
                              .keep_first = settings_.attention_sink,
                              .threshold = static_cast<float>(budget.cdfthreshd.value_or(0.0)),
                              .top_count = std::max(top, 1)},
                input.elements());
  }

  const SpargeSettings settings_;
  std::int32_t num_parts_ = 0;
  Workspace::Array<float> partial_sums_;
  Workspace::Array<std::uint16_t> mean_key_;
  Workspace::Array<std::uint8_t> q_similar_, k_similar_;
};

}  // namespace

std::unique_ptr<Planner> sparge_attn_planner(const Problem& problem, const SpargeSettings& settings,
                                             const PlannerLimits& limits) {
  return std::make_unique<SpargePlanner>(problem, settings, limits);
}

}  // namespace s2o
