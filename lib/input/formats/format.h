// File formats that hold named tensors. To add one: write lib/input/formats/baz.cpp that defines
// `const Format& format_baz()`, and add S2O_FORMAT(baz) to formats.def. The tests in
// lib/input/tests then run on it.
#pragma once

#include <cstddef>
#include <filesystem>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "lib/core/host_tensor.h"

namespace s2o {

// Free text beside the tensors: which model, which tokens. Formats without a place for it drop it.
using TensorMetadata = std::map<std::string, std::string>;

class TensorFile {
 public:
  virtual ~TensorFile() = default;
  // In file order, or sorted by name where a format has no order.
  virtual const std::vector<TensorInfo>& tensors() const = 0;
  // InputError when there is no such tensor (nearest name suggested) or its bytes are not there.
  virtual HostTensor read(const std::string& name) const = 0;
  virtual const TensorMetadata& metadata() const = 0;
  // What the file has besides tensors() and read() refuses, and why: other types, filters that are
  // not there. By name.
  virtual const std::map<std::string, std::string>& skipped() const = 0;
};

class Format {
 public:
  virtual ~Format() = default;
  virtual std::string name() const = 0;  // "safetensors"
  // {".safetensors"}: endings of file names, compared without case.
  virtual std::vector<std::string> extensions() const = 0;
  virtual std::string summary() const = 0;
  // The most tensors that a file can be written with; 0 = cannot be written.
  virtual std::size_t max_tensors() const = 0;
  bool can_write() const { return max_tensors() > 0; }
  // Parses and checks the header; InputError for anything broken. Never allocates by a length that
  // the file's size does not cover.
  virtual std::unique_ptr<TensorFile> open(const std::filesystem::path& path) const = 0;
  // Atomic (core/atomic_file.h, which also names the errors). UnsupportedError when the format
  // cannot hold these tensors.
  virtual void write(const std::filesystem::path& path, const std::vector<HostTensor>& tensors,
                     const TensorMetadata& metadata = {}) const = 0;
};

const std::vector<const Format*>& all_formats();
// By extension; null when none fits.
const Format* find_format(const std::filesystem::path& path);
// The same; InputError listing the known extensions when none fits.
const Format& format_of(const std::filesystem::path& path);
// Of a file to be written with `num_tensors` tensors. ConfigError, because the user named it, for
// an unknown extension or one that such a file cannot have.
const Format& output_format(const std::filesystem::path& path, std::size_t num_tensors);
// A file of a known format. A folder stands for what it holds: model.safetensors.index.json, else
// model.safetensors, else its .npy files.
std::unique_ptr<TensorFile> open_tensor_file(const std::filesystem::path& path);

}  // namespace s2o
