// Memory that is refused, at every place where the library asks for some: see support/fault_sweep.h. This is the CPU's
// executor; tests/simt/fault_sweep_test.cpp has those of a GPU.
#include <gtest/gtest.h>

#include <iostream>

#include "support/fault_sweep.h"
#include "support/sanitized.h"

namespace deviceloop {
namespace {

using testing::FaultSweep;
using testing::life_case;
using testing::LifeCase;
using testing::Sweep;

LifeCase minibatches() {
  LifeCase made = life_case("adam, schedule, minibatches, weights", ExecutorKind::cpu, {4, 5, 3, 2});
  TrainingSpec& training = made.problem.training;
  training.optimizer.kind = OptimizerKind::adam;
  training.optimizer.schedule = {ScheduleKind::exponential, 0, 0.9, 0, 2};
  training.optimizer.clip_norm = 1;
  training.batch_size = 4;
  made.weights = Problem::filled(6, 1, Precision::fp32, 5, 3);
  for (double& weight : made.weights.values) weight = weight * weight;
  return made;
}

LifeCase threads() {
  LifeCase made = life_case("three threads, fp64", ExecutorKind::cpu, {4, 5, 2}, 200);
  made.problem.training.precision = Precision::fp64;
  made.problem.training.watch.patience = 100;
  made.threads = 3;
  return made;
}

LifeCase gram() {
  LifeCase made = life_case("gram, sgd", ExecutorKind::cpu, {20, 5, 1});
  TrainingSpec& training = made.problem.training;
  training.formulation = Formulation::gram;
  training.optimizer.kind = OptimizerKind::sgd;
  training.optimizer.momentum = 0.5;
  training.reprojection_steps = 3;
  return made;
}

class RefusedMemory : public ::testing::TestWithParam<LifeCase> {};

// Every place; under sanitizers one of many.
TEST_P(RefusedMemory, LeavesNothingHalfDone) {
  FaultSweep sweep(GetParam());
  const Sweep seen = sweep.run(testing::failing_allocation(), testing::stride_or(kSlowMachine ? 41 : 1));
  std::cout << seen << '\n';
  EXPECT_GT(seen.failures, seen.lives / 2);
  EXPECT_EQ(seen.deaths, 0);
}

INSTANTIATE_TEST_SUITE_P(OnTheCpu, RefusedMemory, ::testing::Values(minibatches(), threads(), gram()),
                         [](const auto& tested) { return "Case" + std::to_string(tested.index); });

}  // namespace
}  // namespace deviceloop
