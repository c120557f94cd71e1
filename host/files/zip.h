// Zip archives, as far as .npz files use them: stored and deflated files, also beyond 4 GiB (zip64), written by NumPy
// or by another program, into a file or into a stream.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "output_file.h"
#include "read_file.h"

namespace deviceloop {

/// What the archive says of a file in it.
struct ZipEntry {
  std::string name;
  std::string refusal;  ///< why it cannot be read; empty where it can
  bool is_deflated = false;
  std::uint32_t crc = 0;
  std::uint64_t stored_size = 0;  ///< in the archive
  std::uint64_t size = 0;
  std::uint64_t local = 0;  ///< where its local header begins
  std::uint64_t data = 0;   ///< where its bytes begin
};

/// The directory of an archive, read and checked; its files are read one by one.
class ZipArchive {
 public:
  /// `file` must outlive it. Bytes before the archive, a comment and zeros after it are skipped. Throws
  /// InvalidArgument, naming the file and the position: truncated, no zip archive, several volumes, bytes between the
  /// parts of the directory, names twice, headers that contradict each other, files that overlap, and sizes that so few
  /// compressed bytes cannot have. Allocates nothing that the file's size does not justify.
  explicit ZipArchive(const ByteSource& file);

  /// In order of their names.
  const std::vector<ZipEntry>& entries() const { return entries_; }
  const ByteSource& file() const { return file_; }

 private:
  const ByteSource& file_;
  std::vector<ZipEntry> entries_;
};

/// A file in an archive, inflated while it is read, in order: going back begins again.
class ZipEntrySource : public ByteSource {
 public:
  /// Both must outlive it. Throws InvalidArgument where the file is empty, encrypted, or compressed by another method
  /// than deflate.
  ZipEntrySource(const ByteSource& archive, const ZipEntry& entry);
  ~ZipEntrySource() override;

  /// Throws InvalidArgument where the compressed bytes are damaged or make another number of bytes than the archive
  /// says, and, once the last byte has been read, where the check sum is wrong.
  void read(std::uint64_t offset, void* out, std::size_t bytes) const override;
  bool is_sequential() const override { return true; }
  /// Reads what is left, so that the check sum has been checked.
  void finish() const;

 private:
  class Reader;
  const std::unique_ptr<Reader> reader_;
};

/// Writes an archive of stored files. The caller commits the output file.
class ZipWriter {
 public:
  using Sink = std::function<void(const void* data, std::size_t bytes)>;

  /// Sizes and positions from `zip64_from` on are written in the 64-bit form.
  explicit ZipWriter(OutputFile& file, std::uint64_t zip64_from = 0xffffffff) : file_(file), zip64_from_(zip64_from) {}
  /// Calls `content` twice, for the check sum and to write; it must give the same bytes to its sink both times.
  void add(const std::string& name, const std::function<void(const Sink&)>& content);
  /// Writes the directory; the last call.
  void finish();

 private:
  void write(const std::string& bytes);

  OutputFile& file_;
  std::uint64_t zip64_from_;
  std::uint64_t position_ = 0;
  std::vector<ZipEntry> entries_;
};

}  // namespace deviceloop
