#include "lib/core/strict_json.h"

#include <fmt/format.h>

#include <set>
#include <string>
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

template <class Json>
Json parse(std::string_view text) {
  std::vector<std::set<std::string>> keys;  // of the objects that are open
  const auto check = [&keys](int depth, typename Json::parse_event_t event, Json& value) {
    using Event = typename Json::parse_event_t;
    if (event == Event::object_start || event == Event::array_start) {
      if (depth >= kMaxJsonDepth) {
        throw JsonTextError(fmt::format("nested deeper than {} levels", kMaxJsonDepth));
      }
      if (event == Event::object_start) keys.emplace_back();
    } else if (event == Event::object_end) {
      keys.pop_back();
    } else if (event == Event::key) {
      const auto& key = value.template get_ref<const std::string&>();
      if (!keys.back().insert(key).second) {
        throw JsonTextError(fmt::format("key '{}' occurs twice in the same object", key));
      }
    }
    return true;
  };
  try {
    return Json::parse(text.begin(), text.end(), check);
  } catch (const typename Json::exception& error) {
    throw JsonTextError(readable(error.what()));
  }
}

}  // namespace

nlohmann::ordered_json parse_strict_json(std::string_view text) {
  return parse<nlohmann::ordered_json>(text);
}

nlohmann::json parse_strict_json_sorted(std::string_view text) {
  return parse<nlohmann::json>(text);
}

}  // namespace s2o
