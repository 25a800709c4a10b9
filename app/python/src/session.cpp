// Calls on the CPU: the Eigen reference.
#include "app/python/src/session.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <span>

#include "kernels/attention/attention.h"
#include "lib/core/error.h"
#include "lib/core/memory.h"
#include "lib/input/storage_bits.h"
#include "lib/methods/tuned/tuned_file.h"

namespace s2o::python {
namespace {

void read_values(const void* source, std::size_t count, StorageDType dtype,
                 std::vector<float>& values) {
  values.resize(count);
  if (dtype == StorageDType::kF32) {
    std::copy_n(static_cast<const float*>(source), count, values.data());
  } else {
    from_16_bit({static_cast<const std::uint16_t*>(source), count}, dtype, values.data());
  }
}

void check_finite(const char* name, const std::vector<float>& values, const Call& call,
                  int first_head) {
  const auto bad =
      std::find_if(values.begin(), values.end(), [](float x) { return !std::isfinite(x); });
  if (bad == values.end()) return;
  const auto index = static_cast<std::int64_t>(bad - values.begin());
  const Problem& problem = call.problem;
  const std::int64_t row = index / problem.head_dim;
  throw InputError(fmt::format(
      "{}: found {} at {}head {}, token {}, dim {}, expected finite numbers", name, *bad,
      call.first_sequence < 0 ? "" : fmt::format("sequence {}, ", call.first_sequence),
      first_head + row / problem.seqlen, row % problem.seqlen, index % problem.head_dim));
}

AttentionInput input_of(const Call& call) {
  const Problem& p = call.problem;
  const auto q_size = static_cast<std::size_t>(p.row_offset(p.num_q_heads, 0));
  const auto kv_size = static_cast<std::size_t>(p.row_offset(p.num_kv_heads, 0));
  // Q, K, V and the output in fp32.
  require_memory((2 * q_size + 2 * kv_size) * sizeof(float), "attention on the CPU");
  AttentionInput input;
  input.name = "q, k, v";
  input.dtype = call.dtype;
  input.problem = p;
  read_values(call.q, q_size, call.dtype, input.q);
  read_values(call.k, kv_size, call.dtype, input.k);
  read_values(call.v, kv_size, call.dtype, input.v);
  check_finite("q", input.q, call, call.first_q_head);
  check_finite("k", input.k, call, call.first_kv_head);
  check_finite("v", input.v, call, call.first_kv_head);
  return input;
}

SparsePlan plan_of(const Setting& setting, const AttentionInput& input) {
  DenseReference reference;
  if (setting.method->info().is_oracle) {
    const SparsePlan dense = dense_plan(input.problem, 128, 128);
    reference.out.resize(input.q.size());
    reference.lse.resize(input.q.size() / static_cast<std::size_t>(input.problem.head_dim));
    attention_ref(input.problem, PlanPointers(dense).view(), input.q.data(), input.k.data(),
                  input.v.data(), reference.out.data(), reference.lse.data(), nullptr);
  }
  return setting.method->plan_cpu({input, reference, setting.head_params}, setting.params);
}

RunWork attend_one(const SparsePlan& plan, const char* planner, const AttentionInput& input,
                   const Call& call, bool wants_work) {
  const Problem& p = input.problem;
  std::vector<float> out(call.out_fp32 ? 0 : input.q.size());
  std::vector<float> lse(call.lse == nullptr ? input.q.size() / static_cast<std::size_t>(p.head_dim)
                                             : 0);
  std::vector<TileStats> stats(plan.passes.size() * static_cast<std::size_t>(plan.num_tiles()));
  attention_ref(p, PlanPointers(plan).view(), input.q.data(), input.k.data(), input.v.data(),
                call.out_fp32 ? static_cast<float*>(call.out) : out.data(),
                call.lse == nullptr ? lse.data() : call.lse, stats.data());
  if (!call.out_fp32) to_16_bit(out, call.dtype, static_cast<std::uint16_t*>(call.out));
  if (!wants_work) return {};
  return make_work(planner, count_work(p, plan, stats).total, stats, plan.header.num_plan_heads,
                   plan.header.num_q_tiles);
}

const char* planner_on_cpu(const Setting& setting) {
  return setting.method->info().reads_input ? "cpu" : "none";
}

// `plan(index, input)` gives the plan of a sequence.
template <class PlanOfSequence>
std::optional<std::vector<RunWork>> attend_all(const Call& call, const char* planner,
                                               bool wants_work, const PlanOfSequence& plan) {
  std::vector<RunWork> works;
  for (std::int64_t i = 0; i < call.batch; ++i) {
    const Call one = call.sequence(i);
    const AttentionInput input = input_of(one);
    works.push_back(attend_one(plan(i, input), planner, input, one, wants_work));
  }
  if (!wants_work) return std::nullopt;
  return works;
}

class CpuPlan final : public Plan {
 public:
  CpuPlan(const Setting& of, const Call& call) {
    for (std::int64_t i = 0; i < call.batch; ++i) {
      plans_.push_back(plan_of(of, input_of(call.sequence(i))));
    }
    planner = planner_on_cpu(of);
  }
  std::optional<std::vector<RunWork>> run(const Call& call, std::uintptr_t /*stream*/,
                                          bool /*check*/, bool wants_work) override {
    return attend_all(call, planner, wants_work,
                      [this](std::int64_t i, const AttentionInput&) -> const SparsePlan& {
                        return plans_[static_cast<std::size_t>(i)];
                      });
  }
  std::int64_t bytes() const override {
    std::int64_t bytes = 0;
    for (const SparsePlan& plan : plans_) bytes += plan.workspace_bytes();
    return bytes;
  }

 private:
  std::vector<SparsePlan> plans_;
};

// Which heads do what, if the setting gives them to other methods.
std::vector<HeadSetting> groups_of(const Setting& setting, const Problem& problem) {
  if (setting.method != &find_method("tuned")) return {};
  renew_tuned_file(setting.params.get_path("path"));
  return setting.method->head_settings(setting.params, /*layer=*/-1, problem);
}

Setting setting_of(const HeadSetting& group, const std::string& file) try {
  Setting setting = make_setting(group.method->info().name, group.params->to_json());
  setting.head_params = group.head_params;
  return setting;
} catch (const ConfigError& error) {
  throw ConfigError(fmt::format("{}: {}", file, error.what()));
}

// Groups of heads one after the other.
std::optional<std::vector<RunWork>> attend_groups(const Setting& tuned,
                                                  const std::vector<HeadSetting>& groups,
                                                  const Call& call, std::uintptr_t stream,
                                                  bool check, bool wants_work) {
  std::vector<RunWork> works;
  for (std::int64_t i = 0; i < call.batch; ++i) {
    RunWork all{.compute_density = 0.0, .pair_density = 0.0};
    for (const HeadSetting& group : groups) {
      Setting setting = setting_of(group, tuned.params.get_path("path"));
      const auto found =
          attend(setting, call.sequence(i).heads(group.q_heads), stream, check, wants_work);
      if (!found) continue;
      const RunWork& one = found->front();
      const double share = static_cast<double>(group.q_heads.count) / call.problem.num_q_heads;
      all.compute_density += share * one.compute_density;
      all.pair_density += share * one.pair_density;
      all.planner = all.planner.empty() || all.planner == one.planner ? one.planner : "mixed";
    }
    works.push_back(std::move(all));  // without steps: tiles of methods differ
  }
  if (!wants_work) return std::nullopt;
  return works;
}

}  // namespace

std::optional<std::vector<RunWork>> attend(const Setting& setting, const Call& call,
                                           std::uintptr_t stream, bool check, bool wants_work) {
  const std::vector<HeadSetting> groups = groups_of(setting, call.problem);
  if (!groups.empty()) return attend_groups(setting, groups, call, stream, check, wants_work);
  if (call.device != kCpu) return attend_cuda(setting, call, stream, check, wants_work);
  return attend_all(
      call, planner_on_cpu(setting), wants_work,
      [&](std::int64_t, const AttentionInput& input) { return plan_of(setting, input); });
}

std::unique_ptr<Plan> make_plan(const Setting& setting, const Call& call, std::uintptr_t stream,
                                bool check) {
  if (setting.method == &find_method("tuned")) {
    throw UnsupportedError("tuned: its plans are not kept; attention() plans and attends");
  }
  std::unique_ptr<Plan> plan = call.device != kCpu ? make_plan_cuda(setting, call, stream, check)
                                                   : std::make_unique<CpuPlan>(setting, call);
  plan->setting = setting;
  plan->shape = call;
  plan->shape.q = plan->shape.k = plan->shape.v = nullptr;
  return plan;
}

}  // namespace s2o::python
