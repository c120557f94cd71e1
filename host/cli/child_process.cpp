#include "child_process.h"

#include <fcntl.h>
#include <poll.h>
#include <spawn.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <csignal>
#include <cstdlib>
#include <system_error>
#include <thread>
#include <utility>

#include <deviceloop/error.h>

extern char** environ;

namespace deviceloop::cli {
namespace {

using Clock = std::chrono::steady_clock;

constexpr std::size_t kMostErrorBytes = 4096;

std::atomic<pid_t> running{-1};
static_assert(std::atomic<pid_t>::is_always_lock_free, "a signal handler reads it");

/// Closes itself; -1 once closed.
class Descriptor {
 public:
  explicit Descriptor(int descriptor = -1) : descriptor_(descriptor) {}
  ~Descriptor() { close(); }
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;

  void open(int descriptor) { descriptor_ = descriptor; }
  void close() {
    if (descriptor_ != -1) ::close(std::exchange(descriptor_, -1));
  }
  int get() const { return descriptor_; }

 private:
  int descriptor_;
};

struct Pipe {
  Descriptor read_end, write_end;

  explicit Pipe(const std::string& program) {
    int ends[2];
    if (pipe2(ends, O_CLOEXEC) != 0)
      throw Error("cannot open a pipe to " + program + ": " + std::generic_category().message(errno));
    read_end.open(ends[0]);
    write_end.open(ends[1]);
  }
};

/// A started program; its process group is killed in the end.
class Child {
 public:
  Child(const std::string& program, const std::vector<std::string>& arguments, int in, int out, int err) {
    posix_spawn_file_actions_t files;
    posix_spawnattr_t attributes;
    posix_spawn_file_actions_init(&files);
    posix_spawnattr_init(&attributes);
    posix_spawn_file_actions_adddup2(&files, in, STDIN_FILENO);
    posix_spawn_file_actions_adddup2(&files, out, STDOUT_FILENO);
    posix_spawn_file_actions_adddup2(&files, err, STDERR_FILENO);
    sigset_t none, changed;
    sigemptyset(&none);
    sigemptyset(&changed);
    for (const int signal : {SIGPIPE, SIGINT, SIGTERM, SIGCHLD}) sigaddset(&changed, signal);
    posix_spawnattr_setsigdefault(&attributes, &changed);
    posix_spawnattr_setsigmask(&attributes, &none);
    posix_spawnattr_setpgroup(&attributes, 0);
    posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETSIGDEF | POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETPGROUP);

    std::vector<char*> pointers = {const_cast<char*>(program.c_str())};
    for (const std::string& argument : arguments) pointers.push_back(const_cast<char*>(argument.c_str()));
    pointers.push_back(nullptr);
    const int error = posix_spawn(&process_, program.c_str(), &files, &attributes, pointers.data(), environ);
    posix_spawn_file_actions_destroy(&files);
    posix_spawnattr_destroy(&attributes);
    if (error != 0) {
      process_ = -1;
      throw Error("cannot start " + program + ": " + std::generic_category().message(error));
    }
    running = process_;
  }
  ~Child() { kill_all(); }
  Child(const Child&) = delete;
  Child& operator=(const Child&) = delete;

  void kill_all() {
    if (process_ == -1) return;
    running = -1;
    ::kill(-process_, SIGKILL);
    int status = 0;
    while (waitpid(process_, &status, 0) == -1 && errno == EINTR) {
    }
    process_ = -1;
  }

  /// Whether it ended before `deadline`; then `failure` says how, where not with 0, and what it left running is killed.
  bool wait(Clock::time_point deadline, std::string& failure) {
    for (;;) {
      siginfo_t info{};
      const int result = waitid(P_PID, static_cast<id_t>(process_), &info, WEXITED | WNOHANG | WNOWAIT);
      const bool lost = result == -1 && errno != EINTR;  // ECHILD: whoever started us has SIGCHLD ignored
      if (lost || (result == 0 && info.si_pid == process_)) {
        if (lost) process_ = running = -1;
        kill_all();
        if (lost) return true;
        if (info.si_code != CLD_EXITED)
          failure = "signal " + std::to_string(info.si_status);
        else if (info.si_status != 0)
          failure = "exit code " + std::to_string(info.si_status);
        return true;
      }
      if (Clock::now() >= deadline) return false;
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
  }

 private:
  pid_t process_ = -1;
};

/// Reads what is there and keeps the first `most` bytes; closes at the end of the stream. False: there was more.
bool read_some(Descriptor& from, std::string& text, std::size_t most) {
  std::array<char, 1 << 16> piece;
  const ssize_t count = ::read(from.get(), piece.data(), piece.size());
  if (count < 0 && (errno == EINTR || errno == EAGAIN)) return true;
  if (count <= 0) {
    from.close();
    return true;
  }
  const auto bytes = static_cast<std::size_t>(count);
  const std::size_t kept = std::min(bytes, most - std::min(most, text.size()));
  text.append(piece.data(), kept);
  return kept == bytes;
}

void write_some(Descriptor& to, std::string_view& input) {
  const ssize_t count = ::write(to.get(), input.data(), input.size());
  if (count < 0 && (errno == EINTR || errno == EAGAIN)) return;
  if (count < 0)
    to.close();
  else
    input.remove_prefix(static_cast<std::size_t>(count));
}

std::string seconds_text(std::chrono::milliseconds limit) {
  const auto milliseconds = limit.count();
  return milliseconds % 1000 == 0 ? std::to_string(milliseconds / 1000) + " s" : std::to_string(milliseconds) + " ms";
}

}  // namespace

void kill_running_program() noexcept {
  if (const pid_t process = running; process != -1) ::kill(-process, SIGKILL);
}

std::string find_program(const std::string& program) {
  const char* const path = std::getenv("PATH");
  std::string_view left = path == nullptr ? "/usr/bin:/bin" : path;
  for (bool more = true; more;) {
    const std::size_t colon = left.find(':');
    const std::string_view folder = left.substr(0, colon);
    const std::string file = (folder.empty() ? "." : std::string(folder)) + "/" + program;
    struct stat status {};
    if (stat(file.c_str(), &status) == 0 && S_ISREG(status.st_mode) && access(file.c_str(), X_OK) == 0) return file;
    more = colon != std::string_view::npos;
    if (more) left.remove_prefix(colon + 1);
  }
  return {};
}

ChildResult run_program(const std::string& program, const std::vector<std::string>& arguments, std::string_view input,
                        std::chrono::milliseconds limit, std::size_t most) {
  const Clock::time_point deadline = Clock::now() + limit;
  Pipe in(program), out(program), err(program);
  Child child(program, arguments, in.read_end.get(), out.write_end.get(), err.write_end.get());
  in.read_end.close();
  out.write_end.close();
  err.write_end.close();
  // A write of more than a pipe holds must not wait while the program waits for its output to be read.
  fcntl(in.write_end.get(), F_SETFL, O_NONBLOCK);

  ChildResult result;
  while (out.read_end.get() != -1 || err.read_end.get() != -1) {
    if (input.empty()) in.write_end.close();
    const auto left = std::chrono::ceil<std::chrono::milliseconds>(deadline - Clock::now()).count();
    if (left <= 0) break;
    pollfd streams[] = {
        {in.write_end.get(), POLLOUT, 0}, {out.read_end.get(), POLLIN, 0}, {err.read_end.get(), POLLIN, 0}};
    if (poll(streams, std::size(streams), static_cast<int>(std::min<long long>(left, 1000))) < 0) continue;  // a signal
    if (streams[0].revents != 0) write_some(in.write_end, input);
    if (streams[1].revents != 0 && !read_some(out.read_end, result.out, most)) {
      child.kill_all();
      result.failure = "more than " + std::to_string(most) + " bytes of output";
      return result;
    }
    if (streams[2].revents != 0) read_some(err.read_end, result.err, kMostErrorBytes);
  }
  if (!child.wait(deadline, result.failure)) {
    child.kill_all();
    result.failure = "no end within " + seconds_text(limit);
  }
  return result;
}

}  // namespace deviceloop::cli
