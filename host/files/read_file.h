// Reading files from outside: what every reader of this folder needs before it looks at the content.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <utility>

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
  /// Whether going back costs as much as beginning again.
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

/// A regular file, open for reading; size() is that of when it was opened.
class InputFile : public ByteSource {
 public:
  /// Throws InvalidArgument, naming the path and what to do: missing, a folder, a pipe or device, unreadable, empty.
  /// Never waits, not even for the other end of a pipe.
  explicit InputFile(const std::string& path);
  ~InputFile() override;

  /// Throws Error also where the file has become shorter.
  void read(std::uint64_t offset, void* out, std::size_t bytes) const override;

 private:
  int descriptor_ = -1;
};

}  // namespace deviceloop
