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

/// The type of the elements: IEEE 754 numbers of 32 or 64 bits.
enum class ElementType { float32, float64 };

/// Bytes of one element.
constexpr std::size_t size_of(ElementType type) {
  switch (type) {
    case ElementType::float32:
      return 4;
    case ElementType::float64:
      return 8;
  }
  return 0;
}

/// The type of `float` or `double`; no other type compiles.
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
};

/// A writable view; see ConstMatrix.
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
