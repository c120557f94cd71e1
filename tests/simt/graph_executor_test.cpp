// What only the host fixture can show of the graph executor: what it asks of CUDA, and what it does when that fails.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include <deviceloop/deviceloop.h>

#include "../../cuda/runtime/owners.h"
#include "failing_calls.h"
#include "planning/graph_layout.h"
#include "simt/control.h"
#include "support/problem.h"
#include "support/refusal.h"

namespace deviceloop {
namespace {

using testing::refusal;

class GraphExecutor : public ::testing::Test {
 protected:
  void SetUp() override { simt::reset(); }
  void TearDown() override {
    simt::reset();
    simt::refuse_cublaslt("");
    EXPECT_EQ(simt::live_objects(), 0);
  }
  static Trainer trainer_of(const Problem& problem) { return problem.trainer(1, ExecutorKind::graph); }
  /// In fp32 products are the own kernel's, in fp64 the library's.
  static Problem small(std::vector<std::int64_t> widths = {3, 20, 1}, std::int64_t samples = 4,
                       Precision precision = Precision::fp32) {
    return Problem::random(std::move(widths), true, samples, precision, Init::he, 1e-4);
  }
  static Problem small_gram(std::vector<std::int64_t> widths = {40, 20, 1}, std::int64_t samples = 4,
                            Precision precision = Precision::fp32) {
    Problem problem = small(std::move(widths), samples, precision);
    problem.training.formulation = Formulation::gram;
    return problem;
  }
  static int difference(int simt::Counts::*count, const simt::Counts& before) {
    return simt::counts().*count - before.*count;
  }
};

TEST_F(GraphExecutor, AStepIsKernelsAloneAndAChunkOneLaunchAndOneCopy) {
  const Problem problem = small();
  Trainer trainer = trainer_of(problem);
  const std::int64_t steps = 5 * 32 + 3;
  trainer.train(steps);
  const GraphLayout layout = make_graph_layout(problem.network, trainer.training());
  ASSERT_EQ(layout.steps_per_launch, 32);
  EXPECT_EQ(simt::counts().kernel_nodes, 33 * layout.nodes_per_step());  // 32 steps, and one
  EXPECT_EQ(simt::counts().other_nodes, 0);

  const simt::Counts before = simt::counts();
  trainer.train(steps);
  EXPECT_EQ(difference(&simt::Counts::graph_launches, before), 5 + 3);
  EXPECT_EQ(difference(&simt::Counts::copies, before), 6);
  EXPECT_EQ(difference(&simt::Counts::memsets, before), 1);
  EXPECT_EQ(difference(&simt::Counts::launches, before), 0);
  EXPECT_EQ(difference(&simt::Counts::allocations, before), 0);
  EXPECT_EQ(difference(&simt::Counts::kernel_nodes, before), 0);
  EXPECT_EQ(difference(&simt::Counts::synchronisations, before), 2);  // the losses, the end
}

TEST_F(GraphExecutor, WhatHappensOnceHappensBeforeTheFirstStep) {
  for (const Problem& problem : {small(), small({5, 4, 2}), small_gram(), small({3, 20, 18, 1}, 4, Precision::fp16)}) {
    Trainer trainer = trainer_of(problem);
    const simt::Counts before = simt::counts();
    trainer.train(500);
    const simt::Counts between = simt::counts();
    EXPECT_EQ(difference(&simt::Counts::allocations, before), 0);
    EXPECT_EQ(difference(&simt::Counts::kernel_nodes, before), 0);
    // The Gram formulation computes K and Z of the data, in the time that a run reports.
    const bool is_gram = problem.training.formulation == Formulation::gram;
    EXPECT_EQ(difference(&simt::Counts::launches, before) > 0, is_gram);
    trainer.train(500);
    for (const auto count : {&simt::Counts::graph_launches, &simt::Counts::copies, &simt::Counts::synchronisations})
      EXPECT_EQ(difference(count, between), between.*count - before.*count);
  }
}

TEST_F(GraphExecutor, PreparesBeforeThereAreDataWhereTheirNumberIsKnown) {
  Problem problem = small();
  TrainingSpec training = problem.training;
  training.samples = problem.x.rows;
  Trainer trainer(problem.network, training, ExecutorKind::graph);
  trainer.prepare();
  const simt::Counts before = simt::counts();
  problem.set_parameters(trainer, problem.start);
  trainer.set_data(Problem::view(problem.x), Problem::view(problem.y));
  const TrainReport report = trainer.train(40);
  EXPECT_EQ(difference(&simt::Counts::allocations, before), 0);
  EXPECT_EQ(difference(&simt::Counts::kernel_nodes, before), 0);
  EXPECT_EQ(report.losses, trainer_of(problem).train(40).losses);
  std::vector<std::string> stages;
  for (const PreparationStage& stage : report.preparation) stages.push_back(stage.name);
  EXPECT_EQ(stages, (std::vector<std::string>{"devices", "plan", "data", "context", "memory", "library", "kernels",
                                              "capture"}));
  EXPECT_GT(report.prepare_ms, 0);
  EXPECT_EQ(trainer.train(1).prepare_ms, 0);
}

TEST_F(GraphExecutor, AStepOfTheGramFormulationIsKernelsAloneToo) {
  for (const auto& widths : std::vector<std::vector<std::int64_t>>{{40, 20, 1}, {40, 3, 2}, {40, 17}, {40, 1}}) {
    SCOPED_TRACE(::testing::PrintToString(widths));
    const Problem problem = small_gram(widths);
    simt::Counts before = simt::counts();
    Trainer trainer = trainer_of(problem);
    trainer.train(2 * 32 + 1);
    const GraphLayout layout = make_graph_layout(problem.network, trainer.training());
    EXPECT_EQ(difference(&simt::Counts::kernel_nodes, before), 33 * layout.nodes_per_step());
    EXPECT_EQ(simt::counts().other_nodes, 0);
    // Again: the first layer's parameters are computed at the end alone, a product and, if it is not an own one, the
    // sum of the bias, from copies of what they were.
    before = simt::counts();
    trainer.train(2 * 32 + 1);
    EXPECT_EQ(difference(&simt::Counts::launches, before), widths[1] > 16 ? 1 : 2);
    EXPECT_EQ(difference(&simt::Counts::copies, before), 3 + 2);
    EXPECT_EQ(difference(&simt::Counts::allocations, before), 0);
    EXPECT_EQ(difference(&simt::Counts::synchronisations, before), 2);
  }
}

TEST_F(GraphExecutor, ThePlanCountsTheBytesThatAreTaken) {
  for (const auto& widths : std::vector<std::vector<std::int64_t>>{{3, 20, 1}, {5, 4, 2}, {7, 30, 40, 20}})
    for (const Problem& problem : {small(widths, 33), small_gram(widths, 33), small(widths, 33, Precision::bf16),
                                   small(widths, 33, Precision::tf32x3), small(widths, 33, Precision::fp16)}) {
      std::size_t before = 0, after = 0, total = 0;
      ASSERT_EQ(cudaMemGetInfo(&before, &total), cudaSuccess);
      const Trainer trainer = trainer_of(problem);
      ASSERT_EQ(cudaMemGetInfo(&after, &total), cudaSuccess);
      EXPECT_EQ(trainer.plan().bytes, before - after);
    }
}

void check_order_of_losses(const Problem& problem) {
  const auto trainer_of = [](const Problem& of) { return of.trainer(1, ExecutorKind::graph); };
  Trainer whole = trainer_of(problem), parts = trainer_of(problem);
  const std::vector<double> losses = whole.train(300).losses;
  ASSERT_EQ(losses.size(), 300u);
  std::vector<double> joined;
  for (const std::int64_t steps : {7, 64, 1, 96, 33, 31, 68}) {
    const std::vector<double> some = parts.train(steps).losses;
    joined.insert(joined.end(), some.begin(), some.end());
  }
  EXPECT_EQ(joined, losses);
  EXPECT_EQ(flat(problem.parameters_of(parts)), flat(problem.parameters_of(whole)));
  for (std::size_t i = 1; i < losses.size(); ++i) EXPECT_LT(losses[i], losses[i - 1]) << i;
  // In chunks with a callback between them.
  Trainer watched = trainer_of(problem);
  EXPECT_EQ(watched
                .train(
                    300, [](const TrainProgress&) { return true; }, 45)
                .losses,
            losses);
}

TEST_F(GraphExecutor, LossesStayInOrderOverManyChunksAndCalls) { check_order_of_losses(small({3, 2, 1}, 5)); }

TEST_F(GraphExecutor, LossesStayInOrderOverReprojections) {
  Problem problem = small_gram({7, 2, 1}, 5);
  problem.training.reprojection_steps = 40;
  check_order_of_losses(problem);
}

// 0x81 in every byte of the counter of steps would put a loss on the learning rate, were it read before it was set.
TEST_F(GraphExecutor, WhatMemoryHoldsAtFirstDoesNotMatter) {
  for (const Problem& problem : {small({1, 1}), small({3, 20, 1}), small_gram(),
                                 small({3, 20, 18, 1}, 4, Precision::bf16), small({3, 20, 1}, 4, Precision::tf32x3)}) {
    std::vector<double> losses;
    for (const int byte : {0xff, 0x81, 0xc1, 0x00}) {
      simt::set_fresh_byte(byte);
      Trainer trainer = trainer_of(problem);
      const std::vector<double> again = trainer.train(40).losses;
      if (losses.empty()) losses = again;
      EXPECT_EQ(again, losses) << "memory full of " << byte;
      EXPECT_LT(again.back(), again.front());
    }
  }
}

TEST_F(GraphExecutor, RunsOnTheDeviceThatIsAskedForAndLeavesTheCurrentOneAsItWas) {
  for (const ExecutorKind kind : {ExecutorKind::graph, ExecutorKind::persistent}) {
    SCOPED_TRACE(name(kind));
    simt::reset();
    simt::set_devices({{"first", 9, 0, 132}, {"second", 8, 0, 108}});
    Problem problem = small();
    problem.training.device = {DeviceKind::cuda, 1};
    {
      Trainer trainer = problem.trainer(1, kind);
      EXPECT_EQ(trainer.plan().device, 1);
      EXPECT_GT(trainer.train(3).losses[0], 0);
    }
    int device = -1;
    ASSERT_EQ(cudaGetDevice(&device), cudaSuccess);
    EXPECT_EQ(device, 0);
    EXPECT_TRUE(simt::has_context(1));
    EXPECT_FALSE(simt::has_context(0));
  }
}

TEST_F(GraphExecutor, MemoryThatIsTakenByOthersIsSeenBeforeAllocating) {
  const Problem problem = small({3, 20, 1}, 4, Precision::fp64);
  simt::set_devices({{"small", 9, 0, 132, std::size_t{64} << 20}});
  const cuda::DeviceBuffer others(std::size_t{40} << 20);
  const simt::Counts before = simt::counts();
  const auto message = refusal<Unsupported>("plan 'graph' takes ", [&] { trainer_of(problem); });
  EXPECT_MENTIONS(message, "of which 24.0 MiB are free");
  EXPECT_EQ(difference(&simt::Counts::allocations, before), 0);
}

TEST_F(GraphExecutor, WithoutCublasLtOnlyWhatNeedsNoLargeProductsRuns) {
  const std::vector<double> losses = trainer_of(small()).train(3).losses;
  simt::refuse_cublaslt("cuBLASLt was not found: it hides");
  EXPECT_EQ(trainer_of(small()).train(3).losses, losses);
  EXPECT_EQ(trainer_of(small_gram()).plan().executor, ExecutorKind::graph);
  const Problem problem = small({3, 20, 1}, 4, Precision::fp64);
  EXPECT_MENTIONS(refusal<Unsupported>("plan 'graph': ", [&] { trainer_of(problem); }), "it hides");
  EXPECT_EQ(problem.trainer(1).plan().executor, ExecutorKind::persistent);  // whose products are its own
  EXPECT_EQ(trainer_of(small({3, 16, 1}, 4, Precision::fp64)).plan().executor, ExecutorKind::graph);
  EXPECT_MENTIONS(refusal<Unsupported>("plan 'graph': ",
                                       [&] {
                                         trainer_of(small_gram({3, 16, 1}, 4, Precision::fp64));
                                       }),
                  "it hides");  // K is a product
}

TEST_F(GraphExecutor, TuningTriesAlgorithmsAndChangesNothingElse) {
  Problem problem = small({6, 30, 20, 1}, 9, Precision::fp64);
  Trainer first = trainer_of(problem);
  const TrainReport expected = first.train(6);
  ASSERT_EQ(expected.algorithms.size(), 5u);
  EXPECT_EQ(expected.algorithms[0].substr(0, 41), "layer 0, forward: 9 x 30 x 6: algorithm 1");
  const simt::Counts before = simt::counts();
  trainer_of(problem);
  const int launches = difference(&simt::Counts::launches, before);
  problem.training.deterministic = false;
  const simt::Counts before_tuning = simt::counts();
  Trainer tuned = trainer_of(problem);
  // Two algorithms for each of five products, 51 times each.
  EXPECT_EQ((difference(&simt::Counts::launches, before_tuning) - launches) / 510, 1);
  const TrainReport report = tuned.train(6);
  ASSERT_EQ(report.losses.size(), expected.losses.size());
  EXPECT_NEAR(report.losses[0] / expected.losses[0], 1, 1e-12);  // algorithms add in orders of their own
  for (std::size_t i = 0; i < report.losses.size(); ++i)
    EXPECT_NEAR(report.losses[i] / expected.losses[i], 1, 1e-6) << i;
  EXPECT_EQ(report.algorithms.size(), 5u);
}

TEST_F(GraphExecutor, ReportsHowOwnProductsAreCut) {
  const TrainReport report = trainer_of(small({64, 30, 1}, 9)).train(2);
  EXPECT_EQ(
      report.algorithms,
      (std::vector<std::string>{"layer 0, forward: 9 x 30 x 64: own, tiles of 16 x 32, clusters of 1",
                                "layer 0, update of its weights: 64 x 30 x 9: own, tiles of 16 x 32, clusters of 1",
                                "layer 1, update of its weights: 30 x 1 x 9: own, tiles of 16 x 32, clusters of 1"}));
  EXPECT_EQ(trainer_of(small({64, 50, 1}, 9)).train(1).algorithms[0],
            "layer 0, forward: 9 x 50 x 64: own, tiles of 16 x 32, clusters of 2, 2 of them side by side");
}

// Products that end with a loss and not, gradients of several launches together, and what stands between them.
TEST_F(GraphExecutor, StepsOfOwnProductsFollowTheCpuWithTheSameBitsAgain) {
  struct Case {
    std::vector<std::int64_t> widths;
    Optimizer optimizer{.kind = OptimizerKind::adam, .learning_rate = 0.01};
    Activation activation = Activation::relu;
    std::int64_t batch = 0;
    Loss loss = Loss::squared_error;
  };
  const Optimizer descent{.learning_rate = 1e-4};
  const Optimizer momentum{.kind = OptimizerKind::sgd, .learning_rate = 1e-4, .momentum = 0.9};
  const Optimizer clipped{.kind = OptimizerKind::adam, .learning_rate = 0.01, .clip_norm = 0.5};
  const Case cases[] = {
      {{20, 40, 3}, descent},
      {{20, 100, 10}, {.kind = OptimizerKind::adam, .learning_rate = 0.01}, Activation::relu, 16, Loss::cross_entropy},
      {{18, 33, 40, 1}, momentum, Activation::identity},
      {{18, 33, 40, 1}, clipped, Activation::relu, 16},
      {{18, 40, 36, 1}, {.kind = OptimizerKind::rmsprop, .learning_rate = 0.001}, Activation::tanh},
      {{18, 20, 19, 21, 18, 20, 17, 22, 19, 18, 2}}};  // more layers than a launch takes
  for (const Case& of : cases) {
    SCOPED_TRACE(::testing::PrintToString(of.widths));
    Problem problem = small(of.widths, 37);
    problem.network.activation = of.activation;
    problem.training.optimizer = of.optimizer;
    problem.training.batch_size = of.batch;
    problem.training.loss = of.loss;
    if (of.loss == Loss::cross_entropy)
      for (double& target : problem.y.values) target = std::abs(target);
    const auto outcome_on = [&](ExecutorKind kind) {
      Trainer trainer = problem.trainer(1, kind);
      const std::vector<double> losses = trainer.train(8).losses;
      return std::pair(losses, flat(problem.parameters_of(trainer)));
    };
    const auto graph = outcome_on(ExecutorKind::graph), cpu = outcome_on(ExecutorKind::cpu);
    EXPECT_EQ(outcome_on(ExecutorKind::graph), graph);
    ASSERT_EQ(graph.first.size(), cpu.first.size());
    EXPECT_NE(cpu.first.front(), cpu.first.back());
    for (std::size_t i = 0; i < cpu.first.size(); ++i)
      EXPECT_LE(reference::loss_error(graph.first[i], cpu.first[i], cpu.first[0]), 2e-4) << "step " << i;
    ASSERT_EQ(graph.second.size(), cpu.second.size());
    double error = 0, norm = 0;
    for (std::size_t i = 0; i < cpu.second.size(); ++i) {
      error += (graph.second[i] - cpu.second[i]) * (graph.second[i] - cpu.second[i]);
      norm += cpu.second[i] * cpu.second[i];
    }
    EXPECT_LE(std::sqrt(error / norm), 1e-4);
  }
}

TEST_F(GraphExecutor, TuningInTheGramFormulationChangesNothingElse) {
  Problem problem = small_gram({30, 20, 18, 1}, 9, Precision::fp64);
  const TrainReport expected = trainer_of(problem).train(6);
  ASSERT_EQ(expected.algorithms.size(), 4u + 3u);
  EXPECT_EQ(expected.algorithms[0].substr(0, 27), "layer 0, K: 9 x 9 x 30: alg");
  const simt::Counts before = simt::counts();
  trainer_of(problem);
  const int launches = difference(&simt::Counts::launches, before);
  problem.training.deterministic = false;
  const simt::Counts before_tuning = simt::counts();
  Trainer tuned = trainer_of(problem);
  // Two algorithms for each of four, 51 times each.
  EXPECT_EQ((difference(&simt::Counts::launches, before_tuning) - launches) / 408, 1);
  const TrainReport report = tuned.train(6);
  ASSERT_EQ(report.losses.size(), expected.losses.size());
  ASSERT_EQ(report.losses.size(), 6u);
  for (std::size_t i = 0; i < report.losses.size(); ++i)
    EXPECT_NEAR(report.losses[i] / expected.losses[i], 1, 1e-6) << i;
}

// Of every `stride` calls one, in lives of so many steps.
void check_failure_of_calls(const Problem& problem, int stride, std::int64_t steps) {
  const testing::FailedCalls counts = testing::fail_every_call(problem, ExecutorKind::graph, steps, stride);
  // The second code only now and then: it takes the same ways out.
  const testing::FailedCalls others =
      testing::fail_every_call(problem, ExecutorKind::graph, steps, 7 * stride, cudaErrorIllegalAddress);
  const int failures = counts.failures + others.failures, deaths = counts.deaths + others.deaths;
  EXPECT_GT(failures, 100 / stride);
  EXPECT_GT(deaths, 30 / stride);
}

TEST_F(GraphExecutor, EveryCallMayFail) {
  check_failure_of_calls(small({3, 2, 1}, 4), 1, 2);    // own kernels alone
  check_failure_of_calls(small({3, 20, 1}, 4), 4, 35);  // more steps than a launch has
}

TEST_F(GraphExecutor, ManyCallsMayFailInTheGramFormulation) {
  Problem problem = small_gram({7, 20, 1}, 3);
  problem.training.reprojection_steps = 20;
  check_failure_of_calls(problem, 6, 35);
}

// Such as a GPU that the build holds no code for, which is no DeviceError.
TEST_F(GraphExecutor, AnErrorOfAnyTypeInTheMiddleOfStepsIsTheEndOfTheExecutor) {
  const Problem problem = small({3, 2, 1}, 4);
  int deaths = 0;
  for (int call = 1;; ++call) {
    SCOPED_TRACE("call " + std::to_string(call));
    Trainer trainer = trainer_of(problem);
    simt::fail_call(call, cudaErrorNoKernelImageForDevice);
    bool failed = false;
    try {
      trainer.train(4 * 32 + 3);
    } catch (const Unsupported&) {
      failed = true;
    }
    if (simt::calls_until_failure() != 0) break;
    simt::reset();
    if (!failed) continue;  // something was given back, which nobody checks
    try {
      EXPECT_EQ(flat(problem.parameters_of(trainer)), flat(problem.start));
    } catch (const DeviceError& error) {
      ++deaths;
      EXPECT_MENTIONS(error.what(), "this trainer cannot be used any more");
    }
  }
  EXPECT_GT(deaths, 30);
}

// The starting case as a whole, against the CPU.
TEST_F(GraphExecutor, TrainsTheStartingCaseAsTheCpuDoes) {
  NetworkSpec network;
  network.widths = {1000, 100, 1};
  TrainingSpec training;
  training.optimizer.learning_rate = 1e-6;
  const std::int64_t samples = 128;
  constexpr int kSteps = 12;  // products of 128 blocks take the host a while
  std::vector<float> x(static_cast<std::size_t>(samples * 1000)), y(static_cast<std::size_t>(samples));
  fill_normal(Matrix(x.data(), samples, 1000), 0, kTensorX);
  fill_normal(Matrix(y.data(), samples, 1), 0, kTensorY);
  const auto losses_on = [&](ExecutorKind kind) {
    Trainer trainer(network, training, kind);
    trainer.initialize(0, Init::normal);
    trainer.set_data(ConstMatrix(x.data(), samples, 1000), ConstMatrix(y.data(), samples, 1));
    EXPECT_EQ(trainer.plan().executor, kind);
    return trainer.train(kSteps).losses;
  };
  const std::vector<double> graph = losses_on(ExecutorKind::graph), cpu = losses_on(ExecutorKind::cpu);
  ASSERT_EQ(graph.size(), std::size_t{kSteps});
  EXPECT_LE(std::abs(graph.front() / cpu.front() - 1), 1e-6);
  EXPECT_LE(std::abs(graph.back() / cpu.back() - 1), 1e-4);
  for (std::size_t i = 0; i < graph.size(); ++i)
    EXPECT_LE(reference::loss_error(graph[i], cpu[i], cpu[0]), 2e-4) << "step " << i;
}

}  // namespace
}  // namespace deviceloop
