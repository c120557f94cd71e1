// Reading files from outside: what every reader of this folder needs before it looks at the content.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <utility>
#include <vector>

namespace deviceloop {

/// Bytes that a reader parses: a file, a file inside an archive, memory. All messages begin with its name and are one
/// line.
class ByteSource {
 public:
  virtual ~ByteSource() = default;
  ByteSource(const ByteSource&) = delete;
  ByteSource& operator=(const ByteSource&) = delete;

  /// At least 1.
  std::uint64_t size() const { return size_; }
  /// Fills `out` from `offset` on; the caller has checked both against size(). Throws Error where the disk fails.
  virtual void read(std::uint64_t offset, void* out, std::size_t bytes) const = 0;
  /// Whether reading from an earlier offset costs as much as reading from the beginning.
  virtual bool is_sequential() const { return false; }
  /// Printable.
  const std::string& name() const { return name_; }
  /// Throws InvalidArgument: the name, ": ", `problem`.
  [[noreturn]] void refuse(const std::string& problem) const;

 protected:
  explicit ByteSource(std::string name, std::uint64_t size = 0) : name_(std::move(name)), size_(size) {}
  void set_size(std::uint64_t size) { size_ = size; }

 private:
  std::string name_;
  std::uint64_t size_ = 0;
};

/// Bytes that the caller keeps alive.
class MemorySource : public ByteSource {
 public:
  /// Throws InvalidArgument where there are none.
  MemorySource(std::string name, std::span<const std::byte> bytes);
  void read(std::uint64_t offset, void* out, std::size_t bytes) const override;

 private:
  std::span<const std::byte> bytes_;
};

/// A file, open for reading; size() is that of when it was opened. What comes through a pipe or socket, such as
/// /dev/stdin, is read into memory until its writers close it.
class InputFile : public ByteSource {
 public:
  /// Throws InvalidArgument, naming the path and what to do: missing, a folder, a device, unreadable, empty, a pipe
  /// through which more than `most_bytes` come. Waits for nothing but a pipe.
  explicit InputFile(const std::string& path, std::uint64_t most_bytes = UINT64_MAX);
  ~InputFile() override;

  /// Throws Error also where the file has become shorter.
  void read(std::uint64_t offset, void* out, std::size_t bytes) const override;
  bool is_pipe() const { return !content_.empty(); }
  /// What it keeps in memory, in bytes.
  std::uint64_t memory() const { return content_.size(); }

 private:
  void read_pipe(std::uint64_t most_bytes);

  int descriptor_ = -1;
  std::vector<char> content_;  // of a pipe
};

}  // namespace deviceloop
