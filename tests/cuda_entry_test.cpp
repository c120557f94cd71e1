// What every build answers about CUDA where there is no GPU to use, with CUDA or without.
#include <gtest/gtest.h>

#include <unistd.h>

#include <cstdio>
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

/// What depends on what its process has done with CUDA before, in a process that has done nothing: `work` runs in a new
/// one, of this program, and returns what is wrong there, or nothing.
#define EXPECT_RIGHT_IN_A_NEW_PROCESS(work)                               \
  do {                                                                    \
    ::testing::GTEST_FLAG(death_test_style) = "threadsafe";               \
    EXPECT_EXIT(end_with(work()), ::testing::ExitedWithCode(0), "right"); \
  } while (false)

[[noreturn]] void end_with(const std::string& wrong) {
  std::fprintf(stderr, "%s\n", wrong.empty() ? "right" : wrong.c_str());
  _exit(wrong.empty() ? 0 : 1);
}

/// The CUDA libraries that training on the CPU has loaded.
std::string cuda_libraries_of_training_on_the_cpu() {
  NetworkSpec network;
  network.widths = {3, 2, 1};
  TrainingSpec training;
  training.device.kind = DeviceKind::cpu;
  const std::vector<float> x(12, 1.0f), y(4, 1.0f);
  Trainer trainer(network, training);
  trainer.set_data({x.data(), 4, 3}, {y.data(), 4, 1});
  if (trainer.train(1).losses.size() != 1) return "it did not train";
  std::string found;
  for (const std::string& library : mapped_cuda_libraries()) found += "loaded: " + library + "\n";
  return found;
}

TEST(CudaEntry, TrainingOnTheCpuLoadsNoCudaLibrary) {
  EXPECT_RIGHT_IN_A_NEW_PROCESS(cuda_libraries_of_training_on_the_cpu);
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

/// The driver reads the variable when a process first calls CUDA.
std::string wrong_where_gpus_are_hidden() {
  if (setenv("CUDA_VISIBLE_DEVICES", "", 1) != 0) return "setenv";
  const DeviceCaps caps = gpus();
  if (!caps.gpus.empty()) return "a GPU was found";
  const bool has_driver = built_with_cuda() && !mapped_cuda_libraries().empty();
  const std::string expected = has_driver          ? "CUDA_VISIBLE_DEVICES is ''"
                               : built_with_cuda() ? "driver"
                                                   : "without CUDA";
  return caps.no_gpu_reason.find(expected) != std::string::npos ? ""
                                                                : caps.no_gpu_reason + ", which lacks: " + expected;
}

TEST(CudaEntry, HiddenGpusAreAbsentGpus) { EXPECT_RIGHT_IN_A_NEW_PROCESS(wrong_where_gpus_are_hidden); }

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
    EXPECT_MENTIONS(refusal<Unsupported>("", [&] { row.make(network, {}, decision, {CudaOptions{}}); }),
                    built_with_cuda() ? "no GPU can be used" : "use the plan 'cpu'");
  }
  EXPECT_EQ(on_gpu, 3);
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
