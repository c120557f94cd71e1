// Files that appear whole or not at all: written under a temporary name in the same folder, synced, renamed, and the
// folder synced.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>

namespace deviceloop {

/// The constructor finds out whether the path can be written, so that a command learns it before hours of training.
/// "-" is standard output. A target that exists and is not a regular file (a pipe, /dev/null) is written in place, a
/// symbolic link is followed. Destroyed without commit() it leaves nothing behind and an existing file as it was.
class OutputFile {
 public:
  /// Throws InvalidArgument, naming the path and the reason, where it cannot be written. Opening a named pipe waits for
  /// its reader.
  explicit OutputFile(std::string path);
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

 private:
  void create_temporary(unsigned mode);
  void discard() noexcept;
  [[noreturn]] void fail(const std::string& what, int error);

  std::string path_;       // as given
  std::string name_;       // path_ for messages
  std::string target_;     // links resolved; empty where the target is written in place
  std::string temporary_;  // likewise
  int descriptor_ = -1;    // -1 once committed or failed
};

}  // namespace deviceloop
