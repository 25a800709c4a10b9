#include "lib/core/strict_json.h"

#include <fmt/format.h>

#include <string>
#include <type_traits>
#include <unordered_set>
#include <utility>
#include <vector>

namespace s2o {
namespace {

// "[json.exception.parse_error.101] parse error at line 1, column 2: ..." without what only a
// programmer wants.
std::string readable(std::string_view what) {
  const std::size_t bracket = what.find("] ");
  if (bracket != std::string_view::npos) what.remove_prefix(bracket + 2);
  constexpr std::string_view kLead = "parse error at ";
  if (what.starts_with(kLead)) what.remove_prefix(kLead.size());
  return std::string(what);
}

// Builds the document from the parser's events, in time linear in the text. (The library's own
// callback looks at all members so far each time one ends.)
template <class Json>
class Builder {
 public:
  using number_integer_t = typename Json::number_integer_t;
  using number_unsigned_t = typename Json::number_unsigned_t;
  using number_float_t = typename Json::number_float_t;
  using string_t = typename Json::string_t;
  using binary_t = typename Json::binary_t;

  bool null() { return add(nullptr); }
  bool boolean(bool value) { return add(value); }
  bool number_integer(number_integer_t value) { return add(value); }
  bool number_unsigned(number_unsigned_t value) { return add(value); }
  bool number_float(number_float_t value, const string_t&) { return add(value); }
  bool string(string_t& value) { return add(std::move(value)); }
  bool binary(binary_t& value) { return add(std::move(value)); }
  bool start_object(std::size_t) { return open(Json::object()); }
  bool start_array(std::size_t) { return open(Json::array()); }
  bool end_object() { return close(); }
  bool end_array() { return close(); }
  bool key(string_t& value) {
    if (!open_.back().keys.insert(value).second) {
      throw JsonTextError(fmt::format("key '{}' occurs twice in the same object", value));
    }
    key_ = std::move(value);
    return true;
  }
  template <class Exception>
  bool parse_error(std::size_t, const std::string&, const Exception& error) {
    throw JsonTextError(readable(error.what()));
  }

  Json take() { return std::move(root_); }

 private:
  struct Open {
    Json* value;
    std::unordered_set<std::string> keys;
  };

  bool add(Json value) {
    place(std::move(value));
    return true;
  }
  bool open(Json value) {
    if (open_.size() >= static_cast<std::size_t>(kMaxJsonDepth)) {
      throw JsonTextError(fmt::format("nested deeper than {} levels", kMaxJsonDepth));
    }
    Json* placed = place(std::move(value));
    open_.push_back({placed, {}});
    return true;
  }
  bool close() {
    open_.pop_back();
    return true;
  }
  // Into the innermost open object or list, which does not move while it is open.
  Json* place(Json value) {
    if (open_.empty()) {
      root_ = std::move(value);
      return &root_;
    }
    Json& parent = *open_.back().value;
    if (parent.is_array()) {
      parent.push_back(std::move(value));
      return &parent.back();
    }
    auto& members = parent.template get_ref<typename Json::object_t&>();
    if constexpr (std::is_same_v<Json, nlohmann::ordered_json>) {
      // The key is new: a look through all of them to find that out again would take long.
      using Members = std::vector<std::pair<const std::string, Json>>;
      static_cast<Members&>(members).emplace_back(std::move(key_), std::move(value));
      return &static_cast<Members&>(members).back().second;
    } else {
      return &members.emplace(std::move(key_), std::move(value)).first->second;
    }
  }

  Json root_;
  std::vector<Open> open_;
  std::string key_;
};

template <class Json>
Json parse(std::string_view text) {
  Builder<Json> builder;
  Json::sax_parse(text.begin(), text.end(), &builder);
  return builder.take();
}

}  // namespace

nlohmann::ordered_json parse_strict_json(std::string_view text) {
  return parse<nlohmann::ordered_json>(text);
}

nlohmann::json parse_strict_json_sorted(std::string_view text) {
  return parse<nlohmann::json>(text);
}

}  // namespace s2o
