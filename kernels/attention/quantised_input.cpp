#include "kernels/attention/quantised_input.h"

#include <bit>
#include <cmath>

#include "kernels/attention/quantise.h"

namespace s2o {
namespace {

// Places arrays one after the other.
class Placement {
 public:
  explicit Placement(void* base) : base_(static_cast<unsigned char*>(base)) {}

  template <class T>
  void place(T*& array, std::int64_t count) {
    if (base_ != nullptr) array = reinterpret_cast<T*>(base_ + bytes);
    bytes += (count * static_cast<std::int64_t>(sizeof(T)) + 255) / 256 * 256;
  }
  std::int64_t bytes = 0;

 private:
  unsigned char* base_;
};

std::int64_t place_all(const Problem& problem, bool wide_values, void* base,
                       QuantisedInput& input) {
  const std::int64_t q_rows = problem.num_q_heads * problem.seqlen;
  const std::int64_t kv_elements = problem.row_offset(problem.num_kv_heads, 0);
  const std::int64_t kv_columns =
      static_cast<std::int64_t>(problem.num_kv_heads) * problem.head_dim;
  Placement placement(base);
  placement.place(input.q, q_rows * problem.head_dim);
  placement.place(input.k, kv_elements);
  if (wide_values) {
    placement.place(input.v_rows, kv_elements);
  } else {
    placement.place(input.v_columns, kv_columns * quantised_padding(problem.seqlen));
  }
  placement.place(input.logit_scale, q_rows);
  placement.place(input.lse_shift, q_rows);
  float* scales = nullptr;
  placement.place(scales, num_head_scales(problem));
  if (base != nullptr) place_head_scales(problem, scales, input);
  placement.place(input.mean, kv_columns);
  placement.place(input.parts, static_cast<std::int64_t>(problem.num_kv_heads) * kQuantiseParts *
                                   (3 * problem.head_dim + 2));
  return placement.bytes;
}

// What refused_scale was given; NaN or infinite where the scale says no more.
float found_of(float scale) {
  if (!std::isnan(scale)) return scale;
  const float found = std::bit_cast<float>((std::bit_cast<std::uint32_t>(scale) & 0x3fffffu) << 9);
  return found > 0.0f ? found : scale;
}

}  // namespace

std::int64_t num_head_scales(const Problem& problem) {
  return 2 * static_cast<std::int64_t>(problem.num_kv_heads) + problem.num_q_heads;
}

void place_head_scales(const Problem& problem, float* base, QuantisedInput& input) {
  input.key_scale = base;
  input.value_scale = base + problem.num_kv_heads;
  input.query_check = input.value_scale + problem.num_kv_heads;
}

void check_head_scales(const Problem& problem, const float* scales) {
  for (std::int64_t head = 0; head < problem.num_kv_heads; ++head) {
    if (std::isfinite(scales[head])) continue;
    const float found = found_of(scales[head]);
    if (!std::isfinite(found)) refuse_size("k", head, found);
    refuse_spread(head, std::sqrt(found));
  }
  scales += problem.num_kv_heads;
  for (std::int64_t head = 0; head < problem.num_kv_heads; ++head) {
    if (!std::isfinite(scales[head])) refuse_size("v", head, scales[head]);
  }
  scales += problem.num_kv_heads;
  for (std::int64_t head = 0; head < problem.num_q_heads; ++head) {
    if (std::isfinite(scales[head])) continue;
    const float found = found_of(scales[head]);
    if (!std::isfinite(found)) refuse_size("q", head, found);
    refuse_logit_scale(head, found);
  }
}

std::int64_t quantised_bytes(const Problem& problem, bool wide_values) {
  QuantisedInput input;
  return place_all(problem, wide_values, nullptr, input);
}

QuantisedInput place_quantised(const Problem& problem, bool wide_values, void* base) {
  QuantisedInput input;
  place_all(problem, wide_values, base, input);
  return input;
}

}  // namespace s2o
