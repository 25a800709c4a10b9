// Builds the command line and runs the subcommand; errors end here.
#include <algorithm>
#include <cstdio>
#include <exception>
#include <sstream>

#include "app/commands.h"
#include "lib/config/json_reader.h"
#include "lib/core/error.h"
#include "lib/core/log.h"
#include "lib/core/printable.h"
#include "lib/core/text.h"
#include "lib/core/version.h"
#include "lib/prefill/prefill_backend.h"
#include "lib/ranks/mpi.h"

namespace s2o {
namespace {

// CLI11 would only say that a subcommand is missing.
void check_command(const CLI::App& app, const std::string& word) {
  std::vector<std::string> names;
  for (const CLI::App* command : app.get_subcommands({})) names.push_back(command->get_name());
  if (word.starts_with("-") || std::find(names.begin(), names.end(), word) != names.end()) return;
  throw ConfigError("unknown command '" + word + "'" + did_you_mean(word, names) +
                    "; commands: " + join(names));
}

// Of several ranks, one says what is wrong with a command line that they share.
bool is_first_rank() { return find_launch().rank == 0; }

int run(int argc, char** argv) {
  CLI::App app("Sparse attention for LLM prefill: evaluates S2O and its rivals.", "s2o");
  app.set_version_flag("--version",
                       version_text() + "\n" + mpi_build_text() + ", " + sums_build_text());
  app.require_subcommand(1);
  app.footer(
      "Example:\n  s2o eval --config quickstart --out results/quickstart\n"
      "`s2o COMMAND --help` explains a command.");
  int exit_code = kExitDone;
#define S2O_COMMAND(name) add_##name##_command(app, exit_code);
#include "app/commands.def"
#undef S2O_COMMAND
  if (argc > 1) check_command(app, argv[1]);
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    // Help and version go to stdout with code 0; everything else is a usage error.
    std::ostringstream out, err;
    const bool is_help = app.exit(error, out, err) == 0;
    if (!err.str().empty() && is_first_rank())
      std::fputs(printable(err.str(), "\n").c_str(), stderr);
    if (!out.str().empty()) print_result(out.str());
    return is_help ? kExitDone : kExitConfig;
  }
  return exit_code;
}

}  // namespace
}  // namespace s2o

int main(int argc, char** argv) {
  s2o::prepare_process();
  try {
    return s2o::run(argc, argv);
  } catch (...) {
    const std::exception_ptr failure = std::current_exception();
    if (s2o::is_first_rank()) s2o::log_error(s2o::failure_text(failure));
    return s2o::failure_exit_code(failure);
  }
}
