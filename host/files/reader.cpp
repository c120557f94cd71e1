#include "reader.h"

#include <algorithm>
#include <iterator>
#include <string_view>

#include "../text.h"
#include "npy.h"

namespace deviceloop {
namespace {

struct Format {
  const char* name;
  bool (*begins)(std::string_view first_bytes);  // null: its files begin with anything
  bool (*is_name)(std::string_view lower_case_name);
  HostMatrix (*read)(const ByteSource& source, std::uint64_t most_bytes);
};

constexpr Format kFormats[] = {
    {".npy", [](std::string_view start) { return start.starts_with("\x93NUMPY"); },
     [](std::string_view name) { return name.ends_with(".npy"); }, read_npy},
};

constexpr std::size_t kFirstBytes = 8;

std::string first_bytes(const ByteSource& source) {
  std::string start(std::min<std::uint64_t>(source.size(), kFirstBytes), '\0');
  source.read(0, start.data(), start.size());
  return start;
}

const Format& find_format(const ByteSource& source) {
  const std::string start = first_bytes(source);
  std::string name = source.name().substr(source.name().find_last_of('/') + 1);
  std::transform(name.begin(), name.end(), name.begin(),
                 [](char c) { return c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c; });
  for (const Format& format : kFormats)
    if (format.begins != nullptr && format.begins(start)) return format;
  if (start.starts_with("\x1f\x8b")) source.refuse("is compressed with gzip; unpack it with gunzip");
  for (const Format& format : kFormats)
    if (format.is_name(name)) return format;
  std::string names;
  for (const Format& format : kFormats)
    names += (names.empty() ? "" : &format + 1 == std::end(kFormats) ? " and " : ", ") + std::string(format.name);
  source.refuse("is of no format that is read, by its name and by its first bytes; these are: " + names);
}

}  // namespace

HostMatrix read_matrix(const std::string& path, std::uint64_t most_bytes) {
  const InputFile file(path);
  return find_format(file).read(file, most_bytes);
}

void check_matrix_size(const ByteSource& source, std::uint64_t bytes, std::uint64_t most_bytes) {
  if (bytes > most_bytes)
    source.refuse("takes " + bytes_text(bytes) + " of memory, but only " + bytes_text(most_bytes) +
                  " are free; use a smaller one");
}

}  // namespace deviceloop
