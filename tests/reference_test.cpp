// The double reference itself: by finite differences away from ReLU's kink, and the neuron of the starting page.
#include "support/reference.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <string>

#include "support/exact.h"
#include "support/problem.h"

namespace deviceloop::reference {
namespace {

Problem small_problem() { return Problem::random({5, 7, 4, 2}, true, 6, Precision::fp64, Init::he, 1e-3); }

double loss_of(const Network& network, const Problem& problem) {
  return loss(forward(network, problem.x).back(), problem.y);
}

TEST(Reference, GradientsAgreeWithFiniteDifferences) {
  const Problem problem = small_problem();
  Network gradient;
  gradients(problem.start, problem.x, problem.y, gradient);
  constexpr double kStep = 1e-6;
  // No pre-activation may cross 0 within the step, or the difference quotient says nothing.
  for (const Table& z : forward(problem.start, problem.x))
    for (const double value : z.values) ASSERT_GT(std::abs(value), 1e-3);
  const auto check = [&](double& parameter, double expected, const std::string& what, Network& network) {
    const double kept = parameter;
    parameter = kept + kStep;
    const double above = loss_of(network, problem);
    parameter = kept - kStep;
    const double below = loss_of(network, problem);
    parameter = kept;
    ASSERT_TRUE(std::isfinite(expected)) << what;
    EXPECT_NEAR((above - below) / (2 * kStep), expected, 1e-6 * std::max(1.0, std::abs(expected))) << what;
  };
  Network network = problem.start;
  int zero = 0, live = 0;
  for (std::size_t l = 0; l < network.size(); ++l) {
    for (std::size_t i = 0; i < network[l].weight.values.size(); ++i) {
      check(network[l].weight.values[i], gradient[l].weight.values[i], "weight", network);
      ++(gradient[l].weight.values[i] == 0 ? zero : live);
    }
    for (std::size_t j = 0; j < network[l].bias.size(); ++j)
      check(network[l].bias[j], gradient[l].bias[j], "bias", network);
  }
  EXPECT_GT(live, 20);
}

TEST(Reference, AnsweredTheNeuronOfTheStartingPage) {
  Network network(2);
  network[0].weight = Table(3, 1);
  network[0].weight.values = {1, -1, 5};
  network[1].weight = Table(1, 1);
  network[1].weight.values = {1};
  Table x(1, 3);
  x.values = {2, 3, 4};
  EXPECT_EQ(forward(network, x).back().values[0], 19);
  network[0].weight.values = {-1, 1, -5};
  EXPECT_EQ(forward(network, x).back().values[0], 0);
}

TEST(Reference, PassesTheGradientAtAPreActivationOfExactlyZero) {
  // z = 0, prediction 0, target 1: dW2 = 0, and dW1 = -2 x because the gradient passes at 0.
  Network network(2);
  network[0].weight = Table(1, 1);
  network[1].weight = Table(1, 1);
  network[1].weight.values = {1};
  Table x(1, 1), y(1, 1);
  x.values = {3};
  y.values = {1};
  Network gradient;
  EXPECT_EQ(gradients(network, x, y, gradient), 1);
  EXPECT_EQ(gradient[0].weight.values[0], -6);
}

TEST(Reference, LossFallsOverARun) {
  Problem problem = small_problem();
  Network network = problem.start;
  const auto losses = train(network, problem.x, problem.y, 1e-3, 200);
  ASSERT_EQ(losses.size(), 200u);
  for (std::size_t i = 1; i < losses.size(); ++i) ASSERT_LT(losses[i], losses[i - 1]);
}

TEST(Reference, PassesNaN) {
  const double nan = std::nan("");
  EXPECT_TRUE(std::isnan(relu(nan)));
  Problem problem = small_problem();
  problem.x.values[0] = nan;
  Network gradient;
  EXPECT_TRUE(std::isnan(gradients(problem.start, problem.x, problem.y, gradient)));
  for (const Layer& layer : gradient)
    for (const double value : layer.bias) EXPECT_TRUE(std::isnan(value));
}

TEST(Reference, AnErrorThatIsNoNumberIsInfinite) {
  const double nan = std::nan(""), infinity = std::numeric_limits<double>::infinity();
  EXPECT_EQ(larger_error(1, 2), 2);
  EXPECT_EQ(larger_error(2, 1), 2);
  EXPECT_EQ(larger_error(nan, 1), infinity);
  EXPECT_EQ(larger_error(1, nan), infinity);
  EXPECT_EQ(larger_error(larger_error(0, nan), 1), infinity);  // and stays so
  EXPECT_EQ(loss_error(3, 2, 2), 0.5);
  EXPECT_EQ(loss_error(3, 2, 4000), 0.25);
  EXPECT_EQ(loss_error(nan, 2, 2), infinity);
  EXPECT_EQ(loss_error(2, nan, 2), infinity);
  for (const double loss : {2.0, nan, infinity}) {
    EXPECT_EQ(loss_error(loss, infinity, 2), infinity);
    EXPECT_EQ(loss_error(loss, 2, infinity), infinity);
  }
  EXPECT_EQ(relative_error({3, 8}, {3, 4}), 0.8);
  EXPECT_EQ(relative_error({3, nan}, {3, 4}), infinity);
  EXPECT_EQ(relative_error({3, 4}, {3, nan}), infinity);
  EXPECT_EQ(relative_error({3, 4}, {3, infinity}), infinity);
  EXPECT_EQ(relative_error({0, 0}, {0, 0}), infinity);
  EXPECT_EQ(relative_error({}, {}), infinity);
  EXPECT_EQ(relative_error({3, 4}, {3}), infinity);
  EXPECT_EQ(relative_error({3}, {3, 4}), infinity);
}

TEST(ExactBits, OfWhatIsNotFiniteAreTooMany) {
  exact::BitCounter bits;
  bits.count(0, 1);
  EXPECT_EQ(bits.most(), 0);
  bits.count(5, 0.5);
  EXPECT_EQ(bits.most(), 4);
  for (const double magnitude : {std::nan(""), std::numeric_limits<double>::infinity()}) {
    bits = {};
    bits.count(magnitude, 1);
    bits.count(1, 1);
    EXPECT_GT(bits.most(), 53);
  }
}

}  // namespace
}  // namespace deviceloop::reference
