// Names that somebody else chose, on their way to a terminal, a table or a JSON file.
#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

namespace s2o {

bool is_utf8(std::string_view text);

// Control characters and bytes that are no UTF-8 as "\n", "\t", "\x1b"; `keep` names control
// characters that stay. A name in a message then can neither end its line nor command a terminal.
std::string printable(std::string_view text, std::string_view keep = "");

// JSON text of any value; what is no UTF-8 in it becomes U+FFFD.
std::string json_text(const nlohmann::ordered_json& value, int indent = -1);

}  // namespace s2o
