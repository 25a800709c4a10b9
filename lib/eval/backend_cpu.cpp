// The CPU backend: the Eigen reference kernel, in fp32.
#include <omp.h>

#include <algorithm>
#include <chrono>
#include <fstream>
#include <limits>

#include "kernels/attention/attention.h"
#include "lib/eval/backend_cpu.h"

namespace s2o {
namespace {

class CpuBackend final : public Backend {
 public:
  std::string name() const override { return "cpu"; }
  std::string kernel() const override { return "attention_ref"; }
  DeviceChoice device() const override { return {.kind = DeviceKind::kCpu}; }

  nlohmann::ordered_json context() override { return cpu_context(); }

  int outputs_on_host() const override { return 2; }

  void set_input(const AttentionInput& input) override {
    input_ = &input;
    heads_.reset();
    quantise_.reset();
  }
  void set_heads(const std::optional<HeadRange>& q_heads) override {
    heads_ = q_heads;
    if (q_heads) slice_ = head_slice(*input_, *q_heads);
  }

  void set_compute(const std::optional<QuantiseRule>& rule) override { quantise_ = rule; }

  void run_reference(const SparsePlan& plan, const TimingConfig& timing,
                     AttentionRun& result) override {
    run(plan, timing, result);
    reference_.out = out_;
    reference_.lse = result.lse;
  }
  const DenseReference& reference() const override { return reference_; }

  std::vector<ErrorSums> error_sums() override {
    const Problem& problem = input_->problem;
    return error_sums_ref(problem.num_q_heads, problem.seqlen * problem.head_dim, out_.data(),
                          reference_.out.data());
  }
  const std::vector<float>& out() override { return out_; }

  void run(const SparsePlan& plan, const TimingConfig& timing, AttentionRun& result) override {
    const AttentionInput& input = heads_ ? slice_ : *input_;
    const Problem& problem = input.problem;
    const auto rows = static_cast<std::size_t>(problem.num_q_heads * problem.seqlen);
    const auto size = rows * static_cast<std::size_t>(problem.head_dim);
    const auto first = static_cast<std::size_t>(heads_ ? problem.row_offset(heads_->first, 0) : 0);
    const float nan = std::numeric_limits<float>::quiet_NaN();
    const PlanPointers pointers(plan);
    out_.resize(input_->q.size());
    result.attention_ms.clear();
    result.workspace_bytes = plan.workspace_bytes();
    for (int repeat = 0; repeat < timing.cpu_repeats; ++repeat) {
      std::fill_n(out_.begin() + static_cast<std::ptrdiff_t>(first), size, nan);
      result.lse.assign(rows, nan);
      result.stats.assign(plan.passes.size() * static_cast<std::size_t>(plan.num_tiles()), {});
      const auto begin = std::chrono::steady_clock::now();
      attention_ref(problem, pointers.view(), input.q.data(), input.k.data(), input.v.data(),
                    quantise_, out_.data() + first, result.lse.data(), result.stats.data());
      const auto end = std::chrono::steady_clock::now();
      result.attention_ms.push_back(std::chrono::duration<double, std::milli>(end - begin).count());
    }
  }

 private:
  const AttentionInput* input_ = nullptr;
  std::optional<HeadRange> heads_;
  AttentionInput slice_;  // of these heads
  std::optional<QuantiseRule> quantise_;
  DenseReference reference_;
  std::vector<float> out_;  // [num_q_heads, seqlen, head_dim]
};

}  // namespace

std::string cpu_description() {
  std::string model = "unknown processor";
  std::ifstream info("/proc/cpuinfo");
  for (std::string line; std::getline(info, line);) {
    const std::size_t colon = line.find(": ");
    if (!line.starts_with("model name") || colon == std::string::npos) continue;
    model = line.substr(colon + 2);
    break;
  }
  return model + ", " + std::to_string(omp_get_max_threads()) + " threads";
}

nlohmann::ordered_json cpu_context() {
  return {{"device", "cpu: " + cpu_description()},
          {"driver", nullptr},
          {"cuda", nullptr},
          {"sm_clock_mhz", nullptr}};
}

std::unique_ptr<Backend> make_cpu_backend() { return std::make_unique<CpuBackend>(); }

}  // namespace s2o
