#include "lib/input/attention_input.h"

#include <fmt/format.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstddef>
#include <vector>

#include "kernels/common/bf16.h"
#include "kernels/common/parallel.h"
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

// The first index for which is_bad(index) holds, and how many there are. Calls it once an index, on
// all processors: the billions of elements of a long input would take one of them a while.
struct BadElements {
  std::size_t first;
  std::int64_t count;
};
template <class IsBad>
BadElements find_bad(std::size_t size, const IsBad& is_bad) {
  constexpr std::size_t kChunk = std::size_t{1} << 20;
  std::atomic<std::size_t> first = size;
  std::atomic<std::int64_t> count = 0;
  parallel_for(static_cast<std::int64_t>((size + kChunk - 1) / kChunk), [&](std::int64_t chunk) {
    const std::size_t begin = static_cast<std::size_t>(chunk) * kChunk;
    const std::size_t end = std::min(begin + kChunk, size);
    std::size_t first_here = size;
    std::int64_t count_here = 0;
    for (std::size_t i = begin; i < end; ++i) {
      if (!is_bad(i)) continue;
      first_here = std::min(first_here, i);
      ++count_here;
    }
    count += count_here;
    std::size_t known = first;
    while (first_here < known && !first.compare_exchange_weak(known, first_here)) {
    }
  });
  return {first, count};
}

void check_finite(const AttentionInput& input, const char* tensor,
                  const std::vector<float>& values) {
  const auto [first, count] =
      find_bad(values.size(), [&](std::size_t i) { return !std::isfinite(values[i]); });
  if (count == 0) return;
  const auto index = static_cast<std::int64_t>(first);
  const std::int64_t d = input.problem.head_dim;
  const std::int64_t n = input.problem.seqlen;
  throw InputError(fmt::format(
      "{}: layer {}: tensor '{}': {} at [head {}, token {}, dim {}] ({} such values), expected "
      "finite numbers; s2o eval and capture go on with --allow-nonfinite",
      input.name, input.layer, tensor, values[first], index / (n * d), index / d % n, index % d,
      count));
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

int first_kv_head(const Problem& problem, const HeadRange& q_heads) {
  return q_heads.first / problem.group_size();
}

Problem head_slice(const Problem& problem, const HeadRange& q_heads) {
  const int group = problem.group_size();
  const int end = q_heads.first + q_heads.count;
  const bool is_inside = q_heads.first >= 0 && q_heads.count > 0 && end <= problem.num_q_heads;
  const bool is_whole = q_heads.first % group == 0 && end % group == 0;
  if (!is_inside || (!is_whole && q_heads.first / group != (end - 1) / group)) {
    throw Error(fmt::format(
        "heads [{}, {}) of {}: expected all of some KV heads, or some of one ({} query heads each)",
        q_heads.first, end, problem.num_q_heads, group));
  }
  Problem slice = problem;
  slice.num_q_heads = q_heads.count;
  slice.num_kv_heads = is_whole ? q_heads.count / group : 1;
  return slice;
}

AttentionInput head_slice(const AttentionInput& input, const HeadRange& q_heads) {
  AttentionInput slice{.name = input.name,
                       .layer = input.layer,
                       .dtype = input.dtype,
                       .problem = head_slice(input.problem, q_heads)};
  const auto copy = [&](const std::vector<float>& heads, int first, int count) {
    const auto size = static_cast<std::ptrdiff_t>(input.problem.row_offset(1, 0));
    return std::vector<float>(heads.begin() + first * size, heads.begin() + (first + count) * size);
  };
  const int kv_head = first_kv_head(input.problem, q_heads);
  slice.q = copy(input.q, q_heads.first, q_heads.count);
  slice.k = copy(input.k, kv_head, slice.problem.num_kv_heads);
  slice.v = copy(input.v, kv_head, slice.problem.num_kv_heads);
  return slice;
}

void round_to_dtype(std::vector<float>& values, StorageDType dtype, const std::string& what) {
  if (dtype == StorageDType::kF32) return;
  const auto bad = find_bad(values.size(), [&](std::size_t i) {
    const float rounded =
        dtype == StorageDType::kBF16 ? round_bf16(values[i]) : round_fp16(values[i]);
    if (!std::isfinite(rounded) && std::isfinite(values[i])) return true;  // keeps its value
    values[i] = rounded;
    return false;
  });
  if (bad.count == 0) return;
  throw InputError(fmt::format("{}: element {} is {}, too large for {}", what, bad.first,
                               values[bad.first], storage_dtype_name(dtype)));
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
