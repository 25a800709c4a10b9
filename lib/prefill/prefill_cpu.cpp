// Prefill of a whole model on the CPU: lib/model/prefill.h with a method's plan in every layer.
#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <limits>
#include <numeric>
#include <optional>
#include <utility>

#include "kernels/attention/attention.h"
#include "kernels/common/parallel.h"
#include "kernels/error_sum/error_sum.h"
#include "lib/core/error.h"
#include "lib/core/memory.h"
#include "lib/core/text.h"
#include "lib/eval/backend_cpu.h"
#include "lib/methods/setting.h"
#include "lib/metrics/mean_mass.h"
#include "lib/model/logits.h"
#include "lib/model/model_shapes.h"
#include "lib/plan/work.h"
#include "lib/prefill/error_estimate.h"
#include "lib/prefill/prefill_backend.h"
#include "lib/prefill/prefill_memory.h"
#include "lib/prefill/replay.h"

namespace s2o {
namespace {

using Clock = std::chrono::steady_clock;

double milliseconds(Clock::duration duration) {
  return std::chrono::duration<double, std::milli>(duration).count();
}

// Attention of every layer of one repeat, with its times.
class PlannedAttention {
 public:
  // `wanted` is null where only times are.
  PlannedAttention(const PrefillModel& model, std::span<const LayerMethod> layers,
                   const PrefillWanted* wanted)
      : model_(model), layers_(layers), wanted_(wanted) {
    if (wanted_ != nullptr) results_.resize(layers.size());
  }

  void operator()(int layer, const AttentionInput& own, std::vector<float>& out) {
    const AttentionInput* input = &own;
    std::optional<AttentionInput> replayed;
    if (!model_.replay.empty()) {
      const auto begin = Clock::now();
      const auto index = static_cast<std::size_t>(layer) % model_.replay.size();
      replayed.emplace(tile_replay(model_.replay[index], model_.config, own.problem.seqlen));
      input = &*replayed;
      excluded += Clock::now() - begin;
    }
    run(layers_[static_cast<std::size_t>(layer)], layer, *input, out);
    if (wanted_ != nullptr && wanted_->check_rows > 0) {
      const auto begin = Clock::now();
      const Problem& problem = input->problem;
      row_errors.push_back(row_errors_ref(
          problem, input->q.data(), input->k.data(), input->v.data(), out.data(),
          checked_rows(problem.seqlen, wanted_->check_rows, wanted_->check_seed, layer)));
      checking += Clock::now() - begin;
      excluded += Clock::now() - begin;
    }
    const ProbeRequest* const probes = wanted_ == nullptr ? nullptr : wanted_->probes;
    if (probes != nullptr && std::ranges::binary_search(probes->layers, layer)) {
      const auto begin = Clock::now();
      probes->done(layer, probe(probes->settings, *input, out));
      excluded += Clock::now() - begin;
    }
  }

  std::vector<PrefillLayer>& results() { return results_; }

  std::vector<std::vector<RowError>> row_errors;  // of the layers so far
  Clock::duration checking{};
  Clock::duration planning{};
  Clock::duration attention{};
  // What no deployment would do: counting, an oracle's reference, a fixed plan for every layer.
  Clock::duration excluded{};

 private:
  // What one stretch of heads took and did.
  struct Attended {
    Clock::duration planning{};
    Clock::duration attention{};
    Clock::duration excluded{};
    std::string planner;
    WorkCounts work;
    std::vector<float> lse;
  };

  void run(const LayerMethod& choice, int layer, const AttentionInput& input,
           std::vector<float>& out) {
    std::string planner;
    WorkCounts work;
    for (const HeadSetting& heads : heads_of(choice, layer, input.problem)) {
      Attended done;
      if (heads.q_heads.count == input.problem.num_q_heads) {
        done = attend_heads(heads, input, out);
      } else {
        const auto begin = Clock::now();
        const AttentionInput slice = head_slice(input, heads.q_heads);
        std::vector<float> out_of_heads(slice.q.size());
        done = attend_heads(heads, slice, out_of_heads);
        std::ranges::copy(out_of_heads,
                          out.begin() + input.problem.row_offset(heads.q_heads.first, 0));
        // On a device no head is copied.
        done.excluded = Clock::now() - begin - done.planning - done.attention;
      }
      planning += done.planning;
      attention += done.attention;
      excluded += done.excluded;
      work += done.work;
      planner = planner.empty() || planner == done.planner ? done.planner : "mixed";
    }
    if (wanted_ == nullptr) return;
    results_[static_cast<std::size_t>(layer)] = {.planner = planner,
                                                 .compute_density = work.compute_density(),
                                                 .pair_density = work.pair_density()};
  }

  Attended attend_heads(const HeadSetting& heads, const AttentionInput& input,
                        std::vector<float>& out) const {
    const auto begin = Clock::now();
    const DenseReference reference = reference_of(*heads.method, input);
    const bool is_fixed = !heads.method->info().reads_input;
    const auto planned_from = Clock::now();
    const SparsePlan plan =
        heads.method->plan_cpu({input, reference, heads.head_params}, *heads.params);
    const auto planned = Clock::now();
    Attended done;
    std::vector<TileStats> stats;
    attend(plan, input, out, done.lse, stats, quantise_rule(*heads.params));
    const auto attended = Clock::now();
    done.planner = is_fixed ? "none" : "cpu";
    if (wanted_ != nullptr) done.work = count_work(input.problem, plan, stats).total;
    done.attention = attended - planned;
    done.excluded = planned_from - begin + (Clock::now() - attended);
    (is_fixed ? done.excluded : done.planning) += planned - planned_from;
    return done;
  }

  // [settings, num_q_heads] of what runs beside `dense_out`, the dense output.
  std::vector<std::vector<HeadProbe>> probe(std::span<const LayerMethod> settings,
                                            const AttentionInput& input,
                                            const std::vector<float>& dense_out) const {
    std::vector<std::vector<HeadProbe>> all(settings.size());
    const Problem& problem = input.problem;
    for (int head = 0; head < problem.num_q_heads; ++head) {
      throw_if_cancelled();
      const AttentionInput slice = head_slice(input, {.first = head, .count = 1});
      std::vector<float> out(slice.q.size());
      std::vector<float> dense_lse;
      std::vector<TileStats> stats;
      attend(dense_plan(slice.problem, 128, 128), slice, out, dense_lse, stats);
      for (std::size_t i = 0; i < all.size(); ++i) {
        const LayerMethod& setting = settings[i];
        const HeadSetting one = {.q_heads = {.first = 0, .count = 1},
                                 .method = setting.method,
                                 .params = {std::shared_ptr<void>(), setting.params}};
        const Attended done = attend_heads(one, slice, out);
        const ErrorSums sums = error_sums_ref(1, static_cast<std::int64_t>(out.size()), out.data(),
                                              dense_out.data() + problem.row_offset(head, 0))[0];
        all[i].push_back({.plan_ms = milliseconds(done.planning),
                          .attention_ms = milliseconds(done.attention),
                          .alone_ms = milliseconds(done.planning + done.attention),
                          .error = sums.error,
                          .reference = sums.reference,
                          .mass = mean_mass(done.lse.data(), dense_lse.data(), problem.seqlen),
                          .pair_density = done.work.pair_density()});
      }
    }
    return all;
  }

  static void attend(const SparsePlan& plan, const AttentionInput& input, std::vector<float>& out,
                     std::vector<float>& lse, std::vector<TileStats>& stats,
                     const std::optional<QuantiseRule>& quantise = {}) {
    const Problem& problem = input.problem;
    lse.resize(static_cast<std::size_t>(problem.num_q_heads * problem.seqlen));
    stats.resize(plan.passes.size() * static_cast<std::size_t>(plan.num_tiles()));
    attention_ref(problem, PlanPointers(plan).view(), input.q.data(), input.k.data(),
                  input.v.data(), quantise, out.data(), lse.data(), stats.data());
  }

  // An oracle plans from the dense result; other methods must not see it.
  static DenseReference reference_of(const Method& method, const AttentionInput& input) {
    DenseReference reference;
    if (!method.info().is_oracle) return reference;
    reference.out.resize(input.q.size());
    std::vector<TileStats> stats;
    attend(dense_plan(input.problem, 128, 128), input, reference.out, reference.lse, stats);
    return reference;
  }

  const PrefillModel& model_;
  std::span<const LayerMethod> layers_;
  const PrefillWanted* wanted_;  // may be null
  std::vector<PrefillLayer> results_;
};

class CpuPrefill final : public PrefillBackend {
 public:
  explicit CpuPrefill(PrefillModel model) : model_(std::move(model)), weights_(model_.weights) {}

  std::string name() const override { return "cpu"; }
  std::string kernel() const override { return "attention_ref"; }

  nlohmann::ordered_json context() override { return cpu_context(); }

  PrefillMemory memory(std::int64_t seqlen) const override {
    PrefillMemory memory;
    memory.free_bytes = static_cast<std::int64_t>(std::min<std::uint64_t>(
        available_memory_bytes(), std::numeric_limits<std::int64_t>::max()));
    // Weights of files are mapped and given back under pressure.
    const std::int64_t weights = model_.weights ? 0 : 2 * num_parameters(model_.config);
    const auto bytes_of = [&](std::int64_t tokens) {
      return weights + static_cast<std::int64_t>(prefill_bytes(model_.config, tokens));
    };
    memory.parts = {
        {model_.weights ? "weights (mapped from their files)" : "seeded weights", weights},
        {"residual stream, q, k, v and one layer's chunks", bytes_of(seqlen) - weights}};
    memory.total_bytes = bytes_of(seqlen);
    memory.longest_seqlen =
        longest_seqlen([&](std::int64_t tokens) { return bytes_of(tokens) <= memory.free_bytes; });
    return memory;
  }

  void prepare(std::int64_t max_seqlen) override {
    const PrefillMemory needed = memory(max_seqlen);
    if (needed.total_bytes > needed.free_bytes) {
      throw UnsupportedError(fmt::format(
          "prefill of {} tokens through {}: needs {} bytes of memory ({}), {} bytes ({}) are free; "
          "the longest prompt that fits has {} tokens",
          max_seqlen, model_.config.name, needed.total_bytes,
          bytes_text(static_cast<double>(needed.total_bytes)), needed.free_bytes,
          bytes_text(static_cast<double>(needed.free_bytes)), needed.longest_seqlen));
    }
    if (!weights_) weights_ = make_seeded_model(model_.config, model_.seed);
  }

  PrefillRun run(std::span<const std::int32_t> tokens, std::span<const LayerMethod> layers,
                 const PrefillWanted& wanted, const TimingConfig& timing,
                 const PrefillProgress& progress) override {
    if (!weights_) prepare(static_cast<std::int64_t>(tokens.size()));
    const std::vector<std::int32_t> ids(tokens.begin(), tokens.end());
    PrefillRun result;
    for (int repeat = 0; repeat < timing.cpu_repeats; ++repeat) {
      throw_if_cancelled();
      const bool is_last = repeat + 1 == timing.cpu_repeats;
      run_once(ids, layers, is_last ? &wanted : nullptr, result, [&](int done, int total) {
        if (progress) progress(repeat * total + done, timing.cpu_repeats * total);
      });
    }
    return result;
  }

  void logits_of(std::span<const float> hidden, std::span<float> logits) override {
    std::vector<std::int64_t> rows(hidden.size() /
                                   static_cast<std::size_t>(model_.config.hidden_size));
    std::iota(rows.begin(), rows.end(), std::int64_t{0});
    std::ranges::copy(compute_logits(*weights_, {hidden.begin(), hidden.end()}, rows),
                      logits.begin());
  }

 private:
  // `wanted` is null for a repeat that only gives times.
  void run_once(const std::vector<std::int32_t>& tokens, std::span<const LayerMethod> layers,
                const PrefillWanted* wanted, PrefillRun& result, const PrefillProgress& progress) {
    PlannedAttention attention(model_, layers, wanted);
    const auto begin = Clock::now();
    Prefill prefill(
        weights_, tokens,
        {.dtype = model_.dtype, .allow_nonfinite = model_.allow_nonfinite, .name = model_.name});
    const auto attend = [&](int layer, const AttentionInput& input, std::vector<float>& out) {
      if (wanted != nullptr && std::ranges::binary_search(wanted->layers, layer)) {
        result.layer_inputs.push_back(input);
      }
      attention(layer, input, out);
    };
    if (wanted != nullptr && !wanted->layers.empty() && wanted->logit_positions.empty() &&
        wanted->hidden_positions.empty() && !wanted->losses) {
      const int last = wanted->layers.back();
      prefill.run_to(last, attend, [&](int done, int) {
        if (progress) progress(done, last + 1);
      });
      result.layer_inputs.push_back(prefill.layer_input());
      if (progress) progress(last + 1, last + 1);
      return;
    }
    prefill.run_to(prefill.num_layers(), attend, progress);
    const auto projected_from = Clock::now();
    compute_logits(*weights_, prefill.hidden(), {prefill.seqlen() - 1});
    const auto end = Clock::now();
    PrefillSplit split = {
        .total_ms = milliseconds(end - begin - attention.excluded),
        .linear_ms = prefill.times().linear_ms + milliseconds(end - projected_from),
        .attention_ms = milliseconds(attention.attention),
        .planning_ms = milliseconds(attention.planning)};
    split.rest_ms = split.total_ms - split.linear_ms - split.attention_ms - split.planning_ms;
    result.repeats.push_back(split);
    if (wanted == nullptr) return;
    result.layers = std::move(attention.results());
    result.row_errors = std::move(attention.row_errors);
    result.check_ms = milliseconds(attention.checking);
    result.logits = compute_logits(*weights_, prefill.hidden(), wanted->logit_positions);
    result.hidden = rows_of(prefill.hidden(), wanted->hidden_positions);
    if (wanted->losses) result.losses = next_token_losses(*weights_, prefill.hidden(), tokens);
  }

  std::vector<float> rows_of(const std::vector<float>& hidden,
                             const std::vector<std::int64_t>& positions) const {
    std::vector<float> rows;
    const std::int64_t size = model_.config.hidden_size;
    for (const std::int64_t position : positions) {
      const auto row = hidden.begin() + position * size;
      rows.insert(rows.end(), row, row + size);
    }
    return rows;
  }

  const PrefillModel model_;
  std::shared_ptr<const Model> weights_;  // of files, or seeded by prepare()
};

}  // namespace

std::unique_ptr<PrefillBackend> make_cpu_prefill(PrefillModel model) {
  return std::make_unique<CpuPrefill>(std::move(model));
}

}  // namespace s2o
