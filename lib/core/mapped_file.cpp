#include "lib/core/mapped_file.h"

#include <fmt/format.h>
#include <signal.h>
#include <sys/mman.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <cerrno>
#include <cstring>
#include <string>
#include <utility>

#include "lib/core/error.h"
#include "lib/core/regular_file.h"

namespace s2o {
namespace {

// Where the mappings lie, for the signal handler, which may neither lock nor allocate. A file
// beyond the last slot has no name in the message.
struct Slot {
  std::atomic<const MappedFile*> file = nullptr;
  std::atomic<const std::byte*> data = nullptr;
  std::atomic<std::size_t> size = 0;
  std::atomic<const char*> name = nullptr;
};
constexpr std::size_t kSlots = 4096;
std::array<Slot, kSlots> g_slots;
std::atomic<int> g_exit_code{0};

void write_text(const char* text) {
  [[maybe_unused]] const ssize_t ignored = ::write(STDERR_FILENO, text, std::strlen(text));
}

extern "C" void handle_bus_error(int signal_number, siginfo_t* info, void*) {
  const auto* address = static_cast<const std::byte*>(info->si_addr);
  for (const Slot& slot : g_slots) {
    const std::byte* data = slot.data.load();
    if (data == nullptr || address < data || address >= data + slot.size.load()) continue;
    write_text("s2o: error: ");
    write_text(slot.name.load());
    write_text(": was made shorter, or cannot be read, while it was in use\n");
    ::_exit(g_exit_code.load());
  }
  ::signal(signal_number, SIG_DFL);  // happens again on return
}

}  // namespace

std::shared_ptr<const MappedFile> MappedFile::open(const std::filesystem::path& path) {
  const RegularFile file(path);
  const std::uint64_t size = file.size();
  if (size == 0) throw InputError(fmt::format("{}: file is empty", path.string()));
  if (!std::in_range<std::size_t>(size)) {
    throw InputError(fmt::format("{}: {} bytes are too many to map", path.string(), size));
  }
  void* data = ::mmap(nullptr, size, PROT_READ, MAP_PRIVATE, file.fd(), 0);
  if (data == MAP_FAILED) {
    throw InputError(fmt::format("{}: cannot be mapped: {}", path.string(), std::strerror(errno)));
  }
  return std::shared_ptr<const MappedFile>(
      new MappedFile(static_cast<const std::byte*>(data), size, path.string()));
}

MappedFile::MappedFile(const std::byte* data, std::size_t size, std::string name)
    : data_(data), size_(size), name_(std::move(name)) {
  for (Slot& slot : g_slots) {
    const MappedFile* none = nullptr;
    if (!slot.file.compare_exchange_strong(none, this)) continue;
    slot.name = name_.c_str();
    slot.size = size_;
    slot.data = data_;
    break;
  }
}

MappedFile::~MappedFile() {
  for (Slot& slot : g_slots) {
    if (slot.file.load() != this) continue;
    slot.data = nullptr;
    slot.file = nullptr;
    break;
  }
  ::munmap(const_cast<std::byte*>(data_), size_);
}

void exit_on_truncated_mappings(int exit_code) {
  g_exit_code = exit_code;
  struct sigaction action {};
  action.sa_sigaction = handle_bus_error;
  action.sa_flags = SA_SIGINFO;
  ::sigemptyset(&action.sa_mask);
  ::sigaction(SIGBUS, &action, nullptr);
}

}  // namespace s2o
