// safetensors files: an 8-byte little-endian header length, a JSON header, the tensors' bytes.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "elements.h"
#include "output_file.h"
#include "read_file.h"

namespace deviceloop {

/// What the header says of a tensor.
struct SafeTensorInfo {
  std::string name;
  std::string dtype;  ///< as in the file: "F32", "F64", ...
  std::vector<std::int64_t> shape;
  std::uint64_t offset = 0;  ///< in bytes, from the beginning of the file
  std::uint64_t bytes = 0;   ///< of the shape's elements
};

struct SafeTensor {
  std::string name;
  std::string dtype;
  std::vector<std::int64_t> shape;
  std::vector<std::byte> bytes;  ///< row-major, little-endian
};

/// What a file says beside its tensors: texts by their keys, under "__metadata__" in its header.
using SafeTensorsMetadata = std::map<std::string, std::string>;

/// The key of a checksum (../checksum.h) of the whole file, header and padding included, in which its own 16 digits are
/// taken for zeros.
constexpr const char* kChecksumKey = "deviceloop.crc64";

/// A file whose header has been read and checked; the tensors' bytes are read one by one.
class SafeTensorsFile {
 public:
  /// Throws InvalidArgument, naming the file and the tensor: missing, empty, truncated, a header longer than the file
  /// or 100 MB, not JSON, duplicate keys, offsets that overlap, leave gaps, lie outside the file or do not match shape
  /// and dtype, an unknown dtype. The other two are those of InputFile. Allocates nothing that the file's size does not
  /// justify.
  explicit SafeTensorsFile(const std::string& path, std::uint64_t most_bytes = UINT64_MAX);
  /// The same, from any source, which must outlive it.
  explicit SafeTensorsFile(const ByteSource& source);

  /// In order of their names.
  const std::vector<SafeTensorInfo>& tensors() const { return tensors_; }
  /// As the file has it, whatever program wrote it; no longer than the header.
  const SafeTensorsMetadata& metadata() const { return metadata_; }
  std::vector<std::byte> read(const SafeTensorInfo& tensor) const;
  /// Reads the whole file. Throws InvalidArgument, naming the file, where it has no checksum, or another one than its
  /// metadata say.
  void check_checksum() const;
  /// As T, float or double, from the type that the tensor has.
  template <class T>
  void read(const SafeTensorInfo& tensor, const StoredType& type, T* out) const {
    const StoredElements elements{source_, tensor.offset, type, ByteOrder::little};
    elements.read(0, static_cast<std::size_t>(tensor.bytes / type.size), out);
  }
  /// Throws InvalidArgument: the path, ": ", `problem`.
  [[noreturn]] void refuse(const std::string& problem) const { source_.refuse(problem); }

 private:
  void read_header();

  std::unique_ptr<const InputFile> file_;  // null: the caller has it
  const ByteSource& source_;
  std::vector<SafeTensorInfo> tensors_;
  SafeTensorsMetadata metadata_;
  std::uint64_t checksum_at_ = 0;  // where its digits are; 0: none
};

/// All tensors of a file, in order of their names. Throws as SafeTensorsFile does.
std::vector<SafeTensor> read_safetensors(const std::string& path);

/// Writes the metadata in the order of its keys, then the tensors in the order given. The caller commits. Where the
/// metadata have kChecksumKey, with any text, the file's checksum takes its place. Throws InvalidArgument, before it
/// writes, for tensors that read_safetensors would refuse and for metadata that is not UTF-8.
void write_safetensors(OutputFile& file, std::span<const SafeTensor> tensors,
                       const SafeTensorsMetadata& metadata = {{"format", "pt"}});

}  // namespace deviceloop
