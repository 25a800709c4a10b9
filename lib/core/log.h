// Logging to stderr. The only owner of spdlog; stdout is for results.
#pragma once

#include <fmt/format.h>

#include <functional>
#include <string_view>
#include <utility>

namespace s2o {

enum class LogLevel { kQuiet, kWarning, kInfo, kDebug };

// Default: kWarning. -q is kQuiet (errors only), -v kInfo, -vv kDebug.
void set_log_level(LogLevel level);
LogLevel log_level();
// Called before a message is written, to clear a progress line from the terminal; may be empty.
void set_before_log(std::function<void()> hook);
void log_message(LogLevel level, std::string_view message);
void log_error(std::string_view message);

template <class... Args>
void log_warning(fmt::format_string<Args...> format, Args&&... args) {
  log_message(LogLevel::kWarning, fmt::format(format, std::forward<Args>(args)...));
}
template <class... Args>
void log_info(fmt::format_string<Args...> format, Args&&... args) {
  log_message(LogLevel::kInfo, fmt::format(format, std::forward<Args>(args)...));
}
template <class... Args>
void log_debug(fmt::format_string<Args...> format, Args&&... args) {
  log_message(LogLevel::kDebug, fmt::format(format, std::forward<Args>(args)...));
}

}  // namespace s2o
