// What the command counts of the host's memory before it takes it, on machines that are plain data.
#include <gtest/gtest.h>

#include <deviceloop/error.h>

#include "cli/memory.h"
#include "matrix_ops.h"

namespace deviceloop::cli {
namespace {

constexpr std::int64_t kSamples = 1 << 20, kInputs = 255;
constexpr std::uint64_t kData = kSamples * (kInputs + 1) * sizeof(float);  // 1 GiB

TrainOptions run_of(std::int64_t samples) {
  TrainOptions run;
  run.network.widths = {kInputs, 1};
  run.training.samples = samples;
  run.steps = 1;
  return run;
}

DeviceCaps machine(std::uint64_t memory_bytes, bool has_gpu) {
  DeviceCaps caps;
  caps.cpu.memory_bytes = memory_bytes;
  caps.no_gpu_reason = "no NVIDIA driver found";
  if (!has_gpu) return caps;
  GpuCaps gpu;
  gpu.name = "a GPU";
  gpu.compute_capability = 90;
  gpu.multiprocessors = 132;
  gpu.memory_bytes = std::uint64_t{80} << 30;
  gpu.memory_gb_per_s = 3350;
  gpu.l2_bytes = 50 << 20;
  gpu.shared_bytes = 227 << 10;
  gpu.cooperative = true;
  caps.gpus.push_back(gpu);
  return caps;
}

bool fits(const TrainOptions& run, std::uint64_t memory_bytes, bool has_gpu, const Samples& read = {}) {
  DeviceCaps caps = machine(memory_bytes, has_gpu);
  try {
    const Plan plan = plan_run(run, caps, read);
    EXPECT_EQ(plan.executor != ExecutorKind::cpu, has_gpu) << plan.reason;
    return true;
  } catch (const InvalidArgument& error) {
    EXPECT_NE(std::string(error.what()).find("--layers 255,1"), std::string::npos) << error.what();
    return false;
  }
}

TEST(PlanRun, CountsTheDataOnceForAGpuAndTwiceForTheCpu) {
  const TrainOptions run = run_of(kSamples);
  EXPECT_TRUE(fits(run, kData + kPieceBytes + (1 << 16), true));
  EXPECT_FALSE(fits(run, kData + kPieceBytes - (1 << 16), true));
  EXPECT_TRUE(fits(run, 2 * kData + kData / 8, false));
  EXPECT_FALSE(fits(run, 2 * kData - kData / 8, false));
}

TEST(PlanRun, CountsFilesAsTheyWereRead) {
  TrainOptions run = run_of(0);
  run.x = "x.npy";
  run.y = "y.npy";
  Samples read;
  read.x = HostMatrix(ElementType::float64, kSamples / 64, kInputs);
  read.y = HostMatrix(ElementType::float64, kSamples / 64, 1);
  const std::uint64_t bytes = 2 * kData / 64;
  EXPECT_TRUE(fits(run, bytes + kPieceBytes + (1 << 16), true, read));
  EXPECT_FALSE(fits(run, bytes + kPieceBytes - (1 << 16), true, read));
}

TEST(PlanRun, SeesWhetherTargetsAreNumbersOfClasses) {
  TrainOptions run = run_of(0);
  run.x = "x.npy";
  run.y = "y.npy";
  run.network.widths.back() = 10;
  run.training.loss = Loss::cross_entropy;
  const auto bytes = [&](std::int64_t columns) {
    Samples read;
    read.x = HostMatrix(ElementType::float32, 1024, kInputs);
    read.y = HostMatrix(ElementType::float32, 1024, columns);
    DeviceCaps caps = machine(2 * kData, false);
    return plan_run(run, caps, read).bytes;
  };
  EXPECT_EQ(bytes(1) + 9 * 1024 * sizeof(float), bytes(10));
}

}  // namespace
}  // namespace deviceloop::cli
