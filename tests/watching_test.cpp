// Validation data on every executor: when they are evaluated, what that gives, when a run ends early, and what is kept.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include "support/problem.h"
#include "support/reference_loss.h"
#include "support/refusal.h"
#include "support/sanitized.h"
#include "support/where.h"
#include "watching.h"

namespace deviceloop {
namespace {

using reference::Table;

/// A problem whose validation data, targets of their own, are soon fitted worse from step to step.
struct Watched {
  Problem problem;
  Table x, y;

  static Watched random(const Where& where, std::vector<std::int64_t> widths, std::int64_t samples, std::int64_t rows,
                        Precision precision = Precision::fp64) {
    Watched made{Problem::random(std::move(widths), true, samples, precision, Init::he, 5e-3), {}, {}};
    made.problem.training.form = where.form;
    made.x = Problem::filled(rows, made.problem.network.widths.front(), precision, 31, kTensorX);
    made.y = Problem::filled(rows, made.problem.network.widths.back(), precision, 31, kTensorY);
    return made;
  }

  /// Targets that the loss can have, of data and validation data.
  void set_loss(Loss loss, bool has_classes) {
    problem.training.loss = loss;
    for (Table* const table : {&problem.y, &y}) {
      if (loss == Loss::binary_cross_entropy)
        for (double& value : table->values) value = value > 0 ? 1 : value > -0.5 ? 0.25 : 0;
      if (loss != Loss::cross_entropy) continue;
      Table classes(table->rows, 1);
      for (std::size_t row = 0; row < table->rows; ++row)
        classes(row, 0) = static_cast<double>((row * 7 + 3) % table->columns);
      if (has_classes) {
        *table = classes;
        continue;
      }
      for (std::size_t row = 0; row < table->rows; ++row)
        for (std::size_t j = 0; j < table->columns; ++j)
          (*table)(row, j) =
              j == static_cast<std::size_t>(classes(row, 0)) ? 0.75 : 0.25 / static_cast<double>(table->columns - 1);
    }
  }

  Trainer trainer(const Where& where) const {
    Trainer made = problem.trainer(where.threads, where.kind);
    made.set_validation(Problem::view(x), Problem::view(y));
    return made;
  }

  /// By a trainer's predictions and formulas of its own.
  Evaluation expected(Trainer& trainer) const {
    const std::int64_t outputs = problem.network.widths.back();
    Table prediction(x.rows, static_cast<std::size_t>(outputs));
    trainer.predict(Problem::view(x), Matrix(prediction.values.data(), static_cast<std::int64_t>(x.rows), outputs));
    Table gradient = prediction;
    Evaluation made{trainer.steps_done(), reference::loss_function(problem.training)(prediction, y, gradient), {}};
    double right = 0;
    switch (problem.training.loss) {
      case Loss::binary_cross_entropy:
        for (std::size_t i = 0; i < y.values.size(); ++i)
          right += (prediction.values[i] > 0) == (y.values[i] >= 0.5) ? 1 : 0;
        made.accuracy = right / static_cast<double>(y.values.size());
        break;
      case Loss::cross_entropy:
        for (std::size_t row = 0; row < x.rows; ++row) {
          const auto largest = [&](const Table& table) {
            const auto begin = table.values.begin() + static_cast<std::ptrdiff_t>(row * table.columns);
            return std::max_element(begin, begin + static_cast<std::ptrdiff_t>(table.columns)) - begin;
          };
          right +=
              largest(prediction) == (y.columns == 1 ? static_cast<std::ptrdiff_t>(y(row, 0)) : largest(y)) ? 1 : 0;
        }
        made.accuracy = right / static_cast<double>(x.rows);
        break;
      case Loss::squared_error:
      case Loss::absolute_error:
      case Loss::huber:
        break;
    }
    return made;
  }
};

std::vector<std::int64_t> steps_of(const std::vector<Evaluation>& evaluations) {
  std::vector<std::int64_t> steps;
  for (const Evaluation& evaluation : evaluations) steps.push_back(evaluation.steps);
  return steps;
}
std::vector<double> losses_of(const std::vector<Evaluation>& evaluations) {
  std::vector<double> losses;
  for (const Evaluation& evaluation : evaluations) losses.push_back(evaluation.loss);
  return losses;
}

void expect_near(const Evaluation& found, const Evaluation& expected, double relative) {
  EXPECT_EQ(found.steps, expected.steps);
  EXPECT_NEAR(found.loss, expected.loss, relative * std::abs(expected.loss));
  EXPECT_EQ(found.accuracy, expected.accuracy);
}

class Watching : public ::testing::TestWithParam<Where> {
 protected:
  void SetUp() override { require(GetParam()); }
  static bool is_persistent() { return GetParam().kind == ExecutorKind::persistent; }
};

TEST_P(Watching, EvaluatesAtItsBordersAndChangesNothing) {
  Watched watched = Watched::random(GetParam(), {12, 9, 3}, 40, 70);
  watched.problem.training.watch.every = 3;
  const std::vector<double> unwatched = watched.problem.trainer(GetParam().threads, GetParam().kind).train(10).losses;
  Trainer trainer = watched.trainer(GetParam());
  const TrainReport report = trainer.train(10);
  EXPECT_EQ(report.losses, unwatched);
  EXPECT_EQ(report.end, EndOfRun::all_steps);
  EXPECT_EQ(steps_of(report.evaluations), (std::vector<std::int64_t>{3, 6, 9}));
  for (const Evaluation& evaluation : report.evaluations) {
    Trainer other = watched.problem.trainer(GetParam().threads, GetParam().kind);
    other.train(evaluation.steps);
    expect_near(evaluation, watched.expected(other), 1e-13);
  }
  // Borders are counted over all calls.
  EXPECT_EQ(steps_of(trainer.train(3).evaluations), (std::vector<std::int64_t>{12}));
  const Evaluation now = trainer.evaluate();
  expect_near(now, watched.expected(trainer), 1e-13);
  EXPECT_EQ(now.steps, 13);
}

// Evaluations of a precision below fp32 have its products, which predictions have too.
TEST_P(Watching, EvaluatesInThePrecisionOfTheSteps) {
  for (const Precision precision : lower_precisions(GetParam())) {
    SCOPED_TRACE(name(precision));
    Watched watched = Watched::random(GetParam(), {12, 9, 3}, 40, 70, Precision::fp32);
    watched.problem.training.precision = precision;
    watched.problem.training.watch.every = 3;
    const std::vector<double> unwatched = watched.problem.trainer(GetParam().threads, GetParam().kind).train(10).losses;
    Trainer trainer = watched.trainer(GetParam());
    EXPECT_EQ(trainer.train(10).losses, unwatched);
    Table predicted(watched.x.rows, watched.y.columns);
    trainer.predict(Problem::view(watched.x), Matrix(predicted.values.data(), static_cast<std::int64_t>(predicted.rows),
                                                     static_cast<std::int64_t>(predicted.columns)));
    EXPECT_NEAR(trainer.evaluate().loss / reference::loss(predicted, watched.y), 1, 1e-6);
  }
}

TEST_P(Watching, EveryLossAndItsAccuracyInPanelsOfRows) {
  for (const auto& [loss, has_classes] : {std::pair(Loss::squared_error, false), std::pair(Loss::absolute_error, false),
                                          std::pair(Loss::huber, false), std::pair(Loss::binary_cross_entropy, false),
                                          std::pair(Loss::cross_entropy, true), std::pair(Loss::cross_entropy, false)})
    for (const Reduction reduction : {Reduction::sum, Reduction::mean}) {
      if (kHostFixture && (reduction == Reduction::mean) != has_classes) continue;
      SCOPED_TRACE(static_cast<int>(loss) * 4 + (has_classes ? 2 : 0) + static_cast<int>(reduction));
      Watched watched = Watched::random(GetParam(), {5, 37}, 30, kHostFixture ? 1030 : 2100);
      if (GetParam().form == PersistentForm::two_layer)  // which has but one loss
        watched.problem.training.form = PersistentForm::automatic;
      watched.problem.training.reduction = reduction;
      watched.set_loss(loss, has_classes);
      Trainer trainer = watched.trainer(GetParam());
      trainer.train(2);
      const Evaluation evaluation = trainer.evaluate();
      expect_near(evaluation, watched.expected(trainer), 1e-12);
      if (evaluation.accuracy) {
        EXPECT_GT(*evaluation.accuracy, 0);
        EXPECT_LT(*evaluation.accuracy, 1);
      }
    }
}

TEST_P(Watching, EndsAtTheBorderWhereItsPatienceEnds) {
  Watched watched = Watched::random(GetParam(), {12, 9, 3}, 40, 20);
  watched.problem.training.watch.every = 4;
  const std::vector<double> losses = losses_of(watched.trainer(GetParam()).train(24).evaluations);
  const auto best = std::min_element(losses.begin(), losses.end());
  ASSERT_NE(best, losses.begin()) << "the validation loss never falls: the test shows nothing";
  ASSERT_LT(best + 2, losses.end()) << "the validation loss never rises: the test shows nothing";
  const std::int64_t until = 4 * (best - losses.begin() + 1 + 2);

  watched.problem.training.watch.patience = 2;
  watched.problem.training.watch.keep_best = true;
  Trainer trainer = watched.trainer(GetParam());
  const TrainReport report = trainer.train(24);
  EXPECT_EQ(report.end, EndOfRun::patience);
  EXPECT_EQ(report.steps(), until);
  EXPECT_EQ(trainer.steps_done(), until);
  EXPECT_EQ(losses_of(report.evaluations), std::vector<double>(losses.begin(), best + 3));
  watched.problem.training.watch = {};
  Trainer plain = watched.problem.trainer(GetParam().threads, GetParam().kind);
  plain.train(until);
  EXPECT_EQ(flat(watched.problem.parameters_of(trainer)), flat(watched.problem.parameters_of(plain)));

  ASSERT_TRUE(trainer.best().has_value());
  EXPECT_EQ(trainer.best()->loss, *best);
  EXPECT_EQ(trainer.best()->steps, 4 * (best - losses.begin() + 1));
  const std::int64_t best_steps = trainer.best()->steps;
  trainer.restore_best();
  Trainer shorter = watched.problem.trainer(GetParam().threads, GetParam().kind);
  shorter.train(best_steps);
  EXPECT_EQ(flat(watched.problem.parameters_of(trainer)), flat(watched.problem.parameters_of(shorter)));
  EXPECT_FALSE(trainer.best().has_value());
  EXPECT_EQ(trainer.evaluate().loss, *best);
}

TEST_P(Watching, EndsAtALoss) {
  Watched watched = Watched::random(GetParam(), {12, 9, 3}, 40, 20);
  watched.problem.training.watch.every = 2;
  const TrainReport whole = watched.trainer(GetParam()).train(12);
  const std::vector<double> losses = losses_of(whole.evaluations);
  ASSERT_GT(losses.size(), 2u);
  watched.problem.training.watch.target_loss = losses[1];
  const auto reached = std::find_if(losses.begin(), losses.end(), [&](double loss) { return loss <= losses[1]; });
  const TrainReport report = watched.trainer(GetParam()).train(12);
  EXPECT_EQ(report.end, EndOfRun::target_loss);
  EXPECT_EQ(report.steps(), 2 * (reached - losses.begin() + 1));

  // Without validation data, by the loss of the step before the border.
  watched.problem.training.watch.target_loss = whole.losses[5];
  const TrainReport unvalidated = watched.problem.trainer(GetParam().threads, GetParam().kind).train(12);
  EXPECT_EQ(unvalidated.end, EndOfRun::target_loss);
  EXPECT_EQ(unvalidated.steps(), 6);
  EXPECT_TRUE(unvalidated.evaluations.empty());
}

TEST_P(Watching, TheCallbackSeesEachEvaluationOnce) {
  Watched watched = Watched::random(GetParam(), {6, 5, 2}, 20, 9);
  watched.problem.training.watch.every = 3;
  for (const bool may_end : {false, true}) {
    if (may_end) watched.problem.training.watch.target_loss = -1;
    Trainer trainer = watched.trainer(GetParam());
    std::vector<double> losses, evaluated;
    std::vector<std::int64_t> done;
    const TrainReport report = trainer.train(
        17,
        [&](const TrainProgress& progress) {
          EXPECT_EQ(progress.first_step, static_cast<std::int64_t>(losses.size()));
          losses.insert(losses.end(), progress.losses.begin(), progress.losses.end());
          for (const Evaluation& evaluation : progress.evaluations) evaluated.push_back(evaluation.loss);
          done.push_back(progress.steps_done);
          return true;
        },
        5);
    EXPECT_EQ(done, (std::vector<std::int64_t>{5, 10, 15, 17}));
    EXPECT_EQ(losses, report.losses);
    EXPECT_EQ(evaluated, losses_of(report.evaluations));
    EXPECT_EQ(steps_of(report.evaluations), (std::vector<std::int64_t>{3, 6, 9, 12, 15}));
  }
}

TEST_P(Watching, ValidationDataOutliveOtherData) {
  Watched watched = Watched::random(GetParam(), {6, 5, 2}, 20, 9);
  watched.problem.training.watch = {.every = 2, .keep_best = true};
  Trainer trainer = watched.trainer(GetParam());
  trainer.train(4);
  EXPECT_TRUE(trainer.best().has_value());
  const Table x = Problem::filled(31, 6, Precision::fp64, 5, kTensorX),
              y = Problem::filled(31, 2, Precision::fp64, 5, kTensorY);
  trainer.set_data(Problem::view(x), Problem::view(y));  // another number of rows: another executor
  EXPECT_FALSE(trainer.best().has_value());
  expect_near(trainer.evaluate(), watched.expected(trainer), 1e-13);
  EXPECT_EQ(trainer.train(2).evaluations.size(), 1u);
  EXPECT_TRUE(trainer.best().has_value());
  trainer.initialize(3);
  EXPECT_FALSE(trainer.best().has_value());
  const TrainReport anew = trainer.train(2);
  EXPECT_EQ(trainer.best()->loss, anew.evaluations[0].loss);

  watched.x = Problem::filled(1, 6, Precision::fp64, 6, kTensorX);
  watched.y = Problem::filled(1, 2, Precision::fp64, 6, kTensorY);
  trainer.set_validation(Problem::view(watched.x), Problem::view(watched.y));
  EXPECT_FALSE(trainer.best().has_value());
  expect_near(trainer.evaluate(), watched.expected(trainer), 1e-13);
  const Table no_x(0, 6), no_y(0, 2);
  trainer.set_validation(Problem::view(no_x), Problem::view(no_y));
  EXPECT_MENTIONS(testing::refusal<InvalidArgument>("", [&] { trainer.evaluate(); }), "needs validation data");
}

TEST_P(Watching, ANetworkWithoutDataIsEvaluatedToo) {
  const Watched watched = Watched::random(GetParam(), {6, 5, 2}, 20, 9);
  TrainingSpec spec = watched.problem.training;
  spec.threads = GetParam().threads;
  Trainer trainer(watched.problem.network, spec, GetParam().kind);
  watched.problem.set_parameters(trainer, watched.problem.start);
  trainer.set_validation(Problem::view(watched.x), Problem::view(watched.y));
  expect_near(trainer.evaluate(), watched.expected(trainer), 1e-13);
}

TEST_P(Watching, NothingThatIsNotANumberIsTheBest) {
  Watched watched = Watched::random(GetParam(), {6, 5, 2}, 20, 9);
  watched.problem.training.watch = {.every = 1, .patience = 6, .keep_best = true};
  watched.problem.training.optimizer.learning_rate = 1;  // it diverges from the first step on
  Trainer trainer = watched.trainer(GetParam());
  const TrainReport report = trainer.train(20);
  EXPECT_EQ(report.end, EndOfRun::patience);
  EXPECT_TRUE(report.first_non_finite_step.has_value());
  const std::vector<double> losses = losses_of(report.evaluations);
  ASSERT_TRUE(std::isfinite(losses.front()));
  ASSERT_TRUE(std::isnan(losses.back()));
  ASSERT_TRUE(trainer.best().has_value());
  EXPECT_EQ(trainer.best()->loss, losses.front());
  trainer.restore_best();
  EXPECT_EQ(trainer.evaluate().loss, losses.front());

  watched.problem.training.optimizer.learning_rate = 1e200;  // not even the first is finite
  Trainer lost = watched.trainer(GetParam());
  EXPECT_FALSE(std::isfinite(lost.train(2).evaluations.front().loss));
  EXPECT_FALSE(lost.best().has_value());
  EXPECT_MENTIONS(testing::refusal<InvalidArgument>("", [&] { lost.restore_best(); }), "no best evaluation yet");
}

TEST_P(Watching, TheGramFormulationIsWatchedToo) {
  if (GetParam().form == PersistentForm::on_chip) return;  // the form has it not
  Watched watched = Watched::random(GetParam(), {30, 9, 2}, 12, 20);
  watched.problem.training.watch = {.every = 4, .keep_best = true};
  const TrainReport primal = watched.trainer(GetParam()).train(12);
  watched.problem.training.formulation = Formulation::gram;
  Trainer trainer = watched.trainer(GetParam());
  const TrainReport gram = trainer.train(12);
  ASSERT_EQ(gram.evaluations.size(), 3u);
  for (std::size_t i = 0; i < 3; ++i) expect_near(gram.evaluations[i], primal.evaluations[i], 1e-10);
  watched.problem.training.watch = {};
  EXPECT_EQ(watched.problem.trainer(GetParam().threads, GetParam().kind).train(12).losses, gram.losses);
}

TEST_P(Watching, MinibatchesAreWatchedByTheEpoch) {
  if (is_persistent() && GetParam().form != PersistentForm::on_chip) return;  // it takes all samples in each step
  Watched watched = Watched::random(GetParam(), {6, 5, 2}, 20, 9, Precision::fp32);
  watched.problem.training.batch_size = 8;
  watched.problem.training.optimizer.kind = OptimizerKind::adam;
  watched.problem.training.optimizer.learning_rate = 0.01;
  Trainer trainer = watched.trainer(GetParam());
  const TrainReport report = trainer.train(11);
  EXPECT_EQ(steps_of(report.evaluations), (std::vector<std::int64_t>{3, 5, 8, 10}));
  EXPECT_EQ(watched.problem.trainer(GetParam().threads, GetParam().kind).train(11).losses, report.losses);
  expect_near(trainer.evaluate(), watched.expected(trainer), 1e-5);
}

#ifdef DEVICELOOP_WATCHING_ON_CUDA
INSTANTIATE_TEST_SUITE_P(CudaExecutors, Watching,
                         ::testing::Values(Where{ExecutorKind::graph},
                                           Where{ExecutorKind::persistent, PersistentForm::two_layer},
                                           Where{ExecutorKind::persistent, PersistentForm::on_chip}),
                         ::testing::PrintToStringParamName());
#else
INSTANTIATE_TEST_SUITE_P(Executors, Watching,
                         ::testing::Values(Where{ExecutorKind::cpu}, Where{ExecutorKind::cpu, {}, 3}),
                         ::testing::PrintToStringParamName());

TEST(NextBorder, IsTheFirstStepThatCompletesAnEpoch) {
  for (std::int64_t samples = 2; samples <= 40; ++samples)
    for (std::int64_t batch = 1; batch < samples; ++batch) {
      TrainingSpec training;
      training.samples = samples;
      training.batch_size = batch;
      for (std::int64_t steps = 0; steps < 60; ++steps) {
        std::int64_t expected = steps + 1;
        while (expected * batch / samples == steps * batch / samples) ++expected;
        ASSERT_EQ(next_border(training, steps), expected) << samples << " " << batch << " " << steps;
      }
    }
}

TEST(NextBorder, IsCountedInStepsWhereTheyAreGiven) {
  TrainingSpec training;
  training.samples = 10;
  EXPECT_EQ(next_border(training, 0), 100);
  EXPECT_EQ(next_border(training, 99), 100);
  EXPECT_EQ(next_border(training, 100), 200);
  training.batch_size = 5;
  training.watch.every = 7;
  EXPECT_EQ(next_border(training, 6), 7);
  EXPECT_EQ(next_border(training, 7), 14);
}

class WatchRefusals : public ::testing::Test {
 protected:
  WatchRefusals() {
    network_.widths = {3, 2};
    training_.device.kind = DeviceKind::cpu;
  }
  Trainer trainer() const {
    Trainer made(network_, training_);
    made.set_data(ConstMatrix(values_.data(), 4, 3), ConstMatrix(values_.data(), 4, 2));
    return made;
  }
  template <class Call>
  static std::string refusal(Call call) {
    return testing::refusal<InvalidArgument>("", call);
  }
  NetworkSpec network_;
  TrainingSpec training_;
  std::vector<float> values_ = std::vector<float>(12, 1.0f);
};

TEST_F(WatchRefusals, OfSpecifications) {
  const auto of = [&](const Watch& watch) {
    training_.watch = watch;
    return refusal([&] { Trainer(network_, training_); });
  };
  EXPECT_MENTIONS(of({.every = -1}), "the steps between evaluations are -1; they must not be negative");
  EXPECT_MENTIONS(of({.patience = -2}), "the patience is -2 evaluations; it must not be negative");
  EXPECT_MENTIONS(of({.target_loss = std::numeric_limits<double>::quiet_NaN()}), "loss to end a run at is nan");
}

TEST_F(WatchRefusals, OfRunsWithoutValidationData) {
  training_.watch.patience = 1;
  EXPECT_MENTIONS(refusal([&] { trainer().train(1); }), "Watch::patience needs validation data; call set_validation");
  training_.watch = {.keep_best = true};
  EXPECT_MENTIONS(refusal([&] { trainer().train(1); }), "Watch::keep_best needs validation data; call set_validation");
  Trainer watched = trainer();
  watched.set_validation(ConstMatrix(values_.data(), 1, 3), ConstMatrix(values_.data(), 1, 2));
  watched.train(1);
  EXPECT_MENTIONS(refusal([&] { watched.restore_best(); }), "there is no best evaluation yet");
  training_.watch = {};
  Trainer plain = trainer();
  EXPECT_MENTIONS(refusal([&] { plain.restore_best(); }), "set Watch::keep_best before the run");
}

TEST_F(WatchRefusals, OfDataThatDoNotFit) {
  Trainer watched = trainer();
  const float* const values = values_.data();
  const auto of = [&](ConstMatrix x, ConstMatrix y) { return refusal([&] { watched.set_validation(x, y); }); };
  EXPECT_MENTIONS(of(ConstMatrix(values, 2, 4), ConstMatrix(values, 2, 2)),
                  "x is [2, 4], but the network has 3 inputs");
  EXPECT_MENTIONS(of(ConstMatrix(values, 2, 3), ConstMatrix(values, 2, 1)),
                  "y is [2, 1], but the network has 2 outputs");
  EXPECT_MENTIONS(of(ConstMatrix(values, 2, 3), ConstMatrix(values, 3, 2)), "x has 2 rows, y has 3");
  values_[5] = std::numeric_limits<float>::infinity();
  EXPECT_MENTIONS(of(ConstMatrix(values, 2, 3), ConstMatrix(values, 2, 2)), "validation x: row 1, column 2");
}
#endif

}  // namespace
}  // namespace deviceloop
