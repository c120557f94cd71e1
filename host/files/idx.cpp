#include "idx.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>
#include <string>
#include <vector>

#include "../text.h"
#include "reader.h"

namespace deviceloop {
namespace {

/// The bytes of one element, most significant first, as a number.
template <class Bits>
Bits big_endian(const unsigned char* bytes) {
  Bits bits = 0;
  for (std::size_t i = 0; i < sizeof(Bits); ++i) bits = static_cast<Bits>(bits << 8 | bytes[i]);
  return bits;
}

template <class Stored, class Bits, class Out>
void convert_elements(const unsigned char* in, std::size_t count, void* out) {
  static_assert(sizeof(Stored) == sizeof(Bits));
  Out* to = static_cast<Out*>(out);
  for (std::size_t i = 0; i < count; ++i)
    to[i] = static_cast<Out>(std::bit_cast<Stored>(big_endian<Bits>(in + i * sizeof(Bits))));
}

struct IdxType {
  unsigned char code;
  const char* name;
  std::size_t size;
  ElementType becomes;
  void (*convert)(const unsigned char* in, std::size_t count, void* out);
};

constexpr IdxType kTypes[] = {
    {0x08, "ubyte", 1, ElementType::float32, convert_elements<std::uint8_t, std::uint8_t, float>},
    {0x09, "sbyte", 1, ElementType::float32, convert_elements<std::int8_t, std::uint8_t, float>},
    {0x0b, "short", 2, ElementType::float32, convert_elements<std::int16_t, std::uint16_t, float>},
    {0x0c, "int", 4, ElementType::float64, convert_elements<std::int32_t, std::uint32_t, double>},
    {0x0d, "float", 4, ElementType::float32, convert_elements<float, std::uint32_t, float>},
    {0x0e, "double", 8, ElementType::float64, convert_elements<double, std::uint64_t, double>},
};

[[noreturn]] void refuse_truncated(const ByteSource& file, const std::string& where) {
  file.refuse("is truncated " + where + "; copy or write it again");
}

}  // namespace

HostMatrix read_idx(const ByteSource& file, std::uint64_t most_bytes) {
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
  for (std::size_t i = 0; i < dimensions; ++i) shape[i] = big_endian<std::uint32_t>(sizes.data() + 4 * i);
  const std::string text = "the shape " + shape_text(shape) + " of " + type->name;
  if (std::find(shape.begin(), shape.end(), 0) != shape.end())
    file.refuse("is empty, it has " + text + "; give at least one row and one column");

  const std::uint64_t found = file.size() - data;
  std::uint64_t needed = type->size;
  bool overflow = false;
  for (const std::int64_t size : shape)
    overflow = overflow || __builtin_mul_overflow(needed, static_cast<std::uint64_t>(size), &needed);
  if (overflow || needed > found)
    refuse_truncated(file, "or damaged: " + text + " takes " +
                               (overflow ? "more bytes than any file has" : std::to_string(needed) + " bytes") +
                               ", and " + std::to_string(found) + " follow the header");
  if (needed < found)
    file.refuse("has " + std::to_string(found - needed) + " bytes after the array of " + text + "; write it again");

  const std::uint64_t count = needed / type->size;
  check_matrix_size(file, count * size_of(type->becomes), most_bytes);
  HostMatrix matrix(type->becomes, shape[0], static_cast<std::int64_t>(count) / shape[0]);
  constexpr std::uint64_t kPiece = 1 << 16;
  std::vector<unsigned char> piece(static_cast<std::size_t>(std::min(count, kPiece)) * type->size);
  for (std::uint64_t begin = 0; begin < count; begin += kPiece) {
    const auto elements = static_cast<std::size_t>(std::min(kPiece, count - begin));
    file.read(data + begin * type->size, piece.data(), elements * type->size);
    type->convert(piece.data(), elements, matrix.bytes.data() + begin * size_of(type->becomes));
  }
  return matrix;
}

}  // namespace deviceloop
