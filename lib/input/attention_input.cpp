#include "lib/input/attention_input.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstddef>

#include "kernels/common/bf16.h"
#include "lib/core/error.h"

namespace s2o {
namespace {

void check_size(const AttentionInput& input, const char* tensor, const std::vector<float>& values,
                int heads) {
  const std::int64_t expected =
      static_cast<std::int64_t>(heads) * input.problem.seqlen * input.problem.head_dim;
  if (static_cast<std::int64_t>(values.size()) == expected) return;
  throw InputError(fmt::format("{}: tensor '{}': {} elements, expected {} for [{}, {}, {}]",
                               input.name, tensor, values.size(), expected, heads,
                               input.problem.seqlen, input.problem.head_dim));
}

void check_finite(const AttentionInput& input, const char* tensor,
                  const std::vector<float>& values) {
  const auto bad = std::find_if_not(values.begin(), values.end(),
                                    [](float value) { return std::isfinite(value); });
  if (bad == values.end()) return;
  const std::int64_t index = bad - values.begin();
  const std::int64_t d = input.problem.head_dim;
  const std::int64_t n = input.problem.seqlen;
  const auto count = std::count_if(bad, values.end(), [](float x) { return !std::isfinite(x); });
  throw InputError(fmt::format(
      "{}: layer {}: tensor '{}': {} at [head {}, token {}, dim {}] ({} such values), expected "
      "finite numbers; --allow-nonfinite goes on",
      input.name, input.layer, tensor, *bad, index / (n * d), index / d % n, index % d, count));
}

}  // namespace

std::string_view storage_dtype_name(StorageDType dtype) {
  switch (dtype) {
    case StorageDType::kF32:
      return "fp32";
    case StorageDType::kBF16:
      return "bf16";
    case StorageDType::kF16:
      return "fp16";
  }
  return "?";
}

StorageDType parse_storage_dtype(const std::string& name, const std::string& path) {
  for (const StorageDType dtype : {StorageDType::kF32, StorageDType::kBF16, StorageDType::kF16}) {
    if (storage_dtype_name(dtype) == name) return dtype;
  }
  throw ConfigError(
      fmt::format("{}: unknown dtype '{}'; expected one of: fp32, bf16, fp16", path, name));
}

void round_to_dtype(std::vector<float>& values, StorageDType dtype, const std::string& what) {
  if (dtype == StorageDType::kF32) return;
  for (std::size_t i = 0; i < values.size(); ++i) {
    const float rounded =
        dtype == StorageDType::kBF16 ? round_bf16(values[i]) : round_fp16(values[i]);
    if (!std::isfinite(rounded) && std::isfinite(values[i])) {
      throw InputError(fmt::format("{}: element {} is {}, too large for {}", what, i, values[i],
                                   storage_dtype_name(dtype)));
    }
    values[i] = rounded;
  }
}

void validate_attention_input(AttentionInput& input, bool allow_nonfinite) {
  Problem& problem = input.problem;
  if (problem.seqlen < 1 || problem.head_dim < 1 || problem.num_q_heads < 1 ||
      problem.num_kv_heads < 1) {
    throw InputError(fmt::format(
        "{}: seqlen {}, head_dim {}, {} query and {} KV heads, expected all >= 1", input.name,
        problem.seqlen, problem.head_dim, problem.num_q_heads, problem.num_kv_heads));
  }
  if (problem.num_q_heads % problem.num_kv_heads != 0) {
    throw InputError(fmt::format("{}: {} query heads are not a multiple of {} KV heads", input.name,
                                 problem.num_q_heads, problem.num_kv_heads));
  }
  check_size(input, "q", input.q, problem.num_q_heads);
  check_size(input, "k", input.k, problem.num_kv_heads);
  check_size(input, "v", input.v, problem.num_kv_heads);
  problem.softmax_scale = 1.0f / std::sqrt(static_cast<float>(problem.head_dim));
  if (allow_nonfinite) return;
  check_finite(input, "q", input.q);
  check_finite(input, "k", input.k);
  check_finite(input, "v", input.v);
}

}  // namespace s2o
