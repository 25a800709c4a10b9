// Builds the command line; turns each error type into its exit code.
#include <exception>
#include <new>

#include "app/commands.h"
#include "lib/core/error.h"
#include "lib/core/log.h"
#include "lib/core/version.h"

namespace s2o {
namespace {

int run(int argc, char** argv) {
  CLI::App app("Sparse attention for LLM prefill: evaluates S2O and its rivals.", "s2o");
  app.set_version_flag("--version", version_text());
  app.require_subcommand(1);
  app.footer(
      "Example:\n  s2o eval --config quickstart --out results/quickstart\n"
      "`s2o COMMAND --help` explains a command.");
  int exit_code = kExitDone;
#define S2O_COMMAND(name) add_##name##_command(app, exit_code);
#include "app/commands.def"
#undef S2O_COMMAND
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    // Help and version go to stdout with code 0; everything else is a usage error.
    return app.exit(error) == 0 ? kExitDone : kExitConfig;
  }
  return exit_code;
}

int report_failure(const char* message, int exit_code) {
  log_error(message);
  return exit_code;
}

}  // namespace
}  // namespace s2o

int main(int argc, char** argv) {
  using namespace s2o;
  try {
    return run(argc, argv);
  } catch (const ConfigError& error) {
    return report_failure(error.what(), kExitConfig);
  } catch (const InputError& error) {
    return report_failure(error.what(), kExitInput);
  } catch (const UnsupportedError& error) {
    return report_failure(error.what(), kExitUnsupported);
  } catch (const CudaError& error) {
    return report_failure(error.what(), kExitCuda);
  } catch (const InterruptedError& error) {
    return report_failure(error.what(), kExitInterrupted);
  } catch (const std::bad_alloc&) {
    return report_failure("out of memory", kExitUnsupported);
  } catch (const std::exception& error) {
    return report_failure(error.what(), kExitSomeCellsFailed);
  }
}
