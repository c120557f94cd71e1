// What only the host fixture can show of the plan `fused`: what it asks of CUDA, and what it does when that fails.
#include <gtest/gtest.h>

#include <cstddef>
#include <optional>
#include <string>
#include <vector>

#include <deviceloop/deviceloop.h>

#include "failing_calls.h"
#include "simt/control.h"
#include "support/problem.h"
#include "support/refusal.h"

namespace deviceloop {
namespace {

class FusedExecutorCalls : public ::testing::Test {
 protected:
  void SetUp() override { simt::reset(); }
  void TearDown() override {
    simt::reset();
    EXPECT_EQ(simt::live_objects(), 0);
  }
  /// With scalars that vary from step to step, and gathered rows or all.
  static Problem small(std::int64_t batch_size = 0) {
    Problem problem = Problem::random({4, 3, 2}, true, 9, Precision::bf16, Init::he, 1e-2);
    problem.training.optimizer.kind = OptimizerKind::adam;
    problem.training.batch_size = batch_size;
    return problem;
  }
  static Trainer trainer_of(const Problem& problem) { return problem.trainer(1, ExecutorKind::fused); }
};

TEST_F(FusedExecutorCalls, ARunIsOneLaunchAndThreeCopies) {
  Trainer trainer = trainer_of(small());
  for (int run = 0; run < 2; ++run) {
    const simt::Counts before = simt::counts();
    trainer.train(3);
    const simt::Counts after = simt::counts();
    EXPECT_EQ(after.launches - before.launches, 1);
    EXPECT_EQ(after.graph_launches - before.graph_launches, 0);
    EXPECT_EQ(after.copies - before.copies, 3);  // the steps' scalars, the losses, and whether all went well
    EXPECT_EQ(after.memsets - before.memsets, 1);
    EXPECT_EQ(after.allocations - before.allocations, 0);
  }
}

TEST_F(FusedExecutorCalls, ThePlanCountsTheBytesThatAreTaken) {
  for (const std::int64_t batch_size : {0, 5}) {
    std::size_t before = 0, after = 0, total = 0;
    ASSERT_EQ(cudaMemGetInfo(&before, &total), cudaSuccess);
    const Trainer trainer = trainer_of(small(batch_size));
    ASSERT_EQ(cudaMemGetInfo(&after, &total), cudaSuccess);
    EXPECT_EQ(trainer.plan().bytes, before - after);
  }
}

TEST_F(FusedExecutorCalls, NeedsNoCublasLt) {
  simt::refuse_cublaslt("cuBLASLt was not found: it hides");
  const std::vector<double> losses = trainer_of(small()).train(3).losses;
  EXPECT_LT(losses.back(), losses.front());
  simt::refuse_cublaslt("");
}

TEST_F(FusedExecutorCalls, WhatMemoryHoldsAtFirstDoesNotMatter) {
  for (const std::int64_t batch_size : {0, 5}) {
    const Problem problem = small(batch_size);
    std::vector<double> losses, parameters;
    for (const int byte : {0xff, 0x81, 0x00}) {
      simt::set_fresh_byte(byte);
      Trainer trainer = trainer_of(problem);
      std::vector<double> again = trainer.train(2).losses;
      again.push_back(trainer.loss());
      if (losses.empty()) losses = again, parameters = flat(problem.parameters_of(trainer));
      EXPECT_EQ(again, losses) << "memory full of " << byte;
      EXPECT_EQ(flat(problem.parameters_of(trainer)), parameters) << "memory full of " << byte;
    }
  }
}

TEST_F(FusedExecutorCalls, EveryCallMayFail) {
  Problem problem = small();
  problem.training.optimizer = {.learning_rate = 1e-2};
  const auto [failures, deaths] = testing::fail_every_call(problem, ExecutorKind::fused, 2);
  EXPECT_GT(failures, 40);
  EXPECT_GT(deaths, 10);
}

}  // namespace
}  // namespace deviceloop
