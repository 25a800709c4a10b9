// Small text helpers shared by error messages.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace s2o {

// The candidate with the smallest edit distance to `word`, or "" when none is close
// (distance > max(2, word.size() / 3)).
std::string nearest_name(std::string_view word, const std::vector<std::string>& candidates);

// "a, b, c"
std::string join(const std::vector<std::string>& parts, std::string_view separator = ", ");

// 64-bit FNV-1a of the bytes, as 16 hexadecimal digits.
std::string hash_hex(std::string_view bytes);

// "1.5 GiB", "12.0 MiB", "840 B"
std::string bytes_text(double bytes);

}  // namespace s2o
