// The ground of the CUDA code: codes become exceptions, owners give back, the current device stays.
#include <gtest/gtest.h>

#include <cstring>
#include <string>
#include <utility>

#include <deviceloop/error.h>

#include "../cuda/runtime/check.h"
#include "../cuda/runtime/owners.h"
#include "support/cuda_test.h"
#include "support/refusal.h"

namespace deviceloop::cuda {
namespace {

using testing::refusal;

TEST(CudaCheck, SuccessPasses) { DEVICELOOP_CHECK_CUDA(cudaSuccess); }

TEST(CudaCheck, AnErrorNamesTheCallTheCodeThePlaceAndTheRemedy) {
  int line = 0;
  try {
    line = __LINE__ + 1;
    DEVICELOOP_CHECK_CUDA(cudaErrorMemoryAllocation);
    FAIL() << "nothing was thrown";
  } catch (const DeviceError& error) {
    EXPECT_EQ(error.api(), "CUDA runtime");
    EXPECT_EQ(error.code(), 2);
    EXPECT_EQ(error.expression(), "cudaErrorMemoryAllocation");
    EXPECT_EQ(error.line(), line);
    EXPECT_MENTIONS(error.file(), "cuda_runtime_test.cpp");
    EXPECT_MENTIONS(error.what(), "cudaErrorMemoryAllocation (2, out of memory)");
    EXPECT_MENTIONS(error.what(), "cuda_runtime_test.cpp:" + std::to_string(line));
    EXPECT_MENTIONS(error.what(), "take fewer samples");
  }
}

TEST(CudaCheck, AbsenceIsUnsupported) {
  for (const cudaError_t code : {cudaErrorNoDevice, cudaErrorInsufficientDriver})
    EXPECT_MENTIONS(refusal<Unsupported>("no GPU can be used: ", [&] { DEVICELOOP_CHECK_CUDA(code); }),
                    "install a driver");
}

TEST(CudaCheck, AGpuThatTheBuildHasNoCodeForIsUnsupportedAndTheArchitecturesInsideAreNamed) {
  const auto message = refusal<Unsupported>("relu_kernel: ", [&] {
    throw_cuda_error(cudaErrorNoKernelImageForDevice, "cudaLaunchKernelExC", "launch.cpp", 1, "relu_kernel");
  });
  EXPECT_MENTIONS(message, "only for " + built_architectures());
  EXPECT_MENTIONS(message, "CMAKE_CUDA_ARCHITECTURES");
}

TEST(CudaCheck, CodeRunsOnGpusOfItsOwnGenerationAndPtxOnAllThatAreNewer) {
  const std::string code = "sm_75, sm_80, sm_86, compute_86";
  for (const int capability : {75, 80, 86, 87, 89, 90, 100, 120}) EXPECT_TRUE(runs_on(code, capability)) << capability;
  for (const int capability : {50, 70, 72}) EXPECT_FALSE(runs_on(code, capability)) << capability;
  EXPECT_FALSE(runs_on("sm_80", 90));
  EXPECT_FALSE(runs_on("sm_86", 80));
  EXPECT_TRUE(runs_on("sm_90a", 90));
  EXPECT_FALSE(runs_on("sm_100a, compute_100a", 103));
  EXPECT_TRUE(runs_on("sm_100f", 103));
  EXPECT_FALSE(runs_on("compute_100f", 120));
  EXPECT_FALSE(runs_on("none", 90));
  EXPECT_FALSE(runs_on("", 90));
}

TEST(CudaCheck, HoppersTensorCoresNeedCodeForHopper) {
  EXPECT_TRUE(holds_hopper_code("sm_80, sm_90, compute_90"));
  EXPECT_TRUE(holds_hopper_code("sm_90a"));
  EXPECT_FALSE(holds_hopper_code("sm_80, compute_80"));
  EXPECT_FALSE(holds_hopper_code("sm_100a, compute_120"));
  EXPECT_FALSE(holds_hopper_code("none"));
}

TEST(CudaCheck, AStreamOfAnotherDeviceIsAnInvalidArgument) {
  EXPECT_MENTIONS(refusal("relu_kernel: the stream is not one of the current device",
                          [&] {
                            throw_cuda_error(cudaErrorInvalidResourceHandle, "cudaLaunchKernelExC", "launch.cpp", 1,
                                             "relu_kernel");
                          }),
                  "cudaSetDevice");
}

TEST(CudaCheck, AnErrorThatLastsSaysThatTheProcessMustBeStartedAgain) {
  for (const cudaError_t code : {cudaErrorIllegalAddress, cudaErrorLaunchFailure, cudaErrorAssert})
    EXPECT_MENTIONS(refusal<DeviceError>("code at ", [&] { DEVICELOOP_CHECK_CUDA(code); }), "start it again");
}

// Symbols as nvcc writes them, a template in no namespace of a name, and what the host's tools make of one.
TEST(CudaCheck, AKernelIsNamedWithoutWhatIsAroundItsName) {
  for (const char* symbol :
       {"_ZN10deviceloop4cuda52_GLOBAL__N__e14e5625_14_elementwise_cu_8ec9a5ba_769911relu_kernelIdLi1EEEvPT_PKS3_l",
        "_ZN10deviceloop4cuda11relu_kernelIfEEvPT_", "_Z11relu_kernelPf", "relu_kernel",
        "deviceloop::cuda::(anonymous namespace)::relu_kernel<float, 4>(float*, float const*, long)"})
    EXPECT_EQ(kernel_name(symbol), "relu_kernel") << symbol;
}

using CudaOwners = testing::CudaTest;

TEST_F(CudaOwners, MoveAndGiveBackOnce) {
  DeviceBuffer a(100), b;
  EXPECT_EQ(b.data(), nullptr);
  void* const memory = a.data();
  b = std::move(a);
  EXPECT_EQ(b.data(), memory);
  EXPECT_EQ(b.bytes(), 100u);
  EXPECT_EQ(a.data(), nullptr);
  EXPECT_EQ(a.bytes(), 0u);
  EXPECT_EQ(DeviceBuffer(0).data(), nullptr);
  PinnedBuffer pinned(16);
  std::memset(pinned.data(), 1, 16);
  const PinnedBuffer other(std::move(pinned));
  EXPECT_EQ(static_cast<unsigned char*>(other.data())[15], 1);
  const StreamOwner stream;
  const EventOwner event;
  DEVICELOOP_CHECK_CUDA(cudaEventRecord(event.get(), stream.get()));
  stream.wait();
  EXPECT_EQ(cudaEventQuery(event.get()), cudaSuccess);
}

TEST_F(CudaOwners, TheCurrentDeviceIsRestored) {
  int count = 0, before = -1, now = -1;
  DEVICELOOP_CHECK_CUDA(cudaGetDeviceCount(&count));
  DEVICELOOP_CHECK_CUDA(cudaGetDevice(&before));
  {
    const CurrentDevice device(count - 1);
    DEVICELOOP_CHECK_CUDA(cudaGetDevice(&now));
    EXPECT_EQ(now, count - 1);
  }
  DEVICELOOP_CHECK_CUDA(cudaGetDevice(&now));
  EXPECT_EQ(now, before);
  EXPECT_THROW(CurrentDevice{count}, DeviceError);
  DEVICELOOP_CHECK_CUDA(cudaGetDevice(&now));
  EXPECT_EQ(now, before);
}

TEST_F(CudaOwners, MemoryThatIsNotThereIsAnErrorAndTheNextCallIsRight) {
  EXPECT_MENTIONS(refusal<DeviceError>("cudaMalloc(&memory, bytes) at ", [] { DeviceBuffer(std::size_t{1} << 60); }),
                  "too little memory is free");
  EXPECT_EQ(cudaPeekAtLastError(), cudaSuccess);
  EXPECT_NE(DeviceBuffer(1).data(), nullptr);
}

}  // namespace
}  // namespace deviceloop::cuda
