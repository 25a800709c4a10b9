// JSON text from files that somebody else wrote: what the parser lets pass silently is an error.
#pragma once

#include <nlohmann/json.hpp>
#include <string_view>

#include "kernels/common/error.h"

namespace s2o {

// The text is not the JSON that we accept. The message holds the place ("line 3, column 7: ...")
// but not the file: the caller knows that, and which kind of error it is.
class JsonTextError : public Error {
 public:
  using Error::Error;
};

// Deepest nesting of objects and lists that is accepted.
inline constexpr int kMaxJsonDepth = 32;

// Besides broken syntax, refuses a key that occurs twice in one object, nesting deeper than
// kMaxJsonDepth (later code recurses over values) and numbers that do not fit their type.
// Keys keep their order; looking one up is linear in the size of its object.
nlohmann::ordered_json parse_strict_json(std::string_view text);
// As above with sorted keys, for objects with many of them.
nlohmann::json parse_strict_json_sorted(std::string_view text);

}  // namespace s2o
