// The kernels that train a narrow network by tensor cores, in every precision, on a GPU or on the host by tests/simt:
// against the equations in double with operands rounded as the precision says.
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
#include "../host/names.h"
#include "support/activations.h"
#include "support/hopper_test.h"
#if defined(DEVICELOOP_SIMT)
#include "simt/control.h"
#endif

namespace deviceloop {

namespace {

using cuda::FusedArguments;
using cuda::FusedLayout;
using testing::ActivationFormula;
using testing::DeviceArray;
using testing::kActivationFormulas;
using testing::random_integers;
using testing::random_values;

/// To so many bits, to nearest, ties to even; in the range of normal numbers.
double rounded(double value, int bits) {
  if (value == 0 || !std::isfinite(value)) return value;
  int exponent;
  const double mantissa = std::frexp(value, &exponent);
  return std::ldexp(std::nearbyint(std::ldexp(mantissa, bits)), exponent - bits);
}

/// What a product of that precision reads for a value.
double operand(double value, Precision precision) {
  if (precision == Precision::bf16) return rounded(value, 8);
  const double first = rounded(value, 11);
  return precision == Precision::tf32x3 ? first + rounded(value - first, 11) : first;
}

/// What a kernel keeps of a derivative of another activation than relu.
double kept_derivative(const ActivationOfStep& activation, double derivative, Precision precision) {
  if (precision == Precision::bf16) return rounded(derivative, 8);
  if (activation.kind == Activation::leaky_relu) return derivative;
  const int bits = precision == Precision::tf32 ? 11 : 24;
  if (std::abs(derivative) >= 0x1p-6) return rounded(derivative, bits);
  return std::ldexp(std::nearbyint(std::ldexp(derivative, bits + 5)), -bits - 5);
}

/// How the reference computes.
enum class Arithmetic {
  kOperandsRounded,  ///< in double, but operands as the precision says
  kDouble,
  kFloat  ///< by multiply-adds, one after the other
};

/// A sum that can tell whether float has it exactly, in whatever order it is computed.
class Sum {
 public:
  void add(double a, double b = 1) {
    const double term = a * b;
    if (term == 0) return;
    in_float_ = std::fma(static_cast<float>(a), static_cast<float>(b), in_float_);
    value_ += term;
    total_ += std::abs(term);
    int exponent;
    const auto mantissa = static_cast<std::int64_t>(std::ldexp(std::frexp(std::abs(term), &exponent), 53));
    exponent += std::countr_zero(static_cast<std::uint64_t>(mantissa)) - 53;
    smallest_bit_ = std::min(smallest_bit_, exponent);
  }
  double value(bool& exact, Arithmetic arithmetic) const {
    if (total_ != 0 && !(std::ldexp(total_, -smallest_bit_) <= 0x1p24)) exact = false;
    return arithmetic == Arithmetic::kFloat ? in_float_ : value_;
  }

 private:
  double value_ = 0, total_ = 0;
  float in_float_ = 0;
  int smallest_bit_ = std::numeric_limits<int>::max();
};

/// Null where there is none.
const ActivationFormula* formula_of(const ActivationOfStep& activation) {
  for (const ActivationFormula& formula : kActivationFormulas)
    if (formula.activation.kind == activation.kind && formula.activation.leaky_slope == activation.leaky_slope)
      return &formula;
  return nullptr;
}

struct Problem {
  Precision precision;
  std::vector<std::int64_t> widths;
  std::int64_t rows = 1;
  bool has_bias = true;
  float rate = 0x1p-6f;
  float momentum = 0;  ///< with the optimizer sgd; 0: gradient descent, or `scalars`
  OptimizerKind optimizer = OptimizerKind::gradient_descent;
  elementwise::StepScalars<float> scalars{};  ///< beside rate and momentum
  float state = 0;                            ///< what optimizers keep for each parameter begins with it
  const ActivationFormula* activation = formula_of({Activation::relu});  ///< of hidden layers

  std::vector<float> x{}, y{};
  std::vector<std::vector<float>> weights{}, biases{};  ///< [inputs, outputs], [outputs]

  std::size_t layers() const { return weights.size(); }
};

/// Small integers, of which each hidden unit takes three inputs, so that sums stay small.
Problem integers(Precision precision, const std::vector<std::int64_t>& widths, std::int64_t rows,
                 bool has_bias = true) {
  Problem problem{precision, widths, rows, has_bias};
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
Problem reals(Precision precision, const std::vector<std::int64_t>& widths, std::int64_t rows, float rate) {
  Problem problem{precision, widths, rows, true, rate};
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
  std::vector<double> predictions;                                   ///< the reference's, of the last step
  std::vector<std::vector<float>> states[elementwise::kMostStates];  ///< of each layer's weights and biases
  std::uint64_t failed = 0;

  bool operator==(const Outcome& other) const {
    return losses == other.losses && weights == other.weights && biases == other.biases;
  }
};

/// The equations; `exact`: whether float has all sums exactly.
Outcome reference(const Problem& problem, int steps, bool& exact,
                  Arithmetic arithmetic = Arithmetic::kOperandsRounded) {
  using Matrix = std::vector<double>;
  const std::size_t layers = problem.layers();
  const auto rows = static_cast<std::size_t>(problem.rows);
  const auto width = [&](std::size_t layer) { return static_cast<std::size_t>(problem.widths[layer]); };
  const auto read = [&](double value) {
    return arithmetic == Arithmetic::kOperandsRounded ? operand(value, problem.precision) : value;
  };
  const ActivationFormula& activation = *problem.activation;
  const auto derivative = [&](double z) {
    const auto value = static_cast<double>(activation.derivative(z));
    return arithmetic == Arithmetic::kOperandsRounded ? kept_derivative(activation.activation, value, problem.precision)
                                                      : value;
  };
  Outcome outcome;
  outcome.weights = problem.weights;
  outcome.biases = problem.biases;
  std::vector<Matrix> momenta(2 * layers);
  for (int step = 0; step < steps; ++step) {
    std::vector<Matrix> hidden(layers), derivatives(layers), weights(layers);
    for (const float value : problem.x) hidden[0].push_back(read(value));
    Matrix gradient;
    double loss = 0;
    for (std::size_t layer = 0; layer < layers; ++layer) {
      for (const float value : outcome.weights[layer]) weights[layer].push_back(read(value));
      Matrix next, of_layer;
      for (std::size_t row = 0; row < rows; ++row)
        for (std::size_t unit = 0; unit < width(layer + 1); ++unit) {
          Sum sum;
          for (std::size_t i = 0; i < width(layer); ++i)
            sum.add(hidden[layer][row * width(layer) + i], weights[layer][i * width(layer + 1) + unit]);
          if (problem.has_bias) sum.add(outcome.biases[layer][unit]);
          const double z = sum.value(exact, arithmetic);
          if (layer + 1 < layers) {
            of_layer.push_back(derivative(z));
            next.push_back(read(static_cast<double>(activation.value(z))));
          } else {
            if (unit == 0 && row == 0) outcome.predictions.clear();
            outcome.predictions.push_back(z);
            const double difference = z - problem.y[row * width(layers) + unit];
            loss += difference * difference;
            gradient.push_back(read(2 * difference));
          }
        }
      if (layer + 1 < layers) {
        hidden[layer + 1] = next;
        derivatives[layer] = of_layer;
      }
    }
    outcome.losses.push_back(loss);
    for (std::size_t layer = layers; layer-- > 0;) {
      const auto update = [&](float& parameter, const Sum& sum, std::size_t momentum, std::size_t index) {
        double change = sum.value(exact, arithmetic);
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
              sum.add(gradient[row * width(layer + 1) + unit], weights[layer][i * width(layer + 1) + unit]);
            const double value = sum.value(exact, arithmetic);
            before.push_back(read(value * derivatives[layer - 1][row * width(layer) + i]));
          }
      for (std::size_t unit = 0; unit < width(layer + 1); ++unit) {
        for (std::size_t i = 0; i < width(layer); ++i) {
          Sum sum;
          for (std::size_t row = 0; row < rows; ++row)
            sum.add(hidden[layer][row * width(layer) + i], gradient[row * width(layer + 1) + unit]);
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

class FusedRuns : public testing::HopperTest {
 protected:
  /// On a GPU of that many multiprocessors.
  static FusedLayout layout_of(const Problem& problem, int multiprocessors = 3) {
    cuda::FusedDevice device;
    device.multiprocessors = multiprocessors;
    const cuda::FusedDecision decision = cuda::decide_fused({problem.rows, problem.widths, problem.precision}, device);
    EXPECT_EQ(decision.refusal, "");
    return decision.layout;
  }

  /// The same by so many clusters of 2^cluster_log2 blocks.
  static FusedLayout in_clusters(const Problem& problem, int clusters, int cluster_log2) {
    constexpr int kSharedBytes = 227 << 10;
    const FusedLayout layout = cuda::in_clusters(layout_of(problem), clusters, cluster_log2, kSharedBytes);
    EXPECT_LE(layout.shared_bytes, kSharedBytes);
    return layout;
  }

  /// In launches of so many steps each.
  static Outcome run(const Problem& problem, const FusedLayout& layout, const std::vector<int>& launches,
                     std::uint64_t timeout_ns = 0, unsigned arrivals = 0) {
    const cuda::StreamOwner stream;
    const DeviceArray<float> x(problem.x), y(problem.y);
    const DeviceArray<std::uint32_t> tiles(layout.tiles * layout.tile_bytes() / 4);
    cuda::launch_fused_tiles(tiles.data(), x.data(), static_cast<int>(problem.widths.front()), layout, stream.get());
    elementwise::StepScalars<float> of_step = problem.scalars;
    of_step.learning_rate = problem.rate;
    of_step.momentum = problem.momentum;
    of_step.clip_value = HUGE_VALF;
    const OptimizerKind optimizer = problem.momentum != 0 ? OptimizerKind::sgd : problem.optimizer;
    const auto states_used = elementwise::states_of(optimizer).size();
    const auto* const bytes = reinterpret_cast<const unsigned char*>(&of_step);
    const DeviceArray<unsigned char> scalars(std::vector<unsigned char>(bytes, bytes + sizeof of_step));
    std::vector<DeviceArray<float>> weights, biases, states[elementwise::kMostStates];
    FusedArguments arguments;
    arguments.tiles = tiles.data();
    arguments.y = y.data();
    std::copy(problem.widths.begin(), problem.widths.end(), arguments.widths);
    arguments.optimizer = optimizer;
    arguments.activation = problem.activation->activation;
    for (std::size_t layer = 0; layer < problem.layers(); ++layer) {
      const auto add = [&](cuda::FusedParameter& parameter, std::vector<DeviceArray<float>>& arrays,
                           const std::vector<float>& values) {
        arrays.emplace_back(values);
        parameter.values = arrays.back().data();
        for (std::size_t i = 0; i < states_used; ++i) {
          states[i].emplace_back(std::vector<float>(values.size(), problem.state));
          parameter.states[i] = states[i].back().data();
        }
      };
      add(arguments.weights[layer], weights, problem.weights[layer]);
      if (problem.has_bias) add(arguments.biases[layer], biases, problem.biases[layer]);
    }
    int steps = 0;
    for (const int each : launches) steps += each;
    const DeviceArray<double> losses(steps), loss_parts(layout.blocks);
    const std::vector<std::uint64_t> no_words(static_cast<std::size_t>(4 * layout.tagged_units()));
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
      const DeviceArray<std::uint64_t> tagged(no_words);
      arguments.arrivals = counter.data();
      if (layout.clusters > 0) arguments.slots = reinterpret_cast<float*>(tagged.data());
      arguments.losses = losses.data() + arguments.first_step;
      arguments.steps = each;
      cuda::launch_fused(arguments, layout, true, stream.get());
      stream.wait();
      arguments.first_step += each;
    }
    Outcome outcome;
    outcome.failed = failed.read(stream)[0];
    outcome.losses = losses.read(stream);
    for (const auto& array : weights) outcome.weights.push_back(array.read(stream));
    for (std::size_t layer = 0; layer < problem.layers(); ++layer)
      outcome.biases.push_back(problem.has_bias ? biases[layer].read(stream) : std::vector<float>());
    for (std::size_t i = 0; i < states_used; ++i)
      for (const auto& array : states[i]) outcome.states[i].push_back(array.read(stream));
    return outcome;
  }

  /// One step, with all that it changes, must be that of the equations bit for bit.
  static void expect_exact(const Problem& problem, const FusedLayout& layout) {
    std::string name = std::to_string(problem.rows) + " rows of ";
    for (const std::int64_t width : problem.widths) name += std::to_string(width) + "-";
    SCOPED_TRACE(name);
    bool exact = true;
    const Outcome expected = reference(problem, 1, exact);
    ASSERT_TRUE(exact) << "the case is not exact in float";
    const Outcome outcome = run(problem, layout, {1});
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

/// A precision, and how sums are added: by slots, or by clusters.
struct Way {
  Precision precision;
  int clusters = 0, cluster_log2 = 0;
};
void PrintTo(const Way& way, std::ostream* out) {
  *out << name(way.precision) << ", " << way.clusters << " clusters of " << (1 << way.cluster_log2);
}

class Fused : public FusedRuns, public ::testing::WithParamInterface<Way> {
 protected:
  static Precision precision() { return GetParam().precision; }
  static FusedLayout layout_of(const Problem& problem, int multiprocessors = 3) {
    const Way& way = GetParam();
    return way.clusters > 0 ? in_clusters(problem, way.clusters, way.cluster_log2)
                            : FusedRuns::layout_of(problem, multiprocessors);
  }
};
class FusedPrecisions : public Fused {};  // by slots
class FusedTf32x3 : public FusedRuns {};
class FusedClusters : public FusedRuns {};

TEST_P(Fused, OneStepIsExactOnSmallIntegers) {
  const auto check = [](const std::vector<std::int64_t>& widths, std::int64_t rows, bool has_bias = true) {
    if (GetParam().clusters > 0 && widths.size() > 5) return;  // two blocks have no room for more
    const Problem problem = integers(precision(), widths, rows, has_bias);
    expect_exact(problem, layout_of(problem));
  };
  // Of one panel, in TF32 half as wide as in bf16; then of two.
  check({6, 8, 1}, 20);
  check({16, 32, 3}, 64, false);
  check({32, 32, 32, 1}, 200);
  check({9, 12, 10, 11, 9, 2}, 130);
  check({9, 12, 10, 11, 9, 16, 17, 2}, 130);
  check({64, 64, 64, 1}, 300);
  check({40, 64, 33, 8}, 200);
  if (precision() != Precision::tf32x3) check({40, 64, 8, 33, 8}, 200);
  if (precision() != Precision::tf32x3) check({33, 20, 17, 9, 16, 2}, 130);
  if (precision() != Precision::bf16) return;
  if (GetParam().clusters > 0) return;  // a block has no shared memory for what follows
  check({20, 40, 30, 64, 10, 3}, 200);
  check({9, 12, 10, 11, 9, 16, 9, 10, 17, 2}, 70);
  check({100, 70, 8}, 200);
  check({128, 128, 128, 1}, 130);
  // 16 columns of outputs.
  check({9, 12, 10}, 70);
  check({40, 64, 33, 16}, 200, false);
  check({9, 12, 10, 11, 13}, 70);
  check({9, 12, 10, 11, 9, 16, 9, 10, 17, 9}, 70);
  check({100, 128, 70, 12}, 130, false);
  // As many columns as a hidden layer has.
  check({9, 12, 17}, 70);
  check({20, 40, 30, 64}, 200, false);
  check({9, 12, 10, 11, 9, 16, 9, 10, 33}, 70);
  check({100, 70, 128}, 70);
  check({20, 30, 65}, 70);
}

/// Whose derivatives are 1 and -1/2, by leaky_relu.
TEST_P(Fused, OneStepIsExactWithDerivativesOfBothSigns) {
  for (const std::vector<std::int64_t>& widths :
       {std::vector<std::int64_t>{9, 32, 12, 2}, std::vector<std::int64_t>{40, 64, 3}}) {
    Problem problem = integers(precision(), widths, 70);
    problem.activation = formula_of({Activation::leaky_relu, -0.5});
    expect_exact(problem, layout_of(problem));
  }
}

/// Of either sign, and far below 2^-6, where those of TF32 have fewer bits.
TEST_P(Fused, DerivativesAreRoundedAsThePrecisionSays) {
  const double bound = precision() == Precision::bf16 ? 3e-4 : precision() == Precision::tf32 ? 3e-5 : 2e-5;
  for (const Activation kind : {Activation::elu, Activation::silu, Activation::softplus}) {
    SCOPED_TRACE(name_or_null(kind));
    Problem problem = reals(precision(), {12, 40, 9, 2}, 70, 0x1p-14f);
    for (float& x : problem.x) x *= 3;
    problem.activation = formula_of({kind});
    bool exact = true;
    const Outcome expected = reference(problem, 1, exact), outcome = run(problem, layout_of(problem), {1});
    EXPECT_NEAR(outcome.losses[0] / expected.losses[0], 1, precision() == Precision::bf16 ? 1e-5 : 1e-6);
    for (std::size_t layer = 0; layer < problem.layers(); ++layer) {
      EXPECT_LT(relative(outcome.weights[layer], expected.weights[layer], problem.weights[layer]), bound) << layer;
      EXPECT_LT(relative(outcome.biases[layer], expected.biases[layer], problem.biases[layer]), bound) << layer;
    }
  }
}

/// Integers of 13 bits, which TF32 rounds, wherever sums still are exact: as inputs, then as weights, each time with
/// small differences from the targets, then as these differences.
TEST_F(FusedTf32x3, OneStepIsExactOnIntegersBeyondTf32) {
  constexpr int kMost = 8191;
  const auto near = [](Problem problem) {
    bool exact = true;
    const std::vector<double> predictions = reference(problem, 1, exact).predictions;
    for (std::size_t i = 0; i < problem.y.size(); ++i)
      problem.y[i] += static_cast<float>(predictions[i] - 3);  // integers() has added 3
    return problem;
  };
  for (const std::int64_t width : {32, 64}) {
    const std::vector<std::int64_t> widths = {width - 5, width, 2};
    Problem inputs = integers(Precision::tf32x3, widths, 20);
    inputs.x = random_integers<float>(20 * widths[0], kMost, 3);
    inputs.rate = 1;
    expect_exact(near(inputs), layout_of(inputs));
    for (const std::size_t layer : {std::size_t{0}, std::size_t{1}}) {
      Problem weights = integers(Precision::tf32x3, widths, 20);
      for (float& weight : weights.weights[layer]) weight *= 4099;
      weights.rate = 1;
      expect_exact(near(weights), layout_of(weights));
    }
    Problem differences = integers(Precision::tf32x3, widths, 20);
    differences.y = random_integers<float>(20 * 2, 3000, 4);  // whose squares float has
    differences.rate = 1;
    expect_exact(differences, layout_of(differences));
    Problem hidden = integers(Precision::tf32x3, {width - 5, width, width, 2}, 5);
    hidden.biases[0] = random_integers<float>(width, kMost, 5);
    hidden.rate = 1;
    expect_exact(near(hidden), layout_of(hidden));
  }
}

TEST_P(Fused, StepsFollowTheEquationsWithRoundedOperands) {
  // Where a sum in float is on the other side of where it is rounded than that in double, the operand differs.
  const double bound = precision() == Precision::bf16 ? 1e-3 : precision() == Precision::tf32 ? 1e-4 : 2e-5;
  const double loss_bound = precision() == Precision::bf16 ? 1e-5 : precision() == Precision::tf32 ? 1e-6 : 1e-6;
  std::vector<std::pair<Problem, float>> cases;  // with momenta
  for (const float momentum : {0.0f, 0.9f})
    if (GetParam().clusters == 0 || momentum > 0)
      cases.emplace_back(reals(precision(), {20, 64, 48, 3}, 400, 0x1p-14f), momentum);
  if (precision() == Precision::bf16 && GetParam().clusters == 0)
    for (const std::int64_t outputs : {10, 24})
      cases.emplace_back(reals(Precision::bf16, {20, 48, outputs}, 200, 0x1p-14f), 0.9f);
  for (auto& [problem, momentum] : cases) {
    SCOPED_TRACE(std::to_string(problem.widths.back()) + " outputs, momentum " + std::to_string(momentum));
    problem.momentum = momentum;
    bool exact = true;
    const Outcome expected = reference(problem, 3, exact), outcome = run(problem, layout_of(problem), {3});
    EXPECT_FALSE(exact);
    for (std::size_t step = 0; step < 3; ++step)
      EXPECT_NEAR(outcome.losses[step] / expected.losses[step], 1, loss_bound) << step;
    EXPECT_LT(expected.losses[2], 0.98 * expected.losses[0]);
    for (std::size_t layer = 0; layer < problem.layers(); ++layer) {
      EXPECT_LT(relative(outcome.weights[layer], expected.weights[layer], problem.weights[layer]), bound) << layer;
      EXPECT_LT(relative(outcome.biases[layer], expected.biases[layer], problem.biases[layer]), bound) << layer;
    }
  }
}

/// The errors against the equations in double, without any rounding: in bf16 and tf32 so large that operands must have
/// been rounded, and in tf32x3 those of float. Where rounding changes the sign of a Z, a layer's error is more than
/// that.
TEST_P(FusedPrecisions, ErrorsAreThoseOfThePrecision) {
  const Problem problem = reals(precision(), {20, 64, 48, 3}, 400, 0x1p-14f);
  bool exact = true;
  const Outcome right = reference(problem, 1, exact, Arithmetic::kDouble);
  const Outcome in_float = reference(problem, 1, exact, Arithmetic::kFloat);
  const Outcome outcome = run(problem, layout_of(problem), {1});
  for (std::size_t layer = 0; layer < problem.layers(); ++layer) {
    SCOPED_TRACE("layer " + std::to_string(layer));
    const auto error_of = [&](const Outcome& of) {
      return relative(of.weights[layer], right.weights[layer], problem.weights[layer]);
    };
    const double error = error_of(outcome), error_of_float = error_of(in_float);
    EXPECT_TRUE(error_of_float > 1e-7 && error_of_float < 1e-5) << error_of_float;
    if (precision() == Precision::tf32x3) {
      EXPECT_LT(error, 8 * error_of_float);  // a tensor core's sums are not rounded but cut off
      continue;
    }
    const double least = precision() == Precision::tf32 ? 1e-4 : 1e-3;
    const bool is_last = layer + 1 == problem.layers();
    EXPECT_TRUE(error > least && error < (is_last ? 10 : 200) * least) << error;
  }
}

TEST_P(Fused, StepsHaveTheSameBitsInOneLaunchAndInSeveral) {
  std::vector<std::vector<std::int64_t>> networks = {{20, 30, 50, 2}};
  if (GetParam().clusters > 0)
    networks = {{20, 50, 2}};
  else if (precision() == Precision::bf16)
    networks = {{20, 30, 40, 50, 2}, {20, 30, 40, 10}, {20, 70, 40}};
  for (const std::vector<std::int64_t>& widths : networks) {
    SCOPED_TRACE(::testing::PrintToString(widths));
    const bool is_first = widths == networks.front();
    const Problem problem = reals(precision(), widths, is_first ? 230 : 150, 0x1p-14f);
    const FusedLayout layout = layout_of(problem, is_first ? 3 : 2);
    const Outcome whole = run(problem, layout, {3});
    if (is_first) {
      EXPECT_TRUE(whole == run(problem, layout, {3}));
    }
    EXPECT_TRUE(whole == run(problem, layout, {1, 2}));
#if defined(DEVICELOOP_SIMT)
    for (std::uint64_t seed = 10; seed < (is_first ? 12 : 11); ++seed) {
      simt::set_order(simt::Order::kRandom, seed);
      EXPECT_TRUE(whole == run(problem, layout, {3})) << "in random order " << seed;
    }
    simt::reset();
#endif
  }
}

TEST_P(Fused, NaNShows) {
  Problem problem = reals(precision(), {20, 30, 2}, 100, 0x1p-14f);
  problem.x[70 * 20 + 3] = std::numeric_limits<float>::quiet_NaN();
  const Outcome outcome = run(problem, layout_of(problem), {2});
  EXPECT_TRUE(std::isnan(outcome.losses[0]));
  EXPECT_TRUE(std::isnan(outcome.losses[1]));
  EXPECT_TRUE(std::isnan(outcome.weights[0][3 * 30]));
}

TEST_P(FusedPrecisions, AWaitThatLastsEndsTheGrid) {
  const Problem problem = reals(precision(), {20, 30, 2}, 400, 0x1p-14f);
  const Outcome outcome = run(problem, layout_of(problem), {2}, 20'000'000, ~0u - 100);
  // The barrier of the grid never ends, nor is there a place for all tiles of the next step.
  EXPECT_TRUE(outcome.failed == cuda::fused_code(cuda::FusedPhase::kGrid, 0) ||
              outcome.failed == cuda::fused_code(cuda::FusedPhase::kTile, 1))
      << outcome.failed;
}

/// Where time is up in the middle of a step, threads at every kind of wait must find the way out.
TEST_P(Fused, ADeadlineEndsTheGridAtAnyTime) {
  const Problem problem = reals(precision(), {20, 30, 2}, GetParam().clusters > 0 ? 200 : 400, 0x1p-14f);
  const FusedLayout layout = layout_of(problem);
  const Outcome whole = run(problem, layout, {2});
  int ended = 0;
  const std::uint64_t tries_apart = GetParam().clusters > 0 ? 1 : 3;
  for (std::uint64_t timeout_ns = 500; timeout_ns < 200'000; timeout_ns += timeout_ns / tries_apart) {
    const Outcome outcome = run(problem, layout, {2}, timeout_ns);
    if (outcome.failed == 0) {
      EXPECT_TRUE(outcome == whole) << timeout_ns;
    } else {
      ++ended;
    }
  }
  EXPECT_GT(ended, 0);
}

/// As large as clusters are on a GPU; the last blocks have no tile. No smaller one has room for so many layers.
TEST_F(FusedClusters, OneStepIsExactInSixteenBlocks) {
  const Problem problem = integers(Precision::bf16, {33, 20, 17, 9, 16, 8}, 130);
  expect_exact(problem, in_clusters(problem, 1, 4));
}

TEST_F(FusedClusters, OneStepIsExactOfWideLayers) {
  const Problem problem = integers(Precision::bf16, {100, 70, 8}, 200);
  expect_exact(problem, in_clusters(problem, 1, 3));
}

/// One block is a cluster too, which sends to itself.
TEST_F(FusedClusters, OneStepIsExactInOneBlock) {
  const Problem problem = integers(Precision::bf16, {9, 12, 2}, 130, false);
  expect_exact(problem, in_clusters(problem, 1, 0));
}

#if defined(DEVICELOOP_SIMT)
/// The first words are sums; behind the last is nothing to lose.
TEST_F(FusedClusters, AWordThatIsLostEndsTheGrid) {
  const Problem problem = reals(Precision::bf16, {9, 12, 2}, 130, 0x1p-14f);
  const FusedLayout layout = in_clusters(problem, 3, 0);
  const int words = 3 * layout.units * cuda::kFusedUnitFours + 2;  // of a step; the first cluster's loss is no word
  const Outcome whole = run(problem, layout, {2});
  for (const int lost : {1, 2 * words, 2 * words + 1}) {
    SCOPED_TRACE(lost);
    simt::lose_publication(lost);
    const Outcome outcome = run(problem, layout, {2}, 20'000'000);
    if (lost > 2 * words) {
      EXPECT_TRUE(outcome == whole);
      simt::reset();
      continue;
    }
    const auto phase = static_cast<cuda::FusedPhase>(cuda::late_wait_phase(outcome.failed));
    EXPECT_TRUE(phase == cuda::FusedPhase::kClusters || phase == cuda::FusedPhase::kOperands) << outcome.failed;
    // Blocks that wait for what follows may be the first to give up.
    EXPECT_GE(cuda::late_wait_step(outcome.failed), lost == 1 ? 0 : 1);
    EXPECT_LE(cuda::late_wait_step(outcome.failed), 1);
  }
}
#endif

struct Updated {
  double parameter, states[2];
};

/// As <deviceloop/spec.h> says, of a step that is not the first.
Updated updated(OptimizerKind kind, double p, double state, double g, const elementwise::StepScalars<float>& scalars) {
  constexpr double kBeta1 = 0.9, kBeta2 = 0.99;
  const double rate = scalars.learning_rate, decay = scalars.weight_decay;
  const double steps = static_cast<double>(scalars.step) + 1;
  if (kind == OptimizerKind::gradient_descent) return {p - rate * g, {}};
  if (kind == OptimizerKind::adamw)
    p -= rate * decay * p;
  else
    g += decay * p;
  if (kind == OptimizerKind::sgd) {
    const double v = scalars.momentum * state + g;
    return {p - rate * v, {v}};
  }
  const double second = kBeta2 * state + (1 - kBeta2) * g * g;
  if (kind == OptimizerKind::rmsprop) {
    const double w = scalars.momentum * state + g / (std::sqrt(second) + scalars.epsilon);
    return {p - rate * w, {second, w}};
  }
  const double first = kBeta1 * state + (1 - kBeta1) * g;
  const double unbiased = first / (1 - std::pow(kBeta1, steps)), root = second / (1 - std::pow(kBeta2, steps));
  return {p - rate * unbiased / (std::sqrt(root) + scalars.epsilon), {first, second}};
}

TEST_P(Fused, EveryOptimizerUpdatesParametersAndWhatItKeeps) {
  Problem problem = integers(precision(), {6, 8, 2}, 20);
  problem.rate = 1;
  bool exact = true;
  const Outcome moved = reference(problem, 1, exact);
  ASSERT_TRUE(exact);
  for (const OptimizerKind kind : {OptimizerKind::gradient_descent, OptimizerKind::sgd, OptimizerKind::adam,
                                   OptimizerKind::adamw, OptimizerKind::rmsprop}) {
    SCOPED_TRACE(name_or_null(kind));
    Problem trained = problem;
    trained.optimizer = kind;
    trained.rate = 0x1p-4f;
    trained.state = 0.75f;
    elementwise::StepScalars<float>& scalars = trained.scalars;
    scalars.step = 2;
    scalars.weight_decay = 0.125f;
    if (kind == OptimizerKind::adamw) scalars.kept_weight = 1 - trained.rate * scalars.weight_decay;
    scalars.one_minus_beta1 = 0.1f;
    scalars.beta2 = 0.99f;
    scalars.one_minus_beta2 = 0.01f;
    scalars.epsilon = 0x1p-10f;
    scalars.adam_rate = trained.rate / static_cast<float>(1 - std::pow(0.9, 3));
    scalars.root_correction = static_cast<float>(std::sqrt(1 - std::pow(0.99, 3)));
    if (kind == OptimizerKind::sgd) trained.momentum = 0.5f;
    const Outcome outcome = run(trained, layout_of(trained), {1});
    scalars.learning_rate = trained.rate;
    scalars.momentum = trained.momentum;
    const std::size_t kept = elementwise::states_of(kind).size();
    const auto check = [&](const std::vector<float>& before, const std::vector<float>& after,
                           const std::vector<float>& changed, std::size_t which) {
      for (std::size_t i = 0; i < before.size(); ++i) {
        const double gradient = static_cast<double>(before[i]) - after[i];
        const Updated expected = updated(kind, before[i], 0.75, gradient, scalars);
        EXPECT_NEAR(changed[i], expected.parameter, 1e-5 * (1 + std::abs(expected.parameter)));
        for (std::size_t j = 0; j < kept; ++j)
          EXPECT_NEAR(outcome.states[j][which][i], expected.states[j], 1e-5 * (1 + std::abs(expected.states[j])));
      }
    };
    for (std::size_t layer = 0; layer < problem.layers(); ++layer) {
      check(problem.weights[layer], moved.weights[layer], outcome.weights[layer], 2 * layer);
      check(problem.biases[layer], moved.biases[layer], outcome.biases[layer], 2 * layer + 1);
    }
  }
}

std::string way_name(const ::testing::TestParamInfo<Way>& each) {
  return name(each.param.precision) + std::string(each.param.clusters > 0 ? "_clusters" : "");
}
// Of two clusters of two blocks some blocks have no tile of a small problem, and one of a larger problem has several.
INSTANTIATE_TEST_SUITE_P(Ways, Fused,
                         ::testing::Values(Way{Precision::bf16}, Way{Precision::bf16, 2, 1}, Way{Precision::tf32},
                                           Way{Precision::tf32x3}),
                         way_name);
INSTANTIATE_TEST_SUITE_P(Ways, FusedPrecisions,
                         ::testing::Values(Way{Precision::bf16}, Way{Precision::tf32}, Way{Precision::tf32x3}),
                         way_name);

}  // namespace
}  // namespace deviceloop
