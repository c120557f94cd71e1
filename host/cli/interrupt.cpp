#include "interrupt.h"

#include <sys/time.h>
#include <time.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <csignal>
#include <cstdint>
#include <string_view>

#include "child_process.h"
#include "files/output_file.h"

namespace deviceloop::cli {
namespace {

constexpr int kSignals[] = {SIGINT, SIGTERM, SIGHUP, SIGXCPU, SIGQUIT, SIGUSR1, SIGUSR2};
// timeout(1) and some batch systems send a signal to the process and then to its group: two within a millisecond.
constexpr std::int64_t kSameSignalNs = 200000000;

std::atomic<bool> noting{false};
std::atomic<int> noted{0};
std::atomic<std::int64_t> noted_at_ns{0};
std::atomic<std::int64_t> patience_us{0};
static_assert(std::atomic<std::int64_t>::is_always_lock_free, "a signal handler writes it");

std::int64_t now_ns() {
  timespec now{};
  clock_gettime(CLOCK_MONOTONIC, &now);
  return std::int64_t{now.tv_sec} * 1000000000 + now.tv_nsec;
}

bool is_noted(int signal) { return signal == SIGINT || signal == SIGTERM || signal == SIGHUP || signal == SIGXCPU; }

void start_clock() {
  const std::int64_t us = patience_us.load();
  itimerval timer{};
  timer.it_value.tv_sec = us / 1000000;
  timer.it_value.tv_usec = us % 1000000;
  setitimer(ITIMER_REAL, &timer, nullptr);
}

/// Ends the process by the signal's default action, so that a shell sees which signal it was.
void end_by(int signal) {
  remove_unfinished_files();
  kill_running_program();
  std::signal(signal, SIG_DFL);
  std::raise(signal);  // when its handler returns
}

void handle(int signal) {
  const int error = errno;
  if (!noting || !is_noted(signal)) {
    end_by(signal);
  } else {
    int none = 0;
    const std::int64_t now = now_ns();
    if (noted.compare_exchange_strong(none, signal)) {
      noted_at_ns = now;
      start_clock();
    } else if (const std::int64_t at = noted_at_ns;
               (signal == SIGINT || signal == SIGTERM) && at != 0 && now - at > kSameSignalNs) {
      end_by(signal);
    }
  }
  errno = error;
}

void run_out_of_patience(int) {
  remove_unfinished_files();
  kill_running_program();
  constexpr std::string_view kText =
      "deviceloop: interrupted, and what it was doing did not end in time; what was not written by then is lost\n";
  [[maybe_unused]] const ssize_t written = ::write(STDERR_FILENO, kText.data(), kText.size());
  _exit(128 + noted);
}

void handle_by(int signal, void (*handler)(int)) {
  struct sigaction action {};
  action.sa_handler = handler;
  sigemptyset(&action.sa_mask);
  // One at a time on a thread. Without SA_RESTART: a write that waits for a reader must not go on waiting.
  for (const int each : kSignals) sigaddset(&action.sa_mask, each);
  sigaction(signal, &action, nullptr);
}

}  // namespace

void end_on_signals() {
  for (const int signal : kSignals) {
    struct sigaction before {};
    if (sigaction(signal, nullptr, &before) == 0 && before.sa_handler != SIG_IGN) handle_by(signal, handle);
  }
}

void note_signals(std::chrono::milliseconds patience) {
  handle_by(SIGALRM, run_out_of_patience);
  sigset_t alarm;
  sigemptyset(&alarm);
  sigaddset(&alarm, SIGALRM);
  pthread_sigmask(SIG_UNBLOCK, &alarm, nullptr);
  set_patience(patience);
  noting = true;
}

int interrupt() { return noted; }

void set_patience(std::chrono::milliseconds patience) {
  patience_us = std::chrono::microseconds(patience).count();
  if (noted != 0) start_clock();
}

}  // namespace deviceloop::cli
