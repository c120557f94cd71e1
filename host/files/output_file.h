// Files that appear complete or not at all: written without a name, synced, given their name, and the folder synced.
#pragma once

#include <sys/types.h>

#include <cstddef>
#include <string>
#include <string_view>
#include <system_error>

namespace deviceloop {

/// The constructor finds out whether the path can be written, so that a command learns it before hours of training.
/// "-" is standard output. A target that exists and is not a regular file (a pipe, /dev/null) is written in place, a
/// symbolic link is followed. Destroyed without commit() it leaves nothing behind and an existing file as it was; so
/// does a process that is killed. On a file system without unnamed files (O_TMPFILE; NFS has none) a file is written
/// under a temporary name beside the target from the first write on, which only SIGKILL leaves there: see
/// remove_unfinished_files().
class OutputFile {
 public:
  enum class Unfinished { unnamed_where_possible, named };

  /// Throws InvalidArgument, naming the path and the reason, where it cannot be written. Opening a named pipe waits for
  /// its reader. `unfinished` is for tests.
  explicit OutputFile(std::string path, Unfinished unfinished = Unfinished::unnamed_where_possible);
  ~OutputFile();
  OutputFile(const OutputFile&) = delete;
  OutputFile& operator=(const OutputFile&) = delete;

  /// Throws Error (disk full, closed pipe), naming the path; after that nothing more can be written or committed. A
  /// closed pipe raises no SIGPIPE.
  void write(const void* data, std::size_t bytes);
  void write(std::string_view text) { write(text.data(), text.size()); }
  /// Makes the file appear. Throws Error; then nothing has appeared, unless the message says that only the folder could
  /// not be synced.
  void commit();

  const std::string& path() const { return path_; }
  /// Whether readers see at once what is written, so that a write may have to wait for one.
  bool in_place() const { return target_.empty(); }

 private:
  /// What a new file takes over from the file that it replaces.
  struct Owner {
    uid_t user = 0;
    gid_t group = 0;
    mode_t mode = 0;
  };

  bool open_unnamed();
  /// Returns 0 or errno.
  int open_named();
  /// Returns 0 or errno; does nothing if no file is replaced.
  int take_over_owner();
  void ensure_open();
  /// Gives the unnamed file its name; returns 0 or errno.
  int link();
  void discard() noexcept;
  [[noreturn]] void fail(const std::string& what, int error);

  std::string path_;       // as given
  std::string name_;       // path_ for messages
  std::string target_;     // links resolved; empty where the target is written in place
  std::string temporary_;  // the name it has until it is committed; empty: none
  bool replaces_ = false;  // a file with this owner
  Owner owner_;
  bool opens_late_ = false;  // named, at the first write
  int descriptor_ = -1;      // -1 once committed or failed
};

/// The path that a write to `path` ends at: links followed, also one whose target does not exist yet. Its folder
/// exists.
std::string resolve_links(const std::string& path, std::error_code& error);

/// Removes the temporary names there are, whatever else the process is doing: for a handler of signals that ends it.
void remove_unfinished_files() noexcept;

}  // namespace deviceloop
