// Times planning on a device and, for s2o, checks a sample of the orders against exact scores.
//   bench_planning [method=s2o] seqlen=131072,32768 segment=1024 [heads=32] [kv_heads=8]
//   [head_dim=128]
//     [shared=0] [diagonal=0] [window=0] [depth=0] [score_mib=1024] [repeats=20]
//     [rows=4]
// One line per setting: median ms with cold L2, bytes, GB/s, GFLOP, workspace, near-ties.
#include <cuda_runtime.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <map>
#include <numeric>
#include <sstream>
#include <string>
#include <vector>

#include "kernels/common/bf16.h"
#include "kernels/common/device_buffer.h"
#include "kernels/common/device_info.h"
#include "kernels/common/parallel.h"
#include "kernels/common/stream.h"
#include "kernels/planning/block_planners.h"
#include "kernels/planning/device_planner.h"
#include "kernels/planning/energy_planners.h"
#include "kernels/planning/s2o_layout.h"
#include "kernels/planning/s2o_planner.h"
#include "kernels/testing/order_compare.h"

namespace s2o {
namespace {

std::uint64_t mix(std::uint64_t x) {
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
  return x ^ (x >> 31);
}
// Sum of four uniform numbers from one hash, scaled to unit variance: close enough to normal.
float normal_of(std::uint64_t seed) {
  const std::uint64_t h = mix(seed * 0x9e3779b97f4a7c15ull + 1);
  const auto part = [h](int i) { return static_cast<float>((h >> (16 * i)) & 0xffff) / 65536.0f; };
  return (part(0) + part(1) + part(2) + part(3) - 2.0f) * 1.7320508f;
}

// Rows of unit variance times a log-normal norm of their own, plus a common direction and a slowly
// turning one: means over a segment neither vanish nor agree.
std::vector<std::uint16_t> structured_rows(int heads, std::int64_t seqlen, int d, int tensor) {
  std::vector<std::uint16_t> rows(static_cast<std::size_t>(heads * seqlen * d));
  parallel_for(heads * (seqlen / 64 + 1), [&](std::int64_t task) {
    const std::int64_t head = task % heads;
    for (std::int64_t t = task / heads * 64; t < std::min(seqlen, (task / heads + 1) * 64); ++t) {
      const std::uint64_t id = static_cast<std::uint64_t>((tensor * 64 + head) * seqlen + t);
      const float norm = std::exp(0.4f * normal_of(id ^ 0xabcdef12345ull));
      for (int i = 0; i < d; ++i) {
        const float common = 0.4f * normal_of(static_cast<std::uint64_t>(i) + 77);
        const float slow =
            0.4f * std::sin(0.0007f * static_cast<float>(t) * static_cast<float>(1 + i % 7) +
                            static_cast<float>(i));
        const float x = norm * normal_of(id * 131 + static_cast<std::uint64_t>(i)) + common + slow;
        rows[static_cast<std::size_t>((head * seqlen + t) * d + i)] = float_to_bf16(x);
      }
    }
  });
  return rows;
}

struct Options : std::map<std::string, std::vector<std::int64_t>> {
  std::string method = "s2o";
};

Options parse(int argc, char** argv) {
  Options options;
  options.insert({{"seqlen", {131072}},
                  {"segment", {1024}},
                  {"heads", {32}},
                  {"kv_heads", {8}},
                  {"head_dim", {128}},
                  {"shared", {0}},
                  {"diagonal", {0}},
                  {"window", {0}},
                  {"depth", {0}},
                  {"score_mib", {1024}},
                  {"repeats", {20}},
                  {"rows", {4}}});
  for (int i = 1; i < argc; ++i) {
    const std::string text = argv[i];
    const std::size_t equals = text.find('=');
    if (text.substr(0, equals) == "method" && equals != std::string::npos) {
      options.method = text.substr(equals + 1);
      continue;
    }
    const auto option = options.find(text.substr(0, equals));
    if (equals == std::string::npos || option == options.end()) {
      throw Error("bench_planning: unknown option '" + text + "'");
    }
    option->second.clear();
    std::stringstream values(text.substr(equals + 1));
    for (std::string value; std::getline(values, value, ',');) {
      option->second.push_back(std::stoll(value));
    }
  }
  return options;
}

struct HostInput {
  std::vector<std::uint16_t> q, k;
};

// Exact scores of one row in fp64, then near-ties of its order.
testing::OrderComparison check_row(const Problem& problem, const S2oDeviceSettings& settings,
                                   const HostInput& host, const HistoryShape& shape, int list,
                                   std::int64_t segment, const std::vector<std::int32_t>& order) {
  const int d = problem.head_dim;
  const int heads = problem.num_q_heads / shape.num_lists();
  const std::int64_t begin = segment * settings.segment_size;
  const std::int64_t end = std::min(begin + settings.segment_size, problem.seqlen);
  const double count = static_cast<double>(heads) * static_cast<double>(end - begin);
  std::vector<double> mean(static_cast<std::size_t>(d), 0.0);
  std::vector<double> square(static_cast<std::size_t>(d), 0.0);
  for (int h = list * heads; h < (list + 1) * heads; ++h) {
    for (std::int64_t t = begin; t < end; ++t) {
      for (std::size_t i = 0; i < mean.size(); ++i) {
        const double x = static_cast<double>(bf16_to_float(
                             host.q[static_cast<std::size_t>(problem.row_offset(h, t)) + i])) *
                         static_cast<double>(problem.softmax_scale);
        mean[i] += x / count;
        square[i] += x * x / count;
      }
    }
  }
  const std::int64_t length = shape.history_length(segment);
  const int kv_head = list / shape.lists_per_kv_head;
  std::vector<float> scores(static_cast<std::size_t>(length));
  float largest = 0.0f;
  for (std::int64_t t = 0; t < length; ++t) {
    double score = 0.0;
    for (std::size_t i = 0; i < mean.size(); ++i) {
      const double x = static_cast<double>(
          bf16_to_float(host.k[static_cast<std::size_t>(problem.row_offset(kv_head, t)) + i]));
      score += mean[i] * x;
      if (settings.diagonal_ranking) score += 0.5 * (square[i] - mean[i] * mean[i]) * x * x;
    }
    scores[static_cast<std::size_t>(t)] = static_cast<float>(score);
    largest = std::max(largest, std::abs(static_cast<float>(score)));
  }
  std::vector<std::int32_t> exact(scores.size());
  std::iota(exact.begin(), exact.end(), 0);
  std::stable_sort(exact.begin(), exact.end(), [&](std::int32_t a, std::int32_t b) {
    return scores[static_cast<std::size_t>(a)] > scores[static_cast<std::size_t>(b)];
  });
  return testing::compare_orders(scores, order, exact, {.score_error = 0.002 + 0.005 * largest});
}

std::unique_ptr<Planner> make_planner(const std::string& method, const Problem& problem,
                                      const S2oDeviceSettings& settings) {
  constexpr std::int64_t kL2Bytes = std::int64_t{50} << 20;
  if (method == "s2o") return make_s2o_planner(problem, settings, kL2Bytes);
  if (method == "mean_pooling") return make_mean_pooling_planner(problem, {}, kL2Bytes);
  if (method == "sparge_attn") return make_sparge_planner(problem, {}, kL2Bytes);
  if (method == "pbs_attn") return make_pbs_planner(problem, {}, kL2Bytes);
  if (method == "flash_prefill") return make_flash_prefill_planner(problem, {}, kL2Bytes);
  if (method == "rbs") return make_rbs_planner(problem, {}, kL2Bytes);
  throw Error("bench_planning: no planner for '" + method + "'");
}

void run(const Options& options, std::int64_t seqlen, std::int64_t segment_size) {
  const auto option = [&options](const char* name) { return options.at(name).front(); };
  Problem problem;
  problem.seqlen = seqlen;
  problem.num_q_heads = static_cast<int>(option("heads"));
  problem.num_kv_heads = static_cast<int>(option("kv_heads"));
  problem.head_dim = static_cast<int>(option("head_dim"));
  problem.softmax_scale = 1.0f / std::sqrt(static_cast<float>(problem.head_dim));
  static HostInput host;
  static DeviceBuffer<std::uint16_t> q, k;
  static std::int64_t uploaded = 0;
  if (uploaded != seqlen) {
    host.q = structured_rows(problem.num_q_heads, seqlen, problem.head_dim, 0);
    host.k = structured_rows(problem.num_kv_heads, seqlen, problem.head_dim, 1);
    q.upload(host.q, "q");
    k.upload(host.k, "k");
    uploaded = seqlen;
  }
  const S2oDeviceSettings settings{.segment_size = segment_size,
                                   .share_key_order_in_group = option("shared") != 0,
                                   .diagonal_ranking = option("diagonal") != 0,
                                   .local_window = option("window"),
                                   .max_depth = option("depth"),
                                   .score_bytes = option("score_mib") << 20};
  DevicePlanner planner(make_planner(options.method, problem, settings));
  const PlanningCost cost = planner.cost();
  planner.prepare();
  const DeviceInput input{
      .problem = problem, .dtype = KernelDType::kBf16, .q = q.data(), .k = k.data()};
  Stream stream;
  DeviceBuffer<std::uint8_t> flush;
  flush.resize(std::size_t{256} << 20, "flush");
  std::vector<float> ms;
  const auto repeats = static_cast<int>(option("repeats"));
  for (int i = 0; i < repeats + 2; ++i) {
    cuda_check(cudaMemsetAsync(flush.data(), i, flush.size(), stream.get()), "flush L2");
    Event begin, end;
    begin.record(stream);
    planner.plan(input, stream.get());
    end.record(stream);
    stream.synchronize();
    if (i >= 2) ms.push_back(end.milliseconds_since(begin));
  }
  planner.check();
  std::sort(ms.begin(), ms.end());
  const double median = ms[ms.size() / 2];

  // Orders of a few rows, twice: the same bytes, and the exact order up to near-ties.
  const HistoryShape shape = s2o_history_shape(problem, settings);
  const S2oLayout layout(shape, settings.score_bytes);
  testing::OrderComparison total;
  const DevicePlan plan = planner.device_plan();
  bool same = true;
  const std::int64_t num_rows = options.method == "s2o" ? option("rows") : 0;
  for (std::int64_t i = 0; i < num_rows; ++i) {
    const std::int64_t segment = shape.num_segments - 1 - i * shape.num_segments / 5;
    const int list = static_cast<int>(i * 7 % shape.num_lists());
    if (segment < 0) break;
    std::vector<std::int32_t> order(static_cast<std::size_t>(shape.order_length(segment)));
    std::vector<std::int32_t> again(order.size());
    const std::int32_t* const source = plan.passes[0].gather_indices +
                                       list * layout.order_per_list() +
                                       layout.order_offsets[static_cast<std::size_t>(segment)];
    const auto fetch = [&](std::vector<std::int32_t>& target) {
      cuda_check(cudaMemcpy(target.data(), source, target.size() * sizeof(std::int32_t),
                            cudaMemcpyDeviceToHost),
                 "download a row");
    };
    fetch(order);
    planner.plan(input, stream.get());
    stream.synchronize();
    fetch(again);
    same = same && order == again;
    const auto row = check_row(problem, settings, host, shape, list, segment, order);
    total.slots += row.slots;
    total.moved += row.moved;
    total.beyond += row.beyond;
    total.is_permutation = total.is_permutation && row.is_permutation;
  }
  std::printf("%s seqlen %7lld", options.method.c_str(), static_cast<long long>(seqlen));
  if (options.method == "s2o") {
    std::printf(" S %5lld%s%s depth %lld batches %zu", static_cast<long long>(segment_size),
                settings.share_key_order_in_group ? " shared" : "",
                settings.diagonal_ranking ? " diagonal" : "",
                static_cast<long long>(settings.max_depth), layout.batches.size());
  }
  std::printf(": %8.3f ms (min %.3f)  %6.2f GB %6.0f GB/s  %8.1f GFLOP  workspace %.2f GB", median,
              static_cast<double>(ms.front()), cost.bytes * 1e-9, cost.bytes * 1e-6 / median,
              cost.flops * 1e-9, static_cast<double>(planner.workspace_bytes()) * 1e-9);
  if (total.slots > 0) {
    std::printf("  %s %s, of %lld slots %lld near-ties, %lld beyond",
                same ? "deterministic" : "DIFFERS",
                total.is_permutation ? "permutation" : "NO PERMUTATION",
                static_cast<long long>(total.slots), static_cast<long long>(total.moved),
                static_cast<long long>(total.beyond));
  }
  std::printf("\n");
  std::fflush(stdout);
}

}  // namespace
}  // namespace s2o

int main(int argc, char** argv) {
  try {
    const s2o::CudaStatus status = s2o::query_cuda();
    if (!status.problem.empty()) {
      std::fprintf(stderr, "bench_planning: %s\n", status.problem.c_str());
      return 4;
    }
    const s2o::Options options = s2o::parse(argc, argv);
    for (const std::int64_t seqlen : options.at("seqlen")) {
      for (const std::int64_t segment : options.at("segment")) s2o::run(options, seqlen, segment);
    }
  } catch (const std::exception& error) {
    std::fprintf(stderr, "bench_planning: %s\n", error.what());
    return 1;
  }
}
