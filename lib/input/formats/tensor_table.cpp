#include "lib/input/formats/tensor_table.h"

#include <fmt/format.h>

#include <limits>
#include <set>
#include <stdexcept>

#include "lib/config/json_reader.h"
#include "lib/core/error.h"
#include "lib/core/text.h"

namespace s2o {
namespace {

// A model has thousands of tensors; a message lists a few.
constexpr std::size_t kMaxListedNames = 12;

std::string names_text(const std::vector<TensorInfo>& tensors) {
  std::vector<std::string> names;
  for (const TensorInfo& info : tensors) {
    if (names.size() == kMaxListedNames) break;
    names.push_back(info.name);
  }
  const std::string list = join(names);
  if (names.size() == tensors.size()) return list.empty() ? "none" : list;
  return fmt::format("{}, ... ({} in all)", list, tensors.size());
}

}  // namespace

std::size_t checked_tensor_bytes(const std::string& where, const std::vector<std::int64_t>& shape,
                                 DType dtype) {
  bool is_empty = false;
  for (const std::int64_t extent : shape) {
    if (extent < 0) {
      throw InputError(
          fmt::format("{}: shape is {}, expected no negative extent", where, shape_text(shape)));
    }
    is_empty |= extent == 0;
  }
  if (is_empty) return 0;
  std::int64_t bytes = static_cast<std::int64_t>(dtype_bytes(dtype));
  for (const std::int64_t extent : shape) {
    if (__builtin_mul_overflow(bytes, extent, &bytes)) {
      throw InputError(fmt::format("{}: shape {} of {} overflows 63 bits", where, shape_text(shape),
                                   dtype_name(dtype)));
    }
  }
  return static_cast<std::size_t>(bytes);
}

std::string tensor_place(const std::string& file, std::string_view tensor) {
  return fmt::format("{}: tensor '{}'", file, tensor);
}

void check_writable(const std::filesystem::path& path, const std::vector<HostTensor>& tensors) {
  std::set<std::string> names;
  for (const HostTensor& tensor : tensors) {
    const TensorInfo& info = tensor.info;
    const std::string where = tensor_place(path.string(), info.name);
    if (info.name.empty()) throw UnsupportedError(where + ": a tensor needs a name");
    if (!names.insert(info.name).second) throw UnsupportedError(where + ": name occurs twice");
    if (checked_tensor_bytes(where, info.shape, info.dtype) != info.num_bytes) {
      throw std::logic_error(
          fmt::format("{}: {} bytes for shape {}", where, info.num_bytes, shape_text(info.shape)));
    }
  }
}

std::uint64_t total_bytes(const std::vector<HostTensor>& tensors) {
  std::uint64_t bytes = 0;
  for (const HostTensor& tensor : tensors) bytes += tensor.info.num_bytes;
  return bytes;
}

void TensorTable::add(TensorInfo info) {
  if (skipped_.contains(info.name) || !index_.emplace(info.name, tensors_.size()).second) {
    throw InputError(tensor_place(file_, info.name) + ": name occurs twice");
  }
  tensors_.push_back(std::move(info));
}

void TensorTable::skip(const std::string& name, std::string reason) {
  if (index_.contains(name) || !skipped_.emplace(name, std::move(reason)).second) {
    throw InputError(tensor_place(file_, name) + ": name occurs twice");
  }
}

const TensorInfo* TensorTable::find(const std::string& name) const {
  const auto found = index_.find(name);
  return found != index_.end() ? &tensors_[found->second] : nullptr;
}

std::size_t TensorTable::index_of(const std::string& name) const {
  const auto found = index_.find(name);
  if (found != index_.end()) return found->second;
  const auto skipped = skipped_.find(name);
  if (skipped != skipped_.end()) throw InputError(skipped->second);
  std::vector<std::string> names;
  for (const TensorInfo& info : tensors_) names.push_back(info.name);
  throw InputError(fmt::format("{}: no tensor '{}'{}; tensors: {}", file_, name,
                               did_you_mean(name, names), names_text(tensors_)));
}

}  // namespace s2o
