// One line on stderr that says what runs and how long it will take; it gives way to log messages.
#pragma once

#include <chrono>
#include <cstddef>
#include <string>

namespace s2o {

class ProgressBar {
 public:
  // `total` counts steps; `enabled` = false keeps it silent.
  ProgressBar(std::size_t total, bool enabled);
  // Clears the line.
  ~ProgressBar();
  ProgressBar(const ProgressBar&) = delete;
  ProgressBar& operator=(const ProgressBar&) = delete;

  void show(const std::string& what);
  void advance_to(std::size_t done);
  void step();   // one more step is done
  void clear();  // before other text goes to the terminal

 private:
  std::string time_left() const;

  std::size_t total_;
  std::size_t done_ = 0;
  bool enabled_;
  std::chrono::steady_clock::time_point begin_;
};

// Whether stderr is a terminal.
bool stderr_is_terminal();
// Also where stderr is a pipe to a launcher on this host, which hands it on to its own terminal.
bool launcher_has_terminal();

// "1h02m", "3m05s", "12s"
std::string duration_text(double seconds);

}  // namespace s2o
