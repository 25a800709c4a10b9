#include <fcntl.h>
#include <time.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <csignal>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <new>

#include "app/commands.h"
#include "kernels/common/parallel.h"
#include "lib/core/error.h"
#include "lib/core/log.h"
#include "lib/core/mapped_file.h"

namespace s2o {
namespace {

// `timeout` and process managers send a signal to the process and to its group, which arrives
// twice: only after this does another one mean that somebody does not want to wait.
constexpr std::int64_t kPatienceNs = 1'000'000'000;

extern "C" void request_cancel(int signal_number) {
  // Only lock-free operations and calls that may be made in a handler are safe here.
  static_assert(std::atomic<bool>::is_always_lock_free);
  static_assert(std::atomic<std::int64_t>::is_always_lock_free);
  static std::atomic<std::int64_t> first_ns{0};
  timespec now{};
  clock_gettime(CLOCK_MONOTONIC, &now);
  const std::int64_t now_ns = std::int64_t{now.tv_sec} * 1'000'000'000 + now.tv_nsec;
  std::int64_t first = 0;
  if (first_ns.compare_exchange_strong(first, now_ns)) {
    g_cancel_requested.store(true, std::memory_order_relaxed);
  } else if (now_ns - first >= kPatienceNs) {
    std::signal(signal_number, SIG_DFL);
    std::raise(signal_number);
  }
}

}  // namespace

CLI::App* add_command(CLI::App& app, const std::string& name, const std::string& description,
                      const std::string& example) {
  CLI::App* command = app.add_subcommand(name, description);
  command->footer("Example:\n  " + example);
  CLI::Option* verbose = command->add_flag_function(
      "-v,--verbose",
      [](std::int64_t count) { set_log_level(count > 1 ? LogLevel::kDebug : LogLevel::kInfo); },
      "Log what happens to stderr; -vv logs more");
  command
      ->add_flag_callback(
          "-q,--quiet", [] { set_log_level(LogLevel::kQuiet); }, "Log errors only")
      ->excludes(verbose);
  return command;
}

int failure_exit_code(const std::exception_ptr& failure) {
  try {
    std::rethrow_exception(failure);
  } catch (const ConfigError&) {
    return kExitConfig;
  } catch (const InputError&) {
    return kExitInput;
  } catch (const std::filesystem::filesystem_error&) {
    return kExitInput;
  } catch (const UnsupportedError&) {
    return kExitUnsupported;
  } catch (const std::bad_alloc&) {
    return kExitUnsupported;
  } catch (const CudaError&) {
    return kExitCuda;
  } catch (const InterruptedError&) {
    return kExitInterrupted;
  } catch (...) {
    return kExitSomeCellsFailed;
  }
}

std::string failure_text(const std::exception_ptr& failure) {
  try {
    std::rethrow_exception(failure);
  } catch (const std::bad_alloc&) {
    return "out of memory";
  } catch (const std::exception& error) {
    return error.what();
  } catch (...) {
    return "unknown failure";
  }
}

void prepare_process() {
  for (const int fd : {STDIN_FILENO, STDOUT_FILENO, STDERR_FILENO}) {
    if (fcntl(fd, F_GETFD) >= 0 || errno != EBADF) continue;
    // The lowest free number is this one. For stdout not writable: a result that goes nowhere is
    // an error.
    if (open("/dev/null", fd == STDOUT_FILENO ? O_RDONLY : O_RDWR) != fd) std::abort();
  }
  std::signal(SIGPIPE, SIG_IGN);
  std::signal(SIGXFSZ, SIG_IGN);
  exit_on_truncated_mappings(kExitInput);
}

void handle_interrupts() {
  std::signal(SIGINT, request_cancel);
  std::signal(SIGTERM, request_cancel);
}

void print_result(const std::string& text) {
  const bool written = std::fwrite(text.data(), 1, text.size(), stdout) == text.size();
  if (written && std::fflush(stdout) == 0) return;
  throw UnsupportedError(std::string("cannot write the result to stdout: ") + std::strerror(errno));
}

}  // namespace s2o
