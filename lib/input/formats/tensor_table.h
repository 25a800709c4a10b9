// What every reader of a tensor file needs: a table of checked TensorInfos, looked up by name.
#pragma once

#include <map>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

#include "lib/input/formats/format.h"

namespace s2o {

// Bytes of a tensor of this shape. InputError "<where>: ..." when an extent is negative or the
// product does not fit in 63 bits.
std::size_t checked_tensor_bytes(const std::string& where, const std::vector<std::int64_t>& shape,
                                 DType dtype);

// "dir/x.safetensors: tensor 'q'"
std::string tensor_place(const std::string& file, std::string_view tensor);

// For writers: UnsupportedError "<path>: ..." unless every tensor has a unique name that is not
// empty. A byte count that contradicts the shape is our own bug (std::logic_error).
void check_writable(const std::filesystem::path& path, const std::vector<HostTensor>& tensors);

std::uint64_t total_bytes(const std::vector<HostTensor>& tensors);

// The half of a TensorFile that does not depend on the format.
class TensorTable : public TensorFile {
 public:
  const std::vector<TensorInfo>& tensors() const override { return tensors_; }
  const TensorMetadata& metadata() const override { return metadata_; }
  const std::map<std::string, std::string>& skipped() const override { return skipped_; }
  // Null when there is no such tensor.
  const TensorInfo* find(const std::string& name) const;

 protected:
  explicit TensorTable(std::string file) : file_(std::move(file)) {}

  // InputError when the name is there already.
  void add(TensorInfo info);
  // Notes a tensor that cannot be read. InputError when the name is there already.
  void skip(const std::string& name, std::string reason);
  // Position in tensors(). InputError with the nearest name when there is none, with the reason for
  // one that was skipped.
  std::size_t index_of(const std::string& name) const;
  const std::string& file() const { return file_; }

  TensorMetadata metadata_;

 private:
  std::string file_;
  std::vector<TensorInfo> tensors_;
  std::unordered_map<std::string, std::size_t> index_;
  std::map<std::string, std::string> skipped_;
};

}  // namespace s2o
