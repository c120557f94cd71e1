#include "output_file.h"

#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <csignal>
#include <cstdio>
#include <filesystem>
#include <random>
#include <string>
#include <system_error>
#include <utility>

#include <deviceloop/error.h>

#include "../text.h"

namespace deviceloop {
namespace {

namespace fs = std::filesystem;

std::string reason(int error) { return std::generic_category().message(error); }

std::string folder_of(const std::string& file) {
  const fs::path folder = fs::path(file).parent_path();
  return folder.empty() ? "." : folder.string();
}

/// "/folder/.NAME.XXXXXX.tmp", NAME cut where the folder takes no name of that length.
std::string temporary_name(const std::string& target) {
  constexpr char kCharacters[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789";
  static_assert(sizeof kCharacters == 62 + 1);
  std::random_device random;
  std::uniform_int_distribution<std::size_t> pick(0, 61);
  std::string tail = ".";
  for (int i = 0; i < 6; ++i) tail += kCharacters[pick(random)];
  tail += ".tmp";

  const std::string folder = folder_of(target);
  const long limit = ::pathconf(folder.c_str(), _PC_NAME_MAX);
  const std::size_t longest = std::max<std::size_t>(limit > 0 ? static_cast<std::size_t>(limit) : 255, 64);
  std::string name = fs::path(target).filename().string();
  if (name.size() + tail.size() + 1 > longest) {
    name.resize(longest - tail.size() - 1);
    // Not in the middle of a UTF-8 character, which some file systems refuse.
    while (!name.empty() && static_cast<unsigned char>(name.back()) >= 0x80) name.pop_back();
  }
  return (fs::path(folder) / ("." + name + tail)).string();
}

/// The temporary names of this process, for remove_unfinished_files(): more at a time are not kept.
std::atomic<const char*> unfinished_names[64];

void keep_name(const std::string& name) {
  for (auto& slot : unfinished_names) {
    const char* none = nullptr;
    if (slot.compare_exchange_strong(none, name.c_str())) return;
  }
}

void forget_name(const std::string& name) noexcept {
  for (auto& slot : unfinished_names) {
    const char* kept = name.c_str();
    if (slot.compare_exchange_strong(kept, nullptr)) return;
  }
}

std::string path_of_descriptor(int descriptor) { return "/proc/self/fd/" + std::to_string(descriptor); }

/// The owner of a folder with the sticky bit alone may replace other people's files in it.
bool may_replace(const struct stat& target, const std::string& folder) {
  struct stat status {};
  if (::stat(folder.c_str(), &status) != 0 || (status.st_mode & S_ISVTX) == 0) return true;
  const uid_t user = ::geteuid();
  return user == 0 || user == target.st_uid || user == status.st_uid;
}

/// Keeps the signals of a failing write() from ending the process of the host application: SIGPIPE and, at a limit on
/// the size of files, SIGXFSZ. Both go to the writing thread, so that blocking them here and taking those that came
/// does not affect the handlers of the host application.
class WriteSignals {
 public:
  WriteSignals() {
    sigset_t mine;
    sigemptyset(&mine);
    sigaddset(&mine, SIGPIPE);
    sigaddset(&mine, SIGXFSZ);
    ::sigpending(&pending_before_);
    ::pthread_sigmask(SIG_BLOCK, &mine, &mask_before_);
  }
  ~WriteSignals() { ::pthread_sigmask(SIG_SETMASK, &mask_before_, nullptr); }
  WriteSignals(const WriteSignals&) = delete;
  WriteSignals& operator=(const WriteSignals&) = delete;

  void take(int signal) {
    sigset_t pending;
    ::sigpending(&pending);
    if (sigismember(&pending, signal) != 1 || sigismember(&pending_before_, signal) == 1) return;
    sigset_t one;
    sigemptyset(&one);
    sigaddset(&one, signal);
    int taken = 0;
    ::sigwait(&one, &taken);
  }

 private:
  sigset_t mask_before_;
  sigset_t pending_before_;
};

}  // namespace

OutputFile::OutputFile(std::string path, Unfinished unfinished) : path_(std::move(path)), name_(printable(path_)) {
  if (path_.empty()) throw InvalidArgument("the path of the file to write is empty; give the name of a file");
  if (path_.find('\0') != std::string::npos)
    throw InvalidArgument(name_ + ": has a NUL character in its path; give the name of a file");
  const auto refuse = [&](const std::string& what) { throw InvalidArgument(name_ + ": " + what); };

  if (path_ == "-") {
    name_ = "standard output";
    const int access = ::fcntl(STDOUT_FILENO, F_GETFL);
    if (access >= 0 && (access & O_ACCMODE) == O_RDONLY) refuse("is open for reading only; redirect it to a file");
    descriptor_ = ::fcntl(STDOUT_FILENO, F_DUPFD_CLOEXEC, 3);
    if (descriptor_ < 0) refuse("cannot be written: " + reason(errno) + "; redirect it to a file");
    return;
  }

  struct stat status {};
  const bool exists = ::stat(path_.c_str(), &status) == 0;
  if (!exists && errno != ENOENT)
    refuse("cannot be written: " + reason(errno) + "; give another name, or a folder that you can write to");
  if (exists && S_ISDIR(status.st_mode)) refuse("is a folder; give the name of a file in it");
  if (exists && !S_ISREG(status.st_mode)) {
    do {
      descriptor_ = ::open(path_.c_str(), O_WRONLY | O_CLOEXEC | O_NOCTTY);
    } while (descriptor_ < 0 && errno == EINTR);
    if (descriptor_ < 0) refuse("cannot be written: " + reason(errno) + "; give the name of a file");
    return;
  }
  // Renaming would replace a file that is protected from writing, which its owner did not want.
  if (exists && ::faccessat(AT_FDCWD, path_.c_str(), W_OK, AT_EACCESS) != 0)
    refuse("exists and cannot be written: " + reason(errno) + "; make it writable or give another name");

  std::error_code error;
  target_ = resolve_links(path_, error);
  const std::string folder = folder_of(target_.empty() ? path_ : target_);
  if (error == std::errc::no_such_file_or_directory)
    refuse("its folder does not exist: " + error.message() + "; create the folder first");
  if (error) refuse("cannot be written: " + error.message() + "; give another name, or a folder that you can write to");
  if (exists && !may_replace(status, folder))
    refuse("belongs to somebody else, in a folder whose files only their owners may replace: " + reason(EPERM) +
           "; give another name or another folder");
  replaces_ = exists;
  if (exists) owner_ = {status.st_uid, status.st_gid, status.st_mode & 0777};
  int code = 0;
  if (unfinished != Unfinished::unnamed_where_possible || !open_unnamed()) {
    // Created here to find out whether that works, and again when there is something to write.
    code = open_named();
    opens_late_ = code == 0;
  }
  if (code != 0) refuse("cannot be created in its folder: " + reason(code) + "; give a folder that you can write to");
  code = take_over_owner();
  if (code != 0 || opens_late_) discard();
  if (code != 0) refuse("its permissions cannot be kept: " + reason(code) + "; give another name or another folder");
}

OutputFile::~OutputFile() { discard(); }

void OutputFile::write(const void* data, std::size_t bytes) {
  ensure_open();
  WriteSignals signals;
  const char* from = static_cast<const char*>(data);
  while (bytes > 0) {
    const ssize_t count = ::write(descriptor_, from, std::min(bytes, std::size_t{1} << 30));
    if (count < 0) {
      const int error = errno;
      if (error == EINTR) continue;
      if (error == EAGAIN) {  // somebody has made the pipe or the terminal non-blocking
        pollfd writable{descriptor_, POLLOUT, 0};
        ::poll(&writable, 1, -1);
        continue;
      }
      if (error == EPIPE) signals.take(SIGPIPE);
      if (error == EFBIG) signals.take(SIGXFSZ);
      fail("writing failed", error);
    }
    from += count;
    bytes -= static_cast<std::size_t>(count);
  }
}

void OutputFile::commit() {
  ensure_open();
  int synced = 0;
  do {
    synced = ::fsync(descriptor_);
  } while (synced != 0 && errno == EINTR);
  // Pipes, terminals and some devices cannot be synced.
  if (synced != 0 && errno != EINVAL && errno != ENOTSUP && errno != EROFS) fail("syncing failed", errno);
  if (!in_place() && temporary_.empty())
    if (const int error = link()) fail("naming the finished file failed", error);
  const int closed = ::close(std::exchange(descriptor_, -1));
  if (closed != 0 && errno != EINTR) fail("closing failed", errno);
  if (in_place()) return;

  if (!temporary_.empty()) {
    if (::rename(temporary_.c_str(), target_.c_str()) != 0) fail("renaming the finished file failed", errno);
    forget_name(temporary_);
    temporary_.clear();
  }
  // A folder may be writable but not readable, and not every file system can sync one.
  const int folder = ::open(folder_of(target_).c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (folder < 0) return;
  const int error = ::fsync(folder) == 0 ? 0 : errno;
  ::close(folder);
  if (error != 0 && error != EINTR && error != EINVAL && error != ENOTSUP && error != EROFS)
    fail("is written, but syncing its folder failed", error);
}

bool OutputFile::open_unnamed() {
  // A new file gets what the umask leaves of 0666. open() applies it: the umask cannot be asked for without setting it,
  // which other threads would notice.
  do {
    descriptor_ = ::open(folder_of(target_).c_str(), O_WRONLY | O_TMPFILE | O_CLOEXEC,
                         static_cast<mode_t>(replaces_ ? 0600 : 0666));
  } while (descriptor_ < 0 && errno == EINTR);
  if (descriptor_ < 0) return false;
  // Without /proc it could not get a name.
  if (::access(path_of_descriptor(descriptor_).c_str(), F_OK) == 0) return true;
  discard();
  return false;
}

int OutputFile::open_named() {
  for (int attempt = 0; attempt < 100; ++attempt) {
    temporary_ = temporary_name(target_);
    // Kept before the file exists: a signal may end the process between the two calls.
    keep_name(temporary_);
    descriptor_ = ::open(temporary_.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC,
                         static_cast<mode_t>(replaces_ ? 0600 : 0666));
    if (descriptor_ >= 0) return 0;
    const int error = errno;
    forget_name(temporary_);
    temporary_.clear();
    if (error != EEXIST && error != EINTR) return error;
  }
  return EEXIST;
}

int OutputFile::take_over_owner() {
  if (!replaces_) return 0;
  // The group first: changing it may clear bits of the mode. Where it cannot be kept, another group must not get the
  // rights that this one had.
  mode_t mode = owner_.mode;
  if (::fchown(descriptor_, owner_.user, owner_.group) != 0 &&
      ::fchown(descriptor_, static_cast<uid_t>(-1), owner_.group) != 0)
    mode &= 0707 | (mode & 07) << 3;
  return ::fchmod(descriptor_, mode) == 0 ? 0 : errno;
}

void OutputFile::ensure_open() {
  if (opens_late_) {
    opens_late_ = false;
    if (const int error = open_named()) fail("cannot be created in its folder", error);
    if (const int error = take_over_owner()) fail("its permissions cannot be kept", error);
  }
  if (descriptor_ < 0) throw Error(name_ + ": is closed after commit or an error; open it again to write it");
}

int OutputFile::link() {
  const std::string unnamed = path_of_descriptor(descriptor_);
  const auto link_to = [&](const std::string& name) {
    return ::linkat(AT_FDCWD, unnamed.c_str(), AT_FDCWD, name.c_str(), AT_SYMLINK_FOLLOW) == 0 ? 0 : errno;
  };
  int error = link_to(target_);
  // A link cannot replace a file, but a rename can.
  for (int attempt = 0; error == EEXIST && attempt < 100; ++attempt) {
    temporary_ = temporary_name(target_);
    keep_name(temporary_);
    error = link_to(temporary_);
    if (error == 0) break;
    forget_name(temporary_);
    temporary_.clear();
  }
  return error;
}

void OutputFile::discard() noexcept {
  if (descriptor_ >= 0) ::close(std::exchange(descriptor_, -1));
  if (temporary_.empty()) return;
  ::unlink(temporary_.c_str());
  forget_name(temporary_);
  temporary_.clear();
}

void OutputFile::fail(const std::string& what, int error) {
  discard();
  std::string remedy = "check the disk and try again";
  if (error == ENOSPC || error == EDQUOT) remedy = "free some space or write to another disk";
  if (error == EPIPE) remedy = "keep the reader of the pipe running to the end";
  if (error == EFBIG) remedy = "raise the limit on the size of files or write to another disk";
  throw Error(name_ + ": " + what + ": " + reason(error) + "; " + remedy);
}

std::string resolve_links(const std::string& path, std::error_code& error) {
  fs::path file = path;
  constexpr int kMostLinks = 40;  // as Linux has it
  std::error_code no_link;
  for (int link = 0; link < kMostLinks && fs::is_symlink(fs::symlink_status(file, no_link)); ++link) {
    const fs::path to = fs::read_symlink(file, error);
    if (error) return {};
    file = file.parent_path() / to;
  }
  return (fs::canonical(folder_of(file.string()), error) / file.filename()).string();
}

void remove_unfinished_files() noexcept {
  for (const auto& slot : unfinished_names)
    if (const char* const name = slot.load()) ::unlink(name);
}

}  // namespace deviceloop
