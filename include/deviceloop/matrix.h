/// \file
/// Plain views of row-major matrices: one row a sample. They own nothing. The caller keeps the memory of the host valid
/// during the call that they are passed to, and that of a GPU until the work of the call is done on its stream, unless
/// the call says otherwise.
#pragma once

#include <cstddef>
#include <cstdint>
#include <type_traits>

#include <deviceloop/export.h>

namespace deviceloop {

/// The type of the elements: IEEE 754 numbers of 32, 64 and 16 bits, and the upper halves of those of 32. Functions
/// read all of them, each element as exactly as the working precision holds it; they write float32 and float64 alone.
enum class ElementType { float32, float64, bfloat16, float16 };

/// Bytes of one element.
constexpr std::size_t size_of(ElementType type) {
  switch (type) {
    case ElementType::float32:
      return 4;
    case ElementType::float64:
      return 8;
    case ElementType::bfloat16:
    case ElementType::float16:
      return 2;
  }
  return 0;
}

/// The type of `float` or `double`; no other type compiles: C++20 has none for bfloat16 and float16, whose views name
/// their type.
template <class T>
constexpr ElementType element_type_of() {
  static_assert(std::is_same_v<T, float> || std::is_same_v<T, double>, "elements are float or double");
  return std::is_same_v<T, float> ? ElementType::float32 : ElementType::float64;
}

/// The memory that holds the elements: the host's, or a GPU's.
enum class MemorySpace { host, device };

/// A read-only view of a row-major [rows, columns] matrix; element (r, c) lies at data + r * row_stride + c elements. A
/// view is checked by the function that takes it, not when it is made. A matrix without elements may have null data.
struct ConstMatrix {
  const void* data = nullptr;
  ElementType type = ElementType::float32;
  std::int64_t rows = 0;
  std::int64_t columns = 0;
  std::int64_t row_stride = 0;  ///< in elements, at least `columns`
  MemorySpace space = MemorySpace::host;

  /// No matrix: null, [0, 0].
  ConstMatrix() = default;
  /// A contiguous host matrix.
  template <class T>
  ConstMatrix(const T* elements, std::int64_t row_count, std::int64_t column_count)
      : ConstMatrix(elements, row_count, column_count, column_count) {}
  /// A host matrix whose rows lie `stride` elements apart.
  template <class T>
  ConstMatrix(const T* elements, std::int64_t row_count, std::int64_t column_count, std::int64_t stride)
      : data(elements), type(element_type_of<T>()), rows(row_count), columns(column_count), row_stride(stride) {}
  /// The same of elements whose type is only known when the program runs, or is none of C++: CUDA's __nv_bfloat16, for
  /// one, is ElementType::bfloat16.
  /// @{
  ConstMatrix(const void* elements, ElementType element_type, std::int64_t row_count, std::int64_t column_count)
      : ConstMatrix(elements, element_type, row_count, column_count, column_count) {}
  ConstMatrix(const void* elements, ElementType element_type, std::int64_t row_count, std::int64_t column_count,
              std::int64_t stride)
      : data(elements), type(element_type), rows(row_count), columns(column_count), row_stride(stride) {}
  /// @}
};

/// A writable view, of float32 or float64; see ConstMatrix.
struct Matrix {
  void* data = nullptr;
  ElementType type = ElementType::float32;
  std::int64_t rows = 0;
  std::int64_t columns = 0;
  std::int64_t row_stride = 0;  ///< in elements, at least `columns`
  MemorySpace space = MemorySpace::host;

  /// No matrix: null, [0, 0].
  Matrix() = default;
  /// A contiguous host matrix.
  template <class T>
  Matrix(T* elements, std::int64_t row_count, std::int64_t column_count)
      : Matrix(elements, row_count, column_count, column_count) {}
  /// A host matrix whose rows lie `stride` elements apart.
  template <class T>
  Matrix(T* elements, std::int64_t row_count, std::int64_t column_count, std::int64_t stride)
      : data(elements), type(element_type_of<T>()), rows(row_count), columns(column_count), row_stride(stride) {}

  /// The same view, read-only.
  operator ConstMatrix() const {
    ConstMatrix view;
    view.data = data;
    view.type = type;
    view.rows = rows;
    view.columns = columns;
    view.row_stride = row_stride;
    view.space = space;
    return view;
  }
};

/// A view of a matrix in the memory of a GPU, whose rows lie `stride` elements apart; without `stride` they are
/// contiguous. Managed memory counts as a GPU's.
/// @{
template <class T>
ConstMatrix on_device(const T* elements, std::int64_t rows, std::int64_t columns, std::int64_t stride) {
  ConstMatrix view(elements, rows, columns, stride);
  view.space = MemorySpace::device;
  return view;
}
template <class T>
ConstMatrix on_device(const T* elements, std::int64_t rows, std::int64_t columns) {
  return on_device(elements, rows, columns, columns);
}
inline ConstMatrix on_device(const void* elements, ElementType type, std::int64_t rows, std::int64_t columns,
                             std::int64_t stride) {
  ConstMatrix view(elements, type, rows, columns, stride);
  view.space = MemorySpace::device;
  return view;
}
inline ConstMatrix on_device(const void* elements, ElementType type, std::int64_t rows, std::int64_t columns) {
  return on_device(elements, type, rows, columns, columns);
}
template <class T>
Matrix on_device(T* elements, std::int64_t rows, std::int64_t columns, std::int64_t stride) {
  Matrix view(elements, rows, columns, stride);
  view.space = MemorySpace::device;
  return view;
}
template <class T>
Matrix on_device(T* elements, std::int64_t rows, std::int64_t columns) {
  return on_device(elements, rows, columns, columns);
}
/// @}

}  // namespace deviceloop
