#include "lib/core/isolated.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <fstream>
#include <string_view>

#include "kernels/common/parallel.h"
#include "lib/core/error.h"
#include "lib/core/memory.h"

namespace s2o {
namespace {

// The first byte that the child sends; its text follows.
constexpr char kResult = 'r';
constexpr char kInputError = 'i';
constexpr char kUnsupportedError = 'u';
// A damaged child may send anything.
constexpr std::size_t kMaxAnswerBytes = std::size_t{1} << 30;

void set_limit(int resource, std::uint64_t value) {
  const rlimit limit{.rlim_cur = value, .rlim_max = value};
  ::setrlimit(static_cast<__rlimit_resource>(resource), &limit);  // best effort
}

// Address space of this process so far.
std::uint64_t mapped_bytes() {
  std::uint64_t pages = 0;
  std::ifstream("/proc/self/statm") >> pages;
  return pages * static_cast<std::uint64_t>(::sysconf(_SC_PAGESIZE));
}

void send(int fd, char kind, std::string_view text) {
  std::string message(1, kind);
  message += text;
  for (std::size_t done = 0; done < message.size();) {
    const ssize_t written = ::write(fd, message.data() + done, message.size() - done);
    if (written < 0 && errno == EINTR) continue;
    if (written <= 0) return;
    done += static_cast<std::size_t>(written);
  }
}

[[noreturn]] void run_child(int answer_fd, const std::string& where, std::uint64_t max_cpu_seconds,
                            std::uint64_t max_bytes, const std::function<std::string()>& work) {
  ::prctl(PR_SET_PDEATHSIG, SIGKILL);  // never outlives its parent
  ::signal(SIGINT, SIG_DFL);
  ::signal(SIGTERM, SIG_DFL);
  set_limit(RLIMIT_CORE, 0);
  set_limit(RLIMIT_CPU, max_cpu_seconds);
  const std::uint64_t mapped = mapped_bytes();
  const std::uint64_t available = std::min(available_memory_bytes(), max_bytes);
  if (mapped > 0 && available < ~mapped) set_limit(RLIMIT_AS, mapped + available);
  const int null = ::open("/dev/null", O_WRONLY | O_CLOEXEC);
  if (null >= 0) ::dup2(null, STDERR_FILENO);
  try {
    send(answer_fd, kResult, work());
  } catch (const InputError& error) {
    send(answer_fd, kInputError, error.what());
  } catch (const UnsupportedError& error) {
    send(answer_fd, kUnsupportedError, error.what());
  } catch (const std::bad_alloc&) {
    const bool is_damage = available == max_bytes;
    send(answer_fd, is_damage ? kInputError : kUnsupportedError,
         is_damage ? where + ": takes far more memory than a file of its size holds: it is damaged"
                   : "out of memory");
  }
  // No destructors, no exit handlers: they belong to the parent.
  ::_exit(0);
}

// All that the child sends. Stops early when the user cancels.
std::string receive(int fd) {
  std::string answer;
  std::array<char, 1 << 16> buffer;
  while (!g_cancel_requested.load(std::memory_order_relaxed) && answer.size() < kMaxAnswerBytes) {
    const ssize_t count = ::read(fd, buffer.data(), buffer.size());
    if (count < 0 && errno == EINTR) continue;
    if (count <= 0) break;
    answer.append(buffer.data(), static_cast<std::size_t>(count));
  }
  return answer;
}

int wait_for(pid_t child) {
  int status = 0;
  while (::waitpid(child, &status, 0) < 0 && errno == EINTR) {
  }
  return status;
}

[[noreturn]] void throw_death(const std::string& where, int status) {
  const int signal = WIFSIGNALED(status) ? WTERMSIG(status) : 0;
  if (signal == SIGXCPU || signal == SIGKILL) {
    throw InputError(where + ": reading takes for ever or too much memory: the file is damaged");
  }
  throw InputError(fmt::format("{}: reading crashes ({}): the file is damaged", where,
                               signal != 0 ? ::strsignal(signal) : "no answer"));
}

}  // namespace

std::string run_isolated(const std::string& where, std::uint64_t max_cpu_seconds,
                         const std::function<std::string()>& work, std::uint64_t max_bytes) {
  std::array<int, 2> pipe{};
  if (::pipe2(pipe.data(), O_CLOEXEC) != 0) {
    throw UnsupportedError(fmt::format("{}: no pipe: {}", where, std::strerror(errno)));
  }
  const pid_t child = ::fork();
  if (child == 0) {
    ::close(pipe[0]);
    run_child(pipe[1], where, max_cpu_seconds, max_bytes, work);
  }
  ::close(pipe[1]);
  if (child < 0) {
    ::close(pipe[0]);
    throw UnsupportedError(fmt::format("{}: no process: {}", where, std::strerror(errno)));
  }
  std::string answer;
  try {
    answer = receive(pipe[0]);
  } catch (const std::bad_alloc&) {
    answer.clear();
  }
  ::close(pipe[0]);
  if (g_cancel_requested.load(std::memory_order_relaxed)) ::kill(child, SIGKILL);
  const int status = wait_for(child);
  throw_if_cancelled();
  if (!WIFEXITED(status) || WEXITSTATUS(status) != 0 || answer.empty()) throw_death(where, status);
  std::string text = answer.substr(1);
  switch (answer.front()) {
    case kResult:
      return text;
    case kInputError:
      throw InputError(text);
    case kUnsupportedError:
      throw UnsupportedError(text);
    default:
      throw_death(where, status);
  }
}

std::shared_ptr<std::byte> allocate_shared(const std::string& where, std::size_t num_bytes) {
  const std::size_t size = std::max<std::size_t>(num_bytes, 1);
  void* data = ::mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  if (data == MAP_FAILED) {
    throw UnsupportedError(
        fmt::format("{}: no memory for {} bytes: {}", where, size, std::strerror(errno)));
  }
  return {static_cast<std::byte*>(data), [size](std::byte* mapped) { ::munmap(mapped, size); }};
}

}  // namespace s2o
