#include "app/python/src/call.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <mutex>

#include "lib/core/error.h"
#include "lib/methods/setting.h"

namespace s2o::python {
namespace {

// What TMA and 16-byte loads need of the first element.
constexpr std::uintptr_t kAlignment = 16;

std::string text_of(const std::vector<std::int64_t>& extents) {
  return fmt::format("[{}]", fmt::join(extents, ", "));
}

std::string device_name(int device) {
  return device == kCpu ? "cpu" : fmt::format("cuda:{}", device);
}

StorageDType storage_of(const Tensor& tensor) {
  for (const auto dtype : {StorageDType::kF32, StorageDType::kBF16, StorageDType::kF16}) {
    if (storage_dtype_name(dtype) == tensor.dtype) return dtype;
  }
  throw InputError(
      fmt::format("{}: dtype is {}, expected fp32, bf16 or fp16", tensor.name, tensor.dtype));
}

void check_layout(const Tensor& tensor) {
  if (tensor.strides.empty()) return;
  std::int64_t expected = 1;
  for (std::size_t i = tensor.shape.size(); i-- > 0;) {
    if (tensor.shape[i] != 1 && tensor.strides.at(i) != expected) {
      throw InputError(fmt::format(
          "{}: strides are {} for shape {}, expected a contiguous array; contiguous=True copies "
          "what is not",
          tensor.name, text_of(tensor.strides), text_of(tensor.shape)));
    }
    expected *= tensor.shape[i];
  }
}

void check_shape(const Tensor& tensor, const std::vector<std::int64_t>& expected,
                 const std::string& why) {
  if (tensor.shape == expected) return;
  throw InputError(fmt::format("{}: shape is {}, expected {} {}", tensor.name,
                               text_of(tensor.shape), text_of(expected), why));
}

void check_same(const Tensor& tensor, const std::string& dtype, int device) {
  if (tensor.device != device) {
    throw InputError(fmt::format("{}: is on {}, expected {}, where q is", tensor.name,
                                 device_name(tensor.device), device_name(device)));
  }
  if (tensor.dtype != dtype) {
    throw InputError(fmt::format("{}: dtype is {}, expected {}", tensor.name, tensor.dtype, dtype));
  }
}

void check_address(const Tensor& tensor) {
  if (tensor.data == nullptr) {
    throw InputError(fmt::format("{}: has shape {} and no memory, expected an array with values",
                                 tensor.name, text_of(tensor.shape)));
  }
  if (tensor.device == kCpu || reinterpret_cast<std::uintptr_t>(tensor.data) % kAlignment == 0) {
    return;
  }
  throw InputError(fmt::format("{}: begins at address {}, expected a multiple of {} bytes",
                               tensor.name, tensor.data, kAlignment));
}

// Tiles are written while others are still to be read.
void check_apart(const Tensor& out, std::int64_t out_bytes, const char* name, const void* other,
                 std::int64_t other_bytes) {
  const auto begin = reinterpret_cast<std::uintptr_t>(out.data);
  const auto other_begin = reinterpret_cast<std::uintptr_t>(other);
  if (begin >= other_begin + static_cast<std::uintptr_t>(other_bytes) ||
      other_begin >= begin + static_cast<std::uintptr_t>(out_bytes)) {
    return;
  }
  throw InputError(
      fmt::format("{}: shares memory with {}, expected an array of its own", out.name, name));
}

int to_extent(const Tensor& tensor, std::int64_t extent) {
  if (extent <= std::numeric_limits<int>::max()) return static_cast<int>(extent);
  throw InputError(fmt::format("{}: shape is {}, extents of heads and head_dim are at most {}",
                               tensor.name, text_of(tensor.shape),
                               std::numeric_limits<int>::max()));
}

template <class Pointer>
Pointer advanced(Pointer pointer, std::int64_t bytes) {
  using Byte =
      std::conditional_t<std::is_const_v<std::remove_pointer_t<Pointer>>, const char, char>;
  return pointer == nullptr ? nullptr : static_cast<Byte*>(pointer) + bytes;
}

// What a config, or a tuned file, may ask of any method is not of its own parameters.
void refuse_quantised(const Method& method, const std::string& name,
                      const nlohmann::ordered_json& value) {
  const auto is_named = [&name](const ParamSpec& spec) { return spec.name == name; };
  const MethodInfo& info = method.info();
  if (std::ranges::any_of(info.params, is_named)) return;
  if (std::ranges::none_of(setting_specs(info), is_named)) return;
  throw ConfigError(fmt::format(
      "{}.{}: found {}, expected no such key here: attention in 8 bits is of `s2o eval` "
      "and `s2o prefill`, this module takes Q, K and V as they are stored",
      info.name, name, value.dump()));
}

}  // namespace

Setting make_setting(const std::string& method, const nlohmann::ordered_json& params) {
  Setting setting;
  setting.method = &find_method(method);
  const std::vector<ParamSpec>& specs = setting.method->info().params;
  setting.params = ParamSet(specs);
  for (const auto& [name, value] : params.items()) {
    refuse_quantised(*setting.method, name, value);
    setting.params.set(specs, name, value, method);
  }
  check_settings(*setting.method, setting.params, method);
  static std::mutex mutex;
  static std::map<std::string, std::int64_t> ids;
  const std::lock_guard<std::mutex> lock(mutex);
  const std::string text = method + setting.params.to_json().dump();
  setting.id = ids.try_emplace(text, static_cast<std::int64_t>(ids.size())).first->second;
  return setting;
}

Call Call::sequence(std::int64_t index) const {
  const std::int64_t rows = problem.num_q_heads * problem.seqlen;
  const std::int64_t element = dtype == StorageDType::kF32 ? 4 : 2;
  const std::int64_t q_size = rows * problem.head_dim;
  const std::int64_t kv_size = problem.row_offset(problem.num_kv_heads, 0);
  Call call = *this;
  call.batch = 1;
  if (batch > 1) call.first_sequence = index;
  call.q = advanced(q, index * q_size * element);
  call.k = advanced(k, index * kv_size * element);
  call.v = advanced(v, index * kv_size * element);
  call.out = advanced(out, index * q_size * (out_fp32 ? 4 : element));
  call.lse = lse == nullptr ? nullptr : lse + index * rows;
  return call;
}

Call Call::heads(const HeadRange& q_heads) const {
  const std::int64_t element = dtype == StorageDType::kF32 ? 4 : 2;
  const std::int64_t first_q = problem.row_offset(q_heads.first, 0);
  const int kv_head = s2o::first_kv_head(problem, q_heads);
  const std::int64_t first_kv = problem.row_offset(kv_head, 0);
  Call call = *this;
  call.first_q_head += q_heads.first;
  call.first_kv_head += kv_head;
  call.problem = head_slice(problem, q_heads);
  call.q = advanced(q, first_q * element);
  call.k = advanced(k, first_kv * element);
  call.v = advanced(v, first_kv * element);
  call.out = advanced(out, first_q * (out_fp32 ? 4 : element));
  call.lse = lse == nullptr ? nullptr : lse + q_heads.first * problem.seqlen;
  return call;
}

Call make_call(const Tensor& q, const Tensor& k, const Tensor& v, double softmax_scale) {
  const std::size_t rank = q.shape.size();
  if (rank != 3 && rank != 4) {
    throw InputError(fmt::format(
        "q: shape is {}, expected [heads, seqlen, head_dim] or [batch, heads, seqlen, head_dim]",
        text_of(q.shape)));
  }
  Call call;
  call.dtype = storage_of(q);
  call.device = q.device;
  check_same(k, q.dtype, q.device);
  check_same(v, q.dtype, q.device);
  std::vector<std::int64_t> expected = q.shape;
  if (k.shape.size() == rank) expected[rank - 3] = k.shape[rank - 3];
  check_shape(k, expected,
              fmt::format("(KV heads, then seqlen and head_dim of q {})", text_of(q.shape)));
  check_shape(v, k.shape, "(that of k)");
  for (const Tensor* tensor : {&q, &k, &v}) {
    for (const std::int64_t extent : tensor->shape) {
      if (extent > 0) continue;
      throw InputError(fmt::format("{}: shape is {}, expected no empty extent", tensor->name,
                                   text_of(tensor->shape)));
    }
    check_layout(*tensor);
    check_address(*tensor);
  }
  call.batch = rank == 4 ? q.shape[0] : 1;
  Problem& problem = call.problem;
  problem.num_q_heads = to_extent(q, q.shape[rank - 3]);
  problem.seqlen = q.shape[rank - 2];
  problem.head_dim = to_extent(q, q.shape[rank - 1]);
  problem.num_kv_heads = to_extent(k, k.shape[rank - 3]);
  if (problem.num_q_heads % problem.num_kv_heads != 0) {
    throw InputError(fmt::format("q, k: {} query heads are not a multiple of {} KV heads",
                                 problem.num_q_heads, problem.num_kv_heads));
  }
  if (softmax_scale == 0.0) softmax_scale = 1.0 / std::sqrt(static_cast<double>(problem.head_dim));
  if (!std::isfinite(softmax_scale) || softmax_scale < 0.0) {
    throw InputError(
        fmt::format("softmax_scale: found {}, expected a positive number", softmax_scale));
  }
  problem.softmax_scale =
      softmax_scale > 0.0 && softmax_scale == 1.0 / std::sqrt(static_cast<double>(problem.head_dim))
          // The same bits as an input of `s2o eval` has.
          ? 1.0f / std::sqrt(static_cast<float>(problem.head_dim))
          : static_cast<float>(softmax_scale);
  call.q = q.data;
  call.k = k.data;
  call.v = v.data;
  return call;
}

void set_output(Call& call, const Tensor& out) {
  const Problem& p = call.problem;
  std::vector<std::int64_t> expected = {p.num_q_heads, p.seqlen, p.head_dim};
  if (out.shape.size() == 4) expected.insert(expected.begin(), call.batch);
  check_shape(out, expected, "(that of q)");
  call.out_fp32 = out.dtype == storage_dtype_name(StorageDType::kF32);
  check_same(out, call.out_fp32 ? "fp32" : std::string(storage_dtype_name(call.dtype)),
             call.device);
  check_layout(out);
  check_address(out);
  const std::int64_t element = call.dtype == StorageDType::kF32 ? 4 : 2;
  const std::int64_t row = call.batch * p.seqlen * p.head_dim;
  const std::int64_t q_bytes = p.num_q_heads * row * element;
  const std::int64_t kv_bytes = p.num_kv_heads * row * element;
  const std::int64_t out_bytes = p.num_q_heads * row * (call.out_fp32 ? 4 : element);
  check_apart(out, out_bytes, "q", call.q, q_bytes);
  check_apart(out, out_bytes, "k", call.k, kv_bytes);
  check_apart(out, out_bytes, "v", call.v, kv_bytes);
  call.out = out.data;
}

void set_lse(Call& call, const Tensor& lse) {
  std::vector<std::int64_t> expected = {call.problem.num_q_heads, call.problem.seqlen};
  if (lse.shape.size() == 3) expected.insert(expected.begin(), call.batch);
  check_shape(lse, expected, "(heads, seqlen)");
  check_same(lse, "fp32", call.device);
  check_layout(lse);
  check_address(lse);
  call.lse = static_cast<float*>(lse.data);
}

RunWork make_work(const char* planner, const WorkCounts& counts,
                  const std::vector<TileStats>& stats, int num_plan_heads, int num_q_tiles) {
  RunWork work;
  work.planner = planner;
  work.compute_density = counts.compute_density();
  work.pair_density = counts.pair_density();
  work.num_plan_heads = num_plan_heads;
  work.num_q_tiles = num_q_tiles;
  const auto tiles = static_cast<std::size_t>(work.num_plan_heads * work.num_q_tiles);
  work.steps.assign(tiles, 0);
  for (std::size_t i = 0; i < stats.size(); ++i) work.steps[i % tiles] += stats[i].total_steps;
  return work;
}

}  // namespace s2o::python
