// Runs a program as a user would, without a shell, and captures what it writes.
#pragma once

#include <fcntl.h>
#include <poll.h>
#include <spawn.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <csignal>
#include <stdexcept>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>
#include <vector>

namespace deviceloop::testing {

struct CommandResult {
  int exit_code = -1;  ///< -1 where a signal ended it
  int signal = 0;      ///< the signal that ended it
  std::string out, err;
};

struct CommandSetup {
  std::vector<std::string> arguments;    ///< the program first
  std::string path;                      ///< its PATH; empty: that of the tests
  std::string out_file;                  ///< standard output is opened here instead of captured
  bool close_out = false;                ///< runs without a standard output
  bool terminal_err = false;             ///< standard error is a terminal
  std::chrono::seconds time_limit{120};  ///< then it is killed, and finish() throws
};

/// A program that runs. Killed, if need be, by the destructor.
class RunningCommand {
 public:
  explicit RunningCommand(const CommandSetup& setup)
      : deadline_(std::chrono::steady_clock::now() + setup.time_limit), name_(setup.arguments.at(0)) {
    posix_spawn_file_actions_t files;
    posix_spawnattr_t attributes;
    check(posix_spawn_file_actions_init(&files), "posix_spawn_file_actions_init");
    check(posix_spawnattr_init(&attributes), "posix_spawnattr_init");

    check(posix_spawn_file_actions_addopen(&files, 0, "/dev/null", O_RDONLY, 0), "addopen");
    int out_end = -1, err_end = -1;
    if (setup.close_out) {
      check(posix_spawn_file_actions_addclose(&files, 1), "addclose");
    } else if (!setup.out_file.empty()) {
      check(posix_spawn_file_actions_addopen(&files, 1, setup.out_file.c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0600),
            "addopen");
    } else {
      out_end = open_pipe(out_);
      check(posix_spawn_file_actions_adddup2(&files, out_end, 1), "adddup2");
    }
    err_end = setup.terminal_err ? open_terminal(err_) : open_pipe(err_);
    check(posix_spawn_file_actions_adddup2(&files, err_end, 2), "adddup2");

    // What started the tests may ignore or block signals; a program that a user starts does not inherit that.
    sigset_t changed, none;
    sigemptyset(&none);
    sigemptyset(&changed);
    for (const int signal : {SIGINT, SIGTERM, SIGHUP, SIGXCPU, SIGQUIT, SIGUSR1, SIGUSR2, SIGPIPE})
      sigaddset(&changed, signal);
    check(posix_spawnattr_setsigdefault(&attributes, &changed), "setsigdefault");
    check(posix_spawnattr_setsigmask(&attributes, &none), "setsigmask");
    check(posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETSIGDEF | POSIX_SPAWN_SETSIGMASK), "setflags");

    std::vector<char*> arguments;
    for (const std::string& argument : setup.arguments) arguments.push_back(const_cast<char*>(argument.c_str()));
    arguments.push_back(nullptr);
    const std::string path = "PATH=" + setup.path;
    std::vector<char*> variables;
    for (char** variable = environ; *variable != nullptr; ++variable)
      if (setup.path.empty() || std::string_view(*variable).rfind("PATH=", 0) != 0) variables.push_back(*variable);
    if (!setup.path.empty()) variables.push_back(const_cast<char*>(path.c_str()));
    variables.push_back(nullptr);
    const int failed = posix_spawn(&process_, arguments[0], &files, &attributes, arguments.data(), variables.data());
    posix_spawn_file_actions_destroy(&files);
    posix_spawnattr_destroy(&attributes);
    if (out_end != -1) close(out_end);
    close(err_end);
    if (failed != 0) process_ = -1;
    check(failed, "posix_spawn");
  }

  ~RunningCommand() {
    if (process_ > 0) {
      kill(process_, SIGKILL);
      waitpid(process_, nullptr, 0);
    }
    for (const int descriptor : {out_.descriptor, err_.descriptor})
      if (descriptor != -1) close(descriptor);
  }
  RunningCommand(const RunningCommand&) = delete;
  RunningCommand& operator=(const RunningCommand&) = delete;

  /// Waits until what it wrote on standard output (error) holds `text`.
  void wait_for_out(std::string_view text) { wait_for(out_, text); }
  void wait_for_err(std::string_view text) { wait_for(err_, text); }

  void send(int signal) const { kill(process_, signal); }

  /// Waits for its end, reading what it writes or, as a reader that stands still, only then.
  CommandResult finish(bool reads = true) {
    if (!reads) {
      siginfo_t ended{};
      while (waitid(P_PID, static_cast<id_t>(process_), &ended, WEXITED | WNOWAIT) == -1)
        if (errno != EINTR) check(errno, "waitid");
    }
    while (out_.descriptor != -1 || err_.descriptor != -1) read_more();
    int status = 0;
    while (waitpid(process_, &status, 0) == -1)
      if (errno != EINTR) check(errno, "waitpid");
    process_ = -1;
    CommandResult result;
    if (WIFEXITED(status)) result.exit_code = WEXITSTATUS(status);
    if (WIFSIGNALED(status)) result.signal = WTERMSIG(status);
    result.out = std::move(out_.text);
    result.err = std::move(err_.text);
    return result;
  }

 private:
  struct Stream {
    int descriptor = -1;  // -1: at its end
    std::string text;
  };

  static void check(int error, const char* what) {
    if (error != 0) throw std::system_error(error, std::generic_category(), what);
  }

  /// Returns the end that the program writes to.
  static int open_pipe(Stream& stream) {
    int ends[2];
    if (pipe2(ends, O_CLOEXEC) != 0) check(errno, "pipe2");
    stream.descriptor = ends[0];
    return ends[1];
  }
  static int open_terminal(Stream& stream) {
    stream.descriptor = posix_openpt(O_RDWR | O_NOCTTY | O_CLOEXEC);
    if (stream.descriptor == -1 || grantpt(stream.descriptor) != 0 || unlockpt(stream.descriptor) != 0)
      check(errno, "posix_openpt");
    const int end = open(ptsname(stream.descriptor), O_WRONLY | O_NOCTTY | O_CLOEXEC);
    if (end == -1) check(errno, "open the terminal");
    return end;
  }

  void wait_for(const Stream& stream, std::string_view text) {
    while (stream.text.find(text) == std::string::npos) {
      if (stream.descriptor == -1)
        throw std::runtime_error(name_ + " ended without '" + std::string(text) + "' in: " + stream.text);
      read_more();
    }
  }

  void read_more() {
    pollfd streams[] = {{out_.descriptor, POLLIN, 0}, {err_.descriptor, POLLIN, 0}};
    const auto left =
        std::chrono::duration_cast<std::chrono::milliseconds>(deadline_ - std::chrono::steady_clock::now()).count();
    const int ready = left > 0 ? poll(streams, 2, static_cast<int>(left)) : 0;
    if (ready == 0)
      throw std::runtime_error(name_ + " did not end in time; it wrote: " + out_.text + "\nand: " + err_.text);
    if (streams[0].revents != 0) read_from(out_);
    if (streams[1].revents != 0) read_from(err_);
  }
  static void read_from(Stream& stream) {
    char piece[1 << 16];
    const ssize_t count = read(stream.descriptor, piece, sizeof piece);
    if (count > 0) {
      stream.text.append(piece, static_cast<std::size_t>(count));
    } else if (count == 0 || errno != EINTR) {  // a terminal ends with EIO
      close(stream.descriptor);
      stream.descriptor = -1;
    }
  }

  std::chrono::steady_clock::time_point deadline_;
  std::string name_;
  pid_t process_ = -1;
  Stream out_, err_;
};

/// Whether this system has pseudo-terminals; a chroot or container without /dev/pts has not.
inline bool has_terminals() {
  const int descriptor = posix_openpt(O_RDWR | O_NOCTTY | O_CLOEXEC);
  const char* const name = descriptor == -1 ? nullptr : ptsname(descriptor);
  const bool has = name != nullptr && access(name, F_OK) == 0;
  if (descriptor != -1) close(descriptor);
  return has;
}

inline CommandResult run_command(const CommandSetup& setup) { return RunningCommand(setup).finish(); }

}  // namespace deviceloop::testing
