#include "lib/input/formats/npy_header.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <cstring>
#include <numeric>
#include <optional>
#include <string_view>
#include <utility>

#include "lib/core/error.h"
#include "lib/core/memory.h"
#include "lib/input/formats/tensor_table.h"

namespace s2o {
namespace {

constexpr std::string_view kMagic("\x93NUMPY", 6);
constexpr std::size_t kNpyAlignment = 64;
constexpr std::size_t kMaxRank = 64;

struct NumpyType {
  std::string_view code;  // without the byte order
  DType dtype;
};
constexpr std::array kNumpyTypes = {
    NumpyType{"f8", DType::kF64}, NumpyType{"f4", DType::kF32}, NumpyType{"f2", DType::kF16},
    NumpyType{"i8", DType::kI64}, NumpyType{"i4", DType::kI32}, NumpyType{"u4", DType::kU32},
    NumpyType{"u2", DType::kU16}, NumpyType{"i2", DType::kI16}, NumpyType{"u1", DType::kU8},
    NumpyType{"i1", DType::kI8},  NumpyType{"b1", DType::kBool}};

DType dtype_of(const std::string& where, std::string_view descr) {
  if (descr.size() >= 2) {
    const char order = descr[0];
    const std::string_view code = descr.substr(1);
    for (const NumpyType& type : kNumpyTypes) {
      if (code != type.code) continue;
      if (order == '<' || dtype_bytes(type.dtype) == 1) return type.dtype;
      throw InputError(
          fmt::format("{}: dtype is '{}', big-endian; expected '<{}'", where, descr, code));
    }
    if (code == "V2") {
      throw InputError(fmt::format(
          "{}: dtype is '{}': numpy has no bfloat16, so its meaning is lost; store bfloat16 as "
          "safetensors, or as HDF5 uint16 with the attribute dtype = \"bfloat16\"",
          where, descr));
    }
  }
  std::string known;
  for (const NumpyType& type : kNumpyTypes) {
    known += fmt::format("{}{}", known.empty() ? "" : ", ", type.code);
  }
  throw InputError(fmt::format("{}: dtype is '{}', expected one of: {}", where, descr, known));
}

// The header is a literal Python dict with three keys:
// {'descr': '<f4', 'fortran_order': False, 'shape': (3, 4), }
class DictParser {
 public:
  DictParser(std::string where, std::string_view text) : where_(std::move(where)), text_(text) {}

  void parse() {
    expect('{');
    while (!accept('}')) {
      const std::string key = parse_string();
      expect(':');
      if (key == "descr" && !descr_) {
        if (peek() == '[') fail("a structured dtype, expected a plain one");
        descr_ = parse_string();
      } else if (key == "fortran_order" && !fortran_order_) {
        fortran_order_ = parse_bool();
      } else if (key == "shape" && !shape_) {
        shape_ = parse_shape();
      } else {
        fail(fmt::format("key '{}' is unknown or occurs twice", key));
      }
      if (!accept(',') && peek() != '}') fail("expected ',' or '}'");
    }
    if (peek() != '\0') fail("text after the closing '}'");
    if (!descr_ || !fortran_order_ || !shape_) {
      fail("expected the keys 'descr', 'fortran_order' and 'shape'");
    }
  }

  const std::string& descr() const { return *descr_; }
  bool fortran_order() const { return *fortran_order_; }
  const std::vector<std::int64_t>& shape() const { return *shape_; }

 private:
  [[noreturn]] void fail(const std::string& what) const {
    throw InputError(fmt::format("{}: header, offset {}: {}", where_, position_, what));
  }

  // The next character that is no space; '\0' at the end.
  char peek() {
    while (position_ < text_.size() && (text_[position_] == ' ' || text_[position_] == '\n')) {
      ++position_;
    }
    return position_ < text_.size() ? text_[position_] : '\0';
  }
  bool accept(char c) {
    if (peek() != c) return false;
    ++position_;
    return true;
  }
  void expect(char c) {
    if (!accept(c)) fail(fmt::format("expected '{}'", c));
  }

  std::string parse_string() {
    const char quote = peek();
    if (quote != '\'' && quote != '"') fail("expected a string");
    const std::size_t end = text_.find(quote, position_ + 1);
    if (end == std::string_view::npos) fail("string without an end");
    const std::string value(text_.substr(position_ + 1, end - position_ - 1));
    position_ = end + 1;
    return value;
  }

  bool parse_bool() {
    peek();
    for (const auto& [word, value] : {std::pair("True", true), std::pair("False", false)}) {
      if (!text_.substr(position_).starts_with(word)) continue;
      position_ += std::strlen(word);
      return value;
    }
    fail("expected True or False");
  }

  std::vector<std::int64_t> parse_shape() {
    std::vector<std::int64_t> shape;
    expect('(');
    while (!accept(')')) {
      if (shape.size() == kMaxRank) fail(fmt::format("more than {} dimensions", kMaxRank));
      peek();
      std::int64_t extent = 0;
      const char* begin = text_.data() + position_;
      const auto [end, error] = std::from_chars(begin, text_.data() + text_.size(), extent);
      if (error != std::errc()) fail("expected an integer below 2^63");
      position_ += static_cast<std::size_t>(end - begin);
      shape.push_back(extent);
      if (!accept(',') && peek() != ')') fail("expected ',' or ')'");
    }
    return shape;
  }

  std::string where_;
  std::string_view text_;
  std::size_t position_ = 0;
  std::optional<std::string> descr_;
  std::optional<bool> fortran_order_;
  std::optional<std::vector<std::int64_t>> shape_;
};

// dst in C order from src in Fortran order; kBytes is the size of an element.
template <std::size_t kBytes>
void transpose(const std::vector<std::int64_t>& shape, const std::byte* src, std::byte* dst) {
  const std::size_t rank = shape.size();
  std::array<std::int64_t, kMaxRank> stride{1};  // of src, in elements
  for (std::size_t i = 1; i < rank; ++i) stride[i] = stride[i - 1] * shape[i - 1];
  const std::int64_t count = stride[rank - 1] * shape[rank - 1];
  std::array<std::int64_t, kMaxRank> index{};
  std::int64_t from = 0;
  for (std::int64_t to = 0; to < count; ++to) {
    std::memcpy(dst + static_cast<std::size_t>(to) * kBytes,
                src + static_cast<std::size_t>(from) * kBytes, kBytes);
    for (std::size_t axis = rank; axis-- > 0;) {
      from += stride[axis];
      if (++index[axis] < shape[axis]) break;
      from -= stride[axis] * shape[axis];
      index[axis] = 0;
    }
  }
}

}  // namespace

NpyHeader parse_npy_header(const std::string& where, std::span<const std::byte> bytes,
                           std::uint64_t file_bytes) {
  const std::string_view text(reinterpret_cast<const char*>(bytes.data()), bytes.size());
  if (!text.starts_with(kMagic)) throw InputError(where + ": does not begin with the npy magic");
  if (text.size() < kMagic.size() + 4) throw InputError(where + ": header is truncated");
  const int version = static_cast<unsigned char>(text[6]);
  if (version < 1 || version > 3 || text[7] != 0) {
    throw InputError(fmt::format("{}: npy version is {}.{}, expected 1.0, 2.0 or 3.0", where,
                                 version, static_cast<unsigned char>(text[7])));
  }
  // Version 1 holds the length of the dict in 2 bytes, later versions in 4.
  const std::size_t length_bytes = version == 1 ? 2 : 4;
  const std::size_t dict_begin = kMagic.size() + 2 + length_bytes;
  if (text.size() < dict_begin) throw InputError(where + ": header is truncated");
  std::uint32_t length = 0;
  std::memcpy(&length, text.data() + kMagic.size() + 2, length_bytes);
  if (length > kMaxNpyHeaderBytes - dict_begin) {
    throw InputError(fmt::format("{}: header length is {}, expected at most {}", where, length,
                                 kMaxNpyHeaderBytes - dict_begin));
  }
  if (length > text.size() - dict_begin) {
    throw InputError(fmt::format("{}: header length is {}, but only {} bytes follow", where, length,
                                 text.size() - dict_begin));
  }
  DictParser dict(where, text.substr(dict_begin, length));
  dict.parse();
  NpyHeader header;
  header.dtype = dtype_of(where, dict.descr());
  header.fortran_order = dict.fortran_order();
  header.shape = dict.shape();
  header.data_offset = dict_begin + length;
  header.num_bytes = checked_tensor_bytes(where, header.shape, header.dtype);
  const std::uint64_t data_bytes = file_bytes - header.data_offset;
  if (data_bytes != header.num_bytes) {
    throw InputError(fmt::format("{}: {} bytes of data, expected {} for {} of shape {}", where,
                                 data_bytes, header.num_bytes, dtype_name(header.dtype),
                                 shape_text(header.shape)));
  }
  return header;
}

std::string npy_header_text(const std::string& where, const TensorInfo& info) {
  const auto* const type =
      std::find_if(kNumpyTypes.begin(), kNumpyTypes.end(),
                   [&info](const NumpyType& candidate) { return candidate.dtype == info.dtype; });
  if (type == kNumpyTypes.end()) {
    throw UnsupportedError(fmt::format("{}: numpy has no {}; write safetensors or HDF5 instead",
                                       where, dtype_name(info.dtype)));
  }
  std::string shape;
  for (const std::int64_t extent : info.shape) shape += fmt::format("{}, ", extent);
  // A tuple of one element keeps its comma.
  if (info.shape.size() > 1) shape.resize(shape.size() - 2);
  std::string dict = fmt::format("{{'descr': '{}{}', 'fortran_order': False, 'shape': ({}), }}",
                                 dtype_bytes(info.dtype) == 1 ? '|' : '<', type->code, shape);
  const std::size_t lead = kMagic.size() + 4;
  dict.append(kNpyAlignment - 1 - (lead + dict.size()) % kNpyAlignment, ' ');
  dict += '\n';
  const auto length = static_cast<std::uint16_t>(dict.size());
  std::string text(kMagic);
  text += {'\x01', '\x00', static_cast<char>(length & 0xff), static_cast<char>(length >> 8)};
  return text + dict;
}

std::shared_ptr<const std::byte> npy_data_in_c_order(const std::string& where,
                                                     const NpyHeader& header,
                                                     std::shared_ptr<const std::byte> data) {
  const auto is_long = [](std::int64_t extent) { return extent > 1; };
  if (!header.fortran_order || header.num_bytes == 0 ||
      std::count_if(header.shape.begin(), header.shape.end(), is_long) < 2) {
    return data;  // both orders are the same
  }
  require_memory(header.num_bytes, where + ": converting from Fortran order");
  std::shared_ptr<std::byte[]> moved(new std::byte[header.num_bytes]);
  switch (dtype_bytes(header.dtype)) {
    case 1:
      transpose<1>(header.shape, data.get(), moved.get());
      break;
    case 2:
      transpose<2>(header.shape, data.get(), moved.get());
      break;
    case 4:
      transpose<4>(header.shape, data.get(), moved.get());
      break;
    default:
      transpose<8>(header.shape, data.get(), moved.get());
      break;
  }
  return {moved, moved.get()};
}

}  // namespace s2o
