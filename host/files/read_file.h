// Reading files from outside: what every reader of this folder needs before it looks at the content.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

namespace deviceloop {

/// A regular file, open for reading. All its messages begin with the path and are one line.
class InputFile {
 public:
  /// Throws InvalidArgument, naming the path and what to do: missing, a folder, a pipe or device, unreadable, empty.
  /// Never waits, not even for the other end of a pipe.
  explicit InputFile(const std::string& path);
  ~InputFile();
  InputFile(const InputFile&) = delete;
  InputFile& operator=(const InputFile&) = delete;

  /// Bytes, when it was opened; at least 1.
  std::uint64_t size() const { return size_; }
  /// Fills `out` from `offset` on; the caller has checked both against size(). Throws Error where the disk fails or the
  /// file has become shorter.
  void read(std::uint64_t offset, void* out, std::size_t bytes) const;
  /// Throws InvalidArgument: the path, ": ", `problem`.
  [[noreturn]] void refuse(const std::string& problem) const;

 private:
  std::string name_;  // the path, printable
  std::uint64_t size_ = 0;
  int descriptor_ = -1;
};

}  // namespace deviceloop
