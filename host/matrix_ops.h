// Conversions and checks on matrix views; used wherever data enters or leaves the library.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <type_traits>

#include <deviceloop/matrix.h>

#include "element_rule.h"
#include "floating_point.h"
#include "narrow_floats.h"

namespace deviceloop {

/// "bfloat16": for messages.
const char* name(ElementType type);

/// Throws InvalidArgument for elements that are only read; `what` names the matrix.
void check_is_written(ElementType type, const std::string& what);

/// Calls f with a null pointer of the element type, so that one generic lambda serves both that are computed with.
template <class F>
auto with_type(ElementType type, F f) {
  if (type == ElementType::float32) return f(static_cast<float*>(nullptr));
  if (type != ElementType::float64) check_is_written(type, "a matrix");
  return f(static_cast<double*>(nullptr));
}
/// The same for elements that are read.
template <class F>
auto with_read_type(ElementType type, F f) {
  if (type == ElementType::bfloat16) return f(static_cast<Bfloat16*>(nullptr));
  if (type == ElementType::float16) return f(static_cast<Float16*>(nullptr));
  return with_type(type, f);
}

/// Whether `bytes` from `data` on can lie in the address space of a process: false for sizes that must be a mistake,
/// with which reading would fault.
bool is_address_range(const void* data, std::uint64_t bytes);

/// Throws InvalidArgument unless `view` can be a matrix: data not null (unless empty), sizes not negative, a stride of
/// at least `columns`, an address range that exists in some address space, elements of a type that there is, and in a
/// writable view of one that is written. `what` names it in the message.
/// @{
void check_view(const ConstMatrix& view, const std::string& what);
void check_view(const Matrix& view, const std::string& what);
/// @}
/// The same, and that it lies in the host's memory.
/// @{
void check_host_view(const ConstMatrix& view, const std::string& what);
void check_host_view(const Matrix& view, const std::string& what);
/// @}

/// From the first byte of a matrix that has elements to the end of its last one.
std::uint64_t spanned_bytes(const ConstMatrix& view);

/// The block of a Matrix or ConstMatrix that begins at (row, column).
template <class View>
View block_of(View matrix, std::int64_t row, std::int64_t rows, std::int64_t column, std::int64_t columns) {
  using Byte = std::conditional_t<std::is_same_v<View, Matrix>, std::byte, const std::byte>;
  matrix.data = static_cast<Byte*>(matrix.data) +
                static_cast<std::size_t>(row * matrix.row_stride + column) * size_of(matrix.type);
  matrix.rows = rows;
  matrix.columns = columns;
  return matrix;
}

/// The rows [first, first + rows).
template <class View>
View rows_of(View matrix, std::int64_t first, std::int64_t rows) {
  return block_of(matrix, first, rows, 0, matrix.columns);
}

/// Calls work(piece, first) for the elements of a matrix in row order, in pieces of at most `most` elements: whole
/// rows, or a part of one where a row has more. `first` is the number of a piece's first element.
template <class View, class Work>
void for_each_piece(const View& matrix, std::int64_t most, const Work& work) {
  const std::int64_t columns = std::clamp(matrix.columns, std::int64_t{1}, most), rows = most / columns;
  for (std::int64_t row = 0; row < matrix.rows; row += rows)
    for (std::int64_t column = 0; column < matrix.columns; column += columns)
      work(block_of(matrix, row, std::min(rows, matrix.rows - row), column, std::min(columns, matrix.columns - column)),
           row * matrix.columns + column);
}

/// The most that a matrix takes of the host on its way to or from a device's memory, where it has to be converted.
constexpr std::int64_t kPieceBytes = std::int64_t{4} << 20;

/// out = in, converted element by element. The caller has checked both views, and that their shapes are equal.
void convert(Matrix out, ConstMatrix in);

/// std::isfinite, but without a floating-point exception for any NaN.
bool is_finite(double value);

/// The value; any NaN becomes the quiet NaN, for which printf does not raise a floating-point exception either.
double quieted(double value);

/// An element that must not be there.
struct NonFinite {
  std::int64_t row = 0;
  std::int64_t column = 0;
  double value = 0;  ///< any NaN as the quiet one
};

/// The first element, in row order, that is NaN, infinite or becomes infinite in `type`. Raises no floating-point
/// exception, and neither does describe().
std::optional<NonFinite> find_non_finite(ConstMatrix in, ElementType type);

/// "row 3, column 17 is nan (counted from 0)", "row 3, column 17 is 1e+300, which fp32 cannot hold (counted from 0)".
std::string describe(const NonFinite& where, ElementType type);

/// Throws InvalidArgument for an element that breaks the rule.
[[noreturn]] void refuse_element(const ElementRule& rule, const NonFinite& where, const std::string& what);

/// Throws InvalidArgument where find_non_finite finds something; `what` names the matrix.
void check_finite(ConstMatrix in, ElementType type, const std::string& what);

/// Throws InvalidArgument for a column of weights of samples one of which is not finite in `type` or negative.
void check_weights(ConstMatrix in, ElementType type, const std::string& what);

/// Throws InvalidArgument for a column of finite numbers not all of which are 0, 1, ..., classes - 1.
void check_classes(ConstMatrix in, std::int64_t classes, const std::string& what);

}  // namespace deviceloop
