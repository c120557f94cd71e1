// The progress bar of a long run, for people who watch a terminal.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <string>

namespace deviceloop::cli {

/// One line on standard error that is drawn over and over. Draws nothing where standard error is no terminal, where
/// standard output is a pipe, and for runs that are over within a second.
class Progress {
 public:
  /// `note` follows the time.
  explicit Progress(std::string note);
  ~Progress() { clear(); }
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;

  void update(std::int64_t steps_done, std::int64_t steps_total);
  /// Removes the line, before something else is written to the terminal.
  void clear();

 private:
  using Clock = std::chrono::steady_clock;

  const std::string note_;
  bool visible_;
  Clock::time_point begin_ = Clock::now();
  Clock::time_point drawn_ = begin_;
  std::size_t width_ = 0;  // of the line on the terminal
};

}  // namespace deviceloop::cli
