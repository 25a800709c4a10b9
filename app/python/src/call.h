// One call of the module, checked: what Python hands over becomes a problem and pointers.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <vector>

#include "kernels/common/plan_view.h"
#include "kernels/common/problem.h"
#include "lib/input/attention_input.h"
#include "lib/methods/method.h"
#include "lib/plan/work.h"

namespace s2o::python {

inline constexpr int kCpu = -1;  // as the index of a device; CUDA devices count from 0

// An array of some framework, as its own attributes describe it. Memory stays the framework's.
struct Tensor {
  std::string name;  // "q"
  void* data = nullptr;
  std::vector<std::int64_t> shape;
  std::vector<std::int64_t> strides;  // in elements; empty: contiguous
  std::string dtype;                  // "fp32", "bf16", "fp16", or what the framework calls it
  int device = kCpu;
};

// A method with its settings. Equal settings have equal ids.
struct Setting {
  const Method* method = nullptr;
  ParamSet params;
  std::int64_t id = 0;
  std::vector<ParamSet> head_params = {};  // as in HeadSetting
};
// ConfigErrors are those of a config: "s2o_plus.tuu: unknown key, did you mean 'tau'?".
Setting make_setting(const std::string& method, const nlohmann::ordered_json& params);

// The sequences of a batch lie one after the other in every array.
struct Call {
  Problem problem;  // of one sequence
  std::int64_t batch = 1;
  StorageDType dtype = StorageDType::kBF16;
  int device = kCpu;
  const void* q = nullptr;  // [batch, num_q_heads, seqlen, head_dim]
  const void* k = nullptr;  // [batch, num_kv_heads, seqlen, head_dim]
  const void* v = nullptr;  // [batch, num_kv_heads, seqlen, head_dim]
  void* out = nullptr;      // [batch, num_q_heads, seqlen, head_dim]; null for planning alone
  bool out_fp32 = false;    // else of the type of q
  float* lse = nullptr;     // [batch, num_q_heads, seqlen], may be null
  // Of a part: where it begins in what was given, for messages. -1: there is no batch.
  std::int64_t first_sequence = -1;
  int first_q_head = 0;
  int first_kv_head = 0;

  // The same for sequence `index` alone, and of one sequence for some heads.
  Call sequence(std::int64_t index) const;
  Call heads(const HeadRange& q_heads) const;
};
// InputError naming the array, what was found and what was expected. `softmax_scale` 0: 1 /
// sqrt(head_dim).
Call make_call(const Tensor& q, const Tensor& k, const Tensor& v, double softmax_scale);
void set_output(Call& call, const Tensor& out);
void set_lse(Call& call, const Tensor& lse);

// What one sequence took.
struct RunWork {
  std::string planner;  // as in results: "cuda", "cpu", "none"
  double compute_density = 1.0;
  double pair_density = 1.0;
  // Steps of block_n keys that each tile executed, over all passes. [num_plan_heads, num_q_tiles]
  std::vector<std::int32_t> steps;
  std::int64_t num_plan_heads = 0;
  std::int64_t num_q_tiles = 0;
};
RunWork make_work(const char* planner, const WorkCounts& counts,
                  const std::vector<TileStats>& stats, int num_plan_heads, int num_q_tiles);

}  // namespace s2o::python
