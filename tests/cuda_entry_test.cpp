// What every build answers about CUDA where there is no GPU to use, with CUDA or without.
#include <gtest/gtest.h>

#include <cstdlib>
#include <cstring>
#include <fstream>
#include <string>
#include <vector>

#include <deviceloop/cuda.h>
#include <deviceloop/deviceloop.h>

#include "cuda_entry.h"
#include "support/refusal.h"

namespace deviceloop {
namespace {

using testing::refusal;

bool built_with_cuda() { return std::strcmp(cuda_toolkit(), "none") != 0; }

DeviceCaps gpus() {
  DeviceCaps caps;
  query_gpus(caps);
  return caps;
}

/// The CUDA libraries that this process has loaded.
std::vector<std::string> mapped_cuda_libraries() {
  std::vector<std::string> found;
  std::ifstream maps("/proc/self/maps");
  for (std::string line; std::getline(maps, line);)
    for (const char* name : {"/libcuda", "/libcublas", "/libnvidia", "/libnvrtc"})
      if (line.find(name) != std::string::npos) found.push_back(line);
  return found;
}

// The first test, because others load the driver where there is one. ctest runs each in a process of its own.
TEST(CudaEntry, TrainingOnTheCpuLoadsNoCudaLibrary) {
  ASSERT_EQ(mapped_cuda_libraries(), std::vector<std::string>());
  NetworkSpec network;
  network.widths = {3, 2, 1};
  TrainingSpec training;
  training.device.kind = DeviceKind::cpu;
  const std::vector<float> x(12, 1.0f), y(4, 1.0f);
  Trainer trainer(network, training);
  trainer.set_data({x.data(), 4, 3}, {y.data(), 4, 1});
  EXPECT_EQ(trainer.train(1).losses.size(), 1u);
  EXPECT_EQ(mapped_cuda_libraries(), std::vector<std::string>());
}

TEST(CudaEntry, TellsTheToolkit) {
  const std::string toolkit = cuda_toolkit();
  EXPECT_EQ(toolkit.find_first_not_of("0123456789.") == std::string::npos, built_with_cuda()) << toolkit;
}

TEST(CudaEntry, DescribesTheGpusOrSaysWhyThereAreNone) {
  const DeviceCaps caps = gpus();
  EXPECT_EQ(caps.gpus.empty(), !caps.no_gpu_reason.empty());
  if (caps.gpus.empty()) {
    EXPECT_EQ(caps.no_gpu_reason == "built without CUDA", !built_with_cuda()) << caps.no_gpu_reason;
  }
  for (std::size_t i = 0; i < caps.gpus.size(); ++i) {
    EXPECT_NE(caps.gpus[i].name, "");
    EXPECT_EQ(caps.gpus[i].index, static_cast<int>(i));
    EXPECT_GE(caps.gpus[i].compute_capability, 50);
    EXPECT_GE(caps.gpus[i].multiprocessors, 1);
    EXPECT_GT(caps.gpus[i].memory_bytes, std::uint64_t{1} << 28);
  }
}

TEST(CudaEntry, HiddenGpusAreAbsentGpus) {
  // Read by the driver when the process first calls CUDA, which is here: see the first test.
  ASSERT_EQ(setenv("CUDA_VISIBLE_DEVICES", "", 1), 0);
  const DeviceCaps caps = gpus();
  if (mapped_cuda_libraries().empty() || !built_with_cuda())
    EXPECT_NE(caps.no_gpu_reason, "");
  else
    EXPECT_MENTIONS(caps.no_gpu_reason, "CUDA_VISIBLE_DEVICES is ''");
}

TEST(CudaEntry, AnExecutorThatIsNotThereIsUnsupported) {
  if (!gpus().gpus.empty()) GTEST_SKIP() << "this machine has a GPU";
  NetworkSpec network;
  network.widths = {3, 1};
  int on_gpu = 0;
  for (const ExecutorRow& row : executor_rows()) {
    if (!row.is_on_gpu) continue;
    ++on_gpu;
    Decision decision;
    decision.plan.executor = row.kind;
    EXPECT_MENTIONS(refusal<Unsupported>("", [&] { row.make(network, {}, decision); }),
                    built_with_cuda() ? "no GPU can be used" : "use the plan 'cpu'");
  }
  EXPECT_EQ(on_gpu, 2);
}

TEST(CudaEntry, ThePublicKernelsAreUnsupportedWithoutAGpu) {
  if (!gpus().gpus.empty()) GTEST_SKIP() << "this machine has a GPU";
  float values[2] = {-1, 1};
  const auto message = refusal<Unsupported>("", [&] { cuda::relu(values, values, 2, nullptr); });
  if (built_with_cuda()) {
    EXPECT_MENTIONS(message, "no GPU can be used");
  } else {
    EXPECT_MENTIONS(message, "deviceloop::cuda::relu: built without CUDA");
    EXPECT_MENTIONS(message, "-DDEVICELOOP_CUDA=ON");
    EXPECT_MENTIONS(message, "call deviceloop::relu on host memory");
  }
  EXPECT_EQ(values[0], -1);
}

}  // namespace
}  // namespace deviceloop
