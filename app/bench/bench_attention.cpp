// Times the attention kernels on a CUDA device: dense, runs of 128 keys, and gathers with and
// without early stop or folded columns, by seqlen and density. Effective TFLOP/s count the unmasked
// pairs executed, 4 * head_dim FLOP each, so that kinds compare. Inputs are normal random numbers:
// times only, no error figure comes from here. `fp8` takes Q, K and V in 8 bits (quantise.h); what
// making those costs stands beside.
//
//   bench_attention --seqlen 16384,131072 --density 0.1 --kinds dense,blocks,gather
//   bench_attention --seqlen 32768,131072 --kernels sm90 --compute stored,fp8 --kinds dense,gather
#include <fmt/format.h>
#include <CLI/CLI.hpp>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <map>
#include <nlohmann/json.hpp>
#include <numeric>
#include <optional>
#include <string>
#include <vector>

#include "kernels/attention/attention.h"
#include "kernels/attention/prepared_attention.h"
#include "kernels/common/bf16.h"
#include "kernels/common/device_info.h"
#include "kernels/common/device_input_copy.h"
#include "kernels/common/device_plan_copy.h"
#include "kernels/common/parallel.h"
#include "kernels/common/stream.h"
#include "lib/core/atomic_file.h"
#include "lib/core/random.h"
#include "lib/device/cuda_device.h"
#include "lib/device/l2_flush.h"
#include "lib/device/phase_timer.h"
#include "lib/plan/sparse_plan.h"

namespace s2o {
namespace {

constexpr int kBlock = 128;
constexpr const char* kStored = "stored";
constexpr const char* kFp8 = "fp8";
constexpr const char* kKinds =
    "dense, blocks, gather, gather_sorted, gather_stop (a decision after each step, none stops), "
    "gather_fold (the rest of the history in folded columns of 128 keys)";

struct Options {
  std::vector<std::int64_t> seqlens = {4096, 16384, 65536, 131072};
  std::vector<double> densities = {0.1};
  std::vector<std::string> kinds = {"dense",         "blocks",      "gather",
                                    "gather_sorted", "gather_stop", "gather_fold"};
  std::vector<std::string> kernels = {"sm90", "sm80"};
  std::vector<std::string> computes = {kStored};
  std::string dtype = "bf16";
  int num_q_heads = 32;
  int num_kv_heads = 8;
  int head_dim = 128;
  std::int64_t segment_size = 1024;
  int block_m = kBlock;
  int block_n = kBlock;
  int warmup = 3;
  int repeats = 20;
  double max_seconds = 20.0;
  bool check = false;
  std::string json;
};

struct Inputs {
  Problem problem;
  KernelDType dtype = KernelDType::kBf16;
  std::vector<std::uint16_t> q, k, v;
};

std::vector<std::uint16_t> random_tensor(std::int64_t count, KernelDType dtype,
                                         std::uint64_t stream) {
  constexpr std::uint64_t kTable = 1 << 16;
  const CounterRandom random(7, stream);
  std::vector<std::uint16_t> table(kTable);
  for (std::uint64_t i = 0; i < kTable; ++i) {
    const auto value = static_cast<float>(random.normal(i));
    table[i] = dtype == KernelDType::kBf16 ? float_to_bf16(value) : float_to_fp16(value);
  }
  std::vector<std::uint16_t> values(static_cast<std::size_t>(count));
  constexpr std::int64_t kChunk = 1 << 20;
  parallel_for((count + kChunk - 1) / kChunk, [&](std::int64_t chunk) {
    const std::int64_t end = std::min(count, (chunk + 1) * kChunk);
    for (std::int64_t i = chunk * kChunk; i < end; ++i) {
      // An odd multiplier and the high half: every table entry, no short period.
      std::uint64_t x = (static_cast<std::uint64_t>(i) + stream) * 0x9e3779b97f4a7c15ull;
      x ^= x >> 29;
      x *= 0xbf58476d1ce4e5b9ull;
      values[static_cast<std::size_t>(i)] = table[x >> 48];
    }
  });
  return values;
}

Inputs make_inputs(const Options& options, std::int64_t seqlen) {
  Inputs inputs;
  inputs.problem = {.seqlen = seqlen,
                    .num_q_heads = options.num_q_heads,
                    .num_kv_heads = options.num_kv_heads,
                    .head_dim = options.head_dim,
                    .softmax_scale = 1.0f / std::sqrt(static_cast<float>(options.head_dim))};
  inputs.dtype = options.dtype == "bf16" ? KernelDType::kBf16 : KernelDType::kFp16;
  const std::int64_t rows = seqlen * options.head_dim;
  inputs.q = random_tensor(rows * options.num_q_heads, inputs.dtype, 1);
  inputs.k = random_tensor(rows * options.num_kv_heads, inputs.dtype, 2);
  inputs.v = random_tensor(rows * options.num_kv_heads, inputs.dtype, 3);
  return inputs;
}

std::int64_t round_up(double value, std::int64_t multiple) {
  return static_cast<std::int64_t>(std::ceil(value / static_cast<double>(multiple))) * multiple;
}

// First `count` entries of a random permutation of [0, n).
std::vector<std::int32_t> random_subset(std::int64_t n, std::int64_t count, std::uint64_t stream) {
  const CounterRandom random(11, stream);
  std::vector<std::int32_t> order(static_cast<std::size_t>(n));
  std::iota(order.begin(), order.end(), 0);
  for (std::int64_t i = 0; i < count; ++i) {
    const auto j = i + random.below(static_cast<std::uint64_t>(i), n - i);
    std::swap(order[static_cast<std::size_t>(i)], order[static_cast<std::size_t>(j)]);
  }
  order.resize(static_cast<std::size_t>(count));
  return order;
}

// The diagonal block, the first one, and random others.
SparsePlan block_plan(const Options& options, const Problem& problem, double density) {
  SparsePlan plan(problem, options.block_m, options.block_n);
  PlanBuilder builder(plan);
  parallel_for(problem.num_q_heads, [&](std::int64_t head) {
    for (int tile = 0; tile < plan.header.num_q_tiles; ++tile) {
      const std::int64_t blocks = tile_rows(problem, plan.header, tile).last_position / kBlock + 1;
      std::vector<std::uint8_t> selected(static_cast<std::size_t>(blocks), 0);
      selected.front() = selected.back() = 1;
      const auto wanted =
          static_cast<std::int64_t>(std::lround(density * static_cast<double>(blocks)));
      for (const std::int32_t block :
           random_subset(blocks, std::clamp<std::int64_t>(wanted - 2, 0, blocks),
                         static_cast<std::uint64_t>(head * plan.header.num_q_tiles + tile))) {
        selected[static_cast<std::size_t>(block)] = 1;
      }
      add_key_blocks(problem, plan, builder, static_cast<int>(head), tile, selected.data(), kBlock);
    }
  });
  builder.finish(plan.passes[0]);
  return plan;
}

// S2O's shape: the segment in place, then a share of its history in a random order that the tiles
// of one segment and head have in common.
SparsePlan gather_plan(const Options& options, const Problem& problem, double density, bool sorted,
                       bool stoppable) {
  SparsePlan plan(problem, options.block_m, options.block_n);
  if (stoppable) plan.header.stop = {.tau = 1e-30f};  // decides after each step, never stops
  const std::int64_t num_segments =
      (problem.seqlen + options.segment_size - 1) / options.segment_size;
  const auto list_of = [&](std::int64_t head, std::int64_t segment) {
    return static_cast<std::size_t>(head * num_segments + segment);
  };
  std::vector<std::vector<std::int32_t>> lists(
      static_cast<std::size_t>(problem.num_q_heads * num_segments));
  parallel_for(static_cast<std::int64_t>(lists.size()), [&](std::int64_t i) {
    const std::int64_t history = i % num_segments * options.segment_size;
    const std::int64_t count =
        std::min(round_up(density * static_cast<double>(history), kBlock), history);
    auto& list = lists[static_cast<std::size_t>(i)];
    list = random_subset(history, count, static_cast<std::uint64_t>(i));
    if (sorted) std::sort(list.begin(), list.end());
  });
  std::vector<std::int64_t> begins(lists.size());
  PlanPass& pass = plan.passes[0];
  for (std::size_t i = 0; i < lists.size(); ++i) {
    begins[i] = static_cast<std::int64_t>(pass.gather_indices.size());
    pass.gather_indices.insert(pass.gather_indices.end(), lists[i].begin(), lists[i].end());
  }
  PlanBuilder builder(plan);
  for (int head = 0; head < problem.num_q_heads; ++head) {
    for (int tile = 0; tile < plan.header.num_q_tiles; ++tile) {
      const TileRows rows = tile_rows(problem, plan.header, tile);
      const std::int64_t segment = rows.first_position / options.segment_size;
      const std::int64_t begin = segment * options.segment_size;
      builder.add(head, tile,
                  {.begin = begin,
                   .count = static_cast<std::int32_t>(rows.last_position + 1 - begin),
                   .mask = MaskClass::kCausal});
      const std::size_t list = list_of(head, segment);
      if (lists[list].empty()) continue;
      builder.add(head, tile,
                  {.begin = begins[list],
                   .count = static_cast<std::int32_t>(lists[list].size()),
                   .kind = ItemKind::kGather,
                   .stoppable = stoppable});
    }
  }
  builder.finish(pass);
  return plan;
}

// The gather plan with what it leaves out of the history of each segment in folded columns.
SparsePlan fold_plan(const Options& options, const Problem& problem, double density) {
  SparsePlan plan = gather_plan(options, problem, density, false, false);
  plan.header.fold = {.kind = Compensation::kBlocksVariance, .fold_block = kBlock};
  for (std::int64_t t = 0; t < plan.num_tiles(); ++t) {
    const std::int64_t first = t % plan.header.num_q_tiles * options.block_m;
    plan.passes[0].fold_end.push_back(
        static_cast<std::int32_t>(first / options.segment_size * options.segment_size));
  }
  return plan;
}

SparsePlan make_plan(const Options& options, const Problem& problem, const std::string& kind,
                     double density) {
  if (kind == "dense") return dense_plan(problem, options.block_m, options.block_n);
  if (kind == "blocks") return block_plan(options, problem, density);
  if (kind == "gather") return gather_plan(options, problem, density, false, false);
  if (kind == "gather_sorted") return gather_plan(options, problem, density, true, false);
  if (kind == "gather_stop") return gather_plan(options, problem, density, false, true);
  if (kind == "gather_fold") return fold_plan(options, problem, density);
  throw UnsupportedError("--kinds: found '" + kind + "', expected " + kKinds);
}

// Unmasked pairs of the plan, all heads.
double executed_pairs(const Problem& problem, const SparsePlan& plan) {
  double pairs = 0.0;
  const PlanPass& pass = plan.passes[0];
  for (std::int64_t t = 0; t < plan.num_tiles(); ++t) {
    const TileRows rows =
        tile_rows(problem, plan.header, static_cast<int>(t % plan.header.num_q_tiles));
    const auto num_rows = static_cast<double>(rows.end_slot - rows.first_slot);
    for (std::int64_t i = pass.item_offsets[static_cast<std::size_t>(t)];
         i < pass.item_offsets[static_cast<std::size_t>(t) + 1]; ++i) {
      const PlanItem& item = pass.items[static_cast<std::size_t>(i)];
      const double end = static_cast<double>(item.begin) + item.count;
      const double before =
          static_cast<double>(rows.first_position) - static_cast<double>(item.begin);
      if (item.kind == ItemKind::kGather || end <= static_cast<double>(rows.first_position)) {
        pairs += num_rows * item.count;
      } else {  // a run that reaches the diagonal
        pairs += num_rows * before + num_rows * (num_rows + 1) / 2;
      }
    }
  }
  return pairs;
}

struct Timing {
  double median = 0.0, p10 = 0.0, p90 = 0.0;
};
Timing timing_of(std::vector<double> ms) {
  std::sort(ms.begin(), ms.end());
  const auto at = [&](double part) {
    return ms[static_cast<std::size_t>(part * static_cast<double>(ms.size() - 1) + 0.5)];
  };
  return {at(0.5), at(0.1), at(0.9)};
}

double relative_l2(const std::vector<float>& found, const std::vector<float>& expected) {
  double error = 0.0, norm = 0.0;
  for (std::size_t i = 0; i < expected.size(); ++i) {
    const double difference = static_cast<double>(found[i]) - static_cast<double>(expected[i]);
    error += difference * difference;
    norm += static_cast<double>(expected[i]) * static_cast<double>(expected[i]);
  }
  return std::sqrt(error / norm);
}

std::vector<float> to_float(const std::vector<std::uint16_t>& bits, KernelDType dtype) {
  std::vector<float> values(bits.size());
  std::transform(bits.begin(), bits.end(), values.begin(), [dtype](std::uint16_t value) {
    return dtype == KernelDType::kBf16 ? bf16_to_float(value) : fp16_to_float(value);
  });
  return values;
}

// Error of an output against the CPU reference on the same 16-bit inputs.
double error_of(const std::vector<float>& out, const Inputs& inputs, const SparsePlan& plan) {
  std::vector<float> expected(out.size());
  std::vector<float> expected_lse(out.size() / static_cast<std::size_t>(inputs.problem.head_dim));
  const PlanPointers pointers(plan);
  attention_ref(inputs.problem, pointers.view(), to_float(inputs.q, inputs.dtype).data(),
                to_float(inputs.k, inputs.dtype).data(), to_float(inputs.v, inputs.dtype).data(),
                expected.data(), expected_lse.data(), nullptr);
  return relative_l2(out, expected);
}

// A plan on the device with all that running it takes.
class PlanRun {
 public:
  PlanRun(const CudaDevice& device, const DeviceInput& input, const SparsePlan& plan,
          OutputType output, std::optional<QuantiseRule> quantise)
      : dtype_(input.dtype),
        plan_(input.problem, PlanPointers(plan).view(), device.info.l2_bytes),
        buffers_(input.problem, plan_.plan().header, output),
        attention_(device.info, device.attention, input, plan_.plan(), buffers_.output(), scratch_,
                   /*fp32_accuracy=*/false, quantise) {}

  void enqueue_quantise(CudaStream stream) { attention_.enqueue_quantise(stream); }
  void enqueue(CudaStream stream) { attention_.enqueue(stream); }
  void poison(CudaStream stream) { buffers_.poison(stream); }
  std::vector<float> out() const { return buffers_.read_out(dtype_); }
  std::int64_t workspace_bytes() const { return attention_.workspace_bytes() + plan_.bytes(); }

 private:
  KernelDType dtype_;
  DevicePlanCopy plan_;
  AttentionBuffers buffers_;
  AttentionScratch scratch_;
  PreparedAttention attention_;
};

class Bench {
 public:
  explicit Bench(const Options& options) : options_(options) {}

  void run() {
    fmt::print("{:<6}{:<15}{:<7}{:>8}{:>9}{:>10}{:>10}{:>10}{:>10}{:>9}{:>9}{:>11}\n", "kernel",
               "kind", "compute", "seqlen", "density", "ms", "p10", "p90", "TFLOP/s", "/dense",
               "MHz", "error");
    for (const std::int64_t seqlen : options_.seqlens) {
      const Inputs inputs = make_inputs(options_, seqlen);
      for (const std::string& kernel : options_.kernels) {
        const CudaDevice device = open_cuda_device(0, kernel);
        const DeviceInputCopy copy(inputs.problem, inputs.dtype, inputs.q.data(), inputs.k.data(),
                                   inputs.v.data());
        std::map<std::string, double> dense_rates;  // by compute
        for (const std::string& kind : options_.kinds) {
          for (const double density :
               kind == "dense" ? std::vector<double>{1.0} : options_.densities) {
            double stored_ms = 0.0;
            for (const std::string& compute : options_.computes) {
              measure(device, copy.input(), inputs, kernel, kind, density, compute,
                      dense_rates[compute], stored_ms);
            }
          }
        }
      }
    }
    if (options_.json.empty()) return;
    AtomicFile file(options_.json);
    file.write(rows_.dump(1) + "\n");
    file.commit();
  }

 private:
  void measure(const CudaDevice& device, const DeviceInput& input, const Inputs& inputs,
               const std::string& kernel, const std::string& kind, double density,
               const std::string& compute, double& dense_rate, double& stored_ms) {
    const Problem& problem = inputs.problem;
    const SparsePlan plan = make_plan(options_, problem, kind, density);
    const std::optional<QuantiseRule> quantise =
        compute == kFp8 ? std::optional(QuantiseRule{}) : std::nullopt;
    PlanRun attention(device, input, plan, options_.check ? OutputType::kFp32 : OutputType::kInput,
                      quantise);
    // What the early stop or the folds cost: the same steps without them run in between, since the
    // clock drifts with the heat of the chip by more than a small difference.
    std::optional<PlanRun> fixed;
    if (kind == "gather_stop" || kind == "gather_fold") {
      fixed.emplace(device, input, make_plan(options_, problem, "gather", density),
                    OutputType::kInput, quantise);
    }
    const Stream stream;
    PhaseTimer timer(stream.get());
    L2Flush l2_flush(device.info);
    const auto timed = [&](PlanRun& run) {
      run.poison(stream.get());
      stream.synchronize();
      l2_flush.enqueue(stream.get());
      timer.begin(Phase::kAttention);
      run.enqueue(stream.get());
      timer.end();
      return timer.total_milliseconds();
    };
    std::vector<double> quantise_ms;
    for (int i = 0; quantise && i < options_.warmup + options_.repeats; ++i) {
      timer.begin(Phase::kPlanning);
      attention.enqueue_quantise(stream.get());
      timer.end();
      if (i >= options_.warmup) quantise_ms.push_back(timer.total_milliseconds());
    }
    if (quantise && fixed) fixed->enqueue_quantise(stream.get());
    for (int i = 0; i < options_.warmup; ++i) {
      attention.enqueue(stream.get());
      if (fixed) fixed->enqueue(stream.get());
      stream.synchronize();
    }
    std::vector<double> ms, fixed_ms;
    double total = 0.0;
    for (int i = 0; i < options_.repeats && total < 1000.0 * options_.max_seconds; ++i) {
      if (fixed) fixed_ms.push_back(timed(*fixed));
      ms.push_back(timed(attention));
      total += ms.back();
    }
    const double clock = multiprocessor_clock_mhz(0);
    const Timing timing = timing_of(ms);
    const double fixed_median = fixed ? timing_of(fixed_ms).median : 0.0;
    const double pairs = executed_pairs(problem, plan);
    const double pair_density =
        pairs / (static_cast<double>(problem.causal_pairs()) * problem.num_q_heads);
    const double rate = 4e-9 * problem.head_dim * pairs / timing.median;
    if (kind == "dense") dense_rate = rate;
    const double error = options_.check ? error_of(attention.out(), inputs, plan) : -1.0;
    const double quantise_median = quantise ? timing_of(quantise_ms).median : 0.0;
    if (!quantise) stored_ms = timing.median;
    fmt::print(
        "{:<6}{:<15}{:<7}{:>8}{:>9.4f}{:>10.3f}{:>10.3f}{:>10.3f}{:>10.1f}{:>9.3f}{:>9.0f}{:>11}{}{"
        "}"
        "\n",
        kernel, kind, compute, problem.seqlen, pair_density, timing.median, timing.p10, timing.p90,
        rate, dense_rate > 0.0 ? rate / dense_rate : 0.0, clock,
        options_.check ? fmt::format("{:.2e}", error) : "-",
        quantise ? fmt::format("  {:.2f} x stored, quantised in {:.3f} ms",
                               stored_ms / timing.median, quantise_median)
                 : "",
        fixed ? fmt::format("  {:.3f} ms without, {:+.3f} ms ({:+.1f} %)", fixed_median,
                            timing.median - fixed_median,
                            100.0 * (timing.median / fixed_median - 1.0))
              : "");
    std::fflush(stdout);
    rows_.push_back(
        {{"kernel", kernel},
         {"kind", kind},
         {"compute", compute},
         {"dtype", options_.dtype},
         {"seqlen", problem.seqlen},
         {"num_q_heads", problem.num_q_heads},
         {"num_kv_heads", problem.num_kv_heads},
         {"head_dim", problem.head_dim},
         {"pair_density", pair_density},
         {"ms", timing.median},
         {"ms_p10", timing.p10},
         {"ms_p90", timing.p90},
         {"tflops", rate},
         {"ratio_to_dense", dense_rate > 0.0 ? rate / dense_rate : 0.0},
         {"ms_without", fixed ? nlohmann::ordered_json(fixed_median) : nlohmann::ordered_json()},
         {"quantise_ms",
          quantise ? nlohmann::ordered_json(quantise_median) : nlohmann::ordered_json()},
         {"sm_clock_mhz", clock},
         {"workspace_bytes", attention.workspace_bytes()}});
  }

  const Options& options_;
  nlohmann::ordered_json rows_ = nlohmann::ordered_json::array();
};

int run_bench(int argc, char** argv) {
  Options options;
  CLI::App app("Times the attention kernels on a CUDA device");
  app.add_option("--seqlen", options.seqlens, "Tokens")->delimiter(',');
  app.add_option("--density", options.densities, "Share of keys of sparse kinds")->delimiter(',');
  app.add_option("--kinds", options.kinds, kKinds)->delimiter(',');
  app.add_option("--kernels", options.kernels, "sm90, sm80")->delimiter(',');
  app.add_option("--compute", options.computes, "stored, fp8")
      ->delimiter(',')
      ->check(CLI::IsMember({kStored, kFp8}));
  app.add_option("--dtype", options.dtype)->check(CLI::IsMember({"bf16", "fp16"}));
  app.add_option("--q-heads", options.num_q_heads);
  app.add_option("--kv-heads", options.num_kv_heads);
  app.add_option("--head-dim", options.head_dim);
  app.add_option("--segment-size", options.segment_size);
  app.add_option("--block-m", options.block_m);
  app.add_option("--block-n", options.block_n);
  app.add_option("--warmup", options.warmup);
  app.add_option("--repeats", options.repeats);
  app.add_option("--max-seconds", options.max_seconds, "Stop repeating a cell after this time");
  app.add_flag("--check", options.check, "Compare with the CPU reference (small seqlen)");
  app.add_option("--json", options.json, "Write the rows to this file");
  CLI11_PARSE(app, argc, argv);
  try {
    Bench(options).run();
  } catch (const std::exception& error) {
    fmt::print(stderr, "error: {}\n", error.what());
    return 1;
  }
  return 0;
}

}  // namespace
}  // namespace s2o

int main(int argc, char** argv) { return s2o::run_bench(argc, argv); }
