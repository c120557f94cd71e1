// The kernel that trains a narrow network by tensor cores, on a GPU or on the host by tests/simt: against the equations
// in double with operands rounded to bf16.
#include <gtest/gtest.h>

#include <cuda_runtime_api.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>
#include <string>
#include <vector>

#include "../cuda/kernels/fused.h"
#include "support/hopper_test.h"

namespace deviceloop {
namespace {

using cuda::FusedArguments;
using cuda::FusedLayout;
using testing::DeviceArray;
using testing::random_integers;
using testing::random_values;

/// To nearest, ties to even; in the range of normal numbers.
double bf16(double value) {
  if (value == 0 || !std::isfinite(value)) return value;
  int exponent;
  const double mantissa = std::frexp(value, &exponent);
  return std::ldexp(std::nearbyint(std::ldexp(mantissa, 8)), exponent - 8);
}

/// A sum that can tell whether float has it exactly, in whatever order it is computed.
class Sum {
 public:
  void add(double term) {
    if (term == 0) return;
    value_ += term;
    total_ += std::abs(term);
    int exponent;
    const auto mantissa = static_cast<std::int64_t>(std::ldexp(std::frexp(std::abs(term), &exponent), 53));
    exponent += std::countr_zero(static_cast<std::uint64_t>(mantissa)) - 53;
    smallest_bit_ = std::min(smallest_bit_, exponent);
  }
  double value(bool& exact) const {
    if (total_ != 0 && !(std::ldexp(total_, -smallest_bit_) <= 0x1p24)) exact = false;
    return value_;
  }

 private:
  double value_ = 0, total_ = 0;
  int smallest_bit_ = std::numeric_limits<int>::max();
};

struct Problem {
  std::vector<std::int64_t> widths;
  std::int64_t rows = 1;
  bool has_bias = true;
  float rate = 0x1p-6f;
  float momentum = 0;  ///< with the optimizer sgd; 0: gradient descent

  std::vector<float> x{}, y{};
  std::vector<std::vector<float>> weights{}, biases{};  ///< [inputs, outputs], [outputs]

  std::size_t layers() const { return weights.size(); }
};

/// Small integers, of which each hidden unit takes three inputs, so that sums stay small.
Problem integers(const std::vector<std::int64_t>& widths, std::int64_t rows, bool has_bias = true) {
  Problem problem{widths, rows, has_bias};
  problem.x = random_integers<float>(rows * widths.front(), 2, 1);
  problem.y = random_integers<float>(rows * widths.back(), 2, 2);
  for (float& target : problem.y) target += 3;
  for (std::size_t layer = 0; layer + 1 < widths.size(); ++layer) {
    const auto seed = static_cast<std::uint32_t>(layer);
    std::vector<float> weights(static_cast<std::size_t>(widths[layer] * widths[layer + 1]), 0.0f);
    const std::vector<float> signs = random_integers<float>(3 * widths[layer + 1], 1, 10 + seed);
    for (std::int64_t unit = 0; unit < widths[layer + 1]; ++unit)
      for (std::int64_t i = 0; i < 3; ++i)
        weights[static_cast<std::size_t>((unit * 5 + i * 7 + 1) % widths[layer] * widths[layer + 1] + unit)] =
            signs[static_cast<std::size_t>(3 * unit + i)];
    problem.weights.push_back(weights);
    problem.biases.push_back(has_bias ? random_integers<float>(widths[layer + 1], 2, 20 + seed) : std::vector<float>());
  }
  return problem;
}

/// As of a training.
Problem reals(const std::vector<std::int64_t>& widths, std::int64_t rows, float rate) {
  Problem problem{widths, rows, true, rate};
  problem.x = random_values<float>(rows * widths.front(), 1);
  problem.y = random_values<float>(rows * widths.back(), 2);
  for (std::size_t layer = 0; layer + 1 < widths.size(); ++layer) {
    problem.weights.push_back(
        random_values<float>(widths[layer] * widths[layer + 1], 10 + static_cast<std::uint32_t>(layer)));
    for (float& weight : problem.weights.back()) weight /= std::sqrt(static_cast<float>(widths[layer]));
    problem.biases.push_back(random_values<float>(widths[layer + 1], 20 + static_cast<std::uint32_t>(layer)));
    for (float& bias : problem.biases.back()) bias /= 8;
  }
  return problem;
}

/// What a run leaves.
struct Outcome {
  std::vector<double> losses;
  std::vector<std::vector<float>> weights, biases;
  std::uint64_t failed = 0;

  bool operator==(const Outcome& other) const {
    return losses == other.losses && weights == other.weights && biases == other.biases;
  }
};

/// The equations; `exact`: whether float has all sums exactly.
Outcome reference(const Problem& problem, int steps, bool& exact) {
  using Matrix = std::vector<double>;
  const std::size_t layers = problem.layers();
  const auto rows = static_cast<std::size_t>(problem.rows);
  const auto width = [&](std::size_t layer) { return static_cast<std::size_t>(problem.widths[layer]); };
  Outcome outcome;
  outcome.weights = problem.weights;
  outcome.biases = problem.biases;
  std::vector<Matrix> momenta(2 * layers);
  for (int step = 0; step < steps; ++step) {
    std::vector<Matrix> hidden(layers), passes(layers), weights(layers);
    for (const float value : problem.x) hidden[0].push_back(bf16(value));
    Matrix gradient;
    double loss = 0;
    for (std::size_t layer = 0; layer < layers; ++layer) {
      for (const float value : outcome.weights[layer]) weights[layer].push_back(bf16(value));
      Matrix next, pass;
      for (std::size_t row = 0; row < rows; ++row)
        for (std::size_t unit = 0; unit < width(layer + 1); ++unit) {
          Sum sum;
          for (std::size_t i = 0; i < width(layer); ++i)
            sum.add(hidden[layer][row * width(layer) + i] * weights[layer][i * width(layer + 1) + unit]);
          if (problem.has_bias) sum.add(outcome.biases[layer][unit]);
          const double z = sum.value(exact);
          if (layer + 1 < layers) {
            pass.push_back(z < 0 ? 0 : 1);
            next.push_back(z < 0 ? 0 : bf16(z));
          } else {
            const double difference = z - problem.y[row * width(layers) + unit];
            loss += difference * difference;
            gradient.push_back(bf16(2 * difference));
          }
        }
      if (layer + 1 < layers) {
        hidden[layer + 1] = next;
        passes[layer] = pass;
      }
    }
    outcome.losses.push_back(loss);
    for (std::size_t layer = layers; layer-- > 0;) {
      const auto update = [&](float& parameter, const Sum& sum, std::size_t momentum, std::size_t index) {
        double change = sum.value(exact);
        if (problem.momentum != 0) {
          Matrix& kept = momenta[momentum];
          if (kept.size() <= index) kept.resize(index + 1, 0.0);
          kept[index] = problem.momentum * kept[index] + change;
          change = kept[index];
        }
        parameter = static_cast<float>(parameter - problem.rate * change);
      };
      Matrix before;
      if (layer > 0)
        for (std::size_t row = 0; row < rows; ++row)
          for (std::size_t i = 0; i < width(layer); ++i) {
            Sum sum;
            for (std::size_t unit = 0; unit < width(layer + 1); ++unit)
              sum.add(gradient[row * width(layer + 1) + unit] * weights[layer][i * width(layer + 1) + unit]);
            before.push_back(passes[layer - 1][row * width(layer) + i] != 0 ? bf16(sum.value(exact)) : 0);
          }
      for (std::size_t unit = 0; unit < width(layer + 1); ++unit) {
        for (std::size_t i = 0; i < width(layer); ++i) {
          Sum sum;
          for (std::size_t row = 0; row < rows; ++row)
            sum.add(hidden[layer][row * width(layer) + i] * gradient[row * width(layer + 1) + unit]);
          const std::size_t index = i * width(layer + 1) + unit;
          update(outcome.weights[layer][index], sum, 2 * layer, index);
        }
        if (!problem.has_bias) continue;
        Sum sum;
        for (std::size_t row = 0; row < rows; ++row) sum.add(gradient[row * width(layer + 1) + unit]);
        update(outcome.biases[layer][unit], sum, 2 * layer + 1, unit);
      }
      gradient = before;
    }
  }
  return outcome;
}

class Fused : public testing::HopperTest {
 protected:
  /// On a GPU of that many multiprocessors.
  static FusedLayout layout_of(const Problem& problem, int multiprocessors = 3) {
    cuda::FusedDevice device;
    device.multiprocessors = multiprocessors;
    const cuda::FusedDecision decision = cuda::decide_fused({problem.rows, problem.widths}, device);
    EXPECT_EQ(decision.refusal, "");
    return decision.layout;
  }

  /// In launches of so many steps each.
  static Outcome run(const Problem& problem, const FusedLayout& layout, const std::vector<int>& launches,
                     std::uint64_t timeout_ns = 0, unsigned arrivals = 0) {
    const cuda::StreamOwner stream;
    const DeviceArray<float> x(problem.x), y(problem.y);
    const DeviceArray<std::uint32_t> tiles(layout.tiles * layout.tile_bytes() / 4);
    cuda::launch_fused_tiles(tiles.data(), x.data(), static_cast<int>(problem.widths.front()), layout, stream.get());
    elementwise::StepScalars<float> of_step;
    of_step.learning_rate = problem.rate;
    of_step.momentum = problem.momentum;
    of_step.clip_value = HUGE_VALF;
    const auto* const bytes = reinterpret_cast<const unsigned char*>(&of_step);
    const DeviceArray<unsigned char> scalars(std::vector<unsigned char>(bytes, bytes + sizeof of_step));
    std::vector<DeviceArray<float>> weights, biases, states;
    FusedArguments arguments;
    arguments.tiles = tiles.data();
    arguments.y = y.data();
    std::copy(problem.widths.begin(), problem.widths.end(), arguments.widths);
    arguments.optimizer = problem.momentum == 0 ? OptimizerKind::gradient_descent : OptimizerKind::sgd;
    for (std::size_t layer = 0; layer < problem.layers(); ++layer) {
      const auto add = [&](cuda::FusedParameter& parameter, std::vector<DeviceArray<float>>& arrays,
                           const std::vector<float>& values) {
        arrays.emplace_back(values);
        parameter.values = arrays.back().data();
        if (problem.momentum == 0) return;
        states.emplace_back(std::vector<float>(values.size(), 0.0f));
        parameter.states[0] = states.back().data();
      };
      add(arguments.weights[layer], weights, problem.weights[layer]);
      if (problem.has_bias) add(arguments.biases[layer], biases, problem.biases[layer]);
    }
    int steps = 0;
    for (const int each : launches) steps += each;
    const DeviceArray<double> losses(steps), loss_parts(layout.blocks);
    const DeviceArray<std::uint32_t> operands(
        std::vector<std::uint32_t>(static_cast<std::size_t>(layout.operand_bytes() / 4), 0u));
    const DeviceArray<float> slots(static_cast<std::int64_t>(layout.blocks) * layout.slots().count() * 4);
    const DeviceArray<std::uint64_t> failed(std::vector<std::uint64_t>{0});
    arguments.scalars = reinterpret_cast<const elementwise::StepScalars<float>*>(scalars.data());
    arguments.operands = reinterpret_cast<unsigned char*>(operands.data());
    arguments.slots = slots.data();
    arguments.loss_parts = loss_parts.data();
    arguments.timeout_ns = timeout_ns;
    arguments.failed = failed.data();
    cuda::prepare_fused(layout);
    for (const int each : launches) {
      const DeviceArray<unsigned> counter(std::vector<unsigned>{arrivals});
      arguments.arrivals = counter.data();
      arguments.losses = losses.data() + arguments.first_step;
      arguments.steps = each;
      cuda::launch_fused(arguments, layout, stream.get());
      stream.wait();
      arguments.first_step += each;
    }
    Outcome outcome;
    outcome.failed = failed.read(stream)[0];
    outcome.losses = losses.read(stream);
    for (const auto& array : weights) outcome.weights.push_back(array.read(stream));
    for (std::size_t layer = 0; layer < problem.layers(); ++layer)
      outcome.biases.push_back(problem.has_bias ? biases[layer].read(stream) : std::vector<float>());
    return outcome;
  }

  /// One step, with all that it changes, must be that of the equations bit for bit.
  static void expect_exact(const Problem& problem) {
    std::string name = std::to_string(problem.rows) + " rows of ";
    for (const std::int64_t width : problem.widths) name += std::to_string(width) + "-";
    SCOPED_TRACE(name);
    bool exact = true;
    const Outcome expected = reference(problem, 1, exact);
    ASSERT_TRUE(exact) << "the case is not exact in float";
    const Outcome outcome = run(problem, layout_of(problem), {1});
    EXPECT_EQ(outcome.losses, expected.losses);
    EXPECT_GT(expected.losses[0], 0);
    for (std::size_t layer = 0; layer < problem.layers(); ++layer) {
      SCOPED_TRACE("layer " + std::to_string(layer));
      testing::expect_same(outcome.weights[layer], expected.weights[layer]);
      testing::expect_same(outcome.biases[layer], expected.biases[layer]);
      EXPECT_NE(outcome.weights[layer], problem.weights[layer]);
    }
  }

  /// |a - b| by |b - c|, over all elements.
  static double relative(const std::vector<float>& a, const std::vector<float>& b, const std::vector<float>& c) {
    double error = 0, change = 0;
    for (std::size_t i = 0; i < a.size(); ++i) {
      error += std::pow(static_cast<double>(a[i]) - b[i], 2);
      change += std::pow(static_cast<double>(b[i]) - c[i], 2);
    }
    return std::sqrt(error / change);
  }
};

TEST_F(Fused, OneStepIsExactOnSmallIntegers) {
  expect_exact(integers({6, 8, 1}, 20));
  expect_exact(integers({64, 64, 64, 1}, 300));
  expect_exact(integers({16, 32, 3}, 64, false));
  expect_exact(integers({40, 64, 8, 33, 8}, 200));
  expect_exact(integers({9, 12, 10, 11, 9, 16, 17, 2}, 130));
  expect_exact(integers({100, 70, 8}, 200));
  expect_exact(integers({128, 128, 128, 1}, 130));
}

TEST_F(Fused, StepsFollowTheEquationsWithOperandsInBf16) {
  Problem problem = reals({20, 64, 48, 3}, 400, 0x1p-14f);
  for (const float momentum : {0.0f, 0.9f}) {
    problem.momentum = momentum;
    bool exact = true;
    const Outcome expected = reference(problem, 3, exact), outcome = run(problem, layout_of(problem), {3});
    EXPECT_FALSE(exact);
    for (std::size_t step = 0; step < 3; ++step)
      EXPECT_NEAR(outcome.losses[step] / expected.losses[step], 1, 1e-5) << step;
    EXPECT_LT(expected.losses[2], 0.98 * expected.losses[0]);
    for (std::size_t layer = 0; layer < problem.layers(); ++layer) {
      EXPECT_LT(relative(outcome.weights[layer], expected.weights[layer], problem.weights[layer]), 1e-3) << layer;
      EXPECT_LT(relative(outcome.biases[layer], expected.biases[layer], problem.biases[layer]), 1e-3) << layer;
    }
  }
}

TEST_F(Fused, StepsHaveTheSameBitsInOneLaunchAndInSeveral) {
  const Problem problem = reals({20, 30, 40, 50, 2}, 230, 0x1p-14f);
  const FusedLayout layout = layout_of(problem);
  const Outcome whole = run(problem, layout, {3});
  EXPECT_TRUE(whole == run(problem, layout, {3}));
  EXPECT_TRUE(whole == run(problem, layout, {1, 2}));
}

TEST_F(Fused, NaNShows) {
  Problem problem = reals({20, 30, 2}, 100, 0x1p-14f);
  problem.x[70 * 20 + 3] = std::numeric_limits<float>::quiet_NaN();
  const Outcome outcome = run(problem, layout_of(problem), {2});
  EXPECT_TRUE(std::isnan(outcome.losses[0]));
  EXPECT_TRUE(std::isnan(outcome.losses[1]));
  EXPECT_TRUE(std::isnan(outcome.weights[0][3 * 30]));
}

TEST_F(Fused, AWaitThatLastsEndsTheGrid) {
  const Problem problem = reals({20, 30, 2}, 400, 0x1p-14f);
  const Outcome outcome = run(problem, layout_of(problem), {2}, 20'000'000, ~0u - 100);
  EXPECT_EQ(outcome.failed, cuda::fused_code(cuda::FusedPhase::kGrid, 0));
}

/// Where time is up in the middle of a step, threads at every kind of wait must find the way out.
TEST_F(Fused, ADeadlineEndsTheGridAtAnyTime) {
  const Problem problem = reals({20, 30, 2}, 400, 0x1p-14f);
  const FusedLayout layout = layout_of(problem);
  const Outcome whole = run(problem, layout, {2});
  int ended = 0;
  for (std::uint64_t timeout_ns = 500; timeout_ns < 200'000; timeout_ns += timeout_ns / 3) {
    const Outcome outcome = run(problem, layout, {2}, timeout_ns);
    if (outcome.failed == 0) {
      EXPECT_TRUE(outcome == whole) << timeout_ns;
    } else {
      ++ended;
    }
  }
  EXPECT_GT(ended, 0);
}

}  // namespace
}  // namespace deviceloop
