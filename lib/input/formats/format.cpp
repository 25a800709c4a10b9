#include "lib/input/formats/format.h"

#include <fmt/format.h>

#include <algorithm>
#include <cctype>

#include "lib/core/error.h"
#include "lib/core/text.h"
#include "lib/input/formats/npy_header.h"

namespace s2o {

#define S2O_FORMAT(name) const Format& format_##name();
#include "lib/input/formats/formats.def"
#undef S2O_FORMAT

namespace {

std::string lower(std::string text) {
  std::transform(text.begin(), text.end(), text.begin(),
                 [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
  return text;
}

}  // namespace

const std::vector<const Format*>& all_formats() {
  static const std::vector<const Format*> formats = {
#define S2O_FORMAT(name) &format_##name(),
#include "lib/input/formats/formats.def"
#undef S2O_FORMAT
  };
  return formats;
}

const Format* find_format(const std::filesystem::path& path) {
  const std::string name = lower(path.filename().string());
  for (const Format* format : all_formats()) {
    for (const std::string& extension : format->extensions()) {
      if (name.ends_with(extension)) return format;
    }
  }
  return nullptr;
}

const Format& format_of(const std::filesystem::path& path) {
  if (const Format* format = find_format(path)) return *format;
  std::vector<std::string> known;
  for (const Format* format : all_formats()) {
    for (const std::string& extension : format->extensions()) known.push_back(extension);
  }
  throw InputError(fmt::format("{}: unknown file format; expected a name that ends in one of: {}",
                               path.string(), join(known)));
}

const Format& output_format(const std::filesystem::path& path, std::size_t num_tensors) {
  const Format* format = nullptr;
  try {
    format = &format_of(path);
  } catch (const InputError& error) {
    throw ConfigError(error.what());
  }
  if (format->max_tensors() == 0) {
    throw ConfigError(
        fmt::format("{}: s2o cannot write the {} format", path.string(), format->name()));
  }
  if (format->max_tensors() < num_tensors) {
    throw ConfigError(
        fmt::format("{}: a file of the {} format holds {} tensor, expected room for {}",
                    path.string(), format->name(), format->max_tensors(), num_tensors));
  }
  if (path.extension() == ".json") {
    throw ConfigError(fmt::format("{}: is the name of an index; s2o writes one .safetensors file",
                                  path.string()));
  }
  return *format;
}

std::unique_ptr<TensorFile> open_tensor_file(const std::filesystem::path& path) {
  std::error_code ignored;  // what cannot be asked here fails with a message when it is opened
  if (!std::filesystem::is_directory(path, ignored)) return format_of(path).open(path);
  for (const char* name : {"model.safetensors.index.json", "model.safetensors"}) {
    if (std::filesystem::exists(path / name, ignored))
      return format_of(path / name).open(path / name);
  }
  return open_npy_folder(path);
}

}  // namespace s2o
