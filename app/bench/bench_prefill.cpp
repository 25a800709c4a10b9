// Times a whole model's prefill on a CUDA device: time to first token and where it goes, by seqlen
// and method; the products beside the best that cuBLAS does for the same shapes in the same run,
// and everything else beside the bytes that it must move. Without --model, the weights are seeded
// random numbers in the shape of Llama-3.1-8B: times only, no accuracy.
//
//   bench_prefill --seqlen 8192,131072 --methods dense,s2o --set tau=0.01 --pattern mixed
//   bench_prefill --model data/tiny-llama --tokens data/tokens/war_and_peace.safetensors
//     --seqlen 8192
#include <fmt/format.h>
#include <CLI/CLI.hpp>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <memory>
#include <string>
#include <vector>

#include "kernels/common/device_buffer.h"
#include "kernels/common/stream.h"
#include "kernels/model/matrix_product.h"
#include "kernels/model/model_kernels.h"
#include "lib/core/atomic_file.h"
#include "lib/core/text.h"
#include "lib/input/synthetic.h"
#include "lib/model/model_shapes.h"
#include "lib/model/tokens.h"
#include "lib/prefill/prefill_memory.h"

namespace s2o {
namespace {

using Clock = std::chrono::steady_clock;

constexpr int kLogitPositions = 16;
constexpr std::chrono::seconds kBetweenLines(5);

struct Options {
  std::vector<std::int64_t> seqlens = {8192, 16384, 32768, 65536, 131072};
  std::vector<std::string> methods = {"dense", "s2o"};
  std::vector<std::string> settings;  // "tau=0.01", for every method that has the parameter
  std::string model;
  std::string tokens;
  std::string pattern;
  std::string kernel;
  std::string dtype = "bf16";
  std::string cublas;
  std::string nccl;
  std::string logits;
  int parallel = 1;
  int layers = 32;
  int warmup = 1;
  int repeats = 3;
  bool peers = false;
};

// Heads of 4 queries a key, as many as two KV heads: a model repeats them.
AttentionInput make_replay(const std::string& pattern, std::int64_t seqlen, int head_dim,
                           StorageDType dtype) {
  const auto& specs = synthetic_param_specs();
  ParamSet params(specs);
  params.set(specs, "pattern", pattern, "--pattern");
  params.set(specs, "seqlen", seqlen, "--seqlen");
  params.set(specs, "num_q_heads", 8, "heads");
  params.set(specs, "num_kv_heads", 2, "heads");
  params.set(specs, "head_dim", head_dim, "head_dim");
  AttentionInput input = make_synthetic(params, /*seed=*/7);
  input.dtype = dtype;
  validate_attention_input(input, false);
  return input;
}

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values.empty() ? 0.0 : values[values.size() / 2];
}
double median_of(const PrefillRun& run, double PrefillSplit::*part) {
  std::vector<double> values;
  for (const PrefillSplit& split : run.repeats) values.push_back(split.*part);
  return median(values);
}

// Rates of single products, at the clock of a busy device.
class ProductBench {
 public:
  explicit ProductBench(const std::string& cublas) : products_(cublas) { products_.prepare(); }

  struct Rates {
    double first_tflops = 0.0;  // the library's first suggestion
    double best_tflops = 0.0;   // of all
  };
  Rates measure(const ProductShape& shape) {
    fill(x_, shape.rows * shape.in_features, 1, 1.0f);
    fill(weight_, shape.out_features * shape.in_features, 2, 0.02f);
    y_.resize(static_cast<std::size_t>(shape.rows * shape.out_features), "products");
    Rates rates;
    const int count = products_.num_suggestions(shape);
    for (int i = 0; i < count; ++i) {
      const double rate = shape.flops() / (1e9 * time_ms(shape, i));
      if (i == 0) rates.first_tflops = rate;
      rates.best_tflops = std::max(rates.best_tflops, rate);
    }
    return rates;
  }

 private:
  void fill(DeviceBuffer<std::uint16_t>& buffer, std::int64_t count, std::uint64_t matrix,
            float deviation) {
    buffer.resize(static_cast<std::size_t>(count), "products");
    launch_random_normal(
        {.out = buffer.data(), .count = count, .matrix = matrix, .deviation = deviation},
        stream_.get());
  }
  double time_ms(const ProductShape& shape, int suggestion) {
    const auto run = [&] {
      products_.run_suggestion(shape, suggestion, x_.data(), weight_.data(), y_.data(),
                               stream_.get());
    };
    run();
    // About 60 ms each: long enough for the clock to settle.
    const int repeats = std::max(3, static_cast<int>(0.060 / (shape.flops() / 600e12)));
    begin_.record(stream_);
    for (int i = 0; i < repeats; ++i) run();
    end_.record(stream_);
    return static_cast<double>(end_.milliseconds_since(begin_)) / repeats;
  }

  MatrixProducts products_;
  Stream stream_;
  Event begin_, end_;
  DeviceBuffer<std::uint16_t> x_, weight_, y_;
};

class Bench {
 public:
  explicit Bench(const Options& options)
      : options_(options), dtype_(parse_storage_dtype(options.dtype, "--dtype")) {
    if (options.model.empty()) {
      model_.config = model_shape("llama-3.1-8b", "--model");
      model_.config.num_layers = options.layers;
    } else {
      model_.weights = load_model(options.model);
      model_.config = model_.weights->config;
    }
    model_.dtype = dtype_;
    model_.cublas_folder = options.cublas;
    model_.nccl_folder = options.nccl;
    model_.parallel = options.parallel;
  }

  void run() {
    const std::int64_t longest =
        *std::max_element(options_.seqlens.begin(), options_.seqlens.end());
    if (!options_.pattern.empty()) {
      model_.replay.push_back(
          make_replay(options_.pattern, longest, model_.config.head_dim, dtype_));
    }
    const ModelConfig config = model_.config;
    const auto backend = make_cuda_prefill(model_, 0, options_.kernel);
    print_memory(backend->memory(longest));
    backend->prepare(longest);
    fmt::print("{:>8} {:<14}{:>10}{:>10}{:>10}{:>10}{:>9}{:>9}{:>9}{:>8}{:>9}{:>9}\n", "seqlen",
               "method", "total_ms", "linear", "attention", "planning", "comm", "rest", "TFLOP/s",
               "rest%", "rest_GB/s", "density");
    for (const std::int64_t seqlen : options_.seqlens) {
      double linear_ms = 0.0;
      for (const std::string& method : options_.methods) {
        const PrefillRun run = measure(*backend, config, seqlen, method);
        if (method == options_.methods.front()) {
          linear_ms = median_of(run, &PrefillSplit::linear_ms);
        }
      }
      if (options_.peers) compare_products(config, seqlen, linear_ms);
    }
  }

 private:
  static void print_memory(const PrefillMemory& memory) {
    for (const PrefillMemory::Part& part : memory.parts) {
      fmt::print("memory: {:<32}{:>16}\n", part.name, part.bytes);
    }
    fmt::print("memory: total {} of {}, longest prompt {} tokens\n",
               bytes_text(static_cast<double>(memory.total_bytes)),
               bytes_text(static_cast<double>(memory.free_bytes)), memory.longest_seqlen);
  }

  std::vector<std::int32_t> tokens(const ModelConfig& config, std::int64_t seqlen) const {
    if (!options_.tokens.empty()) {
      return select_tokens(read_token_file(options_.tokens), 0, seqlen, config.vocab_size);
    }
    std::vector<std::int32_t> tokens(static_cast<std::size_t>(seqlen));
    for (std::size_t i = 0; i < tokens.size(); ++i) {
      tokens[i] = static_cast<std::int32_t>(i * 2654435761u % config.vocab_size);
    }
    return tokens;
  }

  ParamSet settings_of(const Method& method) const {
    const std::vector<ParamSpec>& specs = method.info().params;
    ParamSet params(specs);
    for (const std::string& setting : options_.settings) {
      const std::size_t split = std::min(setting.find('='), setting.size());
      const std::string name = setting.substr(0, split);
      const std::string text = setting.substr(std::min(split + 1, setting.size()));
      nlohmann::json value = nlohmann::json::parse(text, nullptr, /*allow_exceptions=*/false);
      if (value.is_discarded()) value = text;
      const bool has = std::any_of(specs.begin(), specs.end(),
                                   [&name](const ParamSpec& spec) { return spec.name == name; });
      if (has) params.set(specs, name, value, "--set");
    }
    return params;
  }

  PrefillRun measure(PrefillBackend& backend, const ModelConfig& config, std::int64_t seqlen,
                     const std::string& name) {
    const Method& method = find_method(name);
    const ParamSet params = settings_of(method);
    const std::vector<LayerMethod> layers(static_cast<std::size_t>(config.num_layers),
                                          {&method, &params});
    const TimingConfig timing{.warmup = options_.warmup, .repeats = options_.repeats};
    PrefillWanted wanted;
    if (!options_.logits.empty()) {
      wanted.losses = true;
      for (int i = 0; i < kLogitPositions; ++i) {
        wanted.logit_positions.push_back((i + 1) * seqlen / kLogitPositions - 1);
      }
    }
    const auto begin = Clock::now();
    const PrefillRun run =
        backend.run(tokens(config, seqlen), layers, wanted, timing, show_progress(seqlen, name));
    const std::chrono::duration<double> wall = Clock::now() - begin;
    print_row(config, seqlen, name, run);
    fmt::print("{:>8} {:<14}{:>10.2f} s for all passes, {} on each GPU\n", seqlen, name,
               wall.count(), bytes_text(static_cast<double>(run.device_bytes)));
    std::fflush(stdout);
    if (!options_.logits.empty())
      keep_logits(run, fmt::format("{}.{}.{}", options_.logits, name, seqlen));
    return run;
  }

  // A line on stderr now and then: a million tokens take minutes.
  static PrefillProgress show_progress(std::int64_t seqlen, const std::string& name) {
    const auto begin = Clock::now();
    return [seqlen, name, begin, next = begin + kBetweenLines](int done, int total) mutable {
      if (Clock::now() < next) return;
      next = Clock::now() + kBetweenLines;
      const std::chrono::duration<double> passed = Clock::now() - begin;
      fmt::print(stderr, "{:>8} {:<14}{:>10.2f} s, {} of {} layers of all passes\n", seqlen, name,
                 passed.count(), done, total);
    };
  }

  // Logits [kLogitPositions, vocab_size] in fp32, then losses in fp64.
  static void keep_logits(const PrefillRun& run, const std::string& path) {
    double sum = 0.0;
    for (const double loss : run.losses) sum += loss;
    fmt::print("mean loss {:.6f}\n", sum / static_cast<double>(run.losses.size()));
    AtomicFile file(path);
    file.write(run.logits.data(), run.logits.size() * sizeof(float));
    file.write(run.losses.data(), run.losses.size() * sizeof(double));
    file.commit();
  }

  static void print_row(const ModelConfig& config, std::int64_t seqlen, const std::string& method,
                        const PrefillRun& run) {
    const PrefillFloor floor = prefill_floor(config, seqlen);
    const double total = median_of(run, &PrefillSplit::total_ms);
    const double linear = median_of(run, &PrefillSplit::linear_ms);
    const double rest = median_of(run, &PrefillSplit::rest_ms);
    double density = 0.0;
    for (const PrefillLayer& layer : run.layers) density += layer.compute_density;
    fmt::print(
        "{:>8} {:<14}{:>10.2f}{:>10.2f}{:>10.2f}{:>10.2f}{:>9.2f}{:>9.2f}{:>9.1f}{:>8.2f}{:>9.0f}"
        "{:>9.4f}\n",
        seqlen, method, total, linear, median_of(run, &PrefillSplit::attention_ms),
        median_of(run, &PrefillSplit::planning_ms), median_of(run, &PrefillSplit::communication_ms),
        rest, floor.linear_flops * 1e-9 / linear, 100.0 * rest / total,
        floor.rest_bytes * 1e-6 / rest, density / static_cast<double>(run.layers.size()));
    std::fflush(stdout);
  }

  // What the products of one pass would take at the best rate of each shape.
  void compare_products(const ModelConfig& config, std::int64_t seqlen, double linear_ms) {
    ProductBench bench(options_.cublas);
    const std::int64_t q = static_cast<std::int64_t>(config.num_q_heads) * config.head_dim;
    const std::int64_t kv = static_cast<std::int64_t>(config.num_kv_heads) * config.head_dim;
    const std::int64_t hidden = config.hidden_size;
    const std::int64_t inner = config.intermediate_size;
    const std::int64_t chunk = std::min(seqlen, kPrefillChunkRows);
    double best_ms = 0.0;
    for (const auto& [out, in] : std::vector<std::pair<std::int64_t, std::int64_t>>{
             {q + 2 * kv, hidden}, {hidden, q}, {2 * inner, hidden}, {hidden, inner}}) {
      const auto in_chunks = bench.measure({chunk, out, in});
      const auto whole = chunk == seqlen ? in_chunks : bench.measure({seqlen, out, in});
      const double best = std::max(in_chunks.best_tflops, whole.best_tflops);
      const ProductShape all = {seqlen, out, in};
      best_ms += all.flops() / (1e9 * best) * config.num_layers;
      fmt::print(
          "product  {} x {} x {}: first {:.1f}, best {:.1f} TFLOP/s in chunks of {}; {:.1f} "
          "over all rows\n",
          seqlen, out, in, in_chunks.first_tflops, in_chunks.best_tflops, chunk, whole.best_tflops);
    }
    fmt::print("product  {}: {:.2f} ms at the best rates, {:.2f} ms in the pass: {:.3f} of them\n",
               seqlen, best_ms, linear_ms, best_ms / linear_ms);
    std::fflush(stdout);
  }

  const Options& options_;
  StorageDType dtype_;
  PrefillModel model_;
};

int run_bench(int argc, char** argv) {
  Options options;
  CLI::App app("Times a model's prefill on a CUDA device");
  app.add_option("--seqlen", options.seqlens, "Tokens")->delimiter(',');
  app.add_option("--methods", options.methods, "Attention methods, the first is compared")
      ->delimiter(',');
  app.add_option("--set", options.settings, "name=value of the methods that have the parameter");
  app.add_option("--model", options.model, "Model folder; default: seeded Llama-3.1-8B shape");
  app.add_option("--tokens", options.tokens, "Token file; default: made-up tokens");
  app.add_option("--pattern", options.pattern, "Attention on a synthetic pattern, replayed");
  app.add_option("--kernel", options.kernel, "sm90, sm80");
  app.add_option("--dtype", options.dtype)->check(CLI::IsMember({"bf16", "fp16"}));
  app.add_option("--cublas", options.cublas, "Folder of cuBLAS, or of NVIDIA's pip packages");
  app.add_option("--nccl", options.nccl, "Folder of NCCL, or of NVIDIA's pip packages");
  app.add_option("--parallel", options.parallel, "GPUs that share the model");
  app.add_option("--logits", options.logits,
                 "Write logits of 16 positions, and all losses, to FILE.METHOD.SEQLEN");
  app.add_option("--layers", options.layers, "Layers of the seeded model");
  app.add_option("--warmup", options.warmup);
  app.add_option("--repeats", options.repeats);
  app.add_flag("--peers", options.peers, "Measure cuBLAS alone on the same products");
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
