#include "lib/core/host_tensor.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <cstring>

#include "kernels/common/bf16.h"
#include "lib/core/error.h"

namespace s2o {

std::string_view dtype_name(DType dtype) {
  switch (dtype) {
    case DType::kF64:
      return "F64";
    case DType::kF32:
      return "F32";
    case DType::kF16:
      return "F16";
    case DType::kBF16:
      return "BF16";
    case DType::kI64:
      return "I64";
    case DType::kI32:
      return "I32";
    case DType::kU32:
      return "U32";
    case DType::kU16:
      return "U16";
    case DType::kI16:
      return "I16";
    case DType::kU8:
      return "U8";
    case DType::kI8:
      return "I8";
    case DType::kBool:
      return "BOOL";
  }
  return "?";
}

std::size_t dtype_bytes(DType dtype) {
  switch (dtype) {
    case DType::kF64:
    case DType::kI64:
      return 8;
    case DType::kF32:
    case DType::kI32:
    case DType::kU32:
      return 4;
    case DType::kF16:
    case DType::kBF16:
    case DType::kU16:
    case DType::kI16:
      return 2;
    case DType::kU8:
    case DType::kI8:
    case DType::kBool:
      return 1;
  }
  return 0;
}

std::string shape_text(const std::vector<std::int64_t>& shape) {
  return fmt::format("[{}]", fmt::join(shape, ", "));
}

std::int64_t HostTensor::num_elements() const {
  return static_cast<std::int64_t>(info.num_bytes / dtype_bytes(info.dtype));
}

std::vector<float> HostTensor::to_float() const {
  std::vector<float> values(static_cast<std::size_t>(num_elements()));
  copy_float(0, num_elements(), values.data());
  return values;
}

void HostTensor::copy_float(std::int64_t begin, std::int64_t count, float* out) const {
  const std::byte* source = data.get() + static_cast<std::size_t>(begin) * dtype_bytes(info.dtype);
  const auto n = static_cast<std::size_t>(count);
  if (info.dtype == DType::kF32) {
    if (n > 0) std::memcpy(out, source, n * sizeof(float));  // nothing may have no address
    return;
  }
  if (info.dtype == DType::kF64) {
    for (std::size_t i = 0; i < n; ++i) {
      double value;
      std::memcpy(&value, source + sizeof value * i, sizeof value);
      out[i] = static_cast<float>(value);
    }
    return;
  }
  if (info.dtype != DType::kBF16 && info.dtype != DType::kF16) {
    throw InputError(fmt::format("{}: tensor '{}': dtype is {}, expected F64, F32, F16 or BF16",
                                 file, info.name, dtype_name(info.dtype)));
  }
  const bool is_bf16 = info.dtype == DType::kBF16;
  for (std::size_t i = 0; i < n; ++i) {
    std::uint16_t bits;
    std::memcpy(&bits, source + 2 * i, sizeof bits);
    out[i] = is_bf16 ? bf16_to_float(bits) : fp16_to_float(bits);
  }
}

}  // namespace s2o
