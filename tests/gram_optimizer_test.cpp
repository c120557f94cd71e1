// The Gram formulation with momentum and weight decay on every executor, against the primal and the reference in
// double.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <ostream>
#include <string>
#include <utility>
#include <vector>

#include "files/safetensors.h"
#include "files/weights.h"
#include "matrix_ops.h"
#include "support/exact.h"
#include "support/gpu.h"
#include "support/optimizer_cases.h"
#include "support/problem.h"
#include "support/reference_optimizer.h"
#include "support/sanitized.h"
#include "support/temporary_folder.h"

namespace deviceloop {
namespace {

struct Where {
  ExecutorKind kind;
  PersistentForm form = PersistentForm::automatic;
  int threads = 1;
};

std::ostream& operator<<(std::ostream& out, const Where& where) {
  out << name(where.kind);
  if (where.kind == ExecutorKind::cpu) return out << "_threads_" << where.threads;
  return where.kind == ExecutorKind::persistent ? out << "_" << name(where.form) : out;
}

constexpr double kRate = 2e-4;

/// Updates that are linear in the gradient, and keep something.
const std::vector<OptimizerCase>& gram_cases() {
  using Kind = OptimizerKind;
  static const Optimizer momentum{.kind = Kind::sgd, .learning_rate = kRate, .momentum = 0.9};
  static const Optimizer all_of_it{
      .kind = Kind::sgd, .learning_rate = kRate, .momentum = 0.8, .nesterov = true, .weight_decay = 3};
  static const std::vector<OptimizerCase> all = {
      {"momentum", momentum},
      {"nesterov", {.kind = Kind::sgd, .learning_rate = kRate, .momentum = 0.9, .nesterov = true}},
      {"decay alone", {.kind = Kind::sgd, .learning_rate = kRate, .weight_decay = 20}},
      {"momentum and decay", {.kind = Kind::sgd, .learning_rate = kRate, .momentum = 0.9, .weight_decay = 5}},
      {"nesterov and decay", all_of_it},
      {"sgd without momentum", {.kind = Kind::sgd, .learning_rate = kRate}},
      {"a cosine with warm-up",
       scheduled(all_of_it, {.kind = ScheduleKind::cosine, .period = 120, .end_rate = 1e-5, .warmup_steps = 20})},
      {"a step schedule with warm-up",
       scheduled(momentum, {.kind = ScheduleKind::step, .period = 25, .factor = 0.8, .warmup_steps = 7})},
      {"an exponential schedule", scheduled(all_of_it, {.kind = ScheduleKind::exponential, .factor = 0.99})},
  };
  return all;
}

struct Shape {
  std::vector<std::int64_t> widths;
  bool bias;
  std::int64_t samples;
};

class GramOptimizers : public ::testing::TestWithParam<Where> {
 protected:
  void SetUp() override {
    if (GetParam().kind == ExecutorKind::cpu) return;
    const DeviceCaps machine = query_device_caps();
    testing::require_gpu(machine.no_gpu_reason);
  }

  static Problem problem_of(const Optimizer& optimizer, const Shape& shape, Precision precision = Precision::fp64,
                            std::int64_t reprojection_steps = 0) {
    Problem problem = Problem::random(shape.widths, shape.bias, shape.samples, precision, Init::he, kRate);
    problem.training.optimizer = optimizer;
    problem.training.form = GetParam().form;
    problem.training.formulation = Formulation::gram;
    problem.training.reprojection_steps = reprojection_steps;
    return problem;
  }
  static Trainer gram(const Problem& problem) { return problem.trainer(GetParam().threads, GetParam().kind); }
  /// The same in the primal, on the CPU.
  static Trainer primal(Problem problem) {
    problem.training.formulation = Formulation::primal;
    problem.training.reprojection_steps = 0;
    return problem.trainer(1, ExecutorKind::cpu);
  }

  /// All that outlives a step: parameters, then their momentum.
  static std::vector<std::vector<double>> state_of(const Problem& problem, const Trainer& trainer) {
    const testing::TemporaryFolder folder;
    const std::string path = folder / "state.safetensors";
    trainer.save_state(path);
    std::vector<std::vector<double>> state;
    for (const HostMatrix& matrix :
         read_state(SafeTensorsFile(path, UINT64_MAX), problem.network, problem.training).values) {
      state.emplace_back(static_cast<std::size_t>(matrix.rows * matrix.columns));
      convert(Matrix(state.back().data(), matrix.rows, matrix.columns), matrix.view());
    }
    return state;
  }

  static void expect_near(const std::vector<double>& values, const std::vector<double>& expected, double bound) {
    ASSERT_EQ(values.size(), expected.size());
    for (std::size_t i = 0; i < values.size(); ++i)
      ASSERT_LE(reference::loss_error(values[i], expected[i], expected[0]), bound) << "step " << i;
  }

  /// Parameters relative to their norms; momentum relative to its norm or to a thousandth of that after the first step,
  /// whichever is larger, as losses are: it ends near 0 in a run that has learned its data, and its rounding does not.
  static void expect_same_state(const Problem& problem, const Trainer& trainer, const Trainer& expected) {
    Trainer first = primal(problem);
    first.train(1);
    const std::vector<std::vector<double>> got = state_of(problem, trainer), wanted = state_of(problem, expected),
                                           after_first = state_of(problem, first);
    ASSERT_EQ(got.size(), wanted.size());
    for (std::size_t i = 0; i < wanted.size(); ++i) {
      const bool is_momentum = i >= wanted.size() / 2;
      const double scale = std::max(norm(wanted[i]), is_momentum ? 1e-3 * norm(after_first[i]) : 0);
      ASSERT_EQ(got[i].size(), wanted[i].size());
      std::vector<double> difference = got[i];
      for (std::size_t j = 0; j < difference.size(); ++j) difference[j] -= wanted[i][j];
      ASSERT_GT(scale, 0) << "entry " << i;
      EXPECT_LE(reference::larger_error(0, norm(difference) / scale), is_momentum ? kMomentumBound : kBound)
          << "entry " << i;
    }
  }
  static double norm(const std::vector<double>& values) {
    double squares = 0;
    for (const double value : values) squares += value * value;
    return std::sqrt(squares);
  }

  /// Of losses and parameters, and of momentum. Both formulations round each element to 1.1e-16 in each step; in runs
  /// whose loss falls, what that makes of losses, parameters and momentum was measured as 6e-14, 9e-15 and 2e-11 at
  /// most, on the CPU over 250 steps.
  static constexpr double kBound = 1e-12, kMomentumBound = 1e-10;
};

TEST_P(GramOptimizers, FollowThePrimalAndTheReferenceOverARun) {
  const Shape shapes[] = {{{30, 20, 3}, true, 9},
                          {{30, 20, 3}, false, 9},
                          {{7, 3}, true, 12},
                          {{25, 18, 7, 2}, true, 14},
                          {{40, 1}, false, 6}};
  const std::int64_t steps = kHostFixture ? 37 : 250;
  int number = 0;
  for (const OptimizerCase& each : gram_cases())
    for (const Shape& shape : shapes)
      for (const std::int64_t reprojection : {0, 1, 7, 33, 100}) {
        if (kHostFixture && ++number % 13 != 1) continue;
        SCOPED_TRACE(std::string(each.name) + ", " + ::testing::PrintToString(shape.widths) + ", reprojected every " +
                     std::to_string(reprojection));
        const Problem problem = problem_of(each.optimizer, shape, Precision::fp64, reprojection);
        Trainer trainer = gram(problem), expected = primal(problem);
        const std::vector<double> losses = expected.train(steps).losses;
        ASSERT_LT(losses.back(), losses.front());
        expect_near(trainer.train(steps).losses, losses, kBound);
        expect_same_state(problem, trainer, expected);
        if (HasFatalFailure()) return;
        if (reprojection != 7) continue;
        reference::Network network = problem.start;
        reference::OptimizerState state(each.optimizer);
        expect_near(losses, reference::train(network, state, problem.x, problem.y, steps), kBound);
        EXPECT_LE(reference::relative_error(flat(problem.parameters_of(trainer)), flat(network)), kBound);
      }
}

// As tests/optimizer_test.cpp has it for the primal. Shares in double of scalars that were rounded to fp32 first.
TEST_P(GramOptimizers, FollowTheReferenceInSinglePrecision) {
  int number = 0;
  for (const OptimizerCase& each : gram_cases())
    for (const std::int64_t reprojection : {0, 7}) {
      if (kHostFixture && ++number % 5 != 1) continue;
      SCOPED_TRACE(each.name);
      const Problem problem = problem_of(each.optimizer, {{30, 20, 3}, true, 9}, Precision::fp32, reprojection);
      reference::Network network = problem.start;
      reference::OptimizerState state(each.optimizer);
      const std::vector<double> losses = reference::train(network, state, problem.x, problem.y, 36);
      Trainer trainer = gram(problem);
      expect_near(trainer.train(36).losses, losses, 2e-4);
      EXPECT_LE(reference::relative_error(flat(problem.parameters_of(trainer)), flat(network)), 2e-6);
    }
}

TEST_P(GramOptimizers, OneCallEqualsManyCalls) {
  for (const OptimizerCase& each : gram_cases()) {
    if (kHostFixture && std::string(each.name) != "a cosine with warm-up") continue;
    SCOPED_TRACE(each.name);
    const Problem problem = problem_of(each.optimizer, {{30, 20, 3}, true, 9}, Precision::fp32, 10);
    Trainer whole = gram(problem), parts = gram(problem);
    const std::vector<double> losses = whole.train(38).losses;
    std::vector<double> joined;
    for (const std::int64_t steps : {1, 0, 33, 4}) {
      parts.loss();
      state_of(problem, parts);
      for (const double loss : parts.train(steps).losses) joined.push_back(loss);
    }
    EXPECT_EQ(joined, losses);
    EXPECT_EQ(state_of(problem, parts), state_of(problem, whole));
  }
}

// A state goes from gram to another gram, to the primal, and from the primal to gram: each has taken other steps
// before.
TEST_P(GramOptimizers, GoOnFromASavedStateAsThePrimalDoes) {
  const testing::TemporaryFolder folder;
  const std::string path = folder / "state.safetensors";
  int number = 0;
  for (const OptimizerCase& each : gram_cases())
    for (const std::int64_t reprojection : {0, 4}) {
      if (kHostFixture && ++number % 7 != 0) continue;
      SCOPED_TRACE(each.name);
      const Problem problem = problem_of(each.optimizer, {{30, 20, 3}, true, 9}, Precision::fp64, reprojection);
      Trainer whole = primal(problem);
      const std::vector<double> losses = whole.train(26).losses;
      const std::vector<double> rest(losses.begin() + 10, losses.end());
      for (const bool from_gram : {true, false})
        for (const bool to_gram : {true, false}) {
          if (!from_gram && !to_gram) continue;
          Trainer first = from_gram ? gram(problem) : primal(problem);
          first.train(10);
          first.save_state(path);
          Trainer second = to_gram ? gram(problem) : primal(problem);
          second.train(3);
          second.load_state(path);
          expect_near(second.train(16).losses, rest, kBound);
          expect_same_state(problem, second, whole);
        }
    }
}

// What is written between steps counts, and what is not stays as trained: the momentum of all goes on.
TEST_P(GramOptimizers, FollowThePrimalWhereParametersAndDataAreWrittenInBetween) {
  const auto filled = [](std::int64_t rows, std::int64_t columns, std::uint32_t tensor) {
    reference::Table table = Problem::filled(rows, columns, Precision::fp64, 3, tensor);
    for (double& value : table.values) value /= 4;
    return table;
  };
  const reference::Table weight = filled(30, 18, 5), bias = filled(1, 18, 6), upper = filled(18, 12, 7);
  const reference::Table x = filled(12, 30, 8), y = filled(12, 2, 9), more_x = filled(17, 30, 10),
                         more_y = filled(17, 2, 11);
  const testing::TemporaryFolder folder;
  const std::string path = folder / "weights.safetensors";
  for (const OptimizerCase& each : gram_cases())
    for (const std::int64_t reprojection : {0, 3}) {
      if (kHostFixture && std::string(each.name) != (reprojection == 0 ? "momentum" : "a cosine with warm-up"))
        continue;

      SCOPED_TRACE(each.name);
      const Problem problem = problem_of(each.optimizer, {{30, 18, 12, 2}, true, 12}, Precision::fp64, reprojection);
      Trainer trainer = gram(problem), expected = primal(problem);
      trainer.save_weights(path);
      const auto on_both = [&](const auto& change) {
        change(trainer);
        change(expected);
        EXPECT_LE(std::abs(trainer.loss() / expected.loss() - 1), kBound);
        expect_near(trainer.train(5).losses, expected.train(5).losses, kBound);
        expect_same_state(problem, trainer, expected);
      };
      on_both([](Trainer&) {});
      on_both([&](Trainer& changed) { changed.write_weight(0, Problem::view(weight)); });
      on_both([&](Trainer& changed) { changed.write_bias(0, Problem::view(bias)); });
      on_both([&](Trainer& changed) { changed.write_weight(1, Problem::view(upper)); });
      on_both([&](Trainer& changed) { changed.set_data(Problem::view(x), Problem::view(y)); });
      on_both([&](Trainer& changed) { changed.set_data(Problem::view(more_x), Problem::view(more_y)); });
      on_both([&](Trainer& changed) { changed.initialize(5, Init::he); });
      on_both([&](Trainer& changed) { changed.load_weights(path); });
    }
}

// Integers, and a rate, a momentum and a decay that are powers of two: nothing rounds, so both formulations have the
// same bits, in parameters and momentum. The bits are counted for the equations of both.
TEST_P(GramOptimizers, AreExactOnSmallIntegers) {
  constexpr double kExactRate = 0.5, kDecay = 0.5, kMomentum = 0.5;
  constexpr int kSteps = 3;
  std::uint32_t state = 11;
  const auto integers = [&state](std::int64_t rows, std::int64_t columns) {
    exact::Table out{reference::Table(static_cast<std::size_t>(rows), static_cast<std::size_t>(columns)), 1};
    for (double& value : out.table.values) {
      state = state * 1664525u + 1013904223u;
      value = static_cast<int>((state >> 16) % 3) - 1;
    }
    return out;
  };
  const exact::Table x = integers(5, 4), start = integers(4, 3), start_bias = integers(1, 3);
  exact::BitCounter bits;
  exact::Table y =
      exact::add(integers(5, 3), 1, exact::forward({{start, start_bias}}, x, integers(5, 3), bits).z[0], bits);
  for (const bool nesterov : {false, true}) {
    // (p, v) by the gradient g, as sgd.
    const auto zeros = [](const exact::Table& as) {
      return exact::Table{reference::Table(as.table.rows, as.table.columns), 1};
    };
    const auto update = [&](exact::Table& p, exact::Table& v, const exact::Table& g) {
      const exact::Table decayed = exact::add(g, kDecay, p, bits);
      v = exact::add(decayed, kMomentum, v, bits);
      p = exact::add(p, -kExactRate, nesterov ? exact::add(decayed, kMomentum, v, bits) : v, bits);
    };
    exact::Table weight = start, weight_momentum = zeros(start), bias = start_bias, bias_momentum = zeros(start_bias);
    exact::Table z = exact::add(exact::multiply(x, false, start, false, bits), 1, start_bias, bits),
                 z_momentum = zeros(z);
    exact::Table sum = zeros(z), sum_momentum = zeros(z);
    exact::Table share = exact::ones(1, 1), share_momentum = zeros(share);
    exact::Table kernel = exact::add(exact::multiply(x, false, x, true, bits), 1, exact::ones(1, 1), bits);
    std::vector<double> losses;
    for (int step = 0; step < kSteps; ++step) {
      const std::vector<exact::Layer> layers = {{weight, bias}};
      const exact::Pass pass = exact::forward(layers, x, y, bits);
      ASSERT_EQ(pass.z[0].table.values, z.table.values);
      losses.push_back(pass.loss);
      const exact::Table dz = exact::gradients(layers, pass, bits)[0];
      update(weight, weight_momentum, exact::multiply(x, true, dz, false, bits));
      update(bias, bias_momentum, exact::multiply(exact::ones(1, dz.table.rows), false, dz, false, bits));
      update(z, z_momentum, exact::multiply(kernel, false, dz, false, bits));
      update(sum, sum_momentum, dz);
      update(share, share_momentum, zeros(share));
    }
    // Momentum begins with 0: what is rebuilt has a share of the parameters alone.
    const auto rebuilt = [&](const exact::Table& of, const exact::Table& factor, const exact::Table& a,
                             const exact::Table& b) {
      exact::Table diagonal{reference::Table(of.table.columns, of.table.columns), factor.unit};
      for (std::size_t i = 0; i < of.table.columns; ++i) diagonal.table(i, i) = factor.table.values[0];
      return exact::add(exact::multiply(of, false, diagonal, false, bits), 1, exact::multiply(a, true, b, false, bits),
                        bits)
          .table.values;
    };
    const exact::Table one = exact::ones(x.table.rows, 1);
    ASSERT_EQ(rebuilt(start, share, x, sum), weight.table.values);
    ASSERT_EQ(rebuilt(start, share_momentum, x, sum_momentum), weight_momentum.table.values);
    ASSERT_EQ(rebuilt(start_bias, share, one, sum), bias.table.values);
    ASSERT_EQ(rebuilt(start_bias, share_momentum, one, sum_momentum), bias_momentum.table.values);
    ASSERT_GT(losses.front(), 0);
    ASSERT_LE(bits.most(), 53) << "the case is too large to be exact";
    Problem problem = problem_of({.kind = OptimizerKind::sgd,
                                  .learning_rate = kExactRate,
                                  .momentum = kMomentum,
                                  .nesterov = nesterov,
                                  .weight_decay = kDecay},
                                 {{4, 3}, true, 5});
    problem.x = x.table;
    problem.y = y.table;
    problem.start = {{start.table, start_bias.table.values}};
    for (const std::int64_t reprojection : {0, 2}) {
      problem.training.reprojection_steps = reprojection;
      Trainer trainer = gram(problem);
      EXPECT_EQ(trainer.train(kSteps).losses, losses);
      EXPECT_EQ(state_of(problem, trainer),
                (std::vector<std::vector<double>>{weight.table.values, bias.table.values, weight_momentum.table.values,
                                                  bias_momentum.table.values}));
    }
  }
}

#ifdef DEVICELOOP_OPTIMIZERS_ON_CUDA
INSTANTIATE_TEST_SUITE_P(CudaExecutors, GramOptimizers, ::testing::Values(Where{ExecutorKind::graph}),
                         ::testing::PrintToStringParamName());
#else
INSTANTIATE_TEST_SUITE_P(Executors, GramOptimizers,
                         ::testing::Values(Where{ExecutorKind::cpu}, Where{ExecutorKind::cpu, {}, 3}),
                         ::testing::PrintToStringParamName());
#endif

}  // namespace
}  // namespace deviceloop
