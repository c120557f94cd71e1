#include "elements.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <type_traits>
#include <vector>

#include "../narrow_floats.h"

namespace deviceloop {
namespace {

static_assert(std::endian::native == std::endian::little, "elements are read as they lie in memory");

/// NumPy's bool: a byte, of which any other than 0 is true.
struct Bool {
  std::uint8_t bits;
  operator float() const { return bits != 0 ? 1.0f : 0.0f; }
};

template <class Stored, class Out>
void convert_elements(ByteOrder order, const std::byte* in, std::size_t count, Out* out) {
  for (std::size_t i = 0; i < count; ++i) {
    std::byte bytes[sizeof(Stored)];
    std::memcpy(bytes, in + i * sizeof(Stored), sizeof(Stored));
    if (order == ByteOrder::big) std::reverse(std::begin(bytes), std::end(bytes));
    out[i] = static_cast<Out>(std::bit_cast<Stored>(bytes));
  }
}

template <class Stored>
constexpr StoredType stored_type(const char* name, bool fits_float32) {
  return {name, sizeof(Stored), fits_float32, convert_elements<Stored, float>, convert_elements<Stored, double>};
}

constexpr StoredType kTypes[] = {
    stored_type<Bool>("bool", true),
    stored_type<std::int8_t>("int8", true),
    stored_type<std::int16_t>("int16", true),
    stored_type<std::int32_t>("int32", false),
    stored_type<std::int64_t>("int64", false),
    stored_type<std::uint8_t>("uint8", true),
    stored_type<std::uint16_t>("uint16", true),
    stored_type<std::uint32_t>("uint32", false),
    stored_type<std::uint64_t>("uint64", false),
    stored_type<Float16>("float16", true),
    stored_type<Bfloat16>("bfloat16", true),
    stored_type<float>("float32", true),
    stored_type<double>("float64", false),
};

}  // namespace

const StoredType* find_stored_type(std::string_view name) {
  const auto* found =
      std::find_if(std::begin(kTypes), std::end(kTypes), [&](const StoredType& type) { return type.name == name; });
  return found == std::end(kTypes) ? nullptr : found;
}

ElementType element_type_for(const StoredType& type, ElementType integers) {
  if (type.fits_float32) return ElementType::float32;
  return std::string_view(type.name) == "float64" ? ElementType::float64 : integers;
}

template <class T>
void StoredElements::read(std::uint64_t first, std::size_t count, T* out) const {
  const std::uint64_t at = begin + first * type.size;
  if (order == ByteOrder::little && type.name == std::string_view(std::is_same_v<T, float> ? "float32" : "float64")) {
    source.read(at, out, count * sizeof(T));
    return;
  }
  constexpr std::size_t kPiece = 1 << 16;
  std::vector<std::byte> piece(std::min(count, kPiece) * type.size);
  for (std::size_t done = 0; done < count; done += kPiece) {
    const std::size_t elements = std::min(kPiece, count - done);
    source.read(at + done * type.size, piece.data(), elements * type.size);
    type.convert(order, piece.data(), elements, out + done);
  }
}

template void StoredElements::read(std::uint64_t, std::size_t, float*) const;
template void StoredElements::read(std::uint64_t, std::size_t, double*) const;

}  // namespace deviceloop
