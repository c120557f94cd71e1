#include "matrix_ops.h"

#include <gtest/gtest.h>

#include <vector>

namespace deviceloop {
namespace {

TEST(ForEachPiece, HasEveryElementOnceInOrder) {
  for (const std::int64_t rows : {0, 1, 3, 8})
    for (const std::int64_t columns : {0, 1, 4, 5, 9})
      for (const std::int64_t stride : {columns, columns + 2})
        for (const std::int64_t most : {1, 4, 5, 7, 20, 100}) {
          std::vector<double> values(static_cast<std::size_t>(rows * stride), -1), seen;
          for (std::int64_t i = 0; i < rows * columns; ++i)
            values[static_cast<std::size_t>(i / columns * stride + i % columns)] = static_cast<double>(i);
          std::int64_t pieces = 0;
          for_each_piece(ConstMatrix(values.data(), rows, columns, stride), most,
                         [&](const ConstMatrix& piece, std::int64_t first) {
                           EXPECT_EQ(first, static_cast<std::int64_t>(seen.size()));
                           EXPECT_LE(piece.rows * piece.columns, most);
                           const std::size_t end = seen.size() + static_cast<std::size_t>(piece.rows * piece.columns);
                           seen.resize(end);
                           convert(Matrix(seen.data() + first, piece.rows, piece.columns), piece);
                           ++pieces;
                         });
          ASSERT_EQ(static_cast<std::int64_t>(seen.size()), rows * columns);
          for (std::size_t i = 0; i < seen.size(); ++i) EXPECT_EQ(seen[i], static_cast<double>(i));
          // No more of them than needed: as many whole rows as fit, or a row in parts.
          const std::int64_t whole = columns == 0 ? 0 : most / columns;
          const std::int64_t expected = columns == 0 ? 0
                                        : whole > 0  ? (rows + whole - 1) / whole
                                                     : rows * ((columns + most - 1) / most);
          EXPECT_EQ(pieces, expected);
        }
}

}  // namespace
}  // namespace deviceloop
