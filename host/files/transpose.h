// The transposing copy of the readers and writers: PyTorch stores a weight as [out, in], NumPy may store by columns.
#pragma once

#include <algorithm>
#include <cstdint>

namespace deviceloop {

/// out [columns, rows] = the transpose of in [rows, columns], converted element by element; strides in elements. Works
/// in tiles, because a plain double loop would touch a new cache line and, on large matrices, a new page at every
/// write.
template <class Out, class In>
void transpose(Out* out, std::int64_t out_stride, const In* in, std::int64_t in_stride, std::int64_t rows,
               std::int64_t columns) {
  constexpr std::int64_t kTile = 32;
  for (std::int64_t row_begin = 0; row_begin < rows; row_begin += kTile) {
    const std::int64_t row_end = std::min(row_begin + kTile, rows);
    for (std::int64_t column_begin = 0; column_begin < columns; column_begin += kTile) {
      const std::int64_t column_end = std::min(column_begin + kTile, columns);
      for (std::int64_t column = column_begin; column < column_end; ++column)
        for (std::int64_t row = row_begin; row < row_end; ++row)
          out[column * out_stride + row] = static_cast<Out>(in[row * in_stride + column]);
    }
  }
}

}  // namespace deviceloop
