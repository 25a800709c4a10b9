// `s2o list`: what this build holds and what this machine can run.
#include <fmt/format.h>

#include "app/commands.h"
#include "lib/methods/method.h"

namespace s2o {
namespace {

int run_list() {
  std::string text;
  for (const Method* method : all_methods()) {
    text += fmt::format("{:<16} {}\n", method->info().name, method->info().summary);
  }
  print_result(text);
  return kExitDone;
}

}  // namespace

void add_list_command(CLI::App& app, int& exit_code) {
  CLI::App* command =
      add_command(app, "list", "What this build and this machine can do", "s2o list methods");
  command->callback([&exit_code] { exit_code = run_list(); });
}

}  // namespace s2o
