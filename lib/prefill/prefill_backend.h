// Where a whole model's prefill runs. `s2o prefill` plans, runs and measures through this interface
// alone; lib/prefill/prefill_cpu.cpp, slice_prefill.h and parallel_prefill.h implement it.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <nlohmann/json.hpp>
#include <span>
#include <string>
#include <vector>

#include "kernels/row_check/row_check.h"
#include "lib/config/run_config.h"
#include "lib/input/attention_input.h"
#include "lib/methods/method.h"
#include "lib/model/prefill.h"
#include "lib/model/weights.h"

namespace s2o {

// What is prefilled: a model read from files, or only its shape.
struct PrefillModel {
  ModelConfig config;
  // Null: weights are seeded random numbers, made where they are used. Such a model has times, no
  // accuracy; logits and losses are then never asked for.
  std::shared_ptr<const Model> weights;
  std::uint64_t seed = 0;  // of such weights
  // Attention of layer i reads replay[i % size] in place of the layer's own Q, K and V; the heads
  // of the model repeat those of the capture (lib/prefill/replay.h). A prompt of n tokens reads the
  // first n. Empty: attention reads the layer's own.
  std::vector<AttentionInput> replay;
  StorageDType dtype = StorageDType::kBF16;  // of Q, K and V
  std::string name;                          // of AttentionInputs; default: the model's
  bool allow_nonfinite = false;              // else NaN or infinity on the way is an InputError
  // Where cuBLAS lies: the folder of the library, or of NVIDIA's pip packages. Empty: where the
  // system looks. CUDA only.
  std::string cublas_folder;
  // GPUs that share the model: heads, columns of the MLP and the vocabulary split over them
  // (lib/prefill/model_slice.h). Above 1 CUDA only.
  int parallel = 1;
  std::string nccl_folder;  // as cublas_folder, of NCCL
};

// The attention of one layer.
struct LayerMethod {
  const Method* method = nullptr;
  const ParamSet* params = nullptr;
  // What single heads do instead, every head once, in order. Empty: what the method says.
  std::vector<HeadSetting> heads = {};
};
// What the heads of layer `index` do: at least one range, all heads in order.
std::vector<HeadSetting> heads_of(const LayerMethod& layer, int index, const Problem& problem);

// A setting on one query head, against dense attention of the same Q, K and V.
struct HeadProbe {
  double plan_ms = 0.0;  // the head's share of the time of all heads of the layer
  double attention_ms = 0.0;
  double alone_ms = 0.0;      // planning and attention of this head by itself
  double error = 0.0;         // sum of (out - dense)^2
  double reference = 0.0;     // sum of dense^2
  double mass = 1.0;          // mean over rows of the softmax mass of the visited keys
  double pair_density = 1.0;  // only where it was asked for
};
// What each head of a layer would cost and lose under other settings than the one it runs.
struct ProbeRequest {
  std::vector<LayerMethod> settings;
  std::vector<int> layers;    // ascending
  bool pair_density = false;  // counted on the host: takes longer than the attention
  // Gets [settings, num_q_heads] of each layer as soon as it is measured.
  std::function<void(int layer, const std::vector<std::vector<HeadProbe>>& probes)> done;
};

// What a prefill returns beside its times.
struct PrefillWanted {
  std::vector<std::int64_t> logit_positions;  // rows whose logits are returned, ascending
  // Rows whose last hidden state is returned, ascending. logits_of() makes logits of them, some at
  // a time: those of a thousand rows of a large vocabulary are a gigabyte.
  std::vector<std::int64_t> hidden_positions;
  bool losses = false;      // next-token loss of every position
  std::vector<int> layers;  // whose Q, K and V are returned, ascending
  // Rows of each layer whose attention is computed exactly, in the first, untimed pass; they are
  // those of checked_rows() (lib/prefill/error_estimate.h).
  int check_rows = 0;
  std::uint64_t check_seed = 0;
  bool densities = true;                 // else `layers` of the result stay empty
  const ProbeRequest* probes = nullptr;  // measured in the first, untimed pass; one GPU only
};

// Time to first token: from tokens on the device (or host, for the CPU) to the logits of the last
// position. The parts sum up to the total.
struct PrefillSplit {
  double total_ms = 0.0;
  double linear_ms = 0.0;         // matrix products of projections, MLP and the last logits
  double attention_ms = 0.0;      // attention kernels
  double planning_ms = 0.0;       // choosing what attention visits from Q, K and V, copies included
  double communication_ms = 0.0;  // waiting for sums over GPUs: what computing does not hide
  double rest_ms = 0.0;           // embedding, norms, RoPE, activation, residuals, and gaps between
};

// The attention of one layer in one prefill.
struct PrefillLayer {
  std::string planner = "cpu";  // as in a row of results (lib/eval/result_table.h)
  double compute_density = 1.0;
  double pair_density = 1.0;
};

struct PrefillRun {
  std::vector<PrefillSplit> repeats;  // one per timed repeat
  std::vector<PrefillLayer> layers;   // [num_layers]
  std::vector<float> logits;          // [logit_positions, vocab_size]
  std::vector<float> hidden;          // [hidden_positions, hidden_size], before the final norm
  std::vector<double> losses;  // [seqlen - 1] if asked for, nats; entry i predicts token i + 1
  std::vector<AttentionInput> layer_inputs;       // of the layers asked for, post-RoPE, rounded
  std::vector<std::vector<RowError>> row_errors;  // [num_layers][num_q_heads, rows]
  double check_ms = 0.0;                          // what they took, all layers
  std::int64_t device_bytes = 0;                  // planned peak, weights included; 0 on the CPU
};

// Bytes of a prefill by purpose, as it will be allocated.
struct PrefillMemory {
  struct Part {
    std::string name;  // "weights", "residual stream", "q, k, v", ...
    std::int64_t bytes = 0;
  };
  std::vector<Part> parts;
  std::int64_t total_bytes = 0;
  std::int64_t free_bytes = 0;      // before anything is allocated; on the device
  std::int64_t longest_seqlen = 0;  // that would fit
  int gpus = 1;                     // each of which takes that much
};

class PrefillBackend {
 public:
  virtual ~PrefillBackend() = default;
  virtual std::string name() const = 0;    // "cpu", "cuda"
  virtual std::string kernel() const = 0;  // "attention_ref", "attention_sm90"
  // The context fields device, driver, cuda and sm_clock_mhz; null where they mean nothing.
  virtual nlohmann::ordered_json context() = 0;
  // As Backend::lost.
  virtual std::string lost() { return ""; }
  // Of prompts of up to `seqlen` tokens. Plans of methods come on top; run() checks them.
  virtual PrefillMemory memory(std::int64_t seqlen) const = 0;
  // Allocates for prompts of up to `max_seqlen` tokens; weights are loaded once. UnsupportedError
  // with the bytes needed and free and the longest prompt that fits. run() does it for a longer
  // prompt than was prepared for.
  virtual void prepare(std::int64_t max_seqlen) = 0;
  // `layers` has one entry per layer of the model. Timing: warm-up and repeats as in an evaluation
  // (timing.cpu_repeats on the CPU), but densities come from an untimed run on CUDA: its first
  // warm-up, or one more where there is none. `wanted` is filled from the last repeat, outside the
  // time; its layer inputs from the first. Where they are all that is wanted, the CPU does not
  // compute the layers after them.
  // `progress` may be empty; it counts layers of all repeats.
  virtual PrefillRun run(std::span<const std::int32_t> tokens, std::span<const LayerMethod> layers,
                         const PrefillWanted& wanted, const TimingConfig& timing,
                         const PrefillProgress& progress) = 0;
  // Logits [rows, vocab_size] of rows [rows, hidden_size] of PrefillRun::hidden, of any run of this
  // backend. At most kLogitRows at a time.
  virtual void logits_of(std::span<const float> hidden, std::span<float> logits) = 0;
  static constexpr std::int64_t kLogitRows = 64;
};

// Whether a model can be split over GPUs here: one line of `s2o list devices`; and what of it was
// there at configure time.
struct SumStatus {
  bool usable = false;
  std::string detail;
};
SumStatus query_sums();
std::string sums_build_text();

// `auto` is CUDA if this build has kernels that run here, else the CPU, as make_backend.
// UnsupportedError as there, and where heads of a replay do not fit the model's.
std::unique_ptr<PrefillBackend> make_prefill_backend(PrefillModel model, const DeviceChoice& device,
                                                     const std::string& kernel = "auto");
std::unique_ptr<PrefillBackend> make_cpu_prefill(PrefillModel model);
// In builds without CUDA an UnsupportedError that says so.
// Of a model that several GPUs share, `device_index` is the first.
std::unique_ptr<PrefillBackend> make_cuda_prefill(PrefillModel model, int device_index,
                                                  const std::string& kernel_variant);

}  // namespace s2o
