#include "lib/core/log.h"

#include <spdlog/sinks/stdout_color_sinks.h>
#include <spdlog/spdlog.h>

#include <memory>
#include <string>
#include <utility>

#include "lib/core/log_prefix.h"
#include "lib/core/printable.h"

namespace s2o {
namespace {

LogLevel g_level = LogLevel::kWarning;
std::function<void()> g_before_log;
std::string g_prefix;

spdlog::logger& logger() {
  static const std::shared_ptr<spdlog::logger> instance = [] {
    auto created = std::make_shared<spdlog::logger>(
        "s2o", std::make_shared<spdlog::sinks::stderr_color_sink_mt>());
    created->set_pattern("s2o: %^%l%$: %v");
    created->set_level(spdlog::level::warn);
    return created;
  }();
  return *instance;
}

spdlog::level::level_enum to_spdlog(LogLevel level) {
  switch (level) {
    case LogLevel::kQuiet:
      return spdlog::level::err;
    case LogLevel::kWarning:
      return spdlog::level::warn;
    case LogLevel::kInfo:
      return spdlog::level::info;
    case LogLevel::kDebug:
      return spdlog::level::debug;
  }
  return spdlog::level::warn;
}

}  // namespace

void set_log_level(LogLevel level) {
  g_level = level;
  logger().set_level(to_spdlog(level));
}
LogLevel log_level() { return g_level; }
void set_before_log(std::function<void()> hook) { g_before_log = std::move(hook); }
void set_log_prefix(std::string prefix) { g_prefix = std::move(prefix); }
void log_message(LogLevel level, std::string_view message) {
  if (g_before_log && logger().should_log(to_spdlog(level))) g_before_log();
  logger().log(to_spdlog(level), g_prefix + printable(message));
}
void log_error(std::string_view message) {
  if (g_before_log) g_before_log();
  logger().error(g_prefix + printable(message));
}

}  // namespace s2o
