#include "step/gram_shares.h"

#include <gtest/gtest.h>

#include <cstdint>

#include "support/optimizer_cases.h"
#include "support/reference_optimizer.h"

namespace deviceloop {
namespace {

// Against the update of a parameter and its momentum, written out, with the gradient 0. In fp32 the numbers that the
// update reads are rounded first.
TEST(GramShares, FollowTheUpdateWithoutAGradient) {
  using Kind = OptimizerKind;
  const Optimizer all{.kind = Kind::sgd, .learning_rate = 0.003, .momentum = 0.8, .nesterov = true, .weight_decay = 3};
  const Optimizer optimizers[] = {
      all,
      {.kind = Kind::sgd, .learning_rate = 0.003, .momentum = 0.9},
      {.kind = Kind::sgd, .learning_rate = 0.003, .momentum = 0.9, .weight_decay = 2},
      {.kind = Kind::sgd, .learning_rate = 0.003, .weight_decay = 5},
      {.kind = Kind::sgd, .learning_rate = 0.003},
      scheduled(all, {.kind = ScheduleKind::cosine, .period = 80, .end_rate = 1e-5, .warmup_steps = 40}),
      scheduled(all, {.kind = ScheduleKind::exponential, .factor = 0.97}),
  };
  for (const Precision precision : {Precision::fp64, Precision::fp32})
    for (const Optimizer& optimizer : optimizers) {
      SCOPED_TRACE(&optimizer - optimizers);
      const auto rounded = [&](double value) {
        return precision == Precision::fp64 ? value : static_cast<double>(static_cast<float>(value));
      };
      TrainingSpec training;
      training.precision = precision;
      training.optimizer = optimizer;
      const long double momentum = rounded(optimizer.momentum), decay = rounded(optimizer.weight_decay.value_or(0));
      long double expected[2][2] = {{1, 0}, {0, 1}};
      constexpr std::int64_t kFirst = 13, kSteps = 90;
      for (std::int64_t step = kFirst; step < kFirst + kSteps; ++step)
        for (auto& [parameter, state] : expected) {
          const long double g = decay * parameter;
          state = momentum * state + g;
          parameter -=
              rounded(reference::learning_rate(optimizer, step)) * (optimizer.nesterov ? g + momentum * state : state);
        }
      GramShares whole, parts;
      whole.take_steps(training, kFirst, kSteps);
      for (std::int64_t done = 0; done < kSteps; done += 9) parts.take_steps(training, kFirst + done, 9);
      for (const GramShares& got : {whole, parts})
        for (const int state : {-1, 0}) {
          const int row = state < 0 ? 0 : 1;
          EXPECT_NEAR(got.of_start(state), static_cast<double>(expected[0][row]), 1e-13) << state;
          EXPECT_NEAR(got.of_start_state(state), static_cast<double>(expected[1][row]), 1e-13) << state;
        }
    }
}

TEST(GramShares, OfGradientDescentAreTheStartAlone) {
  TrainingSpec training;
  training.optimizer = scheduled({.learning_rate = 0.3}, {.kind = ScheduleKind::exponential});
  GramShares shares;
  shares.take_steps(training, 0, 50);
  EXPECT_EQ(shares.of_start(-1), 1);
}

}  // namespace
}  // namespace deviceloop
