// Scaling of inputs and targets against a reference in long double, and every input that has no scaled form.
#include "input_scaling.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include "matrix_ops.h"
#include "support/refusal.h"

namespace deviceloop {
namespace {

using testing::refusal;

template <class T>
HostMatrix matrix_of(std::int64_t rows, const std::vector<T>& values) {
  HostMatrix matrix(element_type_of<T>(), rows, static_cast<std::int64_t>(values.size()) / rows);
  std::copy(values.begin(), values.end(), static_cast<T*>(matrix.view().data));
  return matrix;
}

template <class T>
T element(const HostMatrix& matrix, std::int64_t row, std::int64_t column) {
  EXPECT_EQ(matrix.type, element_type_of<T>());
  return static_cast<const T*>(matrix.view().data)[row * matrix.columns + column];
}

/// Columns that are hard to standardize: a mean far larger than the deviation, one outlier, both signs, tiny, huge.
constexpr std::int64_t kRows = 1000, kColumns = 6;

template <class T>
HostMatrix hard_columns() {
  std::vector<T> values;
  double next = 0.3;
  for (std::int64_t row = 0; row < kRows; ++row)
    for (std::int64_t column = 0; column < kColumns; ++column) {
      next = 3.7 * next * (1 - next);  // the logistic map: never the same twice
      const double of_column[] = {next,       1e6 + next,   row == 7 ? 1e6 : next,
                                  next - 0.6, next * 1e-30, next * 1e30 - 5e29};
      values.push_back(static_cast<T>(of_column[column]));
    }
  return matrix_of(kRows, values);
}

struct Reference {
  long double mean = 0, deviation = 0, span = 0;
};

template <class T>
Reference reference_of(const HostMatrix& x, std::int64_t column, double factor) {
  Reference reference;
  std::vector<long double> values;
  for (std::int64_t row = 0; row < x.rows; ++row)
    values.push_back(static_cast<long double>(factor) * element<T>(x, row, column));
  for (const long double value : values) reference.mean += value;
  reference.mean /= static_cast<long double>(x.rows);
  for (const long double value : values) reference.deviation += (value - reference.mean) * (value - reference.mean);
  reference.deviation = std::sqrt(reference.deviation / static_cast<long double>(x.rows));
  const auto [least, most] = std::minmax_element(values.begin(), values.end());
  reference.span = *most - *least;
  return reference;
}

template <class T>
void expect_the_reference(double factor) {
  const HostMatrix x = hard_columns<T>();
  const InputScaling scaling = standardized(x.view(), factor, "x");
  EXPECT_EQ(scaling.factor, factor);
  ASSERT_EQ(scaling.mean.size(), static_cast<std::size_t>(kColumns));
  ASSERT_EQ(scaling.deviation.size(), static_cast<std::size_t>(kColumns));
  const HostMatrix single = scaling.apply(x, ElementType::float32, "x");
  const HostMatrix twice = scaling.apply(x, ElementType::float64, "x");
  for (std::int64_t column = 0; column < kColumns; ++column) {
    SCOPED_TRACE(column);
    const Reference reference = reference_of<T>(x, column, factor);
    const double mean = scaling.mean[static_cast<std::size_t>(column)];
    const double deviation = scaling.deviation[static_cast<std::size_t>(column)];
    // factor x is rounded in double, and so is its distance from the least, by up to half a unit in its last place.
    const long double rounding = 2e-16L * (std::fabs(reference.mean) + reference.span);
    EXPECT_LE(std::fabs(mean - reference.mean), rounding);
    EXPECT_LE(std::fabs(deviation - reference.deviation), 2 * rounding);
    for (std::int64_t row = 0; row < kRows; ++row) {
      const long double exact =
          (static_cast<long double>(factor) * element<T>(x, row, column) - static_cast<long double>(mean)) /
          static_cast<long double>(deviation);
      // In double: the product and the difference are each rounded at the size of the mean, the quotient at its own.
      const long double in_double =
          3e-16L * (std::fabs(static_cast<long double>(mean)) / static_cast<long double>(deviation) + std::fabs(exact));
      EXPECT_LE(std::fabs(element<double>(twice, row, column) - exact), in_double);
      // Then rounded once: at most half a unit more.
      const float got = element<float>(single, row, column);
      const long double unit = static_cast<long double>(std::nextafter(std::fabs(got), 1e30f)) - std::fabs(got);
      EXPECT_LE(std::fabs(got - exact), 0.5L * unit + in_double);
      EXPECT_EQ(got, static_cast<float>(element<double>(twice, row, column)));
    }
  }
}

TEST(InputScaling, StandardizesAsLongDoubleDoes) {
  for (const double factor : {1.0, 1.0 / 255, -3.0}) {
    SCOPED_TRACE(factor);
    expect_the_reference<float>(factor);
    expect_the_reference<double>(factor);
  }
}

TEST(InputScaling, MakesMeanZeroAndDeviationOne) {
  const HostMatrix x = hard_columns<double>();
  const HostMatrix scaled = standardized(x.view(), 2, "x").apply(x, ElementType::float64, "x");
  for (const std::int64_t column : {0, 1, 3, 4, 5}) {
    const Reference reference = reference_of<double>(scaled, column, 1);
    EXPECT_LT(std::fabs(reference.mean), 1e-9L) << column;  // of 1e6 + x the mean itself is rounded
    EXPECT_NEAR(static_cast<double>(reference.deviation), 1, 1e-12) << column;
  }
}

TEST(InputScaling, MultipliesByAFactorAlone) {
  const InputScaling scaling{1.0 / 255};
  const HostMatrix scaled = scaling.apply(matrix_of<float>(2, {0, 255, 51, 17, 1, 128}), ElementType::float32, "x");
  EXPECT_EQ(scaled.rows, 2);
  EXPECT_EQ(scaled.columns, 3);
  const std::vector<float> bytes{0, 255, 51, 17, 1, 128};
  for (std::size_t i = 0; i < bytes.size(); ++i)
    EXPECT_EQ(element<float>(scaled, 0, static_cast<std::int64_t>(i)),
              static_cast<float>(static_cast<double>(bytes[i]) * (1.0 / 255)));
  EXPECT_TRUE(InputScaling{}.is_identity());
  EXPECT_FALSE(scaling.is_identity());
  EXPECT_FALSE((InputScaling{1, {0}, {1}}.is_identity()));
}

TEST(InputScaling, OnlyCentresAColumnOfEqualElements) {
  // 0.1 has no exact sum: a deviation that is computed from one would be a rounding error, not 0.
  std::vector<float> values;
  for (int row = 0; row < 1001; ++row) values.insert(values.end(), {0.1f, -7, 0, static_cast<float>(row)});
  const HostMatrix x = matrix_of(1001, values);
  const InputScaling scaling = standardized(x.view(), 1, "x");
  EXPECT_EQ(scaling.mean[0], static_cast<double>(0.1f));
  EXPECT_EQ(scaling.mean[1], -7);
  for (int column = 0; column < 3; ++column) EXPECT_EQ(scaling.deviation[static_cast<std::size_t>(column)], 1);
  const HostMatrix scaled = scaling.apply(x, ElementType::float32, "x");
  for (std::int64_t row = 0; row < 1001; ++row)
    for (std::int64_t column = 0; column < 3; ++column) EXPECT_EQ(element<float>(scaled, row, column), 0);
  // Another element of such a column keeps its distance.
  const HostMatrix other = scaling.apply(matrix_of<float>(1, {0.1f, -4, 5, 500}), ElementType::float32, "x");
  EXPECT_EQ(element<float>(other, 0, 1), 3);
  EXPECT_EQ(element<float>(other, 0, 2), 5);
  EXPECT_EQ(element<float>(other, 0, 3), 0);
  // One row: all columns are such.
  const InputScaling of_one = standardized(matrix_of<double>(1, {1e300, 2}).view(), 1, "x");
  EXPECT_EQ(of_one.mean, (std::vector<double>{1e300, 2}));
  EXPECT_EQ(of_one.deviation, (std::vector<double>{1, 1}));
}

// Squares of these would overflow and underflow.
TEST(InputScaling, StandardizesColumnsOfAnySize) {
  const HostMatrix x = matrix_of<double>(2, {1e-200, 1e300, -5e307, 3e-200, 3e300, 5e307});
  const InputScaling scaling = standardized(x.view(), 1, "x");
  const HostMatrix scaled = scaling.apply(x, ElementType::float64, "x");
  for (std::int64_t column = 0; column < 3; ++column) {
    EXPECT_DOUBLE_EQ(element<double>(scaled, 0, column), -1);
    EXPECT_DOUBLE_EQ(element<double>(scaled, 1, column), 1);
  }
}

template <class T>
void expect_undone(const InputScaling& scaling) {
  const HostMatrix scaled = matrix_of<T>(3, {0, 1, -1, 0.5, 2, static_cast<T>(0.1)});
  const HostMatrix back = scaling.undo(scaled, element_type_of<T>());
  const HostMatrix in_double = scaling.undo(scaled, ElementType::float64);
  for (std::int64_t row = 0; row < 3; ++row)
    for (std::int64_t column = 0; column < 2; ++column) {
      const auto i = static_cast<std::size_t>(column);
      const double expected =
          (static_cast<double>(element<T>(scaled, row, column)) * scaling.deviation[i] + scaling.mean[i]) /
          scaling.factor;
      EXPECT_EQ(element<T>(back, row, column), static_cast<T>(expected));
      EXPECT_EQ(element<double>(in_double, row, column), expected);
    }
}

TEST(InputScaling, IsUndoneInDoubleAndRoundedOnce) {
  for (const InputScaling& scaling : {InputScaling{1, {161819.5375, -1e-3}, {69938.7458373892, 3e-7}},
                                      InputScaling{1.0 / 255, {5, 0.1}, {1, 1.0 / 3}}}) {
    expect_undone<float>(scaling);
    expect_undone<double>(scaling);
  }
  // Exact numbers: the mean 30 and the deviation 20, and a column that is only centred.
  const HostMatrix y = matrix_of<double>(4, {10, 7, 50, 7, 10, 7, 50, 7});
  const InputScaling scaling = standardized(y.view(), 1, "y");
  const HostMatrix scaled = scaling.apply(y, ElementType::float32, "y");
  EXPECT_EQ(scaled.bytes, matrix_of<float>(4, {-1, 0, 1, 0, -1, 0, 1, 0}).bytes);
  EXPECT_EQ(scaling.undo(scaled, ElementType::float64).bytes, y.bytes);
  // A factor alone; what is not finite, before or after, is left to the reader.
  EXPECT_EQ(element<double>(InputScaling{0.25}.undo(matrix_of<double>(1, {3}), ElementType::float64), 0, 0), 12);
  const double infinity = std::numeric_limits<double>::infinity();
  const HostMatrix bad = matrix_of<double>(1, {infinity, std::numeric_limits<double>::quiet_NaN(), 1e300});
  const HostMatrix far = InputScaling{1, {1, 1, 1}, {2, 2, 2}}.undo(bad, ElementType::float32);
  EXPECT_EQ(element<float>(far, 0, 0), infinity);
  EXPECT_TRUE(std::isnan(element<float>(far, 0, 1)));
  EXPECT_EQ(element<float>(far, 0, 2), infinity);
}

TEST(InputScaling, SaysTheDeviationsOfColumns) {
  const HostMatrix x = hard_columns<double>();
  EXPECT_EQ(column_deviations(x.view()), standardized(x.view(), 1, "x").deviation);
  const std::vector<double> of_few = column_deviations(matrix_of<double>(2, {0.1, 10, -1e308, 0.1, 50, 1e308}).view());
  EXPECT_EQ(of_few[0], 0);
  EXPECT_EQ(of_few[1], 20);
  EXPECT_TRUE(std::isnan(of_few[2]));
}

TEST(InputScaling, TakesViewsWithAStride) {
  const std::vector<double> values{1, 10, 99, 3, 30, 99};
  const InputScaling scaling = standardized(ConstMatrix(values.data(), 2, 2, 3), 0.5, "x");
  EXPECT_EQ(scaling.mean, (std::vector<double>{1, 10}));
  EXPECT_EQ(scaling.deviation, (std::vector<double>{0.5, 5}));
}

TEST(InputScaling, RefusesElementsThatAreNotFiniteBefore) {
  for (const double bad : {std::numeric_limits<double>::quiet_NaN(), std::numeric_limits<double>::infinity()}) {
    const HostMatrix x = matrix_of<double>(2, {1, 2, 3, bad});
    const std::string problem = std::isnan(bad) ? "row 1, column 1 is nan" : "row 1, column 1 is inf";
    EXPECT_MENTIONS(refusal("x.csv: ", [&] { standardized(x.view(), 1, "x.csv"); }), problem);
    EXPECT_MENTIONS(refusal("x.csv: ", [&] { InputScaling{2}.apply(x, ElementType::float32, "x.csv"); }), problem);
  }
  // What fp32 cannot hold may become small enough.
  const HostMatrix large = matrix_of<double>(1, {1e300});
  EXPECT_EQ(element<float>(InputScaling{1e-300}.apply(large, ElementType::float32, "x"), 0, 0), 1);
}

TEST(InputScaling, RefusesElementsThatAreNotFiniteAfter) {
  const HostMatrix x = matrix_of<float>(2, {1, 2, 3, 1e30f});
  const std::string message = refusal("x.csv: ", [&] { InputScaling{1e20}.apply(x, ElementType::float32, "x.csv"); });
  EXPECT_MENTIONS(message, "x.csv: scaled, row 1, column 1 is 1e+50, which fp32 cannot hold (counted from 0); ");
  EXPECT_MENTIONS(message, "scale it by another factor, use fp64, or drop such samples");
  EXPECT_EQ(element<double>(InputScaling{1e20}.apply(x, ElementType::float64, "x"), 1, 0), 3e20);
  EXPECT_MENTIONS(refusal("x.csv: ", [&] { InputScaling{1e300}.apply(x, ElementType::float64, "x.csv"); }),
                  "scaled, row 1, column 1 is inf");
  const InputScaling narrow{1, {0, 0}, {1, 1e-20}};
  EXPECT_MENTIONS(refusal("v: ", [&] { narrow.apply(x, ElementType::float32, "v"); }), "row 1, column 1 is 1e+50");
}

TEST(InputScaling, RefusesColumnsThatItCannotStandardize) {
  const HostMatrix wide = matrix_of<double>(2, {1, 1e308, 2, -1e308});
  EXPECT_MENTIONS(refusal("x: ", [&] { standardized(wide.view(), 1, "x"); }),
                  "scaled, column 1 spans more than float64 holds (counted from 0); scale it by a smaller factor");
  EXPECT_MENTIONS(refusal("x: ", [&] { standardized(wide.view(), 1e10, "x"); }), "column 1 spans more");
  const HostMatrix high = matrix_of<double>(2, {1e308, 1e308});
  EXPECT_MENTIONS(refusal("x: ", [&] { standardized(high.view(), 1e10, "x"); }), "column 0 spans more");
  EXPECT_EQ(standardized(wide.view(), 0.5, "x").mean[1], 0);
  const HostMatrix many(ElementType::float32, 1, kMaxStandardizedColumns + 1);
  EXPECT_MENTIONS(refusal("x has 1000001 columns", [&] { standardized(many.view(), 1, "x"); }),
                  "at most 1000000 can be standardized; scale it by a factor alone");
}

}  // namespace
}  // namespace deviceloop
