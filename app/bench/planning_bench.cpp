// Time that each method takes to plan on the CPU, beside dense attention of the same layer: 8 query
// heads, 2 KV heads, head_dim 128, 8,192 tokens. "CPU" is the processor time of all threads.
#include <benchmark/benchmark.h>

#include "lib/testing/inputs.h"

namespace s2o {
namespace {

const AttentionInput& input() {
  static const AttentionInput kInput = testing::structured_input({8192, 8, 2, 128});
  return kInput;
}

const DenseReference& reference() {
  static const DenseReference kReference = testing::dense_reference(input());
  return kReference;
}

void dense_attention(benchmark::State& state) {
  input();
  for (auto _ : state) benchmark::DoNotOptimize(testing::dense_reference(input()).out.data());
}

void plan(benchmark::State& state, const Method& method) {
  const PlanContext context{.input = input(), .reference = reference()};
  const ParamSet params(method.info().params);
  for (auto _ : state) {
    benchmark::DoNotOptimize(method.plan_cpu(context, params).passes.data());
  }
}

}  // namespace
}  // namespace s2o

int main(int argc, char** argv) {
  const auto add = [](const std::string& name, auto&&... arguments) {
    benchmark::RegisterBenchmark(name.c_str(), arguments...)
        ->MeasureProcessCPUTime()
        ->UseRealTime()
        ->Unit(benchmark::kMillisecond);
  };
  add("dense attention", s2o::dense_attention);
  for (const s2o::Method* method : s2o::all_methods()) {
    add("plan " + std::string(method->info().name),
        [method](benchmark::State& state) { s2o::plan(state, *method); });
  }
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 2;
  benchmark::RunSpecifiedBenchmarks();
  return 0;
}
