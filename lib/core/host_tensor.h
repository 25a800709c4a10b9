// A named tensor as a file holds it: bytes, dtype, shape. No interpretation.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace s2o {

enum class DType : std::uint8_t {
  kF64,
  kF32,
  kF16,
  kBF16,
  kI64,
  kI32,
  kU32,
  kU16,
  kI16,
  kU8,
  kI8,
  kBool
};

// "F32", "BF16", ... as in the safetensors format.
std::string_view dtype_name(DType dtype);
// Bytes of one element.
std::size_t dtype_bytes(DType dtype);

struct TensorInfo {
  std::string name;
  DType dtype = DType::kF32;
  std::vector<std::int64_t> shape;
  std::size_t num_bytes = 0;
};

// "[32, 4096, 128]"
std::string shape_text(const std::vector<std::int64_t>& shape);

struct HostTensor {
  TensorInfo info;
  std::string file;  // for messages
  // info.num_bytes bytes, row-major. Keeps the mapping or buffer that holds them alive.
  std::shared_ptr<const std::byte> data;

  std::int64_t num_elements() const;
  // Elements converted to fp32: exact for F32, F16, BF16, rounded for F64. InputError for others.
  std::vector<float> to_float() const;
  // As above, into [begin, begin + count) of the flattened tensor.
  void copy_float(std::int64_t begin, std::int64_t count, float* out) const;
};

}  // namespace s2o
