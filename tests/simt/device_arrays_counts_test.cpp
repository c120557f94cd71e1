// What training on device arrays asks of the runtime, which the fixture counts, and what only it has: a second GPU.
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "../../cuda/runtime/owners.h"
#include "simt/control.h"
#include "support/problem.h"
#include "support/refusal.h"

namespace deviceloop {
namespace {

using testing::refusal;

/// What changed since.
simt::Counts since(const simt::Counts& before) {
  const simt::Counts now = simt::counts();
  simt::Counts change;
  change.allocations = now.allocations - before.allocations;
  change.frees = now.frees - before.frees;
  change.synchronisations = now.synchronisations - before.synchronisations;
  change.copies = now.copies - before.copies;
  return change;
}

/// Data of the caller on a device, of floats.
struct Arrays {
  Arrays(const Problem& problem, int device = 0) {
    const cuda::CurrentDevice current(device);
    for (const auto& [buffer, table] : {std::pair(&x, &problem.x), std::pair(&y, &problem.y)}) {
      const std::vector<float> values(table->values.begin(), table->values.end());
      *buffer = cuda::DeviceBuffer(values.size() * sizeof(float));
      const cuda::StreamOwner stream;
      DEVICELOOP_CHECK_CUDA(cudaMemcpyAsync(buffer->data(), values.data(), values.size() * sizeof(float),
                                            cudaMemcpyHostToDevice, stream.get()));
      stream.wait();
    }
    rows = static_cast<std::int64_t>(problem.x.rows);
    inputs = static_cast<std::int64_t>(problem.x.columns);
    outputs = static_cast<std::int64_t>(problem.y.columns);
  }
  ConstMatrix x_view() const { return on_device(static_cast<const float*>(x.data()), rows, inputs); }
  ConstMatrix y_view() const { return on_device(static_cast<const float*>(y.data()), rows, outputs); }
  cuda::DeviceBuffer x, y;
  std::int64_t rows = 0, inputs = 0, outputs = 0;
};

class Counted : public ::testing::Test {
 protected:
  void SetUp() override { simt::reset(); }
  void TearDown() override { simt::reset(); }
};

struct Plan {
  ExecutorKind kind;
  PersistentForm form;
  std::int64_t samples;
};

constexpr int kFrames = 6;

// Between frames: no copy of data, no wait, no memory. A launch's losses go out by one copy, without a wait.
TEST_F(Counted, AFrameCopiesNothingAndNobodyWaits) {
  for (const Plan& plan : {Plan{ExecutorKind::graph, PersistentForm::automatic, 40},
                           Plan{ExecutorKind::persistent, PersistentForm::two_layer, 12}}) {
    SCOPED_TRACE(name(plan.kind));
    Problem problem = Problem::random({20, 18, 2}, true, plan.samples, Precision::fp32, Init::he, 1e-3);
    problem.training.device.kind = DeviceKind::cuda;
    problem.training.form = plan.form;
    const Arrays arrays(problem);
    const cuda::StreamOwner stream;
    Trainer trainer(problem.network, problem.training, CudaOptions{.stream = stream.get()}, plan.kind);
    problem.set_parameters(trainer, problem.start);
    trainer.set_data(arrays.x_view(), arrays.y_view());
    const cuda::DeviceBuffer out(static_cast<std::size_t>(plan.samples) * 2 * sizeof(float));
    const Matrix predictions = on_device(static_cast<float*>(out.data()), plan.samples, 2);
    std::vector<TrainRun> runs;
    for (int frame = 0; frame < kFrames; ++frame) {
      const simt::Counts before = simt::counts();
      trainer.data_changed();
      runs.push_back(trainer.train_async(1));
      trainer.predict(arrays.x_view(), predictions);
      const simt::Counts change = since(before);
      EXPECT_EQ(change.synchronisations, 0) << frame;
      EXPECT_EQ(change.frees, 0) << frame;
      // The loss; of the plan `persistent` also whether its blocks have met.
      EXPECT_EQ(change.copies, plan.kind == ExecutorKind::graph ? 1 : 2) << frame;
      if (frame > 0) runs[static_cast<std::size_t>(frame) - 1].wait();  // as an application that shows losses
      if (frame > 2) {
        EXPECT_EQ(change.allocations, 0) << frame;
      }
    }
    Trainer on_host = problem.trainer(1, plan.kind);
    const std::vector<double> expected = on_host.train(kFrames).losses;
    for (std::size_t frame = 0; frame < kFrames; ++frame) EXPECT_EQ(runs[frame].wait().losses.at(0), expected[frame]);
  }
}

TEST_F(Counted, DataInPlaceTakeNoMemoryOfTheExecutor) {
  Problem problem = Problem::random({20, 18, 2}, true, 4000, Precision::fp32, Init::he, 1e-6);
  problem.training.device.kind = DeviceKind::cuda;
  const Arrays arrays(problem);
  Trainer copied(problem.network, problem.training, ExecutorKind::graph),
      there(problem.network, problem.training, ExecutorKind::graph);
  copied.set_data(Problem::view(problem.x), Problem::view(problem.y));
  there.set_data(arrays.x_view(), arrays.y_view());
  EXPECT_GE(copied.plan().bytes - there.plan().bytes, 4000u * 22 * sizeof(float));
  EXPECT_EQ(there.train(2).losses, copied.train(2).losses);
  EXPECT_TRUE(there.training().in_place.x && there.training().in_place.y);
}

TEST_F(Counted, ThirtyTwoLaunchesOfAdamAreAheadOfTheDevice) {
  Problem problem = Problem::random({20, 18, 2}, true, 40, Precision::fp32, Init::he, 1e-3);
  problem.training.optimizer.kind = OptimizerKind::adam;
  problem.training.device.kind = DeviceKind::cuda;
  const Arrays arrays(problem);
  Trainer trainer(problem.network, problem.training, ExecutorKind::graph);
  trainer.set_data(arrays.x_view(), arrays.y_view());
  const simt::Counts before = simt::counts();
  std::vector<TrainRun> runs;
  for (int run = 0; run < 30; ++run) runs.push_back(trainer.train_async(1));
  EXPECT_EQ(since(before).synchronisations, 0);
  for (TrainRun& run : runs) EXPECT_EQ(run.wait().steps(), 1);
}

TEST_F(Counted, TwoTrainersOnTwoDevicesLeaveTheCurrentOneAlone) {
  simt::set_devices({simt::Device{}, simt::Device{}});
  Problem problem = Problem::random({20, 18, 2}, true, 12, Precision::fp32, Init::he, 1e-3);
  problem.training.device = {DeviceKind::cuda, 0};
  std::vector<double> expected;
  {
    Trainer on_host = problem.trainer(1, ExecutorKind::graph);
    expected = on_host.train(6).losses;
  }
  std::vector<Trainer> trainers;
  std::vector<TrainRun> runs;
  const Arrays first(problem, 0), second(problem, 1);
  for (const int device : {0, 1}) {
    problem.training.device.index = device;
    trainers.emplace_back(problem.network, problem.training, CudaOptions{}, ExecutorKind::graph);
    problem.set_parameters(trainers.back(), problem.start);
    const Arrays& other = device == 0 ? second : first;
    EXPECT_MENTIONS(refusal("x lies in the memory of GPU " + std::to_string(1 - device),
                            [&] { trainers.back().set_data(other.x_view(), other.y_view()); }),
                    "the plan runs on GPU " + std::to_string(device));
    const Arrays& own = device == 0 ? first : second;
    trainers.back().set_data(own.x_view(), own.y_view());
  }
  for (int round = 0; round < 3; ++round)
    for (Trainer& trainer : trainers) runs.push_back(trainer.train_async(2));
  for (std::size_t index = 0; index < runs.size(); ++index) {
    const auto begin = expected.begin() + static_cast<std::ptrdiff_t>(2 * (index / 2));
    EXPECT_EQ(runs[index].wait().losses, std::vector<double>(begin, begin + 2));
  }
  int current = -1;
  EXPECT_EQ(cudaGetDevice(&current), cudaSuccess);
  EXPECT_EQ(current, 0);
}

TEST_F(Counted, ALaterFailureEndsTheTrainerAndItsRuns) {
  Problem problem = Problem::random({20, 18, 2}, true, 12, Precision::fp32, Init::he, 1e-3);
  Trainer trainer = problem.trainer(1, ExecutorKind::graph);
  TrainRun run = trainer.train_async(3);
  simt::fail_call(1, cudaErrorLaunchFailure);
  EXPECT_THROW(run.wait(), DeviceError);
  EXPECT_MENTIONS(refusal<DeviceError>("this trainer cannot be used any more", [&] { run.wait(); }), "make a new one");
  EXPECT_THROW(trainer.train_async(1), DeviceError);
}

}  // namespace
}  // namespace deviceloop
