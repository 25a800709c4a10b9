#include "app/progress.h"

#include <fmt/format.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <filesystem>

#include "lib/core/log.h"
#include "lib/core/printable.h"

namespace s2o {
namespace {

constexpr std::size_t kBarWidth = 24;

std::size_t terminal_width() {
  winsize size = {};
  if (::ioctl(STDERR_FILENO, TIOCGWINSZ, &size) != 0 || size.ws_col == 0) return 80;
  return size.ws_col;
}

}  // namespace

ProgressBar::ProgressBar(std::size_t total, bool enabled)
    : total_(total), enabled_(enabled && total > 0), begin_(std::chrono::steady_clock::now()) {
  if (enabled_) set_before_log([this] { clear(); });
}

ProgressBar::~ProgressBar() {
  if (enabled_) set_before_log({});
  clear();
}

void ProgressBar::clear() {
  if (!enabled_) return;
  std::fputs("\r\x1b[K", stderr);
  std::fflush(stderr);
}

// Steps take unequal time; the mean of those done is still the honest simple guess.
std::string ProgressBar::time_left() const {
  if (done_ == 0) return "";
  const std::chrono::duration<double> spent = std::chrono::steady_clock::now() - begin_;
  const double left =
      spent.count() / static_cast<double>(done_) * static_cast<double>(total_ - done_);
  return fmt::format(", {} left", duration_text(left));
}

void ProgressBar::show(const std::string& what) {
  if (!enabled_) return;
  const std::size_t filled = kBarWidth * done_ / total_;
  std::string line = fmt::format("[{}{}] {}/{}{}  {}", std::string(filled, '='),
                                 std::string(kBarWidth - filled, ' '), done_, total_, time_left(),
                                 printable(what));
  line.resize(std::min(line.size(), terminal_width() - 1));
  std::fputs(fmt::format("\r\x1b[K{}", line).c_str(), stderr);
  std::fflush(stderr);
}

void ProgressBar::advance_to(std::size_t done) { done_ = std::min(done, total_); }

void ProgressBar::step() { advance_to(done_ + 1); }

bool stderr_is_terminal() { return ::isatty(STDERR_FILENO) != 0; }

bool launcher_has_terminal() {
  if (stderr_is_terminal()) return true;
  std::error_code error;
  const std::string file =
      std::filesystem::read_symlink(fmt::format("/proc/{}/fd/2", ::getppid()), error).string();
  return !error && (file.starts_with("/dev/pts/") || file.starts_with("/dev/tty"));
}

std::string duration_text(double seconds) {
  const auto whole = static_cast<long>(seconds + 0.5);
  if (whole >= 3600) return fmt::format("{}h{:02}m", whole / 3600, whole / 60 % 60);
  if (whole >= 60) return fmt::format("{}m{:02}s", whole / 60, whole % 60);
  return fmt::format("{}s", whole);
}

}  // namespace s2o
