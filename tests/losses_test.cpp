// The CPU's passes over losses, with weights of the rows and without, against the definitions in long double.
#include "losses.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>
#include <limits>
#include <random>
#include <vector>

#include "cpu/cpu_kernels.h"

namespace deviceloop {
namespace {

struct Term {
  long double value, gradient;
};

Term term_of(const LossOfStep& loss, long double p, long double y) {
  const long double d = p - y, delta = loss.huber_delta;
  switch (loss.kind) {
    case Loss::squared_error:
      return {d * d, 2 * d};
    case Loss::absolute_error:
      return {std::abs(d), d > 0 ? 1 : d < 0 ? -1 : 0.0L};
    case Loss::huber:
      return std::abs(d) <= delta ? Term{d * d / 2, d}
                                  : Term{delta * (std::abs(d) - delta / 2), d > 0 ? delta : -delta};
    case Loss::binary_cross_entropy:
      return {std::log(1 + std::exp(p)) - y * p, 1 / (1 + std::exp(-p)) - y};
    case Loss::cross_entropy:
      break;  // by row
  }
  return {NAN, NAN};
}

std::vector<Term> row_of(const LossOfStep& loss, const std::vector<long double>& p, const std::vector<long double>& y) {
  std::vector<Term> terms;
  if (is_by_element(loss.kind)) {
    for (std::size_t j = 0; j < p.size(); ++j) terms.push_back(term_of(loss, p[j], y[j]));
    return terms;
  }
  long double sum = 0, total = 0;
  for (const long double logit : p) sum += std::exp(logit);
  for (std::size_t j = 0; j < p.size(); ++j) total += loss.has_classes ? (j == 0 ? 1 : 0) : y[j];
  for (std::size_t j = 0; j < p.size(); ++j) {
    const long double target = loss.has_classes ? (y[0] == static_cast<long double>(j) ? 1 : 0) : y[j];
    terms.push_back({-target * (p[j] - std::log(sum)), total * std::exp(p[j]) / sum - target});
  }
  return terms;
}

template <class T>
class Losses : public ::testing::Test {};
using Types = ::testing::Types<float, double>;
TYPED_TEST_SUITE(Losses, Types);

// More than one lane and block of the loop, rows that lie across both.
TYPED_TEST(Losses, AreThoseOfTheDefinitionsTimesTheWeights) {
  using T = TypeParam;
  constexpr std::int64_t rows = 61, columns = 11;
  const std::vector<LossOfStep> losses = {
      {Loss::squared_error},        {Loss::squared_error, 0.125},
      {Loss::absolute_error},       {Loss::huber, 1, 0.75},
      {Loss::huber, 0.5, 2},        {Loss::binary_cross_entropy},
      {Loss::cross_entropy, 0.125}, {Loss::cross_entropy, 1, 1, true},
  };
  std::mt19937 random(7);
  std::normal_distribution<T> normal;
  for (const LossOfStep& loss : losses)
    for (const bool has_weights : {false, true}) {
      SCOPED_TRACE(::testing::Message() << "loss " << static_cast<int>(loss.kind) << " times " << loss.scale
                                        << (has_weights ? ", weighted" : ""));
      std::vector<T> prediction(rows * columns), target(rows * (loss.has_classes ? 1 : columns)), weights(rows);
      for (T& value : prediction) value = 2 * normal(random);
      for (T& value : target) value = loss.has_classes ? T(random() % columns) : std::abs(normal(random)) / 4;
      for (T& value : weights) value = random() % 5 == 0 ? T(0) : std::abs(normal(random));
      std::vector<T> gradient(prediction.size());
      const T* const given = has_weights ? weights.data() : nullptr;
      const double sum = take_loss(loss, gradient.data(), prediction.data(), target.data(), given, rows, columns);
      EXPECT_EQ(take_loss<T>(loss, nullptr, prediction.data(), target.data(), given, rows, columns), sum);
      long double expected = 0, size = 0;
      const auto target_columns = static_cast<std::int64_t>(target.size()) / rows;
      for (std::int64_t row = 0; row < rows; ++row) {
        const long double factor = loss.scale * (has_weights ? static_cast<long double>(weights[row]) : 1);
        const std::vector<Term> terms =
            row_of(loss, {prediction.begin() + row * columns, prediction.begin() + (row + 1) * columns},
                   {target.begin() + row * target_columns, target.begin() + (row + 1) * target_columns});
        for (std::int64_t column = 0; column < columns; ++column) {
          const Term& term = terms[static_cast<std::size_t>(column)];
          expected += factor * term.value;
          size += factor * (1 + std::abs(term.value));
          ASSERT_NEAR(
              static_cast<double>(gradient[row * columns + column]), static_cast<double>(factor * term.gradient),
              static_cast<double>(8 * std::numeric_limits<T>::epsilon() * factor * (1 + std::abs(term.gradient))))
              << "row " << row << ", column " << column;
        }
      }
      EXPECT_NEAR(sum, static_cast<double>(expected),
                  static_cast<double>(8 * std::numeric_limits<T>::epsilon() * size));
      EXPECT_NE(sum, 0);
    }
}

}  // namespace
}  // namespace deviceloop
