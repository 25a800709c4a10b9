// Times planning on a device and checks it against the CPU method, for the first KV head's group.
//   bench_planning [method=s2o,s2o_plus,...] seqlen=131072,32768 segment=1024 [heads=32]
//     [kv_heads=8] [head_dim=128] [shared=0] [window=0] [depth=0] [score_mib=1024]
//     [repeats=20] [rows=4] [check=0] [steps=0] [kernel=sm80,sm90] [PARAMETER=JSON...]
// s2o takes the options up to score_mib; other methods their own parameters. `rows` segments of s2o
// are compared with exact scores; check=1 compares the plans of other methods with their CPU plans;
// steps=1 tells the time of each kernel; without `kernel` the best of the device run. One line per
// setting: median ms with cold L2, bytes, GB/s, GFLOP, workspace, near-ties.
#include <cuda_runtime.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <map>
#include <memory>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

#include "app/bench/timed_kernels.h"
#include "kernels/common/bf16.h"
#include "kernels/common/cuda_check.h"
#include "kernels/common/device_buffer.h"
#include "kernels/common/device_info.h"
#include "kernels/common/parallel.h"
#include "kernels/common/stream.h"
#include "lib/methods/method.h"
#include "lib/plan/fetch_plan.h"
#include "lib/planning/device_planner.h"
#include "lib/testing/plan_compare.h"
#include "lib/testing/s2o_orders.h"

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
  std::vector<std::string> methods = {"s2o"};
  std::vector<std::string> kernels = {""};
  nlohmann::ordered_json params = nlohmann::ordered_json::object();
};

struct Variant {
  std::string name;
  PlanningVariant kernels;
};

Options parse(int argc, char** argv) {
  Options options;
  options.insert({{"seqlen", {131072}},
                  {"segment", {1024}},
                  {"heads", {32}},
                  {"kv_heads", {8}},
                  {"head_dim", {128}},
                  {"shared", {0}},
                  {"window", {0}},
                  {"depth", {0}},
                  {"score_mib", {1024}},
                  {"repeats", {20}},
                  {"rows", {4}},
                  {"check", {0}},
                  {"steps", {0}}});
  for (int i = 1; i < argc; ++i) {
    const std::string text = argv[i];
    const std::size_t equals = text.find('=');
    const std::string key = text.substr(0, equals);
    if ((key == "method" || key == "kernel") && equals != std::string::npos) {
      std::vector<std::string>& chosen = key == "method" ? options.methods : options.kernels;
      chosen.clear();
      std::stringstream names(text.substr(equals + 1));
      for (std::string name; std::getline(names, name, ',');) chosen.push_back(name);
      continue;
    }
    const auto option = options.find(key);
    if (equals == std::string::npos) {
      throw Error("bench_planning: unknown option '" + text + "'");
    }
    if (option == options.end()) {
      options.params[key] = nlohmann::ordered_json::parse(text.substr(equals + 1));
      continue;
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
  std::vector<std::uint16_t> q, k, v;
};

// The first KV head and its query heads, for the CPU.
AttentionInput first_group(const Problem& problem, const HostInput& host) {
  AttentionInput input;
  input.name = "bench";
  input.dtype = StorageDType::kBF16;
  input.problem = problem;
  input.problem.num_q_heads = problem.group_size();
  input.problem.num_kv_heads = 1;
  const auto convert = [&](const std::vector<std::uint16_t>& rows, int heads) {
    std::vector<float> values(static_cast<std::size_t>(heads * problem.seqlen * problem.head_dim));
    std::transform(rows.begin(), rows.begin() + static_cast<std::ptrdiff_t>(values.size()),
                   values.begin(), bf16_to_float);
    return values;
  };
  input.q = convert(host.q, problem.group_size());
  input.k = convert(host.k, 1);
  input.v = convert(host.v, 1);
  return input;
}

testing::S2oCase s2o_settings_of(const Options& options, std::int64_t segment_size) {
  const auto option = [&options](const char* name) { return options.at(name).front(); };
  return {.segment_size = segment_size,
          .share_key_order_in_group = option("shared") != 0,
          .local_window = option("window"),
          .max_depth = option("depth"),
          .score_bytes = option("score_mib") << 20};
}

ParamSet params_of(const std::string& method, const Options& options) {
  const std::vector<ParamSpec>& specs = find_method(method).info().params;
  return expand_params(specs, options.params, "", method).front();
}

std::unique_ptr<Planner> make_planner(const std::string& method, const Problem& problem,
                                      const testing::S2oCase& settings, const Options& options) {
  constexpr std::int64_t kL2Bytes = std::int64_t{50} << 20;
  if (method == "s2o") {
    return settings.planner(problem, kL2Bytes);
  }
  const ParamSet params = params_of(method, options);
  auto planner = find_method(method).device_planner(
      {.problem = problem, .params = params, .limits = {.l2_bytes = kL2Bytes}});
  if (planner == nullptr) throw Error("bench_planning: no planner for '" + method + "'");
  return planner;
}

// Times of `repeats` runs, ascending.
std::vector<float> time_planner(DevicePlanner& planner, const DeviceInput& input,
                                PlanningVariant variant, int repeats) {
  Stream stream;
  DeviceBuffer<std::uint8_t> flush;
  flush.resize(std::size_t{256} << 20, "flush");
  std::vector<float> ms;
  for (int i = 0; i < repeats + 2; ++i) {
    cuda_check(cudaMemsetAsync(flush.data(), i, flush.size(), stream.get()), "flush L2");
    Event begin, end;
    begin.record(stream);
    planner.plan(input, stream.get(), variant);
    end.record(stream);
    stream.synchronize();
    if (i >= 2) ms.push_back(end.milliseconds_since(begin));
  }
  planner.check();
  std::sort(ms.begin(), ms.end());
  return ms;
}

}  // namespace

std::map<std::string, double> TimedKernels::milliseconds() const {
  std::map<std::string, double> total;
  for (const Call& call : calls_) {
    total[call.name] += static_cast<double>(call.end.milliseconds_since(call.begin));
  }
  return total;
}

namespace {

void print_steps(DevicePlanner& planner, const DeviceInput& input, PlanningVariant variant) {
  Stream stream;
  TimedKernels kernels(stream, variant);
  planner.plan(input, kernels);
  stream.synchronize();
  for (const auto& [name, ms] : kernels.milliseconds()) std::printf("  %s %.3f", name.c_str(), ms);
}

// Orders of the first group and the last batch, which is in memory, twice: the same bytes, and
// exact up to near-ties.
void check_orders(const Options& options, const testing::S2oCase& settings,
                  const DeviceInput& input, const HostInput& host, DevicePlanner& planner,
                  PlanningVariant variant) {
  const AttentionInput group = first_group(input.problem, host);
  const HistoryShape shape = s2o_history_shape(group.problem, settings.settings());
  const S2oLayout layout(shape, settings.limits());
  const auto fetch = [&] {
    std::vector<std::int32_t> order(
        static_cast<std::size_t>(layout.order_per_list * shape.num_lists()));
    cuda_check(cudaMemcpy(order.data(), planner.device_plan().passes.back().gather_indices,
                          order.size() * sizeof(std::int32_t), cudaMemcpyDeviceToHost),
               "download orders");
    return order;
  };
  std::vector<std::int32_t> order = fetch();
  Stream stream;
  planner.plan(input, stream.get(), variant);
  stream.synchronize();
  const bool same = order == fetch();
  std::vector<std::int64_t> segments;
  const OrderBatch& last = layout.batches.back();
  for (std::int64_t i = 0; i < options.at("rows").front(); ++i) {
    segments.push_back(std::max<std::int64_t>(
        last.end_segment - 1 - i * (last.end_segment - last.first_segment) / 5,
        last.first_segment));
  }
  const CopyToHost copy = [](void* target, const void* source, std::size_t bytes) {
    cuda_check(cudaMemcpy(target, source, bytes, cudaMemcpyDeviceToHost), "fetch the plan");
  };
  SparsePlan plan = fetch_plan(input.problem, planner.device_plan(), copy,
                               FetchedArrays::kWithoutTokens, [](int) {});
  plan.passes.back().gather_indices = std::move(order);
  const testing::OrderComparison total = testing::compare_orders_with_cpu(
      group, settings, testing::S2oOrders(group.problem, settings, plan), segments);
  std::printf(
      "  %s %s, of %lld slots %lld near-ties, %lld beyond", same ? "deterministic" : "DIFFERS",
      total.is_permutation ? "permutation" : "NO PERMUTATION", static_cast<long long>(total.slots),
      static_cast<long long>(total.moved), static_cast<long long>(total.beyond));
}

// The plan of the first group against the CPU method's.
void check_plan_of(const std::string& method, const Options& options, const DeviceInput& input,
                   const HostInput& host, DevicePlanner& planner, PlanningVariant variant) {
  const AttentionInput group = first_group(input.problem, host);
  const CopyToHost copy = [](void* target, const void* source, std::size_t bytes) {
    cuda_check(cudaMemcpy(target, source, bytes, cudaMemcpyDeviceToHost), "fetch the plan");
  };
  Stream stream;
  const PlanBatch replan = [&](int batch) {
    planner.plan_batch(batch, input, stream.get(), variant);
    stream.synchronize();
  };
  const SparsePlan plan =
      fetch_plan(input.problem, planner.device_plan(), copy, FetchedArrays::kAll, replan);
  const DenseReference none;
  const SparsePlan expected =
      find_method(method).plan_cpu({.input = group, .reference = none}, params_of(method, options));
  const testing::PlanDifference d = testing::compare_plans(group.problem, plan, expected);
  std::printf("  of %lld tiles %lld with near-ties: %lld keys more, %lld fewer of %lld",
              static_cast<long long>(d.tiles), static_cast<long long>(d.differing_tiles),
              static_cast<long long>(d.extra_keys), static_cast<long long>(d.missing_keys),
              static_cast<long long>(d.keys));
}

void run(const Options& options, const std::string& method, std::int64_t seqlen,
         std::int64_t segment_size, const Variant& variant) {
  const auto option = [&options](const char* name) { return options.at(name).front(); };
  Problem problem;
  problem.seqlen = seqlen;
  problem.num_q_heads = static_cast<int>(option("heads"));
  problem.num_kv_heads = static_cast<int>(option("kv_heads"));
  problem.head_dim = static_cast<int>(option("head_dim"));
  problem.softmax_scale = 1.0f / std::sqrt(static_cast<float>(problem.head_dim));
  static HostInput host;
  static DeviceBuffer<std::uint16_t> q, k, v;
  static std::int64_t uploaded = 0;
  if (uploaded != seqlen) {
    host.q = structured_rows(problem.num_q_heads, seqlen, problem.head_dim, 0);
    host.k = structured_rows(problem.num_kv_heads, seqlen, problem.head_dim, 1);
    host.v = structured_rows(problem.num_kv_heads, seqlen, problem.head_dim, 2);
    q.upload(host.q, "q");
    k.upload(host.k, "k");
    v.upload(host.v, "v");
    uploaded = seqlen;
  }
  const bool is_s2o = method == "s2o";
  const testing::S2oCase settings = s2o_settings_of(options, segment_size);
  DevicePlanner planner(make_planner(method, problem, settings, options));
  const PlanningCost cost = planner.cost();
  planner.prepare();
  const DeviceInput input{
      .problem = problem, .dtype = KernelDType::kBf16, .q = q.data(), .k = k.data(), .v = v.data()};
  const std::vector<float> ms =
      time_planner(planner, input, variant.kernels, static_cast<int>(option("repeats")));
  const auto median = static_cast<double>(ms[ms.size() / 2]);
  std::printf("%s%s%s seqlen %7lld", method.c_str(), variant.name.empty() ? "" : " ",
              variant.name.c_str(), static_cast<long long>(seqlen));
  if (is_s2o) {
    std::printf(" S %5lld%s depth %lld", static_cast<long long>(segment_size),
                settings.share_key_order_in_group ? " shared" : "",
                static_cast<long long>(settings.max_depth));
  }
  std::printf(": %8.3f ms (min %.3f)  %6.2f GB %6.0f GB/s  %8.1f GFLOP  workspace %.2f GB", median,
              static_cast<double>(ms.front()), cost.bytes * 1e-9, cost.bytes * 1e-6 / median,
              cost.flops * 1e-9, static_cast<double>(planner.workspace_bytes()) * 1e-9);
  if (option("steps") != 0) print_steps(planner, input, variant.kernels);
  std::fflush(stdout);
  if (is_s2o && option("rows") > 0) {
    check_orders(options, settings, input, host, planner, variant.kernels);
  }
  if (!is_s2o && option("check") != 0)
    check_plan_of(method, options, input, host, planner, variant.kernels);
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
    std::vector<s2o::Variant> variants;
    for (const std::string& name : options.kernels) {
      variants.push_back({name, s2o::planning_variant(status.devices[0], name)});
    }
    for (const std::int64_t seqlen : options.at("seqlen")) {
      for (const std::string& method : options.methods) {
        const bool has_segments = method == "s2o";
        for (const std::int64_t segment : options.at("segment")) {
          for (const s2o::Variant& variant : variants) {
            s2o::run(options, method, seqlen, segment, variant);
          }
          if (!has_segments) break;
        }
      }
    }
  } catch (const std::exception& error) {
    std::fprintf(stderr, "bench_planning: %s\n", error.what());
    return 1;
  }
}
