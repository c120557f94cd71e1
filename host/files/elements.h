// The element types that files have, and how they become float32 or float64. A reader finds its type by the name that
// NumPy gives it and reads through read_elements().
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>

#include <deviceloop/spec.h>

#include "read_file.h"

namespace deviceloop {

enum class ByteOrder { little, big };

struct StoredType {
  const char* name;  ///< "int64", as NumPy calls it
  std::size_t size;  ///< in bytes
  bool fits_float32;
  /// Converts `count` elements, rounding to nearest, ties to even.
  void (*to_float32)(ByteOrder order, const std::byte* in, std::size_t count, float* out);
  void (*to_float64)(ByteOrder order, const std::byte* in, std::size_t count, double* out);

  void convert(ByteOrder order, const std::byte* in, std::size_t count, float* out) const {
    to_float32(order, in, count, out);
  }
  void convert(ByteOrder order, const std::byte* in, std::size_t count, double* out) const {
    to_float64(order, in, count, out);
  }
};

/// bool, int8 to int64, uint8 to uint64, float16, bfloat16, float32 and float64; null for any other name.
const StoredType* find_stored_type(std::string_view name);

/// What elements of a file become: float32 where that holds all values of the type, float64 for float64, and for
/// integers of 32 and 64 bits `integers`, so that they are rounded once.
ElementType element_type_for(const StoredType& type, ElementType integers);

/// Elements that lie one after the other in a source.
struct StoredElements {
  const ByteSource& source;
  std::uint64_t begin;  ///< in bytes, of the first
  const StoredType& type;
  ByteOrder order;

  /// Reads the elements [first, first + count) as T, float or double. The caller has checked that they are there.
  template <class T>
  void read(std::uint64_t first, std::size_t count, T* out) const;
};

}  // namespace deviceloop
