#include "kernels/attention/quantised_input.h"

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

}  // namespace

std::int64_t num_head_scales(const Problem& problem) {
  return 2 * static_cast<std::int64_t>(problem.num_kv_heads) + problem.num_q_heads;
}

void place_head_scales(const Problem& problem, float* base, QuantisedInput& input) {
  input.key_scale = base;
  input.value_scale = base + problem.num_kv_heads;
  input.query_check = input.value_scale + problem.num_kv_heads;
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
