// What only the host fixture can show of the persistent executor: what it asks of CUDA, what it does when that fails,
// and what becomes of blocks that never meet.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <optional>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include <deviceloop/deviceloop.h>

#include "../../cuda/runtime/gpu.h"
#include "../../cuda/runtime/owners.h"
#include "failing_calls.h"
#include "planning/persistent_layout.h"
#include "simt/control.h"
#include "support/problem.h"
#include "support/refusal.h"

namespace deviceloop {
namespace {

using testing::refusal;

class PersistentExecutor : public ::testing::Test {
 protected:
  void SetUp() override { simt::reset(); }
  void TearDown() override {
    simt::reset();
    simt::refuse_cublaslt("");
    EXPECT_EQ(simt::live_objects(), 0);
  }
  static Trainer trainer_of(const Problem& problem) { return problem.trainer(1, ExecutorKind::persistent); }
  static Problem small(PersistentForm form = PersistentForm::automatic, bool bias = true) {
    const std::vector<std::int64_t> widths =
        form == PersistentForm::two_layer ? std::vector<std::int64_t>{4, 3, 1} : std::vector<std::int64_t>{4, 3, 2, 1};
    Problem problem = Problem::random(widths, bias, 4, Precision::fp32, Init::he, 1e-4);
    problem.training.form = form;
    return problem;
  }
  /// On a GPU of 16 multiprocessors two layers for which it takes clusters of several blocks.
  static Problem clustered(PersistentForm form) {
    Problem problem = Problem::random({1000, 16, 1}, false, 64, Precision::fp32, Init::normal, 1e-6);
    problem.training.form = form;
    return problem;
  }
  /// A GPU whose blocks have too little memory for what one cluster would have to hold.
  static simt::Device of_small_clusters(int shared_kib) {
    simt::Device device{"six", 9, 0, 6};
    device.shared_bytes = shared_kib << 10;
    return device;
  }
  static Problem minibatches() {
    Problem problem = Problem::random({64, 64, 64, 1}, true, 150, Precision::fp32, Init::he, 1e-5);
    problem.training.batch_size = 64;
    problem.training.form = PersistentForm::on_chip;
    return problem;
  }
  static int difference(int simt::Counts::*count, const simt::Counts& before) {
    return simt::counts().*count - before.*count;
  }
};

constexpr PersistentForm kForms[] = {PersistentForm::two_layer, PersistentForm::on_chip};

TEST_F(PersistentExecutor, ARunIsOneLaunchAndTwoCopies) {
  for (const PersistentForm form : kForms) {
    SCOPED_TRACE(name(form));
    const Problem problem = small(form);
    Trainer trainer = trainer_of(problem);
    for (int run = 0; run < 2; ++run) {
      const simt::Counts before = simt::counts();
      trainer.train(12);
      EXPECT_EQ(difference(&simt::Counts::launches, before), 1);
      EXPECT_EQ(difference(&simt::Counts::graph_launches, before), 0);
      EXPECT_EQ(difference(&simt::Counts::copies, before), 2);  // the losses, and whether all went well
      EXPECT_EQ(difference(&simt::Counts::memsets, before), 0);
      EXPECT_EQ(difference(&simt::Counts::allocations, before), 0);       // in the first run, too
      EXPECT_EQ(difference(&simt::Counts::synchronisations, before), 2);  // the losses, the end
    }
  }
}

TEST_F(PersistentExecutor, ThePlanCountsTheBytesThatAreTaken) {
  for (const auto& widths : std::vector<std::vector<std::int64_t>>{{3, 20, 1}, {5, 2}, {7, 30, 40, 20}})
    for (const Formulation formulation : {Formulation::primal, Formulation::gram}) {
      if (widths.size() != 3 && formulation == Formulation::gram) continue;
      Problem problem = Problem::random(widths, true, 33, Precision::fp32, Init::he, 1e-4);
      problem.training.formulation = formulation;
      if (widths.size() == 3) problem.training.form = PersistentForm::two_layer;
      std::size_t before = 0, after = 0, total = 0;
      ASSERT_EQ(cudaMemGetInfo(&before, &total), cudaSuccess);
      const Trainer trainer = trainer_of(problem);
      ASSERT_EQ(cudaMemGetInfo(&after, &total), cudaSuccess);
      EXPECT_EQ(trainer.plan().bytes, before - after);
    }
}

// Loading it would take the most time of a short run.
TEST_F(PersistentExecutor, CublasLtIsAskedForByAGraphWithItsProductsAlone) {
  const int before = simt::cublaslt_requests();
  const Problem wide = Problem::random({3, 20, 1}, true, 4, Precision::fp32, Init::he, 1e-4);
  EXPECT_EQ(wide.trainer(1).plan().executor, ExecutorKind::persistent);
  Problem::random({3, 16, 1}, true, 4, Precision::fp32, Init::he, 1e-4).trainer(1, ExecutorKind::graph).train(1);
  EXPECT_EQ(simt::cublaslt_requests(), before);
  wide.trainer(1, ExecutorKind::graph);
  EXPECT_EQ(simt::cublaslt_requests(), before);  // small products are the own kernel's
  Problem::random({3, 20, 1}, true, 4, Precision::fp64, Init::he, 1e-4).trainer(1, ExecutorKind::graph);
  EXPECT_GT(simt::cublaslt_requests(), before);
}

TEST_F(PersistentExecutor, NeedsNoCublasLt) {
  simt::refuse_cublaslt("cuBLASLt was not found: it hides");
  const Problem problem = Problem::random({3, 20, 1}, true, 4, Precision::fp32, Init::he, 1e-4);
  Trainer trainer = problem.trainer(1);
  EXPECT_EQ(trainer.plan().executor, ExecutorKind::persistent);
  const std::vector<double> losses = trainer.train(3).losses;
  EXPECT_LT(losses.back(), losses.front());
}

TEST_F(PersistentExecutor, RunsOnGpusWithoutClusters) {
  simt::set_devices({{"Turing", 7, 5, 40}});
  EXPECT_GT(trainer_of(small(PersistentForm::two_layer)).train(2).losses[0], 0);
  EXPECT_MENTIONS(refusal<Unsupported>("plan 'persistent': ", [&] { trainer_of(small(PersistentForm::on_chip)); }),
                  "has no clusters");
}

TEST_F(PersistentExecutor, TheReportSaysHowItRan) {
  const TrainReport report = trainer_of(small(PersistentForm::on_chip)).train(1);
  ASSERT_EQ(report.algorithms.size(), 1u);
  EXPECT_MENTIONS(report.algorithms[0], " that keeps all parameters on chip, ");
}

TEST_F(PersistentExecutor, WithoutCooperativeLaunchesOfClustersItsStepsAreTheSame) {
  std::vector<double> expected;
  for (const cudaError_t answer : {cudaSuccess, cudaErrorNotSupported, cudaErrorInvalidValue,
                                   cudaErrorCooperativeLaunchTooLarge, cudaErrorInvalidClusterSize}) {
    SCOPED_TRACE(cudaGetErrorName(answer));
    simt::Device device{"sixteen", 9, 0, 16};
    device.cooperative_with_clusters = answer;
    simt::set_devices({device});
    const TrainReport report = trainer_of(clustered(PersistentForm::two_layer)).train(3);
    ASSERT_EQ(report.algorithms.size(), 1u);
    EXPECT_MENTIONS(report.algorithms[0], " clusters of ");
    EXPECT_EQ(report.algorithms[0].find("no cooperative launch") == std::string::npos, answer == cudaSuccess);
    if (answer == cudaSuccess) expected = report.losses;
    EXPECT_EQ(report.losses, expected);
  }
}

TEST_F(PersistentExecutor, WhatElseMakesTheFirstLaunchOfClustersFailIsAnError) {
  simt::Device device{"sixteen", 9, 0, 16};
  device.cooperative_with_clusters = cudaErrorInvalidConfiguration;
  simt::set_devices({device});
  refusal<DeviceError>("", [] { trainer_of(clustered(PersistentForm::two_layer)); });
}

// The plan has an estimate of how many clusters run at once; blocks that do not would be waited for in vain.
TEST_F(PersistentExecutor, WhereClustersAreTooFewTheRunIsPlannedForThoseThatThereAre) {
  simt::Device device{"sixteen", 9, 0, 16};
  simt::set_devices({device});
  const TrainReport planned = trainer_of(clustered(PersistentForm::two_layer)).train(2);
  EXPECT_MENTIONS(planned.algorithms.at(0), " clusters of ");
  device.resident_clusters = 1;
  simt::set_devices({device});
  const TrainReport report = trainer_of(clustered(PersistentForm::two_layer)).train(2);
  EXPECT_MENTIONS(report.algorithms.at(0), "otherwise than planned: ");
  EXPECT_MENTIONS(report.algorithms.at(0), " clusters must run at once, of which sixteen runs 1");
  for (std::size_t step = 0; step < 2; ++step)
    EXPECT_NEAR(report.losses[step], planned.losses[step], 1e-5 * planned.losses[step]);
}

// More than 8 blocks are more than every GPU with clusters promises.
TEST_F(PersistentExecutor, WhereAClusterOfSixteenIsTooLargeEightBlocksTrainOnChip) {
  Problem problem = Problem::random({64, 64, 64, 1}, true, 300, Precision::fp32, Init::he, 1e-5);
  problem.training.batch_size = 256;
  const auto train = [&] {
    std::size_t before = 0, after = 0, total = 0;
    EXPECT_EQ(cudaMemGetInfo(&before, &total), cudaSuccess);
    Trainer trainer = trainer_of(problem);
    EXPECT_EQ(cudaMemGetInfo(&after, &total), cudaSuccess);
    EXPECT_GE(trainer.plan().bytes, before - after);
    return trainer.train(3);
  };
  simt::set_devices({{"sixteen", 9, 0, 16}});
  const TrainReport of_sixteen = train();
  EXPECT_MENTIONS(of_sixteen.algorithms.at(0), "one cluster of 16 blocks that keeps all parameters on chip");
  simt::Device device{"sixteen", 9, 0, 16};
  device.most_cluster_blocks = 8;
  simt::set_devices({device});
  const TrainReport of_eight = train();
  EXPECT_MENTIONS(of_eight.algorithms.at(0), "one cluster of 8 blocks that keeps all parameters on chip");
  EXPECT_MENTIONS(of_eight.algorithms.at(0), "otherwise than planned: sixteen runs no cluster of 16 blocks with ");
  for (std::size_t step = 0; step < 3; ++step)
    EXPECT_NEAR(of_eight.losses[step], of_sixteen.losses[step], 1e-5 * of_sixteen.losses[step]);
  device.most_cluster_blocks = 4;
  simt::set_devices({device});
  EXPECT_MENTIONS(train().algorithms.at(0), "one cluster of 4 blocks that keeps all parameters on chip");
  device.most_cluster_blocks = 1;
  simt::set_devices({device});
  EXPECT_MENTIONS(refusal<Unsupported>("plan 'persistent': sixteen runs no cluster of ", [&] { trainer_of(problem); }),
                  "use the plan 'graph'");
}

TEST_F(PersistentExecutor, OnChipTakesAsManyClustersAsRunAtOnce) {
  const Problem problem = minibatches();
  simt::Device device = of_small_clusters(94);
  const auto train = [&] {
    simt::set_devices({device});
    std::size_t before = 0, after = 0, total = 0;
    EXPECT_EQ(cudaMemGetInfo(&before, &total), cudaSuccess);
    Trainer trainer = trainer_of(problem);
    EXPECT_EQ(cudaMemGetInfo(&after, &total), cudaSuccess);
    EXPECT_EQ(trainer.plan().bytes, before - after);
    return trainer.train(3);
  };
  const TrainReport of_three = train();
  EXPECT_MENTIONS(of_three.algorithms.at(0), "3 clusters of 2 blocks that keep all parameters on chip each");
  device.cooperative_with_clusters = cudaErrorNotSupported;
  const TrainReport plain = train();
  EXPECT_MENTIONS(plain.algorithms.at(0), ", no cooperative launch");
  EXPECT_EQ(plain.losses, of_three.losses);
  device.resident_clusters = 2;
  simt::set_devices({device});
  EXPECT_MENTIONS(refusal<Unsupported>("plan 'persistent': ", [&] { trainer_of(problem); }),
                  "3 clusters must run at once, of which six runs 2; use the plan 'graph'");
}

// The first words of a step are sums, the last are parameters; blocks that wait for what follows may be the first to
// give up.
TEST_F(PersistentExecutor, AWordBetweenClustersThatIsLostEndsTheLaunchByItsDeadline) {
  Problem problem = minibatches();
  problem.training.deadline_ms = 50;
  simt::set_devices({of_small_clusters(94)});
  for (const int word : {1, 4200, 6000}) {
    SCOPED_TRACE(word);
    Trainer trainer = trainer_of(problem);
    simt::lose_publication(word);
    const std::string message = refusal<DeviceError>(
        "plan 'persistent': the GPU's blocks waited for each other longer than 50 ms, in step 0 of a launch, phase "
        "'exchange of parameters",
        [&] { trainer.train(2); });
    EXPECT_MENTIONS(message, word == 1 ? "phase 'exchange of parameters between clusters'" : "");
  }
  Trainer trainer = trainer_of(problem);
  simt::lose_publication(1000000);  // more than there are
  EXPECT_EQ(trainer.train(2).losses.size(), 2u);
}

TEST_F(PersistentExecutor, MemoryThatIsTakenByOthersIsSeenBeforeAllocating) {
  const Problem problem = small();
  simt::set_devices({{"small", 9, 0, 132, std::size_t{2} << 20}});
  const cuda::DeviceBuffer others((std::size_t{2} << 20) - 4096);
  EXPECT_MENTIONS(refusal<Unsupported>("plan 'persistent' takes ", [&] { trainer_of(problem); }),
                  "of which 4.0 KiB are free");
}

// Gaps between matrices and activations that nothing wrote are copied to shared memory and back; no number may come of
// them, whether they hold NaN or what looks like a count.
TEST_F(PersistentExecutor, WhatMemoryHoldsAtFirstDoesNotMatter) {
  for (const PersistentForm form : kForms)
    for (const Formulation formulation : {Formulation::primal, Formulation::gram}) {
      if (form == PersistentForm::on_chip && formulation == Formulation::gram) continue;  // it has it not
      SCOPED_TRACE(std::string(name(form)) + ", " + name(formulation));
      Problem problem = small(form);
      problem.training.formulation = formulation;
      std::vector<double> losses, parameters;
      for (const int byte : {0xff, 0x81, 0x01, 0x00}) {
        simt::set_fresh_byte(byte);
        Trainer trainer = trainer_of(problem);
        std::vector<double> again = trainer.train(3).losses;
        again.push_back(trainer.loss());
        if (losses.empty()) losses = again, parameters = flat(problem.parameters_of(trainer));
        EXPECT_EQ(again, losses) << "memory full of " << byte;
        EXPECT_EQ(flat(problem.parameters_of(trainer)), parameters) << "memory full of " << byte;
      }
      EXPECT_LT(losses.back(), losses.front());
    }
}

// Else initcheck would report each gap and each activation of a launch that copies them to shared memory.
TEST_F(PersistentExecutor, LeavesNoByteOfItsMemoryAsItFoundIt) {
  for (const PersistentForm form : kForms)
    for (const Formulation formulation : {Formulation::primal, Formulation::gram}) {
      if (form == PersistentForm::on_chip && formulation == Formulation::gram) continue;  // it has it not
      SCOPED_TRACE(std::string(name(form)) + ", " + name(formulation));
      Problem problem = small(form);
      problem.training.formulation = formulation;
      std::vector<unsigned char> memory[2];
      for (const int run : {0, 1}) {
        simt::set_fresh_byte(run == 0 ? 0x5a : 0xa5);
        const Trainer trainer = trainer_of(problem);
        memory[run] = simt::device_memory(0);
      }
      ASSERT_EQ(memory[0].size(), memory[1].size());
      ASSERT_GT(memory[0].size(), 0u);
      std::size_t same = 0;
      for (std::size_t i = 0; i < memory[0].size(); ++i) same += memory[0][i] == memory[1][i] ? 1 : 0;
      EXPECT_EQ(same, memory[0].size()) << "bytes that were written";
    }
}

TEST_F(PersistentExecutor, EveryCallMayFail) {
  const std::pair<PersistentForm, Formulation> cases[] = {{PersistentForm::two_layer, Formulation::primal},
                                                          {PersistentForm::on_chip, Formulation::primal},
                                                          {PersistentForm::two_layer, Formulation::gram}};
  for (const auto& [form, formulation] : cases) {
    SCOPED_TRACE(std::string(name(form)) + ", " + name(formulation));
    Problem problem = small(form);
    problem.training.formulation = formulation;
    const auto [failures, deaths] = testing::fail_every_call(problem, ExecutorKind::persistent, 2);
    EXPECT_GT(failures, 50);
    EXPECT_GT(deaths, 20);
  }
}

/// The largest relative error of losses against those of the same run in fp64, which small ones do not dominate.
double largest_error(const std::vector<double>& losses, const std::vector<double>& exact) {
  double largest = 0;
  for (std::size_t i = 0; i < losses.size(); ++i)
    largest = std::max(largest, std::abs(losses[i] - exact[i]) / std::max(exact[i], 1e-3 * exact[0]));
  return largest;
}

// In the same order of samples, over several epochs, in two calls: by Adam, whose rate follows a schedule.
// Wide data have their first layer split by inputs.
TEST_F(PersistentExecutor, TrainsOnMinibatchesOnChipAsTheCpuDoes) {
  for (const auto& [loss, inputs, by_inputs, several] : {std::tuple(Loss::squared_error, 24, false, false),
                                                         {Loss::cross_entropy, 24, false, false},
                                                         {Loss::cross_entropy, 800, true, false},
                                                         {Loss::squared_error, 24, false, true},
                                                         {Loss::cross_entropy, 600, true, true}}) {
    SCOPED_TRACE(std::to_string(static_cast<int>(loss)) + ", " + std::to_string(inputs) + " inputs, " +
                 (several ? "several clusters" : "one"));
    simt::set_devices({several ? of_small_clusters(by_inputs ? 200 : 40) : simt::Device{}});
    Problem problem = Problem::random({inputs, 40, 20, 3}, true, 300, Precision::fp32, Init::he, 1e-3);
    problem.training.batch_size = by_inputs ? 64 : 128;
    problem.training.loss = loss;
    problem.training.reduction = Reduction::mean;
    problem.training.form = PersistentForm::on_chip;
    problem.training.optimizer = {.kind = OptimizerKind::adam,
                                  .learning_rate = 0.003,
                                  .schedule = {.kind = ScheduleKind::cosine, .period = 40, .warmup_steps = 5}};
    if (loss == Loss::cross_entropy)
      for (double& target : problem.y.values) target = std::abs(target) / 8;
    const auto run = [&](ExecutorKind kind, Precision precision) {
      Problem run_of = problem;
      run_of.training.precision = precision;
      Trainer trainer = run_of.trainer(1, kind);
      std::vector<double> losses = trainer.train(7).losses;
      const TrainReport more = trainer.train(13);
      losses.insert(losses.end(), more.losses.begin(), more.losses.end());
      if (kind == ExecutorKind::persistent) {
        EXPECT_EQ(more.algorithms.at(0).find(" inputs of the first layer and ") != std::string::npos, by_inputs);
        EXPECT_EQ(more.algorithms.at(0).find(" clusters of ") != std::string::npos, several);
        EXPECT_MENTIONS(trainer.plan().reason, "was asked for");
      }
      return std::pair(losses, flat(problem.parameters_of(trainer)));
    };
    const auto exact = run(ExecutorKind::cpu, Precision::fp64), cpu = run(ExecutorKind::cpu, Precision::fp32),
               gpu = run(ExecutorKind::persistent, Precision::fp32);
    // Three products in TF32 for one are as exact, and others.
    const auto tf32x3 = run(ExecutorKind::persistent, Precision::tf32x3);
    EXPECT_NE(tf32x3.second, gpu.second);
    EXPECT_LE(reference::relative_error(tf32x3.second, exact.second),
              10 * reference::relative_error(cpu.second, exact.second) + 1e-6);
    const double of_cpu = largest_error(cpu.first, exact.first), of_gpu = largest_error(gpu.first, exact.first);
    EXPECT_LE(largest_error(tf32x3.first, exact.first), 10 * of_cpu + 1e-6);
    EXPECT_LE(of_gpu, 1e-4);
    EXPECT_LE(of_gpu, 10 * of_cpu + 1e-6);
    EXPECT_LE(reference::relative_error(gpu.second, exact.second),
              10 * reference::relative_error(cpu.second, exact.second) + 1e-6);
    EXPECT_LT(exact.first.back(), 0.95 * exact.first.front());
  }
}

// The starting case, a few steps of it, on a GPU of an eighth of the size.
TEST_F(PersistentExecutor, TrainsTheStartingCaseAsTheCpuDoes) {
  simt::set_devices({{"small", 9, 0, 16}});
  const Problem problem = Problem::random({1000, 100, 1}, false, 128, Precision::fp32, Init::normal, 1e-6);
  Trainer gpu = trainer_of(problem), cpu = problem.trainer(1, ExecutorKind::cpu);
  const std::vector<double> losses = gpu.train(3).losses, expected = cpu.train(3).losses;
  for (std::size_t i = 0; i < losses.size(); ++i) EXPECT_LE(std::abs(losses[i] / expected[i] - 1), 1e-5) << i;
}

}  // namespace
}  // namespace deviceloop
