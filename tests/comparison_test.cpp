// The differences of two runs, of numbers whose differences are known.
#include "cli/comparison.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

namespace deviceloop::cli {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();
constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();

TEST(NextComparison, IsAtOneTwoAndFiveTimesThePowersOfTenAndAtTheEnd) {
  const auto all = [](std::int64_t every, std::int64_t total) {
    std::vector<std::int64_t> steps;
    for (std::int64_t done = 0; done < total;) steps.push_back(done = next_comparison(done, every, total));
    return steps;
  };
  using Steps = std::vector<std::int64_t>;
  EXPECT_EQ(all(0, 1), (Steps{1}));
  EXPECT_EQ(all(0, 3), (Steps{1, 2, 3}));
  EXPECT_EQ(all(0, 50), (Steps{1, 2, 5, 10, 20, 50}));
  EXPECT_EQ(all(0, 700), (Steps{1, 2, 5, 10, 20, 50, 100, 200, 500, 700}));
  EXPECT_EQ(all(3, 7), (Steps{3, 6, 7}));
  EXPECT_EQ(all(7, 7), (Steps{7}));
  constexpr std::int64_t kMost = std::numeric_limits<std::int64_t>::max();
  EXPECT_EQ(all(kMost, kMost), (Steps{kMost}));
  EXPECT_EQ(all(0, kMost).back(), kMost);
  EXPECT_EQ(all(0, kMost).size(), 3u * 18 + 3 + 1);  // 1, ..., 5e17, then 1e18, 2e18, 5e18 and the end
}

TEST(BoundsOf, AreThoseOfTheLowerPrecision) {
  EXPECT_EQ(bounds_of(Precision::tf32x3, Precision::fp64).loss, 1e-4);
  EXPECT_EQ(bounds_of(Precision::fp64, Precision::tf32).loss, 1e-2);
  EXPECT_EQ(bounds_of(Precision::bf16, Precision::fp16).loss, 1e-1);
  EXPECT_EQ(bounds_of(Precision::bf16, Precision::fp32).weight, 1e-2);
}

TEST(BoundsOf, AreThoseOfDoubleWhereBothSidesAreDouble) {
  for (const auto& [a, b] : {std::pair{Precision::fp32, Precision::fp32},
                             {Precision::fp32, Precision::fp64},
                             {Precision::fp64, Precision::fp32}}) {
    EXPECT_EQ(bounds_of(a, b).loss, 1e-4);
    EXPECT_EQ(bounds_of(a, b).weight, 1e-5);
  }
  EXPECT_EQ(bounds_of(Precision::fp64, Precision::fp64).loss, 1e-10);
  EXPECT_EQ(bounds_of(Precision::fp64, Precision::fp64).weight, 1e-10);
}

LossComparison losses_of(double bound, const std::vector<double>& a, const std::vector<double>& b) {
  LossComparison losses{bound};
  losses.add(a, b);
  return losses;
}

TEST(LossComparison, IsRelativeToTheReference) {
  const LossComparison losses = losses_of(0.1, {100, 60, 41.5, 20}, {100, 50, 40, 25});
  EXPECT_EQ(losses.steps, 4);
  ASSERT_TRUE(losses.first_different);
  EXPECT_EQ(losses.first_different->step, 1);
  EXPECT_EQ(losses.first_different->a, 60);
  EXPECT_EQ(losses.first_different->b, 50);
  EXPECT_EQ(losses.first_different->difference, 0.2);
  EXPECT_EQ(losses.largest->step, 1) << "the first of equal ones";
  EXPECT_EQ(losses.largest->difference, 0.2);
  EXPECT_EQ(losses.first_exceeded->step, 1);
  EXPECT_FALSE(losses.a_diverged || losses.b_diverged);
}

TEST(LossComparison, GoesOnFromOneCallToTheNext) {
  LossComparison losses{0.25};
  EXPECT_EQ(losses.add(std::vector<double>{8, 8}, std::vector<double>{8, 8}), 0);
  EXPECT_FALSE(losses.first_different || losses.first_exceeded);
  EXPECT_EQ(losses.largest->difference, 0);
  EXPECT_EQ(losses.add(std::vector<double>{5, 6, 5}, std::vector<double>{4, 4, 4}), 0.5);
  EXPECT_EQ(losses.first_different->step, 2);
  EXPECT_EQ(losses.largest->step, 3);
  EXPECT_EQ(losses.first_exceeded->step, 3) << "a difference of the bound itself does not exceed it";
  EXPECT_EQ(losses.steps, 5);
}

TEST(LossComparison, IsRelativeToAThousandthOfTheFirstLossWhereThatIsMore) {
  const LossComparison losses = losses_of(1, {1000, 0.5}, {1000, 0});
  EXPECT_EQ(losses.largest->difference, 0.5);
  EXPECT_FALSE(losses.first_exceeded);
  EXPECT_EQ(losses_of(1, {0, 1}, {0, 0}).largest->difference, kInfinity) << "nothing to be relative to";
}

TEST(LossComparison, NeverPassesALossThatIsNotFinite) {
  for (const double bad : {kNaN, kInfinity, -kInfinity}) {
    const LossComparison both = losses_of(1e300, {1, bad}, {1, bad});
    EXPECT_FALSE(both.first_different) << "the bits are the same";
    ASSERT_TRUE(both.first_exceeded);
    EXPECT_EQ(both.first_exceeded->step, 1);
    EXPECT_EQ(both.a_diverged, 1);
    EXPECT_EQ(both.b_diverged, 1);
    EXPECT_TRUE(losses_of(1e300, {1, bad}, {1, 1}).first_exceeded);
    EXPECT_TRUE(losses_of(1e300, {1, 1}, {1, bad}).first_exceeded);
    EXPECT_TRUE(losses_of(1e300, {bad, 1}, {bad, 1}).first_exceeded);
    EXPECT_FALSE(losses_of(1e300, {1, 1}, {1, bad}).a_diverged);
  }
}

TEST(LossComparison, TellsBitsApart) {
  const LossComparison losses = losses_of(0, {0.0}, {-0.0});
  EXPECT_TRUE(losses.first_different);
  EXPECT_FALSE(losses.first_exceeded) << "by 0";
}

HostMatrix matrix(std::int64_t rows, std::int64_t columns, const std::vector<double>& values) {
  HostMatrix made(ElementType::float64, rows, columns);
  std::copy(values.begin(), values.end(), static_cast<double*>(made.view().data));
  return made;
}

const std::vector<ParameterInfo> kLayout = {{"0.weight", 0, false, 2, 3}, {"0.bias", 0, true, 1, 3}};

/// Of a weight [2, 3] and a bias [1, 3].
Parameters parameters(const std::vector<double>& weight, const std::vector<double>& bias) {
  return {matrix(2, 3, weight), matrix(1, 3, bias)};
}

const std::vector<double> kWeight = {1, 2, 3, 4, 5, 3}, kZeros = {0, 0, 0};  // the norm of kWeight is 8

TEST(ParameterComparison, IsTheFrobeniusNormRelativeToTheReference) {
  ParameterComparison comparison{{0, 0.5}};
  const ParameterDifference at =
      comparison.add(7, kLayout, parameters({1, 2, 3 + 6, 4, 5, 3 - 8}, {1, 1, 1}), parameters(kWeight, {1, 1, 2}));
  EXPECT_EQ(at.name, "0.weight");
  EXPECT_EQ(at.steps, 7);
  EXPECT_DOUBLE_EQ(at.difference, 10.0 / 8);
  EXPECT_EQ(comparison.first_different->name, "0.weight");
  EXPECT_EQ(comparison.first_exceeded->name, "0.weight");
  ASSERT_TRUE(comparison.largest_element);
  EXPECT_EQ(comparison.largest_element->name, "0.weight");
  EXPECT_EQ(comparison.largest_element->row, 1);
  EXPECT_EQ(comparison.largest_element->column, 2);
  EXPECT_EQ(comparison.largest_element->a, -5);
  EXPECT_EQ(comparison.largest_element->b, 3);

  comparison.add(8, kLayout, parameters(kWeight, {1, 1, 2}), parameters(kWeight, {1, 1, 2}));
  EXPECT_EQ(comparison.largest->steps, 7);
  EXPECT_FALSE(comparison.largest_element) << "it is of the last comparison";
  EXPECT_EQ(comparison.end->steps, 8);
  EXPECT_TRUE(comparison.holds()) << "at the end";
}

TEST(ParameterComparison, BoundsABiasByTenTimesAsMuch) {
  ParameterComparison comparison{{0, 0.5}};
  const ParameterDifference at =
      comparison.add(1, kLayout, parameters({1, 2, 3 + 2, 4, 5, 3}, {3, 0, 0}), parameters(kWeight, {1, 0, 0}));
  EXPECT_EQ(at.name, "0.bias");
  EXPECT_EQ(at.difference, 2);
  EXPECT_EQ(comparison.end->name, "0.weight") << "2 of 5 is a smaller share than a quarter of 0.5";
  EXPECT_EQ(comparison.end_bound, 0.5);
  EXPECT_TRUE(comparison.holds());
  EXPECT_FALSE(comparison.first_exceeded);
  comparison.add(2, kLayout, parameters(kWeight, {7, 0, 0}), parameters(kWeight, {1, 0, 0}));
  EXPECT_EQ(comparison.end->name, "0.bias");
  EXPECT_EQ(comparison.end_bound, 5);
  EXPECT_FALSE(comparison.holds());
  EXPECT_EQ(comparison.first_exceeded->name, "0.bias");
}

TEST(ParameterComparison, TakesZeroOnBothSidesForEqualAndInTheReferenceAloneForADifference) {
  ParameterComparison equal{{0, 0}};
  EXPECT_EQ(equal.add(1, kLayout, parameters(kWeight, kZeros), parameters(kWeight, kZeros)).difference, 0);
  EXPECT_FALSE(equal.first_different || equal.first_exceeded);
  ParameterComparison different{{0, 1e300}};
  const ParameterDifference at =
      different.add(1, kLayout, parameters(kWeight, {0, 1e-300, 0}), parameters(kWeight, kZeros));
  EXPECT_EQ(at.name, "0.bias");
  EXPECT_EQ(at.difference, kInfinity);
  EXPECT_EQ(different.first_exceeded->name, "0.bias");
  ParameterComparison missing{{0, 0.5}};
  EXPECT_EQ(missing.add(1, kLayout, parameters(kWeight, kZeros), parameters(kWeight, {0, 2, 0})).difference, 1);
}

TEST(ParameterComparison, NeverPassesWhatIsNotFinite) {
  for (const double bad : {kNaN, kInfinity, -kInfinity}) {
    ParameterComparison comparison{{0, 1e300}};
    comparison.add(3, kLayout, parameters(kWeight, {0, bad, 0}), parameters(kWeight, {0, bad, 0}));
    ASSERT_TRUE(comparison.first_exceeded);
    EXPECT_EQ(comparison.first_exceeded->steps, 3);
    EXPECT_FALSE(comparison.holds());
    EXPECT_EQ(comparison.a_diverged->name, "0.bias");
    EXPECT_EQ(comparison.b_diverged->name, "0.bias");
    ParameterComparison one{{0, 1e300}};
    one.add(3, kLayout, parameters(kWeight, kZeros), parameters(kWeight, {0, bad, 0}));
    EXPECT_FALSE(one.a_diverged);
    EXPECT_TRUE(one.b_diverged && one.first_exceeded);
    EXPECT_FALSE(one.largest_element);
  }
}

TEST(ParameterComparison, DoesNotOverflowOrUnderflow) {
  for (const double scale : {1e200, 1e-200}) {
    std::vector<double> a = kWeight, b = kWeight;
    a[0] = 5;  // 4 more
    for (std::vector<double>* values : {&a, &b})
      for (double& value : *values) value *= scale;
    ParameterComparison comparison{{0, 1}};
    EXPECT_NEAR(comparison.add(1, kLayout, parameters(a, kZeros), parameters(b, kZeros)).difference, 0.5, 1e-15);
  }
}

}  // namespace
}  // namespace deviceloop::cli
