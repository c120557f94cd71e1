// Optimizers, schedules, clipping, losses, output activations and minibatches on every executor, against a reference in
// double, over whole runs.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "names.h"
#include "permutation.h"
#include "support/activations.h"
#include "support/loss_cases.h"
#include "support/optimizer_cases.h"
#include "support/problem.h"
#include "support/reference_loss.h"
#include "support/reference_optimizer.h"
#include "support/refusal.h"
#include "support/sanitized.h"
#include "support/temporary_folder.h"
#include "support/where.h"

namespace deviceloop {
namespace {

class Optimizers : public ::testing::TestWithParam<Where> {
 protected:
  void SetUp() override { require(GetParam()); }

  static bool is_persistent() { return GetParam().kind == ExecutorKind::persistent; }
  static bool takes_minibatches() { return !is_persistent() || GetParam().form == PersistentForm::on_chip; }
  /// Those that the plan takes, what it refuses is tested below; on the host, where blocks that synchronize are slow,
  /// some of them.
  static std::vector<OptimizerCase> cases_here() {
    const bool is_slow = kHostFixture && is_persistent();
    std::vector<OptimizerCase> here;
    for (std::size_t i = 0; i < optimizer_cases().size(); i += is_slow ? 4 : 1)
      if (!(is_persistent() && optimizer_cases()[i].optimizer.clip_norm > 0)) here.push_back(optimizer_cases()[i]);
    return here;
  }

  static Problem problem_of(const Optimizer& optimizer, std::vector<std::int64_t> widths, std::int64_t samples,
                            Precision precision = Precision::fp64) {
    Problem problem = Problem::random(std::move(widths), true, samples, precision, Init::he, 1e-3);
    problem.training.optimizer = optimizer;
    problem.training.form = GetParam().form;
    return problem;
  }
  static void expect_same_bits_in_twenty_runs(const Problem& problem, std::int64_t steps) {
    const auto run = [&] {
      Trainer trainer = trainer_of(problem);
      const std::vector<double> losses = trainer.train(steps).losses;
      return std::pair(losses, flat(problem.parameters_of(trainer)));
    };
    const auto first = run();
    for (int more = 1; more < 20; ++more) ASSERT_EQ(run(), first) << "run " << more;
  }
  static Trainer trainer_of(const Problem& problem) { return problem.trainer(GetParam().threads, GetParam().kind); }

  static void expect_near(const std::vector<double>& values, const std::vector<double>& expected, double bound) {
    ASSERT_EQ(values.size(), expected.size());
    for (std::size_t i = 0; i < values.size(); ++i)
      ASSERT_LE(reference::loss_error(values[i], expected[i], expected[0]), bound) << "step " << i;
  }

  /// A trainer whose samples have weights.
  static Trainer trainer_of(const Problem& problem, const std::vector<double>& weights) {
    Trainer trainer = trainer_of(problem);
    trainer.set_data(Problem::view(problem.x), Problem::view(problem.y), column(weights));
    return trainer;
  }
  static ConstMatrix column(const std::vector<double>& values) {
    return ConstMatrix(values.data(), static_cast<std::int64_t>(values.size()), 1);
  }

  static void check(const Problem& problem, std::int64_t steps, double bound, const std::vector<double>& weights = {}) {
    reference::Network network = problem.start;
    reference::OptimizerState state(problem.training.optimizer);
    const std::vector<double> losses =
        reference::train(network, state, problem.x, problem.y, steps,
                         weights.empty() ? reference::loss_function(problem.training)
                                         : reference::loss_function(problem.training, weights));
    Trainer trainer = weights.empty() ? trainer_of(problem) : trainer_of(problem, weights);
    EXPECT_EQ(trainer.training().sample_weights, !weights.empty());
    expect_near(trainer.train(steps).losses, losses, bound);
    EXPECT_LE(reference::relative_error(flat(problem.parameters_of(trainer)), flat(network)), bound);
  }
};

// A wide and a narrow layer; more steps than the graph executor takes in a launch.
TEST_P(Optimizers, FollowTheReferenceOverARun) {
  for (const OptimizerCase& each : cases_here()) {
    SCOPED_TRACE(each.name);
    check(problem_of(each.optimizer, {7, 20, 3}, 9), kSlowMachine ? 36 : 70, 1e-10);
  }
}

TEST_P(Optimizers, FollowTheReferenceInSinglePrecision) {
  for (const OptimizerCase& each : cases_here()) {
    SCOPED_TRACE(each.name);
    check(problem_of(each.optimizer, {7, 20, 3}, 9, Precision::fp32), 20, 2e-4);
    for (const Precision precision : lower_precisions(GetParam())) {
      if (precision == Precision::fp16) continue;  // whose scale skips the first steps of a sum
      SCOPED_TRACE(name(precision));
      const double bound = precision == Precision::tf32x3 ? 2e-4 : precision == Precision::tf32 ? 1e-2 : 1e-1;
      check(problem_of(each.optimizer, {7, 20, 3}, 9, precision), 20, bound);
    }
  }
}

// The CPU adds gradients up in slots there, and beyond 1024 samples of larger networks in a buffer.
TEST_P(Optimizers, FollowTheReferenceOverManySamples) {
  const std::int64_t samples = kHostFixture ? 300 : 1100;
  for (const OptimizerCase& each : cases_here()) {
    SCOPED_TRACE(each.name);
    Optimizer small = each.optimizer;  // the loss is a sum over the samples
    if (small.kind == OptimizerKind::gradient_descent || small.kind == OptimizerKind::sgd) small.learning_rate *= 1e-2;
    check(problem_of(small, {5, 18, 2}, samples), 8, 1e-10);
  }
}

// The graph's launch that updates all parameters sums the gradients of some biases itself: of at most eight layers, and
// of so many rows, and leaves those of others to a launch of their own.
TEST_P(Optimizers, FollowTheReferenceHoweverBiasGradientsAreSummed) {
  if (is_persistent()) return;
  const Optimizer adam{.kind = OptimizerKind::adam, .learning_rate = 0.02};
  for (const std::int64_t samples : {256, 257, 600, 1024, 1025}) check(problem_of(adam, {3, 40, 2}, samples), 3, 1e-10);
  check(problem_of(adam, std::vector<std::int64_t>(12, 3), 5), 5, 1e-10);
}

// Whatever its rate; tests/gram_optimizer_test.cpp has momentum and decay. Reprojections end launches early.
TEST_P(Optimizers, SchedulesInTheGramFormulationFollowTheReference) {
  if (GetParam().form == PersistentForm::on_chip) return;  // the form has it not
  for (const OptimizerCase& each : cases_here()) {
    if (each.optimizer.kind != OptimizerKind::gradient_descent) continue;
    SCOPED_TRACE(each.name);
    Problem problem = problem_of(each.optimizer, {30, 20, 3}, 9);
    problem.training.formulation = Formulation::gram;
    problem.training.reprojection_steps = 7;
    check(problem, 36, 1e-10);
  }
}

// A step's rate, and Adam's corrections, follow from how many were taken before, in whatever calls.
TEST_P(Optimizers, OneCallEqualsManyCalls) {
  for (const OptimizerCase& each : cases_here()) {
    SCOPED_TRACE(each.name);
    const Problem problem = problem_of(each.optimizer, {7, 20, 3}, 9, Precision::fp32);
    Trainer whole = trainer_of(problem), parts = trainer_of(problem);
    const std::vector<double> losses = whole.train(38).losses;
    std::vector<double> joined;
    for (const std::int64_t steps : {1, 0, 33, 4})
      for (const double loss : parts.train(steps).losses) joined.push_back(loss);
    EXPECT_EQ(joined, losses);
    EXPECT_EQ(flat(problem.parameters_of(parts)), flat(problem.parameters_of(whole)));
  }
}

class Minibatches : public Optimizers {};

// Outputs of a row in one tile and in several; the last rows are no whole task.
TEST_P(Optimizers, LossesFollowTheReference) {
  for (const Precision precision : {Precision::fp64, Precision::fp32})
    for (const LossCase& each : loss_cases())
      for (const std::int64_t outputs : {3, 41}) {
        if (kHostFixture && outputs == 41 && precision == Precision::fp32) continue;
        SCOPED_TRACE(::testing::Message() << "loss " << static_cast<int>(each.loss) << " of " << outputs << " outputs");
        Problem problem = problem_of({.kind = OptimizerKind::sgd, .learning_rate = 0.004, .momentum = 0.5},
                                     {7, 20, outputs}, 37, precision);
        problem.training.loss = each.loss;
        problem.training.reduction = each.reduction;
        problem.training.huber_delta = each.delta;
        problem.y = targets_of(each, problem.y);
        if (precision == Precision::fp32)
          for (double& value : problem.y.values) value = static_cast<float>(value);
        check(problem, kHostFixture ? 3 : 12, precision == Precision::fp64 ? 1e-10 : 2e-4);
      }
}

/// At a rate at which the sum of weighted squared errors falls, too.
Optimizer optimizer_of(const LossCase& of) {
  const bool is_steep = of.loss == Loss::squared_error && of.reduction == Reduction::sum;
  return {.kind = OptimizerKind::sgd, .learning_rate = is_steep ? 2e-4 : 4e-3, .momentum = 0.5};
}

/// The sum of squared errors, too.
std::vector<LossCase> weighted_cases() {
  std::vector<LossCase> cases = {{Loss::squared_error, Reduction::sum}};
  cases.insert(cases.end(), loss_cases().begin(), loss_cases().end());
  return cases;
}

// Outputs of a row in one group of elements and in several; the last group is not full.
TEST_P(Optimizers, SampleWeightsFollowTheReference) {
  for (const Precision precision : {Precision::fp64, Precision::fp32})
    for (const LossCase& each : weighted_cases())
      for (const std::int64_t outputs : {3, 41}) {
        if (kHostFixture && (outputs == 41) != (precision == Precision::fp32)) continue;
        SCOPED_TRACE(::testing::Message() << "loss " << static_cast<int>(each.loss) << " of " << outputs << " outputs");
        Problem problem = problem_of(optimizer_of(each), {7, 20, outputs}, 37, precision);
        problem.training.loss = each.loss;
        problem.training.reduction = each.reduction;
        problem.training.huber_delta = each.delta;
        problem.y = targets_of(each, problem.y);
        if (precision == Precision::fp32)
          for (double& value : problem.y.values) value = static_cast<float>(value);
        check(problem, kHostFixture ? 2 : 12, precision == Precision::fp64 ? 1e-10 : 2e-4, weights_of(37));
      }
}

// The CPU adds up gradients in slots there; an output activation takes the gradient further.
TEST_P(Optimizers, SampleWeightsOfManySamplesFollowTheReference) {
  const std::int64_t samples = kHostFixture ? 300 : 1100;
  for (const Loss loss : {Loss::huber, Loss::cross_entropy}) {
    Problem problem = problem_of({.kind = OptimizerKind::adam, .learning_rate = 0.01}, {5, 18, 2}, samples);
    problem.training.loss = loss;
    problem.training.reduction = Reduction::mean;
    problem.y = targets_of({loss, Reduction::mean}, problem.y);
    check(problem, 4, 1e-10, weights_of(static_cast<std::size_t>(samples)));
  }
}

TEST_P(Optimizers, SampleWeightsInTheGramFormulationFollowTheReference) {
  if (GetParam().form == PersistentForm::on_chip) return;  // the form has it not
  for (const Loss loss : {Loss::squared_error, Loss::cross_entropy})
    for (const std::vector<std::int64_t>& widths :
         {std::vector<std::int64_t>{30, 20, 3}, std::vector<std::int64_t>{30, 2}}) {
      Problem problem = problem_of({.learning_rate = 1e-3}, widths, 9);
      problem.training.formulation = Formulation::gram;
      problem.training.loss = loss;
      problem.y = targets_of({loss, Reduction::sum}, problem.y);
      check(problem, 12, 1e-10, weights_of(9));
    }
}

TEST_P(Optimizers, WeightsOf1ChangeNoBit) {
  const std::vector<LossCase> cases = weighted_cases();
  for (std::size_t i = 0; i < cases.size(); i += kHostFixture ? 3 : 1) {
    const LossCase& each = cases[i];
    SCOPED_TRACE(::testing::Message() << "loss " << static_cast<int>(each.loss));
    Problem problem = problem_of(optimizer_of(each), {7, 20, 3}, 19, Precision::fp32);
    problem.training.loss = each.loss;
    problem.training.reduction = each.reduction;
    problem.training.huber_delta = each.delta;
    problem.y = targets_of(each, problem.y);
    Trainer plain = trainer_of(problem), weighted = trainer_of(problem, std::vector<double>(19, 1));
    const std::int64_t steps = kHostFixture ? 2 : 5;
    EXPECT_EQ(weighted.loss(), plain.loss());
    EXPECT_EQ(weighted.train(steps).losses, plain.train(steps).losses);
    EXPECT_EQ(flat(problem.parameters_of(weighted)), flat(problem.parameters_of(plain)));
  }
}

/// The row `row` of a table, `times` times, behind the rows of `to`.
void append(reference::Table& to, const reference::Table& from, std::size_t row, int times) {
  to.columns = from.columns;
  for (int i = 0; i < times; ++i, ++to.rows)
    for (std::size_t j = 0; j < from.columns; ++j) to.values.push_back(from(row, j));
}

// 0 leaves it out.
TEST_P(Optimizers, AWholeWeightIsARowRepeatedSoManyTimes) {
  for (const LossCase& each : weighted_cases()) {
    if (each.reduction == Reduction::mean) continue;  // which divides by the number of rows
    SCOPED_TRACE(::testing::Message() << "loss " << static_cast<int>(each.loss));
    Problem problem = problem_of(optimizer_of(each), {7, 20, 3}, 14);
    problem.training.loss = each.loss;
    problem.training.huber_delta = each.delta;
    problem.y = targets_of(each, problem.y);
    Problem repeated = problem;
    repeated.x = repeated.y = {};
    std::vector<double> weights;
    for (std::size_t row = 0; row < 14; ++row) {
      const int times = static_cast<int>(row * 3 % 4);
      weights.push_back(times);
      append(repeated.x, problem.x, row, times);
      append(repeated.y, problem.y, row, times);
    }
    Trainer weighted = trainer_of(problem, weights), by_hand = trainer_of(repeated);
    const std::int64_t steps = kHostFixture ? 2 : 6;
    expect_near(weighted.train(steps).losses, by_hand.train(steps).losses, 1e-12);
    EXPECT_LE(reference::relative_error(flat(problem.parameters_of(weighted)), flat(problem.parameters_of(by_hand))),
              1e-12);
  }
}

// Another executor each time; what the optimizer keeps goes along.
TEST_P(Optimizers, SampleWeightsComeAndGoWithTheData) {
  Problem problem = problem_of({.kind = OptimizerKind::adam, .learning_rate = 0.01}, {7, 20, 3}, 9);
  reference::Network network = problem.start;
  reference::OptimizerState state(problem.training.optimizer);
  Trainer trainer = trainer_of(problem);
  std::vector<double> losses, trained;
  for (const bool has_weights : {false, true, true, false}) {
    std::vector<double> weights = weights_of(9);
    if (losses.size() > 4) std::reverse(weights.begin(), weights.end());
    if (has_weights)
      trainer.set_data(Problem::view(problem.x), Problem::view(problem.y), column(weights));
    else
      trainer.set_data(Problem::view(problem.x), Problem::view(problem.y));
    for (const double loss : reference::train(network, state, problem.x, problem.y, 3,
                                              has_weights ? reference::loss_function(problem.training, weights)
                                                          : reference::loss_function(problem.training)))
      losses.push_back(loss);
    for (const double loss : trainer.train(3).losses) trained.push_back(loss);
  }
  expect_near(trained, losses, 1e-10);
}

// By element in narrow and wide output layers, and by row; without a hidden layer, too.
TEST_P(Optimizers, OutputActivationsFollowTheReference) {
  const std::vector<reference::Activation> references = testing::reference_activations();
  for (std::size_t i = 0; i < references.size(); ++i)
    for (const std::vector<std::int64_t>& widths :
         {std::vector<std::int64_t>{7, 20, 3}, std::vector<std::int64_t>{7, 5, 19}, std::vector<std::int64_t>{6, 2}})
      for (const Loss loss : {Loss::huber, Loss::cross_entropy}) {
        SCOPED_TRACE(::testing::Message() << testing::kActivationFormulas[i].name << ", " << widths.back());
        if (kHostFixture && is_persistent() && widths.back() == 19 && i % 4 != 1) continue;
        Problem problem = problem_of({.kind = OptimizerKind::sgd, .learning_rate = 0.02, .momentum = 0.5}, widths, 9);
        problem.network.output_activation = testing::kActivationFormulas[i].activation.kind;
        problem.network.leaky_slope = testing::kActivationFormulas[i].activation.leaky_slope;
        problem.training.loss = loss;
        problem.y = targets_of({loss, Reduction::sum}, problem.y);
        reference::Network network = problem.start;
        reference::OptimizerState state(problem.training.optimizer);
        const std::vector<double> losses =
            reference::train(network, state, problem.x, problem.y, 4, reference::loss_function(problem.training),
                             reference::kRelu, references[i]);
        Trainer trainer = trainer_of(problem);
        expect_near(trainer.train(4).losses, losses, 1e-12);
        const reference::Network trained = problem.parameters_of(trainer);
        EXPECT_LE(reference::relative_error(flat(trained), flat(network)), 1e-12);
        std::vector<double> prediction(9 * static_cast<std::size_t>(widths.back()));
        trainer.predict(Problem::view(problem.x), Matrix(prediction.data(), 9, widths.back()));
        reference::Table expected = reference::forward(trained, problem.x).back();
        for (double& value : expected.values) value = references[i].value(value);
        EXPECT_LE(reference::relative_error(prediction, expected.values), 1e-12);
      }
}

/// The rows that the step after `steps` others takes.
reference::Table batch_of(const Problem& problem, const reference::Table& data, std::int64_t steps) {
  const TrainingSpec& training = problem.training;
  const BatchOrder order{training.seed, static_cast<std::int64_t>(data.rows), training.shuffle};
  reference::Table batch(static_cast<std::size_t>(training.batch_size), data.columns);
  for (std::size_t r = 0; r < batch.rows; ++r) {
    const std::int64_t sample = order.sample(steps * training.batch_size + static_cast<std::int64_t>(r));
    for (std::size_t j = 0; j < data.columns; ++j) batch(r, j) = data(static_cast<std::size_t>(sample), j);
  }
  return batch;
}

// Batches that straddle epochs, in the order of the data and shuffled; in parts, whose calls begin within an epoch.
TEST_P(Minibatches, FollowTheReference) {
  struct Shape {
    std::int64_t samples, batch;
  };
  const std::int64_t many = kHostFixture ? 70 : 1500;
  for (const Shape shape : {Shape{10, 4}, Shape{33, 32}, Shape{9, 1}, Shape{5000, many}})
    for (const bool shuffle : {false, true})
      for (const Loss loss : {Loss::squared_error, Loss::cross_entropy}) {
        SCOPED_TRACE(::testing::Message() << shape.batch << " of " << shape.samples << (shuffle ? " shuffled" : ""));
        Problem problem = problem_of({.kind = OptimizerKind::adam, .learning_rate = 0.01}, {7, 20, 3}, shape.samples);
        problem.training.batch_size = shape.batch;
        problem.training.shuffle = shuffle;
        problem.training.seed = 11;
        problem.training.loss = loss;
        if (loss == Loss::cross_entropy) problem.y = targets_of({loss, Reduction::sum, 1, true}, problem.y);
        const std::int64_t steps = shape.samples > 1000 ? 6 : kSlowMachine ? 37 : 80;
        reference::Network network = problem.start;
        reference::OptimizerState state(problem.training.optimizer);
        std::vector<double> losses;
        for (std::int64_t step = 0; step < steps; ++step)
          losses.push_back(reference::train(network, state, batch_of(problem, problem.x, step),
                                            batch_of(problem, problem.y, step), 1,
                                            reference::loss_function(problem.training))[0]);
        Trainer trainer = trainer_of(problem);
        std::vector<double> trained;
        for (const std::int64_t count : {std::int64_t{3}, steps - 4, std::int64_t{0}, std::int64_t{1}}) {
          if (count == 1) {
            EXPECT_LE(reference::loss_error(trainer.loss(), losses.back(), losses[0]), 1e-10);
          }
          for (const double loss_of_step : trainer.train(count).losses) trained.push_back(loss_of_step);
        }
        expect_near(trained, losses, 1e-10);
        EXPECT_LE(reference::relative_error(flat(problem.parameters_of(trainer)), flat(network)), 1e-10);
      }
}

TEST_P(Minibatches, TakeTheWeightsOfTheirRows) {
  for (const bool shuffle : {false, true})
    for (const Loss loss : {Loss::squared_error, Loss::cross_entropy})
      for (const std::int64_t samples : {10, 5000}) {
        SCOPED_TRACE(::testing::Message() << samples << (shuffle ? " shuffled" : ""));
        Problem problem = problem_of({.kind = OptimizerKind::adam, .learning_rate = 0.01}, {7, 20, 3}, samples);
        problem.training.batch_size = samples == 10 ? 4 : kHostFixture ? 70 : 1500;
        problem.training.shuffle = shuffle;
        problem.training.seed = 11;
        problem.training.loss = loss;
        problem.training.reduction = Reduction::mean;
        problem.y = targets_of({loss, Reduction::mean, 1, loss == Loss::cross_entropy}, problem.y);
        reference::Table weights(static_cast<std::size_t>(samples), 1);
        weights.values = weights_of(weights.rows);
        const std::int64_t steps = samples == 10 ? 23 : 4;
        reference::Network network = problem.start;
        reference::OptimizerState state(problem.training.optimizer);
        std::vector<double> losses;
        for (std::int64_t step = 0; step < steps; ++step)
          losses.push_back(reference::train(
              network, state, batch_of(problem, problem.x, step), batch_of(problem, problem.y, step), 1,
              reference::loss_function(problem.training, batch_of(problem, weights, step).values))[0]);
        Trainer trainer = trainer_of(problem, weights.values);
        expect_near(trainer.train(steps).losses, losses, 1e-10);
        EXPECT_LE(reference::relative_error(flat(problem.parameters_of(trainer)), flat(network)), 1e-10);
      }
}

/// A classifier trained by Adam on shuffled minibatches, which take several epochs.
Problem classifier_of_batches(const Problem& random) {
  Problem problem = random;
  problem.network.activation = Activation::gelu;
  problem.training.loss = Loss::cross_entropy;
  problem.training.reduction = Reduction::mean;
  problem.training.batch_size = 8;
  problem.training.seed = 11;
  problem.y = targets_of({Loss::cross_entropy, Reduction::mean, 1, true}, problem.y);
  return problem;
}

TEST_P(Minibatches, GoOnInTheMiddleOfAnEpochFromASavedState) {
  const testing::TemporaryFolder folder;
  const std::string path = folder / "state.safetensors";
  const Problem problem = classifier_of_batches(
      problem_of({.kind = OptimizerKind::adam, .learning_rate = 0.01}, {7, 20, 3}, 50, Precision::fp32));
  Trainer whole = trainer_of(problem), first = trainer_of(problem), second = trainer_of(problem);
  const std::vector<double> losses = whole.train(17).losses;
  first.train(9);  // 72 of 50 samples: in the second epoch
  first.save_state(path);
  second.train(2);
  second.load_state(path);
  EXPECT_EQ(second.train(8).losses, std::vector<double>(losses.begin() + 9, losses.end()));
  EXPECT_EQ(flat(problem.parameters_of(second)), flat(problem.parameters_of(whole)));
}

TEST_P(Minibatches, GiveTheSameBitsInTwentyRuns) {
  expect_same_bits_in_twenty_runs(classifier_of_batches(problem_of({.kind = OptimizerKind::adam, .learning_rate = 0.01},
                                                                   {7, 20, 3}, 50, Precision::fp32)),
                                  8);
}

TEST_P(Optimizers, GiveTheSameBitsInTwentyRuns) {
  const bool is_slow = kHostFixture && is_persistent();
  for (const char* const name : {"nesterov and decay", "adamw with decay", "rmsprop with momentum and decay"})
    for (const OptimizerCase& each : cases_here()) {
      if (each.name != std::string(name)) continue;
      SCOPED_TRACE(each.name);
      Problem problem = problem_of(each.optimizer, {7, 20, 3}, 9, Precision::fp32);
      problem.network.activation = Activation::silu;
      problem.training.loss = Loss::huber;
      expect_same_bits_in_twenty_runs(problem, is_slow ? 2 : 6);
    }
}

// New data of another size need a new executor; what the optimizer keeps goes along.
TEST_P(Optimizers, StateOutlivesNewData) {
  for (const OptimizerCase& each : cases_here()) {
    SCOPED_TRACE(each.name);
    const Problem problem = problem_of(each.optimizer, {7, 20, 3}, 9),
                  more = problem_of(each.optimizer, {7, 20, 3}, 12);
    reference::Network network = problem.start;
    reference::OptimizerState state(each.optimizer);
    std::vector<double> losses = reference::train(network, state, problem.x, problem.y, 6);
    for (const double loss : reference::train(network, state, more.x, more.y, 6)) losses.push_back(loss);
    Trainer trainer = trainer_of(problem);
    std::vector<double> trained = trainer.train(6).losses;
    trainer.set_data(Problem::view(more.x), Problem::view(more.y));
    for (const double loss : trainer.train(6).losses) trained.push_back(loss);
    expect_near(trained, losses, 1e-10);
  }
}

// In another trainer, which has taken other steps before.
TEST_P(Optimizers, GoOnFromASavedState) {
  const testing::TemporaryFolder folder;
  const std::string path = folder / "state.safetensors";
  for (const OptimizerCase& each : cases_here()) {
    SCOPED_TRACE(each.name);
    Problem problem = problem_of(each.optimizer, {7, 20, 3}, 10, Precision::fp32);
    if (takes_minibatches()) problem.training.batch_size = 4;  // the state is saved in the middle of an epoch
    Trainer whole = trainer_of(problem), first = trainer_of(problem), second = trainer_of(problem);
    const std::vector<double> losses = whole.train(13).losses;
    first.train(6);
    first.save_state(path);
    second.train(2);
    second.load_state(path);
    EXPECT_EQ(second.train(7).losses, std::vector<double>(losses.begin() + 6, losses.end()));
    EXPECT_EQ(flat(problem.parameters_of(second)), flat(problem.parameters_of(whole)));
  }
}

TEST_P(Optimizers, BeginAnewWithNewWeights) {
  for (const OptimizerCase& each : cases_here()) {
    SCOPED_TRACE(each.name);
    const Problem problem = problem_of(each.optimizer, {7, 20, 3}, 9, Precision::fp32);
    Trainer trainer = trainer_of(problem);
    trainer.initialize(5, Init::he);
    const std::vector<double> first = trainer.train(5).losses;
    EXPECT_NE(trainer.train(5).losses, first);
    trainer.initialize(5, Init::he);
    EXPECT_EQ(trainer.train(5).losses, first);
  }
}

#ifdef DEVICELOOP_OPTIMIZERS_ON_CUDA
INSTANTIATE_TEST_SUITE_P(CudaExecutors, Optimizers,
                         ::testing::Values(Where{ExecutorKind::graph},
                                           Where{ExecutorKind::persistent, PersistentForm::on_chip}),
                         ::testing::PrintToStringParamName());
INSTANTIATE_TEST_SUITE_P(CudaExecutors, Minibatches,
                         ::testing::Values(Where{ExecutorKind::graph},
                                           Where{ExecutorKind::persistent, PersistentForm::on_chip}),
                         ::testing::PrintToStringParamName());
#else
INSTANTIATE_TEST_SUITE_P(Executors, Minibatches,
                         ::testing::Values(Where{ExecutorKind::cpu}, Where{ExecutorKind::cpu, {}, 3}),
                         ::testing::PrintToStringParamName());
INSTANTIATE_TEST_SUITE_P(Executors, Optimizers,
                         ::testing::Values(Where{ExecutorKind::cpu}, Where{ExecutorKind::cpu, {}, 3}),
                         ::testing::PrintToStringParamName());

class OptimizerRefusals : public ::testing::Test {
 protected:
  static std::string refusal_of(const Optimizer& optimizer, Formulation formulation = Formulation::primal) {
    NetworkSpec network;
    network.widths = {3, 2};
    TrainingSpec training;
    training.optimizer = optimizer;
    training.formulation = formulation;
    training.samples = 4;
    return testing::refusal<InvalidArgument>("", [&] { make_plan(network, training, DeviceCaps()); });
  }
};

TEST_F(OptimizerRefusals, NameTheValueAndTheRemedy) {
  using Kind = OptimizerKind;
  const double nan = std::nan("");
  const std::vector<std::pair<Optimizer, const char*> > refused = {
      {{.kind = Kind::sgd, .momentum = 1}, "the momentum is 1; it must be at least 0 and less than 1"},
      {{.kind = Kind::sgd, .momentum = -0.1}, "the momentum is -0.1;"},
      {{.kind = Kind::sgd, .momentum = nan}, "the momentum is nan;"},
      {{.kind = Kind::adam, .momentum = 0.5}, "the optimizer 'adam' has no momentum; choose 'sgd' or 'rmsprop'"},
      {{.momentum = 0.5}, "the optimizer 'gradient_descent' has no momentum"},
      {{.weight_decay = 0.5}, "'gradient_descent' has no weight decay"},
      {{.clip_norm = 1}, "does not clip; choose 'sgd'"},
      {{.kind = Kind::sgd, .nesterov = true}, "momentum above 0"},
      {{.kind = Kind::rmsprop, .momentum = 0.5, .nesterov = true}, "belongs to the optimizer 'sgd'"},
      {{.kind = Kind::sgd, .weight_decay = -1}, "the weight decay is -1;"},
      {{.kind = Kind::adam, .beta1 = 1}, "the beta1 is 1;"},
      {{.kind = Kind::adam, .beta2 = 1.5}, "the beta2 is 1.5;"},
      {{.kind = Kind::adam, .epsilon = 0}, "the epsilon is 0; it must be finite and above 0"},
      {{.kind = Kind::adam, .clip_norm = -2}, "the norm to clip gradients to is -2;"},
      {{.kind = Kind::adam, .clip_value = nan}, "the value to clip gradients to is nan;"},
      {{.kind = Kind::adam, .clip_norm = 1, .clip_value = 1}, "not by both; set one of them to 0"},
      {scheduled({}, {.kind = ScheduleKind::step}),
       "the schedule 'step' has a period of 0 steps; it must be at least 1"},
      {scheduled({}, {.kind = ScheduleKind::cosine, .period = -1}), "the schedule 'cosine' has a period of -1 steps"},
      {scheduled({}, {.kind = ScheduleKind::exponential, .factor = 0}), "the factor of the schedule is 0;"},
      {scheduled({}, {.kind = ScheduleKind::cosine, .period = 5, .end_rate = -1}), "the last learning rate"},
      {scheduled({}, {.warmup_steps = -3}), "the warm-up takes -3 steps"},
      {scheduled({}, {.kind = static_cast<ScheduleKind>(9)}), "there is no schedule number 9"},
  };
  for (const auto& [optimizer, words] : refused) EXPECT_MENTIONS(refusal_of(optimizer), words);
}

// In double each of them is in its range.
TEST_F(OptimizerRefusals, AreOfTheWorkingPrecision) {
  using Kind = OptimizerKind;
  const std::vector<std::pair<Optimizer, const char*> > refused = {
      {{.kind = Kind::sgd, .momentum = 1 - 1e-10}, "rounded to fp32 1; it must be at least 0 and less than 1 there"},
      {{.kind = Kind::adam, .beta1 = 1 - 1e-10}, "the beta1 is 1, rounded to fp32 1;"},
      {{.kind = Kind::adam, .epsilon = 1e-60},
       "the epsilon is 1e-60, rounded to fp32 0; it must be finite and above 0"},
      {{.kind = Kind::adam, .clip_value = 1e-60}, "the value to clip gradients to is 1e-60, rounded to fp32 0;"},
      {scheduled({}, {.kind = ScheduleKind::cosine, .period = 5, .end_rate = 1e300}),
       "is 1e+300, rounded to fp32 inf;"},
  };
  for (const auto& [optimizer, words] : refused) {
    EXPECT_MENTIONS(refusal_of(optimizer), words);
    NetworkSpec network;
    network.widths = {3, 2};
    TrainingSpec training;
    training.optimizer = optimizer;
    training.precision = Precision::fp64;
    EXPECT_NO_THROW(make_plan(network, training, DeviceCaps()));
  }
}

TEST_F(OptimizerRefusals, OfLossesNameTheValueAndTheRemedy) {
  NetworkSpec network;
  network.widths = {3, 4};
  TrainingSpec training;
  training.device.kind = DeviceKind::cpu;
  training.loss = Loss::huber;
  training.huber_delta = 0;
  const auto refusal = [&] { return testing::refusal<InvalidArgument>("", [&] { Trainer(network, training); }); };
  EXPECT_MENTIONS(refusal(), "the delta of the Huber loss is 0; it must be finite and above 0");
  training.huber_delta = 1;
  network.leaky_slope = NAN;
  EXPECT_MENTIONS(refusal(), "the slope of the leaky ReLU is nan; it must be finite");
  network.leaky_slope = -1e300;
  EXPECT_MENTIONS(refusal(),
                  "the slope of the leaky ReLU is -1e+300, rounded to fp32 -inf; it must be finite there, or");
  training.precision = Precision::fp64;
  EXPECT_NO_THROW(Trainer(network, training));
  training.precision = Precision::fp32;
  network.leaky_slope = 0.01;
  training.class_targets = true;
  EXPECT_MENTIONS(refusal(), "for the loss 'cross_entropy', not 'huber'; choose that");
  training.class_targets = false;
  training.reduction = static_cast<Reduction>(7);
  EXPECT_MENTIONS(refusal(), "there is no reduction number 7");
  training.reduction = Reduction::mean;
  training.loss = Loss::cross_entropy;
  network.widths.back() = 1;
  EXPECT_MENTIONS(refusal(), "for at least 2 outputs, one for each class, and the network has 1;");

  network.widths.back() = 4;
  const std::vector<float> x(6);
  const auto refusal_of_classes = [&](std::vector<float> y, std::int64_t columns) {
    Trainer trainer(network, training);
    return testing::refusal<InvalidArgument>(
        "", [&] { trainer.set_data(ConstMatrix(x.data(), 2, 3), ConstMatrix(y.data(), 2, columns)); });
  };
  EXPECT_MENTIONS(refusal_of_classes({0, 4}, 1), "y: row 1 is 4");
  EXPECT_MENTIONS(refusal_of_classes({0, 4}, 1), "the whole numbers from 0 to 3");
  EXPECT_MENTIONS(refusal_of_classes({-1, 0}, 1), "y: row 0 is -1");
  EXPECT_MENTIONS(refusal_of_classes({0, 1.5}, 1), "y: row 1 is 1.5");
  EXPECT_MENTIONS(refusal_of_classes({0, 1, 0, 1}, 2), "or one with the number of the class");
  training.loss = Loss::huber;
  EXPECT_MENTIONS(refusal_of_classes({0, 1}, 1), "give it as many as y has columns");
}

TEST_F(OptimizerRefusals, OfSampleWeightsNameTheRow) {
  NetworkSpec network;
  network.widths = {3, 2};
  TrainingSpec training;
  training.device.kind = DeviceKind::cpu;
  const std::vector<float> x(9), y(6);
  Trainer trainer(network, training);
  const auto refusal_of_weights = [&](const std::vector<double>& weights, std::int64_t rows, std::int64_t columns) {
    return testing::refusal<InvalidArgument>("sample_weights", [&] {
      trainer.set_data(ConstMatrix(x.data(), 3, 3), ConstMatrix(y.data(), 3, 2),
                       ConstMatrix(weights.data(), rows, columns));
    });
  };
  EXPECT_MENTIONS(refusal_of_weights({1, 0, -0.5}, 3, 1), ": row 2 is -0.5 (counted from 0)");
  EXPECT_MENTIONS(refusal_of_weights({1, 0, -0.5}, 3, 1), "the weights of samples must not be negative");
  EXPECT_MENTIONS(refusal_of_weights({1, NAN, 1}, 3, 1), ": row 1, column 0 is nan");
  EXPECT_MENTIONS(refusal_of_weights({INFINITY, 1, 1}, 3, 1), ": row 0, column 0 is inf");
  EXPECT_MENTIONS(refusal_of_weights({1, 1, 1e300}, 3, 1), "row 2, column 0 is 1e+300, which fp32 cannot hold");
  EXPECT_MENTIONS(refusal_of_weights({1, 1}, 2, 1), " is [2, 1]; it must be [3, 1], one weight for each row of x");
  EXPECT_MENTIONS(refusal_of_weights({1, 1, 1}, 1, 3), " is [1, 3]; it must be [3, 1]");
  EXPECT_MENTIONS(refusal_of_weights({}, 0, 0), " is [0, 0]; it must be [3, 1]");
  // None of them has become part of the trainer; the sign of a zero is none.
  EXPECT_FALSE(trainer.training().sample_weights);
  const double zero = -0.0;
  trainer.set_data(ConstMatrix(x.data(), 1, 3), ConstMatrix(y.data(), 1, 2), ConstMatrix(&zero, 1, 1));
  EXPECT_TRUE(trainer.training().sample_weights);
}

TEST_F(OptimizerRefusals, ABatchIsAtMostAllSamples) {
  NetworkSpec network;
  network.widths = {3, 2};
  TrainingSpec training;
  training.samples = 4;
  training.batch_size = 5;
  const auto refusal = [&] {
    return testing::refusal<InvalidArgument>("", [&] { make_plan(network, training, DeviceCaps()); });
  };
  EXPECT_MENTIONS(refusal(), "the batch size is 5, and there are 4 samples; use at most as many, or 0 for all");
  training.batch_size = -1;
  EXPECT_MENTIONS(refusal(), "the batch size is -1; it must not be negative");
  training.batch_size = 2;
  training.formulation = Formulation::gram;
  EXPECT_MENTIONS(refusal(), "for steps that take all samples, not 2");
}

TEST_F(OptimizerRefusals, AStateIsThatOfItsNetworkOptimizerAndPrecision) {
  const testing::TemporaryFolder folder;
  const std::string path = folder / "state.safetensors";
  NetworkSpec network;
  network.widths = {3, 2};
  TrainingSpec training;
  training.device.kind = DeviceKind::cpu;
  training.optimizer.kind = OptimizerKind::adam;
  const Trainer saved(network, training);
  saved.save_state(path);
  const auto refusal_into = [&](const NetworkSpec& other, const TrainingSpec& others) {
    Trainer trainer(other, others);
    std::vector<float> before(6), after(6);
    trainer.read_weight(0, Matrix(before.data(), other.widths[0], other.widths[1]));
    const std::string refusal = testing::refusal<InvalidArgument>(path + ": ", [&] { trainer.load_state(path); });
    trainer.read_weight(0, Matrix(after.data(), other.widths[0], other.widths[1]));
    EXPECT_EQ(before, after);
    return refusal;
  };
  NetworkSpec turned = network, with_bias = network;
  turned.widths = {2, 3};
  with_bias.bias = true;
  TrainingSpec descent = training, momentum = training, in_double = training, in_bf16 = training, in_fp16 = training;
  in_bf16.precision = Precision::bf16;
  in_fp16.precision = Precision::fp16;
  descent.optimizer.kind = OptimizerKind::gradient_descent;
  momentum.optimizer.kind = OptimizerKind::sgd;
  in_double.precision = Precision::fp64;
  EXPECT_MENTIONS(refusal_into(turned, training),
                  "'0.weight' is F32 [2, 3], the trainer's is F32 [3, 2]; load it into");
  EXPECT_MENTIONS(refusal_into(with_bias, training),
                  "has no '0.bias', which belongs to the state of the optimizer 'adam'");
  EXPECT_MENTIONS(refusal_into(network, descent), "holds '0.weight.first_moment', which the state of the optimizer");
  EXPECT_MENTIONS(refusal_into(network, momentum), "has no '0.weight.momentum'");
  EXPECT_MENTIONS(refusal_into(network, in_double), "'0.weight' is F32 [2, 3], the trainer's is F64 [2, 3]");
  EXPECT_MENTIONS(refusal_into(network, in_bf16), "is of a run with precision fp32, and the trainer has bf16");
  EXPECT_MENTIONS(refusal_into(network, in_fp16), "has no 'loss_scaling'");
  Trainer same(network, training);
  same.load_state(path);
  const std::string weights = folder / "weights.safetensors";
  saved.save_weights(weights);
  training.optimizer.kind = OptimizerKind::gradient_descent;
  Trainer plain(network, training);
  EXPECT_MENTIONS(testing::refusal<InvalidArgument>(weights + ": ", [&] { plain.load_state(weights); }),
                  "has no number of steps in 'optimizer.steps'");
}

TEST_F(OptimizerRefusals, GramIsForUpdatesThatAreLinearInTheGradient) {
  using Kind = OptimizerKind;
  for (const Kind kind : {Kind::adam, Kind::adamw, Kind::rmsprop}) {
    const std::string refusal = refusal_of({.kind = kind}, Formulation::gram);
    EXPECT_MENTIONS(refusal,
                    "the formulation 'gram' is exact for updates that are linear in the gradient, not for the "
                    "optimizer '" +
                        std::string(name_or_null(kind)) + "', which divides by the root of its squares");
    EXPECT_MENTIONS(refusal, "choose 'gradient_descent' or 'sgd', or use 'primal'");
  }
  EXPECT_MENTIONS(refusal_of({.kind = Kind::sgd, .clip_norm = 1}, Formulation::gram),
                  "not for those clipped by their norm, since it never computes those of the first layer, which are a "
                  "part of it; set clip_norm to 0, or use 'primal'");
  EXPECT_MENTIONS(refusal_of({.kind = Kind::sgd, .clip_value = 1}, Formulation::gram),
                  "not for those clipped by their value, since it never computes those of the first layer; set "
                  "clip_value to 0, or use 'primal'");
  NetworkSpec network;
  network.widths = {3, 2};
  TrainingSpec training;
  training.samples = 4;
  training.formulation = Formulation::gram;
  for (const Optimizer& optimizer : {Optimizer{.kind = Kind::sgd, .momentum = 0.9, .nesterov = true, .weight_decay = 1},
                                     scheduled({.kind = Kind::sgd}, {.kind = ScheduleKind::exponential})}) {
    training.optimizer = optimizer;
    EXPECT_NO_THROW(make_plan(network, training, DeviceCaps()));
  }
}

TEST_F(OptimizerRefusals, ThePersistentPlanSaysWhatItDoesNotDo) {
  DeviceCaps caps;
  GpuCaps gpu;
  gpu.name = "a GPU";
  gpu.compute_capability = 90;
  gpu.multiprocessors = 132;
  gpu.l2_bytes = 50 << 20;
  gpu.shared_bytes = 227 << 10;
  gpu.cooperative = true;
  caps.gpus.push_back(gpu);
  NetworkSpec network;
  network.widths = {30, 20, 2};
  TrainingSpec training;
  training.samples = 50;
  training.optimizer.kind = OptimizerKind::adam;
  training.optimizer.clip_norm = 1;
  const auto refusal = [&] {
    return testing::refusal<Unsupported>("plan 'persistent': ",
                                         [&] { make_plan(network, training, caps, ExecutorKind::persistent); });
  };
  EXPECT_MENTIONS(refusal(), "does not clip gradients by their norm; use the plan 'graph'");
  training.optimizer.clip_norm = 0;
  training.form = PersistentForm::two_layer;
  EXPECT_MENTIONS(refusal(), "the form 'two-layer' has no optimizer 'adam'; use another form or the plan 'graph'");
  training.sample_weights = true;
  EXPECT_MENTIONS(refusal(), "the form 'two-layer' has no weights of samples; use another form or the plan 'graph'");
  training.sample_weights = false;
  training.optimizer = {.kind = OptimizerKind::sgd, .momentum = 0.9};
  training.formulation = Formulation::gram;
  EXPECT_MENTIONS(refusal(), "the form 'two-layer' has no optimizer 'sgd'");
  training.formulation = Formulation::primal;
  training.optimizer = scheduled({}, {.warmup_steps = 5});
  EXPECT_MENTIONS(refusal(), "the form 'two-layer' has one learning rate for all steps");
  training.form = PersistentForm::automatic;
  EXPECT_NO_THROW(make_plan(network, training, caps, ExecutorKind::persistent));
  training.batch_size = 10;
  EXPECT_NO_THROW(make_plan(network, training, caps, ExecutorKind::persistent));
  training.form = PersistentForm::two_layer;
  EXPECT_MENTIONS(refusal(),
                  "the form 'two-layer' takes all samples in each step; use another form or the plan 'graph'");
  training.form = PersistentForm::on_chip;
  EXPECT_NO_THROW(make_plan(network, training, caps, ExecutorKind::persistent));
  training.optimizer = {.kind = OptimizerKind::adam, .clip_norm = 1};
  EXPECT_MENTIONS(refusal(), "does not clip gradients by their norm; use the plan 'graph'");
}
#endif

}  // namespace
}  // namespace deviceloop
