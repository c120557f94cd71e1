// The plan `fused` as its users see it, on a GPU or on the host by tests/simt: against the CPU's executor in the same
// precision, which rounds the same operands, and in double.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include <deviceloop/deviceloop.h>

#include "activations.h"
#include "names.h"
#include "support/hopper_test.h"
#include "support/problem.h"
#include "support/reference.h"
#include "support/refusal.h"
#include "support/sanitized.h"
#include "support/temporary_folder.h"

namespace deviceloop {
namespace {

using testing::DeviceArray;

/// How a step takes its rows.
struct Batches {
  const char* name;
  std::int64_t size = 0;
  bool shuffle = false;
};
constexpr Batches kAll = {"all"}, kInOrder = {"in order", 90, false}, kShuffled = {"shuffled", 70, true};

struct Outcome {
  std::vector<double> losses, parameters;
  bool operator==(const Outcome&) const = default;
};

class FusedExecutor : public testing::HopperTest {
 protected:
  static Problem problem_of(std::vector<std::int64_t> widths, std::int64_t samples, double rate,
                            const Batches& batches = kAll) {
    Problem problem = Problem::random(std::move(widths), true, samples, Precision::bf16, Init::he, rate);
    problem.training.reduction = Reduction::mean;
    problem.training.batch_size = batches.size;
    problem.training.shuffle = batches.shuffle;
    return problem;
  }
  static Trainer trainer_of(const Problem& problem) { return problem.trainer(1, ExecutorKind::fused); }
  static Trainer on_cpu(Problem problem, Precision precision) {
    problem.training.precision = precision;
    return problem.trainer(1, ExecutorKind::cpu);
  }
  static Outcome outcome_of(const Problem& problem, Trainer trainer, const std::vector<std::int64_t>& runs) {
    Outcome outcome;
    for (const std::int64_t steps : runs) {
      const std::vector<double> losses = trainer.train(steps).losses;
      outcome.losses.insert(outcome.losses.end(), losses.begin(), losses.end());
    }
    outcome.parameters = flat(problem.parameters_of(trainer));
    return outcome;
  }
  static double largest_error(const std::vector<double>& losses, const std::vector<double>& expected) {
    double largest = 0;
    for (std::size_t i = 0; i < expected.size(); ++i)
      largest = reference::larger_error(largest, reference::loss_error(losses.at(i), expected[i], expected[0]));
    return largest;
  }
};

/// Integers from -most to most, few of them not 0 with `one_in` above 1.
reference::Table integers(std::int64_t rows, std::int64_t columns, int most, std::uint32_t one_in,
                          std::uint32_t& state) {
  reference::Table table(static_cast<std::size_t>(rows), static_cast<std::size_t>(columns));
  for (double& value : table.values) {
    state = state * 1664525u + 1013904223u;
    value = (state >> 20) % one_in == 0
                ? static_cast<int>((state >> 8) % static_cast<std::uint32_t>(2 * most + 1)) - most
                : 0;
  }
  return table;
}

/// In bf16 nothing of a step is rounded, as the CPU's steps in bf16 and in double agree on it.
TEST_F(FusedExecutor, OneStepIsExactOnSmallIntegers) {
  struct Case {
    std::vector<std::int64_t> widths;
    std::int64_t samples;
    Batches batches;
    bool bias = true;
  };
  std::uint32_t state = 11;
  for (const Case& c : {Case{{6, 8, 1}, 20, kAll}, Case{{40, 33, 20, 8}, 200, kAll}, Case{{100, 70, 3}, 130, kAll},
                        Case{{40, 33, 8}, 200, kInOrder, false}, Case{{40, 33, 8}, 200, kShuffled},
                        Case{{100, 70, 65, 3}, 150, kShuffled}}) {
    SCOPED_TRACE(::testing::PrintToString(c.widths) + ", batches " + c.batches.name);
    Problem problem;
    problem.network.widths = c.widths;
    problem.network.bias = c.bias;
    problem.training.precision = Precision::bf16;
    problem.training.optimizer.learning_rate = 0x1p-6;
    problem.training.batch_size = c.batches.size;
    problem.training.shuffle = c.batches.shuffle;
    problem.x = integers(c.samples, c.widths.front(), 1, 2, state);
    problem.y = integers(c.samples, c.widths.back(), 2, 1, state);
    for (std::size_t layer = 0; layer + 1 < c.widths.size(); ++layer) {
      reference::Layer of;
      of.weight = integers(c.widths[layer], c.widths[layer + 1], 1, 12, state);
      if (c.bias) of.bias = integers(1, c.widths[layer + 1], 2, 1, state).values;
      problem.start.push_back(of);
    }
    const Outcome expected = outcome_of(problem, on_cpu(problem, Precision::fp64), {1});
    ASSERT_EQ(outcome_of(problem, on_cpu(problem, Precision::bf16), {1}), expected) << "the case is not exact";
    const Outcome outcome = outcome_of(problem, trainer_of(problem), {1});
    EXPECT_EQ(outcome, expected);
    EXPECT_NE(outcome.parameters, flat(problem.start));
    // Without updates each step shows which samples it takes, over more than an epoch.
    problem.training.optimizer.learning_rate = 0;
    const std::vector<double> losses = trainer_of(problem).train(5).losses;
    EXPECT_EQ(losses, on_cpu(problem, Precision::fp64).train(5).losses);
    EXPECT_EQ(losses[0] == losses[1], c.batches.size == 0);
  }
}

TEST_F(FusedExecutor, FollowsTheCpuInItsPrecisionOverARun) {
  const std::int64_t steps = kHostFixture ? 12 : 2000;
  for (const Batches& batches : {kAll, kShuffled})
    for (const OptimizerKind kind : {OptimizerKind::gradient_descent, OptimizerKind::sgd, OptimizerKind::adamw}) {
      SCOPED_TRACE(shown(kind) + ", batches " + batches.name);
      Problem problem = problem_of({24, 20, 12, 2}, 100, kHostFixture ? 2e-2 : 7e-4, batches);
      problem.training.optimizer.kind = kind;
      if (kind == OptimizerKind::sgd) problem.training.optimizer.momentum = 0.5;
      if (kind == OptimizerKind::adamw) problem.training.optimizer.learning_rate = kHostFixture ? 1e-2 : 1e-3;
      const Outcome exact = outcome_of(problem, on_cpu(problem, Precision::fp64), {steps}),
                    rounded = outcome_of(problem, on_cpu(problem, Precision::bf16), {steps}),
                    outcome = outcome_of(problem, trainer_of(problem), {steps});
      EXPECT_LE(largest_error(outcome.losses, exact.losses), 1e-2);
      // The same operands are rounded: the two are nearer to each other than to double.
      EXPECT_GE(largest_error(outcome.losses, exact.losses), 1e-4) << "by products of another precision";
      EXPECT_LE(largest_error(outcome.losses, rounded.losses), 3e-3);
      EXPECT_LE(reference::relative_error(outcome.parameters, rounded.parameters), 3e-3);
      EXPECT_LT(exact.losses.back(), 0.9 * exact.losses.front());
    }
}

/// Targets of a loss, which has them in a range of its own.
reference::Table targets_for(Loss loss, const reference::Table& normal, bool classes) {
  reference::Table targets = normal;
  if (loss != Loss::cross_entropy && loss != Loss::binary_cross_entropy) return targets;
  if (classes) {
    targets = reference::Table(normal.rows, 1);
    for (std::size_t row = 0; row < normal.rows; ++row)
      targets.values[row] = static_cast<double>(row * 7 % normal.columns);
    return targets;
  }
  for (double& value : targets.values) value = static_cast<double>(static_cast<float>(std::fabs(value) / 8));
  return targets;
}

/// A run of a few steps is that of the CPU in the same precision to within `bound`, and nearer to it than to that of
/// double; with sample weights if there are any.
void expect_as_on_the_cpu(const Problem& problem, const reference::Table& weights, double bound) {
  SCOPED_TRACE(std::string(name(problem.training.precision)) + ", activations " + shown(problem.network.activation) +
               " and " + shown(problem.network.output_activation) + ", loss " + shown(problem.training.loss) +
               (problem.training.batch_size > 0 ? ", gathered" : "") + (weights.rows > 0 ? ", weights" : ""));
  std::vector<std::vector<double>> parameters, losses;
  for (const auto& [precision, executor] :
       {std::pair(Precision::fp64, ExecutorKind::cpu), std::pair(problem.training.precision, ExecutorKind::cpu),
        std::pair(problem.training.precision, ExecutorKind::fused)}) {
    TrainingSpec training = problem.training;
    training.precision = precision;
    Trainer trainer(problem.network, training, executor);
    problem.set_parameters(trainer, problem.start);
    if (weights.rows > 0)
      trainer.set_data(Problem::view(problem.x), Problem::view(problem.y), Problem::view(weights));
    else
      trainer.set_data(Problem::view(problem.x), Problem::view(problem.y));
    losses.push_back(trainer.train(4).losses);
    losses.back().push_back(trainer.loss());
    parameters.push_back(flat(problem.parameters_of(trainer)));
  }
  const auto norm = [](const std::vector<double>& a, const std::vector<double>& b) {
    double sum = 0;
    for (std::size_t i = 0; i < a.size(); ++i) sum += std::pow(a[i] - b[i], 2);
    return std::sqrt(sum);
  };
  const double moved = norm(parameters[1], flat(problem.start));
  EXPECT_GT(moved, 0);
  // Parameters of float are rounded in each step.
  const double rounding = 2e-7 * norm(parameters[1], std::vector<double>(parameters[1].size(), 0.0));
  EXPECT_LE(norm(parameters[2], parameters[1]), bound * moved + rounding);
  for (std::size_t step = 0; step < losses[2].size(); ++step)
    EXPECT_NEAR(losses[2][step], losses[1][step], bound * std::fabs(losses[1][step])) << step;
  if (problem.training.precision != Precision::tf32x3) {
    EXPECT_GE(norm(parameters[2], parameters[0]), 1e-5 * moved) << "by products of another precision";
  }
}

/// The CPU does not round derivatives, as the plan does in bf16 and tf32.
TEST_F(FusedExecutor, FollowsTheCpuWithEveryActivation) {
  const ActivationOfStep every[] = {{Activation::identity},  {Activation::leaky_relu}, {Activation::leaky_relu, -2.5},
                                    {Activation::elu},       {Activation::silu},       {Activation::gelu},
                                    {Activation::gelu_tanh}, {Activation::tanh},       {Activation::sigmoid},
                                    {Activation::softplus}};
  const auto expect = [](const ActivationOfStep& activation, Precision precision, std::vector<std::int64_t> widths,
                         std::int64_t samples, double bound) {
    Problem problem = problem_of(std::move(widths), samples, activation.leaky_slope < 0 ? 2e-4 : 2e-2);
    problem.training.precision = precision;
    problem.network.activation = problem.network.output_activation = activation.kind;
    problem.network.leaky_slope = activation.leaky_slope;
    expect_as_on_the_cpu(problem, {}, bound);
  };
  for (const ActivationOfStep& activation : every) {
    expect(activation, Precision::bf16, {24, 20, 12, 2}, 100, 6e-3);
    expect(activation, Precision::tf32, {9, 20, 12, 2}, 40, 1e-3);
  }
  expect({Activation::leaky_relu, -2.5}, Precision::tf32x3, {9, 20, 12, 2}, 40, 2e-5);
  expect({Activation::silu}, Precision::tf32x3, {9, 60, 2}, 70, 2e-5);
  Problem wide = problem_of({70, 100, 2}, 100, 2e-2, kShuffled);
  wide.network.activation = Activation::silu;
  expect_as_on_the_cpu(wide, {}, 6e-3);
  Problem deep = problem_of({24, 20, 12, 30, 40, 9, 64, 20, 17, 2}, 100, 2e-2);
  expect_as_on_the_cpu(deep, {}, 1e-2);
}

/// Outputs in 8 columns, in 16, and in as many as a hidden layer has; those beyond the outputs take no part in a row's
/// loss.
TEST_F(FusedExecutor, FollowsTheCpuWithEveryLoss) {
  for (const std::int64_t outputs : {5, 10, 39})
    for (const auto loss :
         {Loss::squared_error, Loss::absolute_error, Loss::huber, Loss::binary_cross_entropy, Loss::cross_entropy})
      for (const Batches& batches : {kAll, kShuffled})
        for (const bool classes : {false, true}) {
          if ((classes || outputs != 5) && loss != Loss::cross_entropy) continue;
          SCOPED_TRACE(std::to_string(outputs) + " outputs");
          Problem problem = problem_of({24, 20, 12, outputs}, 100, 2e-2, batches);
          problem.training.loss = loss;
          problem.training.class_targets = classes;
          problem.y = targets_for(loss, problem.y, classes);
          if (batches.size == 0) {
            expect_as_on_the_cpu(problem, {}, 5e-3);
            continue;
          }
          problem.training.sample_weights = true;
          reference::Table weights = Problem::filled(100, 1, Precision::fp32, 3, 9);
          for (double& weight : weights.values) weight = std::fabs(weight);
          expect_as_on_the_cpu(problem, weights, 5e-3);
        }
}

/// With an activation before the loss, by each kernel for more than 8 outputs.
TEST_F(FusedExecutor, FollowsTheCpuWithManyOutputs) {
  const std::pair<std::vector<std::int64_t>, Loss> cases[] = {{{24, 20, 16}, Loss::squared_error},
                                                              {{24, 20, 12, 30, 10}, Loss::cross_entropy},
                                                              {{70, 60, 100, 16}, Loss::huber},
                                                              {{24, 20, 12, 64}, Loss::absolute_error},
                                                              {{24, 20, 100}, Loss::cross_entropy}};
  for (const auto& [widths, loss] : cases) {
    SCOPED_TRACE(::testing::PrintToString(widths));
    Problem problem = problem_of(widths, 100, 2e-2, kShuffled);
    problem.network.activation = Activation::silu;
    problem.network.output_activation = Activation::gelu;
    problem.training.loss = loss;
    problem.y = targets_for(loss, problem.y, false);
    expect_as_on_the_cpu(problem, {}, 6e-3);
  }
}

TEST_F(FusedExecutor, FollowsTheCpuInTf32) {
  for (const Precision precision : {Precision::tf32, Precision::tf32x3})
    for (const Batches& batches : {kAll, kShuffled}) {
      const double bound = precision == Precision::tf32 ? 1e-3 : 2e-5;
      for (const std::vector<std::int64_t>& widths :
           {std::vector<std::int64_t>{24, 20, 12, 2}, std::vector<std::int64_t>{24, 60, 3}}) {
        Problem problem = problem_of(widths, 150, 2e-2, batches);
        problem.training.precision = precision;
        problem.training.optimizer.kind = OptimizerKind::sgd;
        problem.training.optimizer.momentum = 0.5;
        expect_as_on_the_cpu(problem, {}, bound);
      }
      Problem other = problem_of({24, 40, 30, 5}, 150, 2e-2, batches);
      other.training.precision = precision;
      other.network.output_activation = Activation::tanh;
      other.training.loss = Loss::huber;
      expect_as_on_the_cpu(other, {}, bound);
    }
}

TEST_F(FusedExecutor, HasTheSameBitsOnEveryRunAndInAnyNumberOfCalls) {
  const std::pair<Precision, Batches> cases[] = {{Precision::bf16, kAll},
                                                 {Precision::bf16, kInOrder},
                                                 {Precision::bf16, kShuffled},
                                                 {Precision::tf32, kShuffled},
                                                 {Precision::tf32x3, kAll}};
  for (const auto& [precision, batches] : cases) {
    SCOPED_TRACE(std::string(name(precision)) + ", batches " + batches.name);
    Problem problem = problem_of({20, 30, 40, 2}, 230, 1e-2, batches);
    problem.training.precision = precision;
    problem.training.optimizer.kind = OptimizerKind::adam;
    problem.training.optimizer.schedule = {.kind = ScheduleKind::exponential, .factor = 0.9};
    const Outcome whole = outcome_of(problem, trainer_of(problem), {7});
    EXPECT_EQ(outcome_of(problem, trainer_of(problem), {7}), whole);
    EXPECT_EQ(outcome_of(problem, trainer_of(problem), {1, 4, 2}), whole);
    EXPECT_LT(whole.losses.back(), whole.losses.front());
  }
}

TEST_F(FusedExecutor, GoesOnFromASavedStateBitForBit) {
  const testing::TemporaryFolder folder;
  Problem problem = problem_of({7, 20, 3}, 150, 1e-2, kShuffled);
  problem.training.optimizer.kind = OptimizerKind::adam;
  const Outcome whole = outcome_of(problem, trainer_of(problem), {9});
  Trainer begun = trainer_of(problem);
  begun.train(4);
  begun.save_state(folder / "state");
  Trainer resumed = trainer_of(problem);
  resumed.train(2);
  resumed.load_state(folder / "state");
  EXPECT_EQ(resumed.train(5).losses, std::vector<double>(whole.losses.begin() + 4, whole.losses.end()));
  EXPECT_EQ(flat(problem.parameters_of(resumed)), whole.parameters);
}

TEST_F(FusedExecutor, PredictsByTheProductsOfSteps) {
  const Problem problem = problem_of({100, 60, 3}, 150, 1e-3);
  Trainer trainer = trainer_of(problem);
  std::vector<double> predicted(450), exact(450), rounded(450);
  trainer.predict(Problem::view(problem.x), Matrix(predicted.data(), 150, 3));
  double loss = 0;
  for (std::size_t i = 0; i < predicted.size(); ++i) loss += std::pow(predicted[i] - problem.y.values[i], 2) / 450;
  EXPECT_NEAR(trainer.loss() / loss, 1, 1e-6);
  const double before = trainer.loss();
  EXPECT_EQ(trainer.train(1).losses.front(), before);
  EXPECT_NE(trainer.loss(), before);
  on_cpu(problem, Precision::bf16).predict(Problem::view(problem.x), Matrix(rounded.data(), 150, 3));
  on_cpu(problem, Precision::fp64).predict(Problem::view(problem.x), Matrix(exact.data(), 150, 3));
  // A hidden value near the middle of two numbers may be rounded to either.
  EXPECT_LE(reference::relative_error(predicted, rounded), 1e-4);
  EXPECT_GE(reference::relative_error(predicted, exact), 5e-4);
}

TEST_F(FusedExecutor, TakesDeviceArraysAndSeesThemChange) {
  const Problem problem = problem_of({20, 30, 2}, 100, 1e-2);
  const Problem other = Problem::random({20, 30, 2}, true, 100, Precision::bf16, Init::he, 1e-2, 11);
  const auto floats = [](const reference::Table& table) {
    return std::vector<float>(table.values.begin(), table.values.end());
  };
  const auto view = [](const DeviceArray<float>& array, std::int64_t columns) {
    return on_device(array.data(), 100, columns);
  };
  // One pair lies at multiples of 256 bytes behind its guards and is read there, of the other both are copied.
  for (const int offset : {0, 1}) {
    const DeviceArray<float> x(floats(problem.x), offset), y(floats(problem.y), offset);
    Trainer trainer(problem.network, problem.training, ExecutorKind::fused);
    problem.set_parameters(trainer, problem.start);
    trainer.set_data(view(x, 20), view(y, 2));
    EXPECT_EQ(trainer.train(3).losses, trainer_of(problem).train(3).losses);
    const cuda::StreamOwner stream;
    for (const auto& [to, values] : {std::pair(x.data(), floats(other.x)), std::pair(y.data(), floats(other.y))}) {
      DEVICELOOP_CHECK_CUDA(
          cudaMemcpyAsync(to, values.data(), values.size() * sizeof(float), cudaMemcpyHostToDevice, stream.get()));
      stream.wait();
    }
    trainer.data_changed();
    Trainer anew = trainer_of(problem);
    anew.set_data(Problem::view(other.x), Problem::view(other.y));
    problem.set_parameters(trainer, problem.start);
    EXPECT_EQ(trainer.loss(), anew.loss());
  }
}

TEST_F(FusedExecutor, EvaluatesValidationDataBetweenSteps) {
  Problem problem = problem_of({20, 30, 2}, 100, 1e-2);
  problem.training.watch = {.every = 2, .keep_best = true};
  const auto evaluations_of = [&](Trainer trainer) {
    trainer.set_validation(Problem::view(problem.x), Problem::view(problem.y));
    std::vector<double> losses;
    const TrainReport report = trainer.train(6);
    for (const Evaluation& evaluation : report.evaluations) losses.push_back(evaluation.loss);
    return std::pair(losses, report.losses);
  };
  const auto [evaluated, losses] = evaluations_of(trainer_of(problem));
  const auto [expected, of_cpu] = evaluations_of(on_cpu(problem, Precision::bf16));
  ASSERT_EQ(evaluated.size(), 3u);
  for (std::size_t i = 0; i < 3; ++i) EXPECT_NEAR(evaluated[i] / expected[i], 1, 1e-3) << i;
  // Those of the training data are the losses of the steps that follow.
  EXPECT_NEAR(evaluated[0] / losses[2], 1, 1e-6);
  EXPECT_NEAR(evaluated[1] / losses[4], 1, 1e-6);
}

TEST_F(FusedExecutor, OnlyPredictsWithoutData) {
  const Problem problem = problem_of({20, 30, 2}, 100, 0);
  Trainer trainer(problem.network, problem.training, ExecutorKind::fused);
  problem.set_parameters(trainer, problem.start);
  std::vector<double> predicted(200), expected(200);
  trainer.predict(Problem::view(problem.x), Matrix(predicted.data(), 100, 2));
  trainer_of(problem).predict(Problem::view(problem.x), Matrix(expected.data(), 100, 2));
  EXPECT_EQ(predicted, expected);
}

TEST_F(FusedExecutor, ALaunchThatOutlastsTheDeadlineIsTheEndOfTheTrainer) {
  Problem problem = problem_of({20, 30, 2}, 400, 1e-3);
  problem.training.deadline_ms = 1;
  Trainer trainer = trainer_of(problem);
  const std::string message = testing::refusal<DeviceError>("plan 'fused': ", [&] { trainer.train(2000); });
  EXPECT_MENTIONS(message, "waited for each other longer than 1 ms, in step ");
  EXPECT_MENTIONS(message, "use a larger deadline, or another plan");
  EXPECT_MENTIONS(testing::refusal<DeviceError>("", [&] { trainer.train(1); }), "cannot be used any more");
}

TEST_F(FusedExecutor, TheReportSaysHowItRan) {
  const TrainReport report = trainer_of(problem_of({20, 30, 2}, 100, 1e-3, kShuffled)).train(1);
  ASSERT_EQ(report.algorithms.size(), 1u);
  EXPECT_MENTIONS(report.algorithms[0], "2 blocks of ");
  EXPECT_MENTIONS(report.algorithms[0], "tiles of 64 gathered rows through 1 hidden layer of 64 columns in bf16");
  EXPECT_MENTIONS(report.algorithms[0], " % of the products are of padding");
}

TEST_F(FusedExecutor, RefusesToEnqueueAStep) {
  Trainer trainer = trainer_of(problem_of({20, 30, 2}, 100, 1e-3));
  EXPECT_MENTIONS(testing::refusal<Unsupported>("", [&] { trainer.enqueue_step(); }),
                  "enqueue_step is of the plan 'graph'");
}

}  // namespace
}  // namespace deviceloop
