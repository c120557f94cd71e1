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
  void SetUp() override {
    simt::reset();
    simt::set_devices({one()});
  }
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
  /// Of so many tiles that two clusters of four blocks are faster than one.
  static Problem of_two_clusters() {
    return Problem::random({4, 3, 3, 3, 2}, true, 780, Precision::bf16, Init::he, 1e-4);
  }
  /// Whose clusters are of one block.
  static simt::Device one() { return {"one", 9, 0, 1}; }
  static simt::Device twelve() { return {"twelve", 9, 0, 12}; }
  /// Where a cluster has at most four blocks.
  static simt::Device of_small_clusters() {
    simt::Device device = twelve();
    device.most_cluster_blocks = 4;
    return device;
  }
};

TEST_F(FusedExecutorCalls, ARunIsOneLaunchAndThreeCopies) {
  // Words of several clusters, and the counter of a barrier, are cleared before a launch.
  struct Case {
    simt::Device device;
    Problem problem;
    std::string way;
    int memsets;
  };
  simt::Device without_clusters = twelve();
  without_clusters.most_cluster_blocks = 1;
  for (const Case& c : {Case{twelve(), small(), "1 cluster of ", 0},
                        Case{of_small_clusters(), of_two_clusters(), "2 clusters of 4 blocks", 1},
                        Case{without_clusters, of_two_clusters(), "12 blocks of ", 1}}) {
    SCOPED_TRACE(c.way);
    simt::set_devices({c.device});
    Trainer trainer = trainer_of(c.problem);
    for (int run = 0; run < 2; ++run) {
      const simt::Counts before = simt::counts();
      const TrainReport report = trainer.train(1);
      const simt::Counts after = simt::counts();
      EXPECT_MENTIONS(report.algorithms.at(0), c.way);
      EXPECT_EQ(after.launches - before.launches, 1);
      EXPECT_EQ(after.graph_launches - before.graph_launches, 0);
      // The steps' scalars where they vary, the losses, and whether all went well.
      EXPECT_EQ(after.copies - before.copies, c.problem.training.optimizer.kind == OptimizerKind::adam ? 3 : 2);
      EXPECT_EQ(after.memsets - before.memsets, c.memsets);
      EXPECT_EQ(after.allocations - before.allocations, 0);
    }
  }
}

// The plan has an estimate of which clusters run at once; blocks that do not would be waited for in vain.
TEST_F(FusedExecutorCalls, WhereClustersAreTooFewTheRunIsPlannedForThoseThatThereAre) {
  const auto train = [](const simt::Device& device) {
    simt::set_devices({device});
    std::size_t before = 0, after = 0, total = 0;
    EXPECT_EQ(cudaMemGetInfo(&before, &total), cudaSuccess);
    Trainer trainer = trainer_of(of_two_clusters());
    EXPECT_EQ(cudaMemGetInfo(&after, &total), cudaSuccess);
    EXPECT_EQ(trainer.plan().bytes, before - after);
    return trainer.train(1);
  };
  const TrainReport planned = train(twelve()), of_two = train(of_small_clusters());
  EXPECT_MENTIONS(planned.algorithms.at(0), "1 cluster of 8 blocks of 384 threads");
  EXPECT_EQ(planned.algorithms.at(0).find("otherwise"), std::string::npos);
  EXPECT_MENTIONS(of_two.algorithms.at(0), "2 clusters of 4 blocks of 384 threads");
  EXPECT_MENTIONS(of_two.algorithms.at(0),
                  "otherwise than planned: 1 cluster of 8 blocks must run at once, of which twelve runs 0");
  simt::Device plain = of_small_clusters();
  plain.cooperative_with_clusters = cudaErrorNotSupported;
  const TrainReport not_cooperative = train(plain);
  EXPECT_MENTIONS(not_cooperative.algorithms.at(0), ", no cooperative launch");
  EXPECT_EQ(not_cooperative.losses, of_two.losses);
  simt::Device without = twelve();
  without.most_cluster_blocks = 1;
  const TrainReport of_slots = train(without);
  EXPECT_MENTIONS(of_slots.algorithms.at(0), "12 blocks of ");
  EXPECT_MENTIONS(of_slots.algorithms.at(0), "otherwise than planned: ");
  EXPECT_NEAR(of_two.losses[0] / planned.losses[0], 1, 1e-6);
  EXPECT_NEAR(of_slots.losses[0] / planned.losses[0], 1, 1e-6);
}

TEST_F(FusedExecutorCalls, AWordBetweenClustersThatIsLostEndsTheLaunchByItsDeadline) {
  Problem problem = of_two_clusters();
  problem.training.deadline_ms = 50;
  simt::set_devices({of_small_clusters()});
  Trainer trainer = trainer_of(problem);
  simt::lose_publication(1);
  const std::string message = testing::refusal<DeviceError>(
      "plan 'fused': the GPU's blocks waited for each other longer than 50 ms, in step 0, for '",
      [&] { trainer.train(1); });
  EXPECT_TRUE(message.find("'sums of other clusters'") != std::string::npos ||
              message.find("'new parameters'") != std::string::npos)
      << message;
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
  const auto [failures, deaths] =
      testing::fail_every_call(problem, ExecutorKind::fused, 2, 1, cudaErrorMemoryAllocation, one());
  EXPECT_GT(failures, 40);
  EXPECT_GT(deaths, 10);
}

}  // namespace
}  // namespace deviceloop
