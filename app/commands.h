// The subcommands of `s2o`. One subcommand = one file app/command_<name>.cpp that defines
// add_<name>_command, plus one line in commands.def.
#pragma once

#include <CLI/CLI.hpp>
#include <charconv>
#include <exception>
#include <limits>
#include <string>

namespace s2o {

// Exit codes (docs/running.md). An error that leaves a command becomes one in main.cpp.
inline constexpr int kExitDone = 0;
inline constexpr int kExitSomeCellsFailed = 1;
inline constexpr int kExitConfig = 2;
inline constexpr int kExitInput = 3;
inline constexpr int kExitUnsupported = 4;
inline constexpr int kExitCuda = 5;
inline constexpr int kExitInterrupted = 130;

// Adds subcommand `name` with the options that every command has (-v, -q) and an example below its
// help text. The caller adds its own options and a callback. Pattern:
//
//   void add_match_command(CLI::App& app, int& exit_code) {
//     auto options = std::make_shared<MatchOptions>();
//     CLI::App* command = add_command(app, "match", "...", "s2o match results/run --sparsity 0.9");
//     command->add_option("results", options->results, "...")->required();
//     command->callback([options, &exit_code] { exit_code = run_match(*options); });
//   }
//
// The callback runs while the command line is parsed, after all options are set. Usage errors found
// later are ConfigErrors.
CLI::App* add_command(CLI::App& app, const std::string& name, const std::string& description,
                      const std::string& example);

// For options that take an integer: the whole text has to be one, in [min, max].
template <class T>
CLI::Validator integer_in(T min, T max = std::numeric_limits<T>::max()) {
  const auto check = [min, max](const std::string& text) -> std::string {
    T value{};
    const char* end = text.data() + text.size();
    const auto parsed = std::from_chars(text.data(), end, value);
    if (parsed.ec == std::errc() && parsed.ptr == end && value >= min && value <= max) return "";
    return "found '" + text + "', expected an integer between " + std::to_string(min) + " and " +
           std::to_string(max);
  };
  return {check, "", "integer"};
}

// The exit code of an error, and its message.
int failure_exit_code(const std::exception_ptr& failure);
std::string failure_text(const std::exception_ptr& failure);

// From now on the first SIGINT or SIGTERM sets g_cancel_requested, so that loops end with an
// InterruptedError; one that comes a second later or more ends the process.
void handle_interrupts();

// Before anything else: descriptors 0 to 2 are taken, so that no file gets the number of a standard
// stream that was closed; a pipe that nobody reads, a limit on file sizes and a file that shrinks
// while it is read become errors instead of the end of the process.
void prepare_process();

// Writes a result to stdout. UnsupportedError when that fails (closed pipe, full disk).
void print_result(const std::string& text);

#define S2O_COMMAND(name) void add_##name##_command(CLI::App& app, int& exit_code);
#include "app/commands.def"
#undef S2O_COMMAND

}  // namespace s2o
