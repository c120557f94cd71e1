// The layout is that of PKWARE's APPNOTE.TXT: local header and data of each file, the central directory, its end
// record.
#include "zip.h"

#include <zlib.h>

#include <algorithm>
#include <array>
#include <initializer_list>
#include <limits>
#include <new>
#include <string_view>
#include <utility>

#include "../text.h"

namespace deviceloop {
namespace {

constexpr std::uint32_t kLocalHeader = 0x04034b50, kDirectoryEntry = 0x02014b50, kEnd = 0x06054b50;
constexpr std::uint32_t kZip64End = 0x06064b50, kZip64Locator = 0x07064b50;
constexpr std::size_t kLocalSize = 30, kEntrySize = 46, kEndSize = 22, kZip64EndSize = 56, kLocatorSize = 20;
constexpr std::size_t kLargestEntry = kEntrySize + 3 * std::size_t{0xffff};
constexpr std::uint16_t kZip64Field = 1;
constexpr std::uint32_t kInZip64 = 0xffffffff;  // in place of a size or position: the zip64 field has it
constexpr std::uint16_t kDescriptorFollows = 1 << 3;
constexpr std::uint64_t kMostOfOneByte = 1032;  // what deflate makes of a byte at best: 258 bytes of 2 bits
constexpr std::size_t kPiece = 1 << 16;

/// Little-endian numbers, one after the other; the caller has made sure that there are enough bytes.
class Fields {
 public:
  explicit Fields(std::string_view bytes) : bytes_(bytes) {}
  std::uint64_t number(std::size_t bytes) {
    std::uint64_t value = 0;
    for (std::size_t i = 0; i < bytes; ++i)
      value |= static_cast<std::uint64_t>(static_cast<unsigned char>(bytes_[i])) << (8 * i);
    bytes_.remove_prefix(bytes);
    return value;
  }
  std::uint16_t u16() { return static_cast<std::uint16_t>(number(2)); }
  std::uint32_t u32() { return static_cast<std::uint32_t>(number(4)); }
  std::uint64_t u64() { return number(8); }
  std::string_view text(std::size_t bytes) {
    const std::string_view text = bytes_.substr(0, bytes);
    bytes_.remove_prefix(bytes);
    return text;
  }
  std::size_t left() const { return bytes_.size(); }

 private:
  std::string_view bytes_;
};

std::string read_text(const ByteSource& file, std::uint64_t offset, std::size_t bytes) {
  std::string text(bytes, '\0');
  file.read(offset, text.data(), text.size());
  return text;
}

std::string at_byte(std::uint64_t offset) { return " at byte " + std::to_string(offset); }

[[noreturn]] void refuse_damaged(const ByteSource& file, const std::string& what) {
  file.refuse("is a damaged zip archive: " + what + "; copy or write it again");
}

/// Where the central directory lies.
struct Directory {
  std::uint64_t offset = 0, size = 0, entries = 0;
  std::uint64_t archive = 0;  // where the archive begins, from which its own positions count
};

/// Checks that the directory ends at `end`. Bytes before an archive, such as a program that unpacks it, shift its
/// positions.
void place(const ByteSource& file, Directory& directory, std::uint64_t end) {
  if (directory.size > end || directory.offset > end - directory.size)
    refuse_damaged(file, "its directory does not end" + at_byte(end));
  directory.archive = end - directory.size - directory.offset;
  directory.offset += directory.archive;
}

/// Whether a zip64 end record and its locator precede the end record at `end`; some programs write them for small
/// archives too.
bool has_zip64_end(const ByteSource& file, std::uint64_t end) {
  if (end < kLocatorSize + kZip64EndSize) return false;
  const std::string bytes = read_text(file, end - kLocatorSize, kLocatorSize);
  return Fields(bytes).u32() == kZip64Locator;
}

Directory read_zip64_end(const ByteSource& file, std::uint64_t end) {
  const std::string locator_bytes = read_text(file, end - kLocatorSize, kLocatorSize);
  Fields locator(locator_bytes);
  locator.u32();  // has_zip64_end() has seen it
  const std::uint32_t volume = locator.u32();
  locator.u64();  // counts from the beginning of the archive, which is not yet known
  const std::uint32_t volumes = locator.u32();
  const std::uint64_t at = end - kLocatorSize - kZip64EndSize;
  const std::string record_bytes = read_text(file, at, kZip64EndSize);
  Fields record(record_bytes);
  if (record.u32() != kZip64End || record.u64() != kZip64EndSize - 12)
    refuse_damaged(file, "no zip64 end record lies" + at_byte(at));
  record.u32();  // versions
  const std::uint32_t this_volume = record.u32(), first_volume = record.u32();
  const std::uint64_t entries_here = record.u64();
  Directory directory;
  directory.entries = record.u64();
  directory.size = record.u64();
  directory.offset = record.u64();
  if (volume != 0 || volumes > 1 || this_volume != 0 || first_volume != 0 || entries_here != directory.entries)
    file.refuse("is one of several volumes of a zip archive; put them together");
  place(file, directory, at);
  return directory;
}

/// The size of the file without the zeros at its end.
std::uint64_t size_without_zeros(const ByteSource& file) {
  for (std::uint64_t end = file.size(); end > 0;) {
    const auto piece = static_cast<std::size_t>(std::min<std::uint64_t>(end, kPiece));
    const std::string bytes = read_text(file, end - piece, piece);
    if (const auto last = bytes.find_last_not_of('\0'); last != std::string::npos) return end - piece + last + 1;
    end -= piece;
  }
  return 0;
}

Directory find_directory(const ByteSource& file) {
  // The last fields of the record, or those of a comment, may be zeros too.
  constexpr std::uint64_t kLongest = kEndSize + std::numeric_limits<std::uint16_t>::max();
  const std::uint64_t content = size_without_zeros(file);
  const std::uint64_t tail_begin = content - std::min(content, kLongest);
  const std::uint64_t tail_end = content + std::min(file.size() - content, kLongest);
  const std::string tail = read_text(file, tail_begin, static_cast<std::size_t>(tail_end - tail_begin));
  for (std::size_t at = tail.size() < kEndSize ? 0 : tail.size() - kEndSize + 1; at-- > 0;) {
    Fields record(std::string_view(tail).substr(at));
    if (record.u32() != kEnd) continue;
    const std::uint16_t volume = record.u16(), first_volume = record.u16(), entries_here = record.u16();
    Directory directory;
    directory.entries = record.u16();
    directory.size = record.u32();
    directory.offset = record.u32();
    const std::uint64_t end = tail_begin + at, after = end + kEndSize + record.u16();
    if (after < content || after > file.size()) continue;  // the comment does not end with the file
    const bool in_zip64 = directory.entries == 0xffff || directory.size == kInZip64 || directory.offset == kInZip64;
    if (has_zip64_end(file, end)) return read_zip64_end(file, end);
    if (in_zip64) refuse_damaged(file, "its zip64 end record is not before" + at_byte(end));
    if (volume != 0 || first_volume != 0 || entries_here != directory.entries)
      file.refuse("is one of several volumes of a zip archive; put them together");
    place(file, directory, end);
    return directory;
  }
  refuse_damaged(file, "its end record is missing, so it is truncated or no archive");
}

/// Replaces those of `values` that are kInZip64 by the values in the zip64 field of `extra`, which has them in this
/// order.
void read_zip64_field(const ByteSource& file, std::string_view extra, std::initializer_list<std::uint64_t*> values,
                      const std::string& where) {
  if (std::none_of(values.begin(), values.end(), [](const std::uint64_t* value) { return *value == kInZip64; })) return;
  Fields fields(extra);
  while (fields.left() >= 4) {
    const std::uint16_t id = fields.u16(), size = fields.u16();
    if (size > fields.left()) break;
    Fields field(fields.text(size));
    if (id != kZip64Field) continue;
    for (std::uint64_t* value : values) {
      if (*value != kInZip64) continue;
      if (field.left() < 8) refuse_damaged(file, "the zip64 field of " + where + " is too short");
      *value = field.u64();
    }
    return;
  }
  refuse_damaged(file, "the zip64 field of " + where + " is missing");
}

/// Checks the local header against the directory's entry and sets entry.data.
void read_local_header(const ByteSource& file, std::uint64_t directory, std::uint16_t flags, std::uint16_t method,
                       ZipEntry& entry) {
  const std::string where = in_quotes(entry.name) + at_byte(entry.local);
  if (entry.local > directory || directory - entry.local < kLocalSize)
    refuse_damaged(file, "the file " + where + " lies outside it");
  const std::string header_bytes = read_text(file, entry.local, kLocalSize);
  Fields header(header_bytes);
  if (header.u32() != kLocalHeader) refuse_damaged(file, "no file begins where " + where + " should");
  header.u16();  // version
  const std::uint16_t local_flags = header.u16(), local_method = header.u16();
  header.u32();  // time
  const std::uint32_t crc = header.u32();
  std::uint64_t stored_size = header.u32(), size = header.u32();
  const std::size_t name_size = header.u16(), extra_size = header.u16();
  if (name_size + extra_size > directory - entry.local - kLocalSize)
    refuse_damaged(file, "the file " + where + " lies outside it");
  const std::string rest_bytes = read_text(file, entry.local + kLocalSize, name_size + extra_size);
  Fields rest(rest_bytes);
  const bool same_name = rest.text(name_size) == entry.name;
  read_zip64_field(file, rest.text(extra_size), {&size, &stored_size}, where);
  // Where a descriptor follows the data, each of these may have been unknown when the header was written.
  const auto agrees = [&](std::uint64_t here, std::uint64_t in_directory) {
    return here == in_directory || (here == 0 && (flags & kDescriptorFollows) != 0);
  };
  const bool same_sizes = agrees(crc, entry.crc) && agrees(stored_size, entry.stored_size) && agrees(size, entry.size);
  if (!same_name || local_flags != flags || local_method != method || !same_sizes)
    refuse_damaged(file, "the header of the file " + where + " contradicts the directory");
  entry.data = entry.local + kLocalSize + name_size + extra_size;
  if (entry.stored_size > directory - entry.data)
    refuse_damaged(file, "the file " + where + " runs into the directory");
}

std::string method_name(std::uint16_t method) {
  constexpr std::pair<std::uint16_t, const char*> kMethods[] = {
      {9, "Deflate64"}, {12, "bzip2"}, {14, "LZMA"}, {93, "Zstandard"}, {95, "xz"}};
  for (const auto& [code, name] : kMethods)
    if (code == method) return "method " + std::to_string(method) + " (" + name + ")";
  return "method " + std::to_string(method);
}

ZipEntry read_entry(const ByteSource& file, Fields& fields, const Directory& directory) {
  const std::string where = "the directory's entry" + at_byte(directory.offset + directory.size - fields.left());
  if (fields.left() < kEntrySize || fields.u32() != kDirectoryEntry) refuse_damaged(file, where + " is none");
  ZipEntry entry;
  fields.u32();  // versions
  const std::uint16_t flags = fields.u16(), method = fields.u16();
  fields.u32();  // time
  entry.crc = fields.u32();
  entry.stored_size = fields.u32();
  entry.size = fields.u32();
  const std::size_t name_size = fields.u16(), extra_size = fields.u16(), comment_size = fields.u16();
  const std::uint16_t volume = fields.u16();
  fields.number(6);  // attributes
  entry.local = fields.u32();
  if (name_size + extra_size + comment_size > fields.left())
    refuse_damaged(file, where + " is longer than the directory");
  entry.name = fields.text(name_size);
  read_zip64_field(file, fields.text(extra_size), {&entry.size, &entry.stored_size, &entry.local}, where);
  fields.text(comment_size);
  if (entry.local > directory.offset - directory.archive)
    refuse_damaged(file, "the file " + in_quotes(entry.name) + at_byte(entry.local) + " lies outside it");
  entry.local += directory.archive;
  const std::string name = in_quotes(entry.name);
  if (volume != 0) file.refuse("is one of several volumes of a zip archive; put them together");
  if ((flags & 1) != 0)
    entry.refusal = "is encrypted; write the archive without a password";
  else if ((flags & ~(0x0006 | kDescriptorFollows | 0x0800)) != 0)
    entry.refusal = "has the flags " + std::to_string(flags) + ", which are not read; write it again with numpy.savez";
  else if (method != 0 && method != 8)
    entry.refusal = "is compressed by " + method_name(method) +
                    ", only 0 (stored) and 8 (deflated) are read; write it again with numpy.savez";
  entry.is_deflated = method == 8;
  if (entry.refusal.empty() &&
      (entry.is_deflated ? entry.size / kMostOfOneByte > entry.stored_size : entry.size != entry.stored_size))
    refuse_damaged(file, std::to_string(entry.stored_size) + " bytes cannot become the " + std::to_string(entry.size) +
                             " of the file " + name);
  read_local_header(file, directory.offset, flags, method, entry);
  return entry;
}

}  // namespace

ZipArchive::ZipArchive(const ByteSource& file) : file_(file) {
  const Directory directory = find_directory(file);
  if (directory.entries > directory.size / kEntrySize)
    refuse_damaged(
        file, std::to_string(directory.entries) + " files do not fit into its directory" + at_byte(directory.offset));
  // Of one entry: its name, its extra field and its comment, with 16 bits for the size of each.
  if (directory.size / kLargestEntry > directory.entries)
    refuse_damaged(file, std::to_string(directory.entries) + " files do not fill its directory of " +
                             std::to_string(directory.size) + " bytes" + at_byte(directory.offset));
  const std::string bytes = read_text(file, directory.offset, static_cast<std::size_t>(directory.size));
  Fields fields(bytes);
  for (std::uint64_t i = 0; i < directory.entries; ++i) entries_.push_back(read_entry(file, fields, directory));
  if (fields.left() != 0)
    refuse_damaged(file, "its directory goes on" + at_byte(directory.offset + directory.size - fields.left()));

  std::sort(entries_.begin(), entries_.end(), [](const auto& a, const auto& b) { return a.local < b.local; });
  for (std::size_t i = 1; i < entries_.size(); ++i)
    if (entries_[i].local < entries_[i - 1].data + entries_[i - 1].stored_size)
      refuse_damaged(file, "the files " + in_quotes(entries_[i - 1].name) + " and " + in_quotes(entries_[i].name) +
                               " overlap" + at_byte(entries_[i].local));
  std::stable_sort(entries_.begin(), entries_.end(), [](const auto& a, const auto& b) { return a.name < b.name; });
  for (std::size_t i = 1; i < entries_.size(); ++i)
    if (entries_[i].name == entries_[i - 1].name)
      file.refuse("has the file " + in_quotes(entries_[i].name) + " twice," + at_byte(entries_[i - 1].local) + " and" +
                  at_byte(entries_[i].local) + "; write it again");
}

/// Gives an entry's bytes in order.
class ZipEntrySource::Reader {
 public:
  Reader(const ByteSource& archive, const ZipEntry& entry, const ByteSource& source)
      : archive_(archive), entry_(entry), source_(source), input_(entry.is_deflated ? kPiece : 0) {
    if (entry_.is_deflated && inflateInit2(&stream_, -MAX_WBITS) != Z_OK) throw std::bad_alloc();
  }
  ~Reader() {
    if (entry_.is_deflated) inflateEnd(&stream_);
  }
  Reader(const Reader&) = delete;
  Reader& operator=(const Reader&) = delete;

  void read(std::uint64_t offset, unsigned char* out, std::size_t bytes) {
    if (offset < position_) begin_again();
    skip(offset);
    next(out, bytes);
  }
  void skip(std::uint64_t offset) {
    std::array<unsigned char, 4096> skipped;
    while (position_ < offset)
      next(skipped.data(), static_cast<std::size_t>(std::min<std::uint64_t>(skipped.size(), offset - position_)));
  }

 private:
  void begin_again() {
    if (entry_.is_deflated) inflateReset(&stream_);
    stream_.avail_in = 0;
    position_ = consumed_ = 0;
    crc_ = 0;
  }

  void next(unsigned char* out, std::size_t bytes) {
    while (bytes > 0) {
      const std::size_t piece = std::min(bytes, std::size_t{1} << 30);
      if (entry_.is_deflated)
        inflate_to(out, piece);
      else
        archive_.read(entry_.data + position_, out, piece);
      crc_ = static_cast<std::uint32_t>(crc32_z(crc_, out, piece));
      position_ += piece;
      out += piece;
      bytes -= piece;
      if (position_ == entry_.size) check_end();
    }
  }

  void inflate_to(unsigned char* out, std::size_t bytes) {
    stream_.next_out = out;
    stream_.avail_out = static_cast<uInt>(bytes);
    while (stream_.avail_out > 0)
      if (step() == Z_STREAM_END && stream_.avail_out > 0)
        source_.refuse("inflates to " + std::to_string(position_ + bytes - stream_.avail_out) +
                       " bytes, but the archive says " + std::to_string(entry_.size) + "; write it again");
  }

  int step() {
    if (stream_.avail_in == 0) {
      const std::uint64_t left = entry_.stored_size - consumed_;
      const auto piece = static_cast<std::size_t>(std::min<std::uint64_t>(input_.size(), left));
      if (piece > 0) archive_.read(entry_.data + consumed_, input_.data(), piece);
      stream_.next_in = input_.data();
      stream_.avail_in = static_cast<uInt>(piece);
      consumed_ += piece;
    }
    const int result = inflate(&stream_, Z_NO_FLUSH);
    if (result == Z_MEM_ERROR) throw std::bad_alloc();
    if (result != Z_OK && result != Z_STREAM_END)
      source_.refuse("has damaged compressed bytes" + at_byte(entry_.data + consumed_ - stream_.avail_in) +
                     " of the archive; copy or write it again");
    return result;
  }

  void check_end() {
    if (entry_.is_deflated) {
      unsigned char beyond = 0;
      stream_.next_out = &beyond;
      stream_.avail_out = 1;
      int result = Z_OK;
      while (stream_.avail_out > 0 && result != Z_STREAM_END) result = step();
      if (stream_.avail_out == 0)
        source_.refuse("inflates to more than the " + std::to_string(entry_.size) +
                       " bytes that the archive says; write it again");
      if (stream_.avail_in > 0 || consumed_ < entry_.stored_size)
        source_.refuse("has bytes after its compressed ones" + at_byte(entry_.data + consumed_ - stream_.avail_in) +
                       " of the archive; write it again");
    }
    if (crc_ != entry_.crc)
      source_.refuse("has the check sum " + std::to_string(crc_) + ", but the archive says " +
                     std::to_string(entry_.crc) + ": what begins" + at_byte(entry_.data) +
                     " of the archive is damaged; copy or write it again");
  }

  const ByteSource& archive_;
  const ZipEntry& entry_;
  const ByteSource& source_;
  std::vector<unsigned char> input_;
  z_stream stream_{};
  std::uint64_t position_ = 0;  // in what is read
  std::uint64_t consumed_ = 0;  // of what is compressed
  std::uint32_t crc_ = 0;
};

ZipEntrySource::ZipEntrySource(const ByteSource& archive, const ZipEntry& entry)
    : ByteSource(archive.name() + ": " + printable(entry.name, 100), entry.size),
      reader_(std::make_unique<Reader>(archive, entry, *this)) {
  if (!entry.refusal.empty()) refuse(entry.refusal);
  if (entry.size == 0) refuse("is empty; write the file again");
}

ZipEntrySource::~ZipEntrySource() = default;

void ZipEntrySource::read(std::uint64_t offset, void* out, std::size_t bytes) const {
  reader_->read(offset, static_cast<unsigned char*>(out), bytes);
}

void ZipEntrySource::finish() const { reader_->skip(size()); }

namespace {

void put(std::string& to, std::uint64_t value, std::size_t bytes) {
  for (std::size_t i = 0; i < bytes; ++i) to += static_cast<char>(value >> (8 * i) & 0xff);
}

}  // namespace

void ZipWriter::write(const std::string& bytes) {
  file_.write(bytes);
  position_ += bytes.size();
}

void ZipWriter::add(const std::string& name, const std::function<void(const Sink&)>& content) {
  ZipEntry entry;
  entry.name = name;
  entry.local = position_;
  content([&](const void* data, std::size_t bytes) {
    entry.crc = static_cast<std::uint32_t>(crc32_z(entry.crc, static_cast<const unsigned char*>(data), bytes));
    entry.size += bytes;
  });
  entry.stored_size = entry.size;
  const bool zip64 = entry.size >= zip64_from_;
  std::string header;
  put(header, kLocalHeader, 4);
  put(header, zip64 ? 45 : 20, 2);  // the version that is needed to read it
  put(header, 0, 4);                // no flags, stored
  put(header, 0x00210000, 4);       // 1 January 1980: the same bytes on every run
  put(header, entry.crc, 4);
  for (int i = 0; i < 2; ++i) put(header, zip64 ? kInZip64 : entry.size, 4);
  put(header, name.size(), 2);
  put(header, zip64 ? 20 : 0, 2);
  header += name;
  if (zip64) {
    put(header, kZip64Field, 2);
    put(header, 16, 2);
    for (int i = 0; i < 2; ++i) put(header, entry.size, 8);
  }
  write(header);
  content([&](const void* data, std::size_t bytes) { file_.write(data, bytes); });
  position_ += entry.size;
  entries_.push_back(std::move(entry));
}

void ZipWriter::finish() {
  const std::uint64_t directory = position_;
  std::string bytes;
  for (const ZipEntry& entry : entries_) {
    const bool size64 = entry.size >= zip64_from_, local64 = entry.local >= zip64_from_;
    std::string extra;
    if (size64 || local64) {
      put(extra, kZip64Field, 2);
      put(extra, (size64 ? 16 : 0) + (local64 ? 8 : 0), 2);
      for (int i = 0; i < (size64 ? 2 : 0); ++i) put(extra, entry.size, 8);
      if (local64) put(extra, entry.local, 8);
    }
    const unsigned version = extra.empty() ? 20 : 45;
    put(bytes, kDirectoryEntry, 4);
    put(bytes, version, 2);
    put(bytes, version, 2);
    put(bytes, 0, 4);
    put(bytes, 0x00210000, 4);
    put(bytes, entry.crc, 4);
    for (int i = 0; i < 2; ++i) put(bytes, size64 ? kInZip64 : entry.size, 4);
    put(bytes, entry.name.size(), 2);
    put(bytes, extra.size(), 2);
    bytes.append(10, '\0');  // no comment, the first volume, no attributes
    put(bytes, local64 ? kInZip64 : entry.local, 4);
    bytes += entry.name + extra;
  }
  const std::uint64_t size = bytes.size(), count = entries_.size();
  const bool zip64 = directory >= zip64_from_;
  if (zip64) {
    const std::uint64_t at = directory + size;
    put(bytes, kZip64End, 4);
    put(bytes, kZip64EndSize - 12, 8);
    put(bytes, 45, 2);
    put(bytes, 45, 2);
    put(bytes, 0, 8);
    put(bytes, count, 8);
    put(bytes, count, 8);
    put(bytes, size, 8);
    put(bytes, directory, 8);
    put(bytes, kZip64Locator, 4);
    put(bytes, 0, 4);
    put(bytes, at, 8);
    put(bytes, 1, 4);
  }
  put(bytes, kEnd, 4);
  put(bytes, 0, 4);
  put(bytes, count, 2);
  put(bytes, count, 2);
  put(bytes, size, 4);
  put(bytes, zip64 ? kInZip64 : directory, 4);
  put(bytes, 0, 2);
  write(bytes);
}

}  // namespace deviceloop
