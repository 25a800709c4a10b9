#include "lib/model/tokens.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <cstring>
#include <string_view>
#include <system_error>

#include "lib/core/error.h"
#include "lib/core/mapped_file.h"
#include "lib/core/text.h"
#include "lib/input/formats/format.h"

namespace s2o {
namespace {

template <class Id>
std::vector<std::int64_t> widen(const HostTensor& tensor) {
  std::vector<std::int64_t> ids(static_cast<std::size_t>(tensor.num_elements()));
  for (std::size_t i = 0; i < ids.size(); ++i) {
    Id id;
    std::memcpy(&id, tensor.data.get() + i * sizeof id, sizeof id);
    ids[i] = id;
  }
  return ids;
}

std::vector<std::int64_t> ids_of_tensor(const HostTensor& tensor) {
  const std::vector<std::int64_t>& shape = tensor.info.shape;
  const bool is_row = shape.size() == 2 && shape[0] == 1;
  if (shape.size() != 1 && !is_row) {
    throw InputError(fmt::format("{}: tensor '{}': shape is {}, expected [n] or [1, n]",
                                 tensor.file, tensor.info.name, shape_text(shape)));
  }
  switch (tensor.info.dtype) {
    case DType::kI32:
      return widen<std::int32_t>(tensor);
    case DType::kI64:
      return widen<std::int64_t>(tensor);
    case DType::kU16:
      return widen<std::uint16_t>(tensor);
    default:
      throw InputError(fmt::format("{}: tensor '{}': dtype is {}, expected I32, I64 or U16",
                                   tensor.file, tensor.info.name, dtype_name(tensor.info.dtype)));
  }
}

std::vector<std::int64_t> ids_of_tensor_file(const std::filesystem::path& path) {
  const std::unique_ptr<TensorFile> file = open_tensor_file(path);
  // An npy file holds one array, whose name means nothing.
  const bool is_npy = path.extension() == ".npy" && file->tensors().size() == 1;
  return ids_of_tensor(file->read(is_npy ? file->tensors().front().name : "input_ids"));
}

// The start of a word, with anything unprintable replaced.
std::string printable(std::string_view word) {
  std::string text(word.substr(0, 20));
  for (char& c : text) {
    if (c < ' ' || c > '~') c = '?';
  }
  return word.size() > 20 ? text + "..." : text;
}

std::vector<std::int64_t> ids_of_text(const std::filesystem::path& path) {
  const auto mapping = MappedFile::open(path);
  const std::string_view text(reinterpret_cast<const char*>(mapping->bytes().data()),
                              mapping->bytes().size());
  constexpr std::string_view kSpace = " \t\r\n\f\v";
  std::vector<std::int64_t> ids;
  for (std::size_t begin = text.find_first_not_of(kSpace); begin != std::string_view::npos;) {
    const std::size_t end = std::min(text.find_first_of(kSpace, begin), text.size());
    std::int64_t id = 0;
    const auto [rest, status] = std::from_chars(text.data() + begin, text.data() + end, id);
    if (status != std::errc() || rest != text.data() + end) {
      const auto line = 1 + std::count(text.begin(), text.begin() + begin, '\n');
      throw InputError(fmt::format("{}: line {}: found '{}' at index {}, expected a token id",
                                   path.string(), line, printable(text.substr(begin, end - begin)),
                                   ids.size()));
    }
    ids.push_back(id);
    begin = text.find_first_not_of(kSpace, end);
  }
  return ids;
}

}  // namespace

TokenFile read_token_file(const std::filesystem::path& path) {
  return {.file = path.string(),
          .ids = find_format(path) != nullptr ? ids_of_tensor_file(path) : ids_of_text(path)};
}

std::vector<std::int32_t> select_tokens(const TokenFile& file, std::int64_t offset,
                                        std::int64_t seqlen, int vocab_size) {
  const auto size = static_cast<std::int64_t>(file.ids.size());
  if (offset < 0 || seqlen < 1 || offset > size || seqlen > size - offset) {
    throw InputError(fmt::format("{}: {} token ids, expected at least offset {} + seqlen {}",
                                 file.file, size, offset, seqlen));
  }
  std::vector<std::int32_t> tokens(static_cast<std::size_t>(seqlen));
  for (std::int64_t i = 0; i < seqlen; ++i) {
    const std::int64_t id = file.ids[offset + i];
    if (id < 0 || id >= vocab_size) {
      throw InputError(fmt::format("{}: token id {} at index {}, expected an id in [0, {})",
                                   file.file, id, offset + i, vocab_size));
    }
    tokens[i] = static_cast<std::int32_t>(id);
  }
  return tokens;
}

std::string tokens_hash(const std::vector<std::int32_t>& tokens) {
  return hash_hex({reinterpret_cast<const char*>(tokens.data()), tokens.size() * sizeof tokens[0]});
}

}  // namespace s2o
