// Dense CPU attention against the machine's own Eigen SGEMM rate, both on all threads.
// Run it on an idle machine: attention_ref_bench
#include <benchmark/benchmark.h>
#include <omp.h>

#include <Eigen/Dense>
#include <cstdint>
#include <vector>

#include "kernels/attention/attention.h"
#include "kernels/common/parallel.h"
#include "lib/core/random.h"
#include "lib/plan/sparse_plan.h"

namespace s2o {
namespace {

std::vector<float> random_values(std::int64_t count, std::uint64_t stream) {
  const CounterRandom random(1, stream);
  std::vector<float> values(static_cast<std::size_t>(count));
  for (std::size_t i = 0; i < values.size(); ++i) values[i] = static_cast<float>(random.normal(i));
  return values;
}

// One n^3 product per thread, so that all cores are busy as they are in attention.
void sgemm(benchmark::State& state) {
  const auto n = state.range(0);
  const int threads = omp_get_max_threads();
  std::vector<Eigen::MatrixXf> a, b, c;
  for (int i = 0; i < threads; ++i) {
    a.push_back(Eigen::MatrixXf::Random(n, n));
    b.push_back(Eigen::MatrixXf::Random(n, n));
    c.push_back(Eigen::MatrixXf::Zero(n, n));
  }
  for (auto _ : state) {
    parallel_for(threads, [&](std::int64_t i) {
      const auto t = static_cast<std::size_t>(i);
      c[t].noalias() = a[t] * b[t];
      benchmark::DoNotOptimize(c[t].data());
    });
  }
  state.counters["GFLOP/s"] = benchmark::Counter(
      2e-9 * static_cast<double>(n) * static_cast<double>(n) * static_cast<double>(n) * threads,
      benchmark::Counter::kIsIterationInvariantRate);
}

void dense_attention(benchmark::State& state) {
  Problem problem{.seqlen = state.range(0),
                  .num_q_heads = static_cast<int>(state.range(1)),
                  .num_kv_heads = static_cast<int>(state.range(2)),
                  .head_dim = 128,
                  .softmax_scale = 0.08838835f};
  const SparsePlan plan = dense_plan(problem, 128, 128);
  const PlanPointers pointers(plan);
  const auto q = random_values(problem.seqlen * problem.num_q_heads * 128, 1);
  const auto k = random_values(problem.seqlen * problem.num_kv_heads * 128, 2);
  const auto v = random_values(problem.seqlen * problem.num_kv_heads * 128, 3);
  std::vector<float> out(q.size());
  std::vector<float> lse(static_cast<std::size_t>(problem.seqlen * problem.num_q_heads));
  for (auto _ : state) {
    attention_ref(problem, pointers.view(), q.data(), k.data(), v.data(), out.data(), lse.data(),
                  nullptr);
    benchmark::DoNotOptimize(out.data());
  }
  // Causal pairs only: 2 products of 2 * head_dim FLOPs each.
  const double flops =
      4.0 * 128 * static_cast<double>(problem.causal_pairs()) * problem.num_q_heads;
  state.counters["GFLOP/s"] =
      benchmark::Counter(1e-9 * flops, benchmark::Counter::kIsIterationInvariantRate);
}

BENCHMARK(sgemm)->Arg(2048)->UseRealTime()->Unit(benchmark::kMillisecond);
BENCHMARK(dense_attention)
    ->ArgNames({"seqlen", "q_heads", "kv_heads"})
    ->Args({8192, 8, 2})
    ->UseRealTime()
    ->Unit(benchmark::kMillisecond);

}  // namespace
}  // namespace s2o

BENCHMARK_MAIN();
