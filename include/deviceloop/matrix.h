// Plain views of row-major matrices: one row a sample. They own nothing; the caller keeps the memory alive for the
// duration of the call they are passed to.
#pragma once

#include <cstddef>
#include <cstdint>
#include <type_traits>

namespace deviceloop {

enum class ElementType { float32, float64 };

/// Bytes of one element.
constexpr std::size_t size_of(ElementType type) { return type == ElementType::float32 ? 4 : 8; }

template <class T>
constexpr ElementType element_type_of() {
  static_assert(std::is_same_v<T, float> || std::is_same_v<T, double>, "elements are float or double");
  return std::is_same_v<T, float> ? ElementType::float32 : ElementType::float64;
}

/// Where the elements lie.
enum class MemorySpace { host, device };

/// A read-only view of a [rows, columns] matrix; element (r, c) lies at data + r * row_stride + c elements.
struct ConstMatrix {
  const void* data = nullptr;
  ElementType type = ElementType::float32;
  std::int64_t rows = 0;
  std::int64_t columns = 0;
  std::int64_t row_stride = 0;  ///< in elements, at least `columns`
  MemorySpace space = MemorySpace::host;

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

  Matrix() = default;
  template <class T>
  Matrix(T* elements, std::int64_t row_count, std::int64_t column_count)
      : Matrix(elements, row_count, column_count, column_count) {}
  template <class T>
  Matrix(T* elements, std::int64_t row_count, std::int64_t column_count, std::int64_t stride)
      : data(elements), type(element_type_of<T>()), rows(row_count), columns(column_count), row_stride(stride) {}

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

}  // namespace deviceloop
