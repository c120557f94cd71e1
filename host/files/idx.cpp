#include "idx.h"

#include <algorithm>
#include <array>
#include <string>
#include <vector>

#include "../matrix_ops.h"
#include "../text.h"
#include "elements.h"
#include "reader.h"

namespace deviceloop {
namespace {

/// The bytes, most significant first, as a number.
std::uint32_t big_endian(const unsigned char* bytes) {
  std::uint32_t value = 0;
  for (int i = 0; i < 4; ++i) value = value << 8 | bytes[i];
  return value;
}

struct IdxType {
  unsigned char code;
  const char* name;
  const char* stored;  // see find_stored_type
};

constexpr IdxType kTypes[] = {{0x08, "ubyte", "uint8"}, {0x09, "sbyte", "int8"},    {0x0b, "short", "int16"},
                              {0x0c, "int", "int32"},   {0x0d, "float", "float32"}, {0x0e, "double", "float64"}};

[[noreturn]] void refuse_truncated(const ByteSource& file, const std::string& where) {
  file.refuse("is truncated " + where + "; copy or write it again");
}

}  // namespace

DataMatrix read_idx(const ByteSource& file, const ReadOptions& options) {
  std::array<unsigned char, 4> magic{};
  const std::size_t known = std::min<std::uint64_t>(file.size(), magic.size());
  file.read(0, magic.data(), known);
  if (magic[0] != 0 || magic[1] != 0) file.refuse("is not an IDX file: it does not begin with two zero bytes");
  if (known < magic.size()) refuse_truncated(file, "in its first bytes");
  const auto* type =
      std::find_if(std::begin(kTypes), std::end(kTypes), [&](const IdxType& t) { return t.code == magic[2]; });
  if (type == std::end(kTypes))
    file.refuse("has the element type " + std::to_string(magic[2]) +
                " at byte 2; IDX knows 8 (ubyte), 9 (sbyte), 11 (short), 12 (int), 13 (float) and 14 (double)");
  const std::size_t dimensions = magic[3];
  if (dimensions == 0) file.refuse("has 0 dimensions at byte 3; give it at least one, the rows");
  const std::uint64_t data = magic.size() + 4 * dimensions;
  if (file.size() < data)
    refuse_truncated(file, "in its header: " + std::to_string(dimensions) + " sizes take it to byte " +
                               std::to_string(data) + ", and it has " + std::to_string(file.size()) + " bytes");
  std::vector<unsigned char> sizes(4 * dimensions);
  file.read(magic.size(), sizes.data(), sizes.size());
  std::vector<std::int64_t> shape(dimensions);
  for (std::size_t i = 0; i < dimensions; ++i) shape[i] = big_endian(sizes.data() + 4 * i);
  const StoredType& stored = *find_stored_type(type->stored);
  const std::string text = "the shape " + shape_text(shape) + " of " + type->name;
  if (std::find(shape.begin(), shape.end(), 0) != shape.end())
    file.refuse("is empty, it has " + text + "; give at least one row and one column");

  const std::uint64_t found = file.size() - data;
  std::uint64_t needed = stored.size;
  bool overflow = false;
  for (const std::int64_t size : shape)
    overflow = overflow || __builtin_mul_overflow(needed, static_cast<std::uint64_t>(size), &needed);
  if (overflow || needed > found)
    refuse_truncated(file, "or damaged: " + text + " takes " +
                               (overflow ? "more bytes than any file has" : std::to_string(needed) + " bytes") +
                               ", and " + std::to_string(found) + " follow the header");
  if (needed < found)
    file.refuse("has " + std::to_string(found - needed) + " bytes after the array of " + text + "; write it again");

  const std::uint64_t count = needed / stored.size;
  const ElementType becomes = element_type_for(stored, options.integers);
  check_matrix_size(file, count, becomes, options.most_bytes);
  DataMatrix matrix(becomes, shape[0], static_cast<std::int64_t>(count) / shape[0]);
  matrix.stored_type = stored.name;
  const StoredElements elements{file, data, stored, ByteOrder::big};
  with_type(becomes, [&](auto* tag) { elements.read(0, count, static_cast<decltype(tag)>(matrix.view().data)); });
  return matrix;
}

}  // namespace deviceloop
