// StreamingLLM / A-shape prefill: attention sinks and a sliding window (arXiv 2309.17453).
//
// Key x is visible to query t iff x <= t and (x < sink or t - x < window). Faithful at token
// level: masked per element inside aligned 128-key tiles. No positions are re-indexed in prefill.
// Defaults: sink 128, window 3968 tokens, as MInference runs it.
#include <algorithm>

#include "lib/methods/method.h"

namespace s2o {
namespace {

constexpr int kBlock = 128;

class StreamingLlm final : public Method {
 public:
  const MethodInfo& info() const override {
    static const MethodInfo kInfo = {
        .name = "streaming_llm",
        .title = "StreamingLLM",
        .source = "arXiv 2309.17453; A-shape of MInference, arXiv 2407.02490",
        .summary = "the first tokens and a sliding window",
        .params = {ParamSpec::integer("sink", 128, "leading tokens every query sees", 0, 1 << 30),
                   ParamSpec::integer("window", 3968, "tokens up to and including the query", 1,
                                      1 << 30)},
        .knob = "window",
        .knob_sweep = {49152, 24576, 12288, 6144, 3968, 2048, 1024, 512},
        .full_budget = {.exists = true, .params = {{"window", 1 << 30}}},
        .reads_input = false,
    };
    return kInfo;
  }

  SparsePlan plan_cpu(const PlanContext& context, const ParamSet& params) const override {
    const Problem& problem = context.input.problem;
    SparsePlan plan(problem, kBlock, kBlock);
    plan.header.window_sink = static_cast<std::int32_t>(params.get_int("sink"));
    plan.header.window_size = static_cast<std::int32_t>(params.get_int("window"));
    PlanBuilder builder(plan);
    for (int head = 0; head < plan.header.num_plan_heads; ++head) {
      for (int tile = 0; tile < plan.header.num_q_tiles; ++tile) {
        add_tile(problem, plan, head, tile, builder);
      }
    }
    builder.finish(plan.passes[0]);
    return plan;
  }

 private:
  static void add_tile(const Problem& problem, const SparsePlan& plan, int head, int tile,
                       PlanBuilder& builder) {
    const TileRows rows = tile_rows(problem, plan.header, tile);
    const std::int64_t sink = plan.header.window_sink;
    const std::int64_t window = plan.header.window_size;
    const std::int64_t sink_blocks = (sink + kBlock - 1) / kBlock;
    const std::int64_t window_block =
        std::max<std::int64_t>(rows.first_position - window + 1, 0) / kBlock;
    PlanItem run;  // grows while adjacent key tiles share a mask class
    for (std::int64_t block = 0; block <= rows.last_position / kBlock; ++block) {
      if (block >= sink_blocks && block < window_block) continue;
      const std::int64_t begin = block * kBlock;
      const std::int64_t end = std::min(begin + kBlock, problem.seqlen);
      const bool whole =
          end <= rows.first_position + 1 && (end <= sink || rows.last_position - begin < window);
      const MaskClass mask = whole ? MaskClass::kNone : MaskClass::kWindow;
      if (run.count > 0 && run.begin + run.count == begin && run.mask == mask) {
        run.count += static_cast<std::int32_t>(end - begin);
        continue;
      }
      if (run.count > 0) builder.add(head, tile, run);
      run = {.begin = begin, .count = static_cast<std::int32_t>(end - begin), .mask = mask};
    }
    builder.add(head, tile, run);
  }
};

}  // namespace

const Method& method_streaming_llm() {
  static const StreamingLlm kMethod;
  return kMethod;
}

}  // namespace s2o
