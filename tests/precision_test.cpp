// Precisions below fp32: the rounding of every number, the products of rounded operands, whole runs against double, and
// the scale of the loss in fp16. The reference rounds by its own code.
#include "precision.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include <deviceloop/deviceloop.h>

#include "cpu/cpu_kernels.h"
#include "files/output_file.h"
#include "files/safetensors.h"
#include "loss_scaling.h"
#include "names.h"
#include "support/problem.h"
#include "support/refusal.h"
#include "support/sanitized.h"
#include "support/temporary_folder.h"
#include "support/where.h"

namespace deviceloop {

void PrintTo(Precision precision, std::ostream* out) { *out << name(precision); }

namespace {

constexpr Precision kLower[] = {Precision::tf32, Precision::tf32x3, Precision::bf16, Precision::fp16};

#ifdef DEVICELOOP_PRECISIONS_ON_CUDA
constexpr ExecutorKind kExecutor = ExecutorKind::graph;
#else
constexpr ExecutorKind kExecutor = ExecutorKind::cpu;
#endif

Trainer trainer_of(const Problem& problem, int threads = 1) { return problem.trainer(threads, kExecutor); }

/// A format as the reference sees it: bits of mantissa, the exponents of the normal numbers.
struct Format {
  int mantissa;
  int least, most;
};
constexpr Format kTf32 = {10, -126, 127}, kBf16 = {7, -126, 127}, kFp16 = {10, -14, 15};

/// To nearest, ties to even, in double, which holds every number in between.
double rounded(double value, const Format& format) {
  if (value == 0 || !std::isfinite(value)) return value;
  const int place = std::max(std::ilogb(value), format.least) - format.mantissa;
  const double in_format = std::ldexp(std::nearbyint(std::ldexp(value, -place)), place);
  return std::fabs(in_format) >= std::ldexp(1.0, format.most + 1) ? std::copysign(INFINITY, value) : in_format;
}

double operand(double value, Precision precision) {
  switch (precision) {
    case Precision::tf32:
      return rounded(value, kTf32);
    case Precision::bf16:
      return rounded(value, kBf16);
    case Precision::fp16:
      return rounded(value, kFp16);
    case Precision::tf32x3: {
      const double high = rounded(value, kTf32);
      return high + rounded(value - high, kTf32);
    }
    case Precision::fp32:
    case Precision::fp64:
      break;
  }
  return value;
}

#ifndef DEVICELOOP_PRECISIONS_ON_CUDA

// ---- rounding

#if defined(__SANITIZE_ADDRESS__)
constexpr bool kTakesAll = false;
#else
constexpr bool kTakesAll = !kSlowMachine;
#endif

/// Whether the bit patterns [first, last] and the same with a sign are all rounded to `expected`. Under sanitizers the
/// ends, and some in between.
template <class Format>
[[gnu::noinline]] bool all_become(std::uint32_t first, std::uint32_t last, std::uint32_t expected) {
  std::uint32_t different = 0;
  const auto check = [&](std::uint32_t bits) {
    constexpr std::uint32_t kSign = 0x80000000;
    different |= rounding::bits_of(rounding::rounded<Format>(rounding::with_bits(bits))) ^ expected;
    different |= rounding::bits_of(rounding::rounded<Format>(rounding::with_bits(bits | kSign))) ^ (expected | kSign);
  };
  const std::uint32_t stride = kTakesAll ? 1 : 1 + (last - first) / 16;
  for (std::uint32_t bits = first; bits < last; bits += stride) check(bits);
  check(last);
  return different == 0;
}

/// Every fp32 number: the format's numbers in ascending order, each with all that lies nearer to it than to others. Two
/// neighbours meet halfway, at a float, which is rounded to the one with an even mantissa, and so an even place.
template <class OfFormat>
void expect_every_number_is_rounded(const Format& format) {
  std::vector<double> numbers;
  const int per_power = 1 << format.mantissa;
  for (int m = 0; m < per_power; ++m) numbers.push_back(std::ldexp(m, format.least - format.mantissa));
  for (int exponent = format.least; exponent <= format.most; ++exponent)
    for (int m = 0; m < per_power; ++m)
      numbers.push_back(std::ldexp(1.0 + static_cast<double>(m) / per_power, exponent));
  numbers.push_back(std::ldexp(1.0, format.most + 1));  // in the place of infinity
  const auto bits_of = [](double value) {
    const auto as_float = static_cast<float>(value);
    EXPECT_EQ(static_cast<double>(as_float), value);
    return std::bit_cast<std::uint32_t>(as_float);
  };
  std::uint32_t first = 0, wrong = 0;
  for (std::size_t i = 0; i + 1 < numbers.size(); ++i) {
    const std::uint32_t halfway = bits_of((numbers[i] + numbers[i + 1]) / 2), last = halfway - i % 2;
    wrong += all_become<OfFormat>(first, last, bits_of(numbers[i])) ? 0 : 1;
    first = last + 1;
  }
  EXPECT_EQ(wrong, 0u) << "of " << numbers.size();
  EXPECT_TRUE(all_become<OfFormat>(first, 0x7f800000, 0x7f800000));
  for (std::uint32_t bits = 0x7f800001; bits < 0x80000000; ++bits)
    for (const std::uint32_t sign : {0u, 0x80000000u}) {
      const std::uint32_t made = rounding::bits_of(rounding::rounded<OfFormat>(rounding::with_bits(bits | sign)));
      ASSERT_TRUE((made & 0x7fffffff) > 0x7f800000 && (made & 0x80000000) == sign) << std::hex << bits << made;
    }
}

TEST(Rounding, OfEveryNumberToTf32) { expect_every_number_is_rounded<rounding::Tf32>(kTf32); }
TEST(Rounding, OfEveryNumberToBf16) { expect_every_number_is_rounded<rounding::Bf16>(kBf16); }
TEST(Rounding, OfEveryNumberToFp16) { expect_every_number_is_rounded<rounding::Fp16>(kFp16); }

TEST(Rounding, OfWhatItsCommentsSay) {
  const auto fp16 = [](double value) { return rounding::rounded<rounding::Fp16>(static_cast<float>(value)); };
  EXPECT_EQ(fp16(65519.99), 65504.0f);
  EXPECT_EQ(fp16(65520), INFINITY);
  EXPECT_EQ(fp16(-65520), -INFINITY);
  EXPECT_EQ(fp16(0x1p-24), 0x1p-24f);
  EXPECT_EQ(fp16(0x1p-25), 0.0f);
  EXPECT_EQ(fp16(0x1.000002p-25), 0x1p-24f);
  EXPECT_TRUE(std::signbit(fp16(-0x1p-26)));
  EXPECT_EQ(rounding::rounded<rounding::Bf16>(std::numeric_limits<float>::max()), INFINITY);
  EXPECT_EQ(rounding::rounded<rounding::Tf32>(std::numeric_limits<float>::max()), INFINITY);
  EXPECT_EQ(rounding::rounded<rounding::Bf16>(1 + 0x1p-8f), 1.0f);
  EXPECT_EQ(rounding::rounded<rounding::Bf16>(1 + 0x1.8p-7f), 1 + 0x1p-6f);
}

TEST(Rounding, OfOperandsInLoopsIsThatOfElements) {
  std::vector<float> values(1001);
  fill_normal(Matrix(values.data(), 1, 1001), 3, 0);
  values[7] = INFINITY;
  values[8] = -0.0f;
  values[9] = 0x1p-140f;
  values[10] = 70000;
  for (const Precision precision : kLower)
    for (const std::int64_t count : {0, 1, 7, 8, 9, 31, 1001}) {
      std::vector<float> high(1002, -7), low(1002, -7);
      const bool has_low = operand_parts(precision) == 2;
      round_operand(precision, values.data(), count, high.data(), has_low ? low.data() : nullptr);
      for (std::size_t i = 0; i < static_cast<std::size_t>(count); ++i) {
        const double sum = static_cast<double>(high[i]) + (has_low ? static_cast<double>(low[i]) : 0);
        if (i == 7 && has_low)
          EXPECT_TRUE(!std::isfinite(sum));
        else
          ASSERT_EQ(sum, operand(static_cast<double>(values[i]), precision)) << name(precision) << " " << i;
      }
      EXPECT_EQ(high[static_cast<std::size_t>(count)], -7);
      EXPECT_EQ(low[static_cast<std::size_t>(count)], -7);
    }
}

TEST(Rounding, OfTwoPartsKeeps22Bits) {
  std::vector<float> values(10000), high(10000), low(10000);
  fill_normal(Matrix(values.data(), 1, 10000), 5, 0);
  round_operand(Precision::tf32x3, values.data(), 10000, high.data(), low.data());
  for (std::size_t i = 0; i < values.size(); ++i)
    ASSERT_LE(std::fabs(double(values[i]) - (double(high[i]) + double(low[i]))),
              0x1p-22 * std::fabs(double(values[i])));
}

TEST(Rounding, HasTheBitsOfTheFormat) {
  for (const Precision precision : {Precision::bf16, Precision::fp16})
    for (std::uint32_t bits = 0; bits < 0x10000; ++bits) {
      // The value of these bits, by the definition.
      const int mantissa_bits = precision == Precision::bf16 ? 7 : 10, bias = precision == Precision::bf16 ? 127 : 15;
      const int mantissa = static_cast<int>(bits & ((1u << mantissa_bits) - 1)), most = 2 * bias + 1;
      const int exponent = static_cast<int>((bits & 0x7fff) >> mantissa_bits);
      if (exponent == most && mantissa != 0) continue;
      double value = std::ldexp(exponent == 0 ? mantissa : mantissa + (1 << mantissa_bits),
                                std::max(exponent, 1) - bias - mantissa_bits);
      if (exponent == most) value = INFINITY;
      if (bits >> 15 != 0) value = -value;
      const auto as_float = static_cast<float>(value);
      const std::uint32_t made =
          precision == Precision::bf16 ? rounding::bf16_bits(as_float) : rounding::fp16_bits(as_float);
      ASSERT_EQ(made, bits) << name(precision) << " " << value;
      ASSERT_EQ(rounding::bits_of(rounding::rounded(precision, as_float)), rounding::bits_of(as_float));
    }
  const float nan = rounding::rounded<rounding::Fp16>(-std::numeric_limits<float>::quiet_NaN());
  EXPECT_EQ(rounding::fp16_bits(nan) & 0xfe00, 0xfe00);
}

#endif

// ---- products

/// All gradients of one step, from the equations, whose products are of rounded operands: a ReLU network with biases
/// and the mean of squared errors of the first `rows` samples.
reference::Network gradients_of(const Problem& problem, std::int64_t rows, Precision precision) {
  using reference::Table;
  const double scale = precision == Precision::fp16 ? 65536 : 1;
  const auto product = [&](const Table& a, bool transposes_a, const Table& b, bool transposes_b) {
    Table out(transposes_a ? a.columns : a.rows, transposes_b ? b.rows : b.columns);
    const std::size_t inner = transposes_a ? a.rows : a.columns;
    for (std::size_t i = 0; i < out.rows; ++i)
      for (std::size_t j = 0; j < out.columns; ++j)
        for (std::size_t k = 0; k < inner; ++k)
          out(i, j) += operand(transposes_a ? a(k, i) : a(i, k), precision) *
                       operand(transposes_b ? b(j, k) : b(k, j), precision);
    return out;
  };
  std::vector<Table> h = {problem.x};
  h[0].rows = static_cast<std::size_t>(rows);
  h[0].values.resize(h[0].rows * h[0].columns);
  for (const reference::Layer& layer : problem.start) {
    Table z = product(h.back(), false, layer.weight, false);
    for (std::size_t i = 0; i < z.values.size(); ++i) {
      z.values[i] += layer.bias[i % z.columns];
      if (&layer != &problem.start.back()) z.values[i] = std::max(z.values[i], 0.0);
    }
    h.push_back(std::move(z));
  }
  Table dz(h.back().rows, h.back().columns);
  for (std::size_t i = 0; i < dz.values.size(); ++i)
    dz.values[i] = 2 * (h.back().values[i] - problem.y.values[i]) * scale / static_cast<double>(dz.values.size());
  reference::Network gradients(problem.start.size());
  for (std::size_t l = problem.start.size(); l-- > 0;) {
    gradients[l].weight = product(h[l], true, dz, false);
    gradients[l].bias.assign(dz.columns, 0);
    for (std::size_t i = 0; i < dz.values.size(); ++i) gradients[l].bias[i % dz.columns] += dz.values[i] / scale;
    for (double& value : gradients[l].weight.values) value /= scale;
    dz = product(dz, false, problem.start[l].weight, true);
    for (std::size_t i = 0; i < dz.values.size(); ++i)
      if (!(h[l].values[i] > 0)) dz.values[i] = 0;
  }
  return gradients;
}

class LowerPrecisions : public ::testing::TestWithParam<Precision> {
 protected:
  void SetUp() override { require(Where{kExecutor}); }
  static bool is_exact() { return GetParam() == Precision::tf32x3; }
  static Problem problem_of(std::vector<std::int64_t> widths, std::int64_t samples, double rate) {
    return Problem::random(std::move(widths), true, samples, GetParam(), Init::he, rate);
  }
};

// Steps of each kind: products that add to the weight, products in a buffer, slots, minibatches. In fp16 the mean's
// small gradients times the first scale are in its range.
TEST_P(LowerPrecisions, RoundTheOperandsOfEveryProduct) {
  struct Case {
    const char* what;
    std::int64_t samples, batch_size;
    OptimizerKind optimizer;
    std::vector<std::int64_t> widths = {24, 20, 12, 2};
  };
  constexpr double kRate = 16;
  // Few elements lie so near to the middle of two numbers that sums in fp32 and in double are rounded to different
  // ones.
  const double bound = is_exact() ? 2e-6 : GetParam() == Precision::bf16 ? 3e-4 : 4e-5;
  for (const Case& c :
       {Case{"folded", 70, 0, OptimizerKind::gradient_descent}, Case{"in a buffer", 70, 0, OptimizerKind::sgd},
        Case{"chunked", 1100, 0, OptimizerKind::gradient_descent}, Case{"a batch", 90, 60, OptimizerKind::sgd},
        Case{"a chunked batch", 1200, 1100, OptimizerKind::sgd}}) {
    SCOPED_TRACE(c.what);
    Problem problem = problem_of(c.widths, c.samples, kRate);
    problem.training.optimizer.kind = c.optimizer;
    problem.training.reduction = Reduction::mean;
    problem.training.batch_size = c.batch_size;
    problem.training.shuffle = false;
    Trainer trainer = trainer_of(problem, 2);
    trainer.train(1);
    const reference::Network after = problem.parameters_of(trainer);
    const std::int64_t rows = c.batch_size == 0 ? c.samples : c.batch_size;
    const reference::Network of_rounded = gradients_of(problem, rows, GetParam()),
                             of_whole = gradients_of(problem, rows, Precision::fp64);
    for (std::size_t layer = 0; layer < after.size(); ++layer) {
      std::vector<double> taken = problem.start[layer].weight.values;
      for (std::size_t i = 0; i < taken.size(); ++i) taken[i] = (taken[i] - after[layer].weight.values[i]) / kRate;
      const double to_rounded = reference::relative_error(taken, of_rounded[layer].weight.values),
                   to_whole = reference::relative_error(taken, of_whole[layer].weight.values);
      EXPECT_LE(to_rounded, bound) << "layer " << layer;
      if (is_exact())
        EXPECT_LE(to_whole, 2e-6) << "layer " << layer;
      else
        EXPECT_GE(to_whole, GetParam() == Precision::bf16 ? 1e-3 : 1e-4) << "layer " << layer;
    }
  }
}

TEST_P(LowerPrecisions, PredictByTheProductsOfSteps) {
  const Problem problem = problem_of({300, 40, 3}, 70, 0);
  Trainer trainer = trainer_of(problem);
  std::vector<double> on_data(70 * 3), again(70 * 3);
  trainer.predict(Problem::view(problem.x), Matrix(on_data.data(), 70, 3));
  reference::Table expected = problem.y;
  const std::vector<double> before = on_data;
  // The loss of these is the one that a step takes.
  double loss = 0;
  for (std::size_t i = 0; i < on_data.size(); ++i)
    loss += (on_data[i] - problem.y.values[i]) * (on_data[i] - problem.y.values[i]);
  EXPECT_NEAR(trainer.loss() / loss, 1, 1e-6);
  EXPECT_EQ(trainer.train(1).losses.front(), trainer.loss());
  Problem whole = problem;
  whole.training.precision = Precision::fp64;
  trainer_of(whole).predict(Problem::view(problem.x), Matrix(again.data(), 70, 3));
  const double error = reference::relative_error(on_data, again);
  const double least = is_exact() ? 0 : GetParam() == Precision::bf16 ? 5e-4 : 5e-5;
  EXPECT_GE(error, least);
  EXPECT_LE(error, is_exact() ? 1e-6 : 16 * least);
}

// ---- whole runs

/// Of a run of 2000 steps: the largest error of a loss, relative as in the conformance suite, and how small it cannot
/// be where the products had that precision; and the largest relative error of a weight matrix.
struct RunBounds {
  double losses, least, weights;
};
RunBounds bounds_of(Precision precision) {
  switch (precision) {
    case Precision::tf32:
    case Precision::fp16:
      return {1e-3, 1e-4, 1e-3};
    case Precision::bf16:
      return {1e-2, 1e-3, 1e-2};
    case Precision::fp32:
    case Precision::tf32x3:
    case Precision::fp64:
      break;
  }
  return {1e-4, 0, 5e-5};
}

// By the mean, whose gradients times the first scale of fp16 are in its range, at a rate at which the loss falls
// steadily.
TEST_P(LowerPrecisions, FollowDoubleOverALiveRun) {
  constexpr std::int64_t kSteps = kHostFixture ? 60 : 2000;
  for (const Activation activation : {Activation::relu, Activation::tanh}) {
    if (kHostFixture && activation == Activation::tanh) continue;
    SCOPED_TRACE(activation == Activation::relu ? "relu" : "tanh");
    Problem problem = Problem::random({24, 20, 12, 2}, true, 70, Precision::fp32, Init::he, 7e-4, 2);
    problem.training.reduction = Reduction::mean;
    problem.network.activation = activation;
    const auto run = [&](Precision precision) {
      problem.training.precision = precision;
      Trainer trainer = trainer_of(problem);
      const std::vector<double> losses = trainer.train(kSteps).losses;
      return std::pair(losses, problem.parameters_of(trainer));
    };
    const auto whole = run(Precision::fp64);
    const auto [losses, end] = run(GetParam());
    double largest = 0;
    for (std::size_t i = 0; i < losses.size(); ++i)
      largest = reference::larger_error(largest, reference::loss_error(losses[i], whole.first[i], whole.first.front()));
    const RunBounds bounds = bounds_of(GetParam());
    EXPECT_LE(largest, bounds.losses);
    EXPECT_GE(largest, bounds.least);
    for (std::size_t layer = 0; layer < end.size(); ++layer)
      EXPECT_LE(reference::relative_error(end[layer].weight.values, whole.second[layer].weight.values), bounds.weights);
    EXPECT_LT(losses.back(), (kHostFixture ? 0.9 : 0.6) * losses.front());
    EXPECT_NEAR(losses.back() / whole.first.back(), 1, bounds.losses);
    if (activation != Activation::relu) continue;
    const double live = reference::live_fraction(end, problem.x);
    EXPECT_GE(live, 0.2);
    EXPECT_LE(live, 0.8);
  }
}

TEST_P(LowerPrecisions, GiveTheSameBitsOnEveryRunAndForAnyNumberOfThreads) {
  for (const std::int64_t samples : {128, 1500})
    for (const OptimizerKind optimizer : {OptimizerKind::gradient_descent, OptimizerKind::adam}) {
      if (kHostFixture && samples > 128) continue;
      Problem problem = problem_of({kHostFixture ? 30 : 300, 40, 3}, samples, 1e-6);
      problem.training.optimizer.kind = optimizer;
      const auto run = [&](int threads) {
        Trainer trainer = trainer_of(problem, threads);
        const std::vector<double> losses = trainer.train(kHostFixture ? 6 : 30).losses;
        return std::pair(losses, flat(problem.parameters_of(trainer)));
      };
      const auto first = run(1);
      EXPECT_LT(first.first.back(), first.first.front());
      for (const int threads : {1, 2, 3, 7}) {
        if (kHostFixture && threads != 7) continue;
        EXPECT_EQ(run(threads), first) << threads;
      }
    }
}

TEST_P(LowerPrecisions, SeeParametersAndDataThatAreWrittenInBetween) {
  const Problem one = problem_of({30, 18, 2}, 40, 1e-4);
  Problem other = Problem::random({30, 18, 2}, true, 40, GetParam(), Init::he, 1e-4, 11);
  Trainer trainer = trainer_of(one);
  trainer.loss();
  other.set_parameters(trainer, other.start);
  trainer.set_data(Problem::view(other.x), Problem::view(other.y));
  Trainer anew = trainer_of(other);
  EXPECT_EQ(trainer.loss(), anew.loss());
  EXPECT_EQ(trainer.train(5).losses, anew.train(5).losses);
}

INSTANTIATE_TEST_SUITE_P(Precisions, LowerPrecisions, ::testing::ValuesIn(kLower), ::testing::PrintToStringParamName());

// ---- the scale of the loss

class ScaleOfTheLoss : public ::testing::Test {
 protected:
  void SetUp() override { require(Where{kExecutor}); }
};

/// What a saved state says of it: the binary logarithm of the scale, and good steps since it changed.
std::pair<int, int> loss_scaling_of(const Trainer& trainer) {
  const testing::TemporaryFolder folder;
  trainer.save_state(folder / "state");
  const SafeTensorsFile file(folder / "state");
  for (const SafeTensorInfo& tensor : file.tensors()) {
    if (tensor.name != "loss_scaling") continue;
    float values[2] = {};
    const std::vector<std::byte> bytes = file.read(tensor);
    EXPECT_EQ(bytes.size(), sizeof values);
    std::memcpy(values, bytes.data(), sizeof values);
    return {16 + static_cast<int>(values[0]), static_cast<int>(values[1])};
  }
  ADD_FAILURE() << "the state has no scale";
  return {};
}

/// p = w x with x = 1, w = 0 and y = -1: the gradient of the loss is 2, which times 2^16 and 2^15 is infinite in fp16.
Problem one_weight(double rate) {
  Problem problem = Problem::random({1, 1}, false, 1, Precision::fp16, Init::he, rate);
  problem.x.values = {1};
  problem.y.values = {-1};
  problem.start[0].weight.values = {0};
  return problem;
}

TEST_F(ScaleOfTheLoss, IsHalvedAndTheStepSkippedWhereAGradientIsInfinite) {
  const Problem problem = one_weight(0.125);
  Trainer trainer = trainer_of(problem);
  EXPECT_EQ(loss_scaling_of(trainer), std::pair(16, 0));
  EXPECT_EQ(trainer.train(1).losses, std::vector<double>{1});
  EXPECT_EQ(loss_scaling_of(trainer), std::pair(15, 0));
  EXPECT_EQ(flat(problem.parameters_of(trainer)), std::vector<double>{0});
  EXPECT_EQ(trainer.train(1).losses, std::vector<double>{1});
  EXPECT_EQ(loss_scaling_of(trainer), std::pair(14, 0));
  EXPECT_EQ(trainer.train(2).losses, (std::vector<double>{1, 0.5625}));
  EXPECT_EQ(loss_scaling_of(trainer), std::pair(14, 2));
  EXPECT_EQ(flat(problem.parameters_of(trainer)), std::vector<double>{-0.4375});
  EXPECT_EQ(trainer.steps_done(), 4);
}

TEST_F(ScaleOfTheLoss, IsDoubledAfter2000StepsInARow) {
  Problem problem = one_weight(0);
  Trainer trainer = trainer_of(problem);
  trainer.train(2 + 1999);
  EXPECT_EQ(loss_scaling_of(trainer), std::pair(14, 1999));
  trainer.train(1);
  EXPECT_EQ(loss_scaling_of(trainer), std::pair(15, 0));
  trainer.train(1);  // the gradient is infinite again
  EXPECT_EQ(loss_scaling_of(trainer), std::pair(14, 0));
  if (kHostFixture) return;  // its steps take milliseconds
  problem.y.values = {-0x1p-6};
  trainer.set_data(Problem::view(problem.x), Problem::view(problem.y));
  trainer.train(5999);
  EXPECT_EQ(loss_scaling_of(trainer), std::pair(16, 1999));
}

TEST_F(ScaleOfTheLoss, LeavesWhatTheOptimizerKeepsWhereAStepIsSkipped) {
  Problem problem = one_weight(0.125);
  for (const OptimizerKind kind : {OptimizerKind::sgd, OptimizerKind::rmsprop}) {
    problem.training.optimizer.kind = kind;
    problem.training.optimizer.momentum = 0.5;
    problem.training.precision = Precision::fp16;
    Trainer trainer = trainer_of(problem);
    std::vector<double> losses = trainer.train(12).losses;
    losses.erase(losses.begin(), losses.begin() + 2);
    problem.training.precision = Precision::fp32;
    const std::vector<double> expected = trainer_of(problem).train(10).losses;
    for (std::size_t i = 0; i < expected.size(); ++i)
      EXPECT_NEAR(losses[i], expected[i], 1e-3 * expected.front()) << shown(kind) << " " << i;
  }
}

// A scale of another kind of number: small gradients that fp16 alone would round to 0.
TEST_F(ScaleOfTheLoss, KeepsSmallGradients) {
  Problem problem = one_weight(1);
  problem.y.values = {-0x1p-30};
  Trainer trainer = trainer_of(problem);
  trainer.train(1);
  EXPECT_EQ(flat(problem.parameters_of(trainer)), std::vector<double>{-0x1p-29});
}

TEST_F(ScaleOfTheLoss, IsPartOfWhatASavedStateGoesOnFrom) {
  const testing::TemporaryFolder folder;
  Problem problem = Problem::random({7, 20, 3}, true, 50, Precision::fp16, Init::he, 1e-3);
  problem.training.optimizer = {.kind = OptimizerKind::adam, .learning_rate = 0.01, .clip_norm = 3};
  Trainer whole = trainer_of(problem);
  const std::vector<double> losses = whole.train(30).losses;
  EXPECT_EQ(losses[0], losses[1]) << "no step was skipped";
  for (const std::int64_t first : {1, 4, 20}) {
    Trainer begun = trainer_of(problem);
    begun.train(first);
    begun.save_state(folder / "state");
    Trainer resumed = trainer_of(problem);
    resumed.train(2);
    resumed.load_state(folder / "state");
    EXPECT_EQ(resumed.train(30 - first).losses, std::vector<double>(losses.begin() + first, losses.end()));
    EXPECT_EQ(flat(problem.parameters_of(resumed)), flat(problem.parameters_of(whole)));
    EXPECT_EQ(loss_scaling_of(resumed), loss_scaling_of(whole));
  }
}

TEST_F(ScaleOfTheLoss, OutlivesNewDataAndBeginsAnewWithNewWeights) {
  const Problem problem = one_weight(0);
  Trainer trainer = trainer_of(problem);
  trainer.train(5);
  const std::vector<double> more = {1, 1, 1};
  trainer.set_data(ConstMatrix(more.data(), 3, 1), ConstMatrix(more.data(), 3, 1));
  EXPECT_EQ(loss_scaling_of(trainer), std::pair(14, 3));
  trainer.initialize(3, Init::he);
  EXPECT_EQ(loss_scaling_of(trainer), std::pair(16, 0));
}

#ifndef DEVICELOOP_PRECISIONS_ON_CUDA

TEST_F(ScaleOfTheLoss, StaysANormalNumber) {
  float state[2] = {0, 0};
  for (int step = 0; step < 200; ++step) LossScaling::adapt(state, false);
  EXPECT_EQ(LossScaling::scale(state), std::numeric_limits<float>::min());
  EXPECT_TRUE(LossScaling::is_state(state));
  for (int step = 0; step < 300 * LossScaling::kGrowthSteps; ++step) LossScaling::adapt(state, true);
  EXPECT_EQ(LossScaling::scale(state), 0x1p127f);
  EXPECT_TRUE(LossScaling::is_state(state));
  for (const auto& [exponent, steps] :
       {std::pair(0.5f, 0.0f), {-143.0f, 0.0f}, {112.0f, 0.0f}, {0.0f, -1.0f}, {0.0f, 2000.0f}, {0.0f, 1.5f}}) {
    const float wrong[2] = {exponent, steps};
    EXPECT_FALSE(LossScaling::is_state(wrong)) << exponent << " " << steps;
  }
}

TEST_F(ScaleOfTheLoss, OfADamagedStateIsRefused) {
  const testing::TemporaryFolder folder;
  Trainer trainer = trainer_of(one_weight(0));
  trainer.train(3);
  trainer.save_state(folder / "good");
  const SafeTensorsMetadata metadata = SafeTensorsFile(folder / "good").metadata();
  const auto load = [&](float exponent, float steps) {
    std::vector<SafeTensor> tensors = read_safetensors(folder / "good");
    const float values[] = {exponent, steps};
    for (SafeTensor& tensor : tensors)
      if (tensor.name == "loss_scaling") std::memcpy(tensor.bytes.data(), values, sizeof values);
    OutputFile file(folder / "changed");
    write_safetensors(file, tensors, metadata);
    file.commit();
    trainer.load_state(folder / "changed");
  };
  load(-3, 7);
  EXPECT_EQ(loss_scaling_of(trainer), std::pair(13, 7));
  EXPECT_MENTIONS(testing::refusal<InvalidArgument>(folder / "changed" + ": ", [&] { load(0.5, 7); }),
                  "has 0.5 and 7.0 in 'loss_scaling', which are no scale of the loss and number of steps");
  EXPECT_MENTIONS(testing::refusal<InvalidArgument>(folder / "changed" + ": ", [&] { load(0, 2000); }),
                  "has 0.0 and 2000.0 in 'loss_scaling'");
  EXPECT_EQ(loss_scaling_of(trainer), std::pair(13, 7));
}

#else

// ---- against the CPU's executor, in the same precision

/// All sums are integers below 2^24, whatever their operands are rounded to, so that their order does not matter.
void fill_with_small_integers(Problem& problem) {
  std::uint32_t state = 1;
  const auto draw = [&](int most) {
    state = state * 1664525 + 1013904223;
    return static_cast<double>(static_cast<int>(state >> 16) % (2 * most + 1) - most);
  };
  for (double& value : problem.x.values) value = draw(2);
  for (double& value : problem.y.values) value = draw(9);
  for (reference::Layer& layer : problem.start) {
    for (double& value : layer.weight.values) value = draw(1);
    for (double& value : layer.bias) value = draw(2);
  }
}

TEST_P(LowerPrecisions, AreThoseOfTheCpuToTheLastBitOnSmallIntegers) {
  for (const auto& widths : std::vector<std::vector<std::int64_t> >{{9, 20, 18, 17, 2}, {9, 20, 2}, {9, 12, 20}})
    for (const Loss loss : {Loss::squared_error, Loss::absolute_error}) {
      SCOPED_TRACE(::testing::PrintToString(widths));
      Problem problem = problem_of(widths, 16, 0x1p-9);
      problem.training.loss = loss;
      problem.training.reduction = Reduction::sum;
      fill_with_small_integers(problem);
      Trainer on_cpu = problem.trainer(1, ExecutorKind::cpu), on_gpu = trainer_of(problem);
      const std::vector<double> start = flat(problem.parameters_of(on_cpu));
      // In fp16 steps are skipped until the scale is small enough.
      int steps = 0;
      std::vector<double> after = start;
      for (; steps < 40 && after == start; ++steps) {
        EXPECT_EQ(on_gpu.train(1).losses, on_cpu.train(1).losses);
        after = flat(problem.parameters_of(on_cpu));
        ASSERT_EQ(flat(problem.parameters_of(on_gpu)), after);
      }
      EXPECT_NE(after, start);
      EXPECT_GE(steps, GetParam() == Precision::fp16 ? 2 : 1);
      EXPECT_NEAR(on_gpu.loss() / on_cpu.loss(), 1, 1e-6);
    }
}

TEST_P(LowerPrecisions, FollowTheCpu) {
  struct Case {
    const char* what;
    Loss loss;
    Activation activation, output;
    OptimizerKind optimizer;
    double clip_norm;
    std::int64_t batch_size;
    std::vector<std::int64_t> widths;
  };
  const RunBounds bounds = bounds_of(GetParam());
  for (const Case& c : {Case{"classes",
                             Loss::cross_entropy,
                             Activation::relu,
                             Activation::identity,
                             OptimizerKind::adam,
                             0,
                             24,
                             {12, 30, 20, 18}},
                        Case{"few classes",
                             Loss::cross_entropy,
                             Activation::gelu,
                             Activation::identity,
                             OptimizerKind::sgd,
                             1,
                             24,
                             {12, 30, 20, 5}},
                        Case{"an output activation",
                             Loss::huber,
                             Activation::tanh,
                             Activation::tanh,
                             OptimizerKind::sgd,
                             0,
                             0,
                             {12, 18, 19}},
                        Case{"weights of rows",
                             Loss::squared_error,
                             Activation::silu,
                             Activation::identity,
                             OptimizerKind::adamw,
                             2,
                             40,
                             {12, 18, 1}}}) {
    SCOPED_TRACE(c.what);
    Problem problem = problem_of(c.widths, 70, 0.01);
    problem.network.activation = c.activation;
    problem.network.output_activation = c.output;
    problem.training.loss = c.loss;
    problem.training.reduction = Reduction::mean;
    problem.training.batch_size = c.batch_size;
    problem.training.optimizer.kind = c.optimizer;
    problem.training.optimizer.clip_norm = c.clip_norm;
    if (c.loss == Loss::cross_entropy)
      for (std::size_t row = 0; row < problem.y.rows; ++row)
        for (std::size_t column = 0; column < problem.y.columns; ++column)
          problem.y(row, column) = column == row * 7 % problem.y.columns ? 1 : 0;
    std::vector<double> weights(70);
    for (std::size_t row = 0; row < weights.size(); ++row) weights[row] = row % 3 == 0 ? 0.5 : 1;
    const auto run = [&](ExecutorKind kind) {
      Trainer trainer = problem.trainer(1, kind);
      if (c.widths.back() == 1)
        trainer.set_data(Problem::view(problem.x), Problem::view(problem.y), ConstMatrix(weights.data(), 70, 1));
      const std::vector<double> losses = trainer.train(60).losses;
      return std::pair(losses, problem.parameters_of(trainer));
    };
    const auto on_cpu = run(ExecutorKind::cpu), on_gpu = run(kExecutor);
    double largest = 0;
    for (std::size_t i = 0; i < on_gpu.first.size(); ++i)
      largest = reference::larger_error(largest,
                                        reference::loss_error(on_gpu.first[i], on_cpu.first[i], on_cpu.first.front()));
    EXPECT_LE(largest, bounds.losses);
    for (std::size_t layer = 0; layer < on_gpu.second.size(); ++layer)
      EXPECT_LE(reference::relative_error(on_gpu.second[layer].weight.values, on_cpu.second[layer].weight.values),
                2 * bounds.weights);
    EXPECT_LT(on_gpu.first.back(), on_gpu.first.front());
  }
}

// Predictions of more rows than a launch takes, and of arrays in place where the device has them, see the same weights.
TEST_P(LowerPrecisions, PredictManyRows) {
  const Problem problem = problem_of({20, 18, 12, 17}, 2100, 0);
  const auto predictions = [&](ExecutorKind kind) {
    std::vector<double> made(2100 * 17);
    problem.trainer(1, kind).predict(Problem::view(problem.x), Matrix(made.data(), 2100, 17));
    return made;
  };
  const double error = reference::relative_error(predictions(kExecutor), predictions(ExecutorKind::cpu));
  EXPECT_LE(error, GetParam() == Precision::bf16 ? 3e-4 : 4e-5);
}

#endif

}  // namespace
}  // namespace deviceloop
