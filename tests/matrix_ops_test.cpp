#include "matrix_ops.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>
#include <limits>
#include <numeric>
#include <optional>
#include <vector>

#include "support/refusal.h"

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

/// By the definition of a format with so many bits of exponent and mantissa.
double number_of(std::uint32_t bits, int exponent_bits, int digits) {
  const int exponent = static_cast<int>(bits >> digits & ((1u << exponent_bits) - 1)),
            bias = (1 << (exponent_bits - 1)) - 1;
  const auto fraction = static_cast<double>(bits & ((1u << digits) - 1));
  double value = std::ldexp(fraction, 1 - bias - digits);
  if (exponent > 0) value = std::ldexp(fraction + std::ldexp(1.0, digits), exponent - bias - digits);
  if (exponent == (1 << exponent_bits) - 1)
    value = fraction == 0 ? std::numeric_limits<double>::infinity() : std::numeric_limits<double>::quiet_NaN();
  return bits >> 15 != 0 ? -value : value;
}

TEST(Convert, HasAllNumbersOf16Bits) {
  std::vector<std::uint16_t> all(std::size_t{1} << 16);
  std::iota(all.begin(), all.end(), std::uint16_t{0});
  for (const ElementType type : {ElementType::bfloat16, ElementType::float16}) {
    const ConstMatrix in(all.data(), type, 1 << 8, 1 << 8);
    std::vector<float> narrow(all.size());
    std::vector<double> wide(all.size());
    convert(Matrix(narrow.data(), 1 << 8, 1 << 8), in);
    convert(Matrix(wide.data(), 1 << 8, 1 << 8), in);
    for (std::size_t bits = 0; bits < all.size(); ++bits) {
      const double expected = type == ElementType::bfloat16 ? number_of(static_cast<std::uint32_t>(bits), 8, 7)
                                                            : number_of(static_cast<std::uint32_t>(bits), 5, 10);
      if (std::isnan(expected)) {
        ASSERT_TRUE(std::isnan(narrow[bits]) && std::isnan(wide[bits])) << bits;
      } else {
        ASSERT_EQ(narrow[bits], expected) << bits;
        ASSERT_EQ(wide[bits], expected) << bits;
        ASSERT_EQ(std::signbit(narrow[bits]), std::signbit(expected)) << bits;
      }
      for (const ElementType as : {ElementType::float32, ElementType::float64}) {
        const ConstMatrix element(all.data() + bits, type, 1, 1);
        const std::optional<NonFinite> found = find_non_finite(element, as);
        ASSERT_EQ(found.has_value(), !std::isfinite(expected)) << bits;
        if (found && !std::isnan(expected)) {
          ASSERT_EQ(found->value, expected);
        }
      }
    }
  }
}

TEST(CheckView, RefusesTypesThatAreNotWrittenOrThatThereAreNot) {
  std::uint16_t bits[4] = {};
  Matrix out;
  out.data = bits;
  out.rows = out.columns = out.row_stride = 2;
  out.type = ElementType::bfloat16;
  EXPECT_MENTIONS(testing::refusal("out has elements of the type bfloat16", [&] { check_view(out, "out"); }),
                  "only read; use float32 or float64");
  check_view(static_cast<ConstMatrix>(out), "in");
  out.type = ElementType(7);
  EXPECT_MENTIONS(
      testing::refusal("in has elements of the type 7", [&] { check_view(static_cast<ConstMatrix>(out), "in"); }),
      "which there is not");
}

}  // namespace
}  // namespace deviceloop
