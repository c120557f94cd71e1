#include "progress.h"

#include <sys/stat.h>
#include <unistd.h>

#include <cstdio>
#include <string>
#include <utility>

#include "text_output.h"

namespace deviceloop::cli {
namespace {

constexpr double kFirstDrawSeconds = 0.3;  // by then the time of the whole run can be estimated
constexpr double kShortestRunSeconds = 1;
constexpr double kRedrawSeconds = 0.1;
constexpr int kBarWidth = 30;

bool is_pipe(int descriptor) {
  struct stat status {};
  return fstat(descriptor, &status) == 0 && (S_ISFIFO(status.st_mode) || S_ISSOCK(status.st_mode));
}

std::string time_text(double seconds) {
  const auto whole = static_cast<std::int64_t>(seconds + 0.5);
  char text[64];
  if (whole < 3600)
    std::snprintf(text, sizeof text, "%d:%02d", static_cast<int>(whole / 60), static_cast<int>(whole % 60));
  else
    std::snprintf(text, sizeof text, "%lld h %02d min", static_cast<long long>(whole / 3600),
                  static_cast<int>(whole / 60 % 60));
  return text;
}

}  // namespace

Progress::Progress(std::string note)
    : note_(std::move(note)), visible_(isatty(STDERR_FILENO) == 1 && !is_pipe(STDOUT_FILENO)) {}

void Progress::update(std::int64_t steps_done, std::int64_t steps_total) {
  if (!visible_ || steps_done <= 0 || steps_done >= steps_total) return;
  const Clock::time_point now = Clock::now();
  const double seconds = std::chrono::duration<double>(now - begin_).count();
  const double done = static_cast<double>(steps_done) / static_cast<double>(steps_total);
  if (seconds < kFirstDrawSeconds || seconds / done < kShortestRunSeconds) return;
  if (width_ != 0 && std::chrono::duration<double>(now - drawn_).count() < kRedrawSeconds) return;
  drawn_ = now;

  const int filled = static_cast<int>(done * kBarWidth);
  char start[80];
  std::snprintf(start, sizeof start, "%3d %% [%.*s%.*s] ", static_cast<int>(done * 100), filled,
                "##############################", kBarWidth - filled, "..............................");
  std::string line =
      start + std::to_string(steps_done) + " steps, " + time_text(seconds / done - seconds) + " left" + note_;
  const std::size_t width = line.size();
  if (width < width_) line.append(width_ - width, ' ');
  width_ = width;
  write_all(STDERR_FILENO, "\r" + line);
}

void Progress::clear() {
  if (width_ == 0) return;
  write_all(STDERR_FILENO, "\r" + std::string(width_, ' ') + "\r");
  width_ = 0;
}

}  // namespace deviceloop::cli
