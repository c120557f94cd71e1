#include "reader.h"

#include <algorithm>
#include <iterator>
#include <string_view>

#include "../text.h"
#include "csv.h"
#include "idx.h"
#include "npy.h"
#include "npz.h"

namespace deviceloop {
namespace {

using ReadMatrix = DataMatrix (*)(const ByteSource& source, const ReadOptions& options);
using ReadSamples = Samples (*)(const ByteSource& source, const ReadOptions& options);

struct Format {
  const char* name;
  const char* name_end;                          // in lower case
  bool (*begins)(std::string_view first_bytes);  // null: its files have no fixed first bytes
  ReadMatrix read_matrix;
  ReadSamples read_samples;  // null: its files hold one matrix
};

bool begins_as_npy(std::string_view start) { return start.starts_with("\x93NUMPY"); }
bool begins_as_zip(std::string_view start) {
  return start.starts_with("PK\x03\x04") || start.starts_with("PK\x05\x06");
}
bool begins_as_idx(std::string_view start) {
  return start.size() >= 4 && start[0] == 0 && start[1] == 0 && start[2] >= 0x08 && start[2] <= 0x0e && start[3] != 0;
}

constexpr Format kFormats[] = {
    {".npy", ".npy", begins_as_npy, read_npy, nullptr},
    {".npz", ".npz", begins_as_zip, refuse_npz, read_npz_samples},
    {"IDX", "-ubyte", begins_as_idx, read_idx, nullptr},
    {".csv", ".csv", nullptr, read_csv, read_csv_samples},
};

constexpr std::size_t kFirstBytes = 8;

std::string first_bytes(const ByteSource& source) {
  std::string start(std::min<std::uint64_t>(source.size(), kFirstBytes), '\0');
  source.read(0, start.data(), start.size());
  return start;
}

/// Whether a pipe, which has no file name that gives its format, seems to hold a table.
bool begins_as_text(std::string_view start) {
  return std::none_of(start.begin(), start.end(), [](char c) {
    return static_cast<unsigned char>(c) < 0x20 && std::string_view("\t\r\n").find(c) == std::string_view::npos;
  });
}

const Format& find_format(const InputFile& source) {
  const std::string start = first_bytes(source);
  std::string name = source.name().substr(source.name().find_last_of('/') + 1);
  std::transform(name.begin(), name.end(), name.begin(),
                 [](char c) { return c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c; });
  for (const Format& format : kFormats)
    if (format.begins != nullptr && format.begins(start)) return format;
  if (start.starts_with("\x1f\x8b")) source.refuse("is compressed with gzip; unpack it with gunzip");
  for (const Format& format : kFormats)
    if (name.ends_with(format.name_end) || (source.is_pipe() && format.begins == nullptr && begins_as_text(start)))
      return format;
  std::string names;
  for (const Format& format : kFormats)
    names += (names.empty() ? "" : &format + 1 == std::end(kFormats) ? " or " : ", ") + std::string(format.name);
  source.refuse("has no known format, by its name and by its first bytes; write it as one of these: " + names);
}

/// The options for what is read from `file`, which takes memory itself.
ReadOptions beside(const InputFile& file, ReadOptions options) {
  options.most_bytes -= std::min(options.most_bytes, file.memory());
  return options;
}

}  // namespace

DataMatrix read_matrix(const std::string& path, const ReadOptions& options) {
  const InputFile file(path, options.most_bytes);
  DataMatrix matrix = find_format(file).read_matrix(file, beside(file, options));
  matrix.name = file.name();
  return matrix;
}

Samples read_samples(const std::string& path, const ReadOptions& options) {
  const InputFile file(path, options.most_bytes);
  const Format& format = find_format(file);
  if (format.read_samples == nullptr)
    file.refuse(std::string("is ") + format.name +
                ", which holds one matrix, not inputs and targets; give them as two files");
  Samples samples = format.read_samples(file, beside(file, options));
  samples.x.name = file.name() + ": x";
  samples.y.name = file.name() + ": y";
  return samples;
}

void check_matrix_size(const ByteSource& source, std::uint64_t count, ElementType type, std::uint64_t most_bytes) {
  std::uint64_t bytes = 0;
  if (__builtin_mul_overflow(count, std::uint64_t{size_of(type)}, &bytes)) bytes = UINT64_MAX;
  if (bytes > most_bytes)
    source.refuse("takes " + bytes_text(bytes) + " of memory, but only " + bytes_text(most_bytes) +
                  " are free; use a smaller one");
}

}  // namespace deviceloop
