// What tests of code for the products of Hopper's warpgroups share.
#pragma once

#include <cuda_runtime_api.h>

#include "support/cuda_test.h"

namespace deviceloop::testing {

/// Skips also where the device is not of compute capability 9.0.
class HopperTest : public CudaTest {
 protected:
  void SetUp() override {
    CudaTest::SetUp();
    if (IsSkipped() || HasFatalFailure()) return;
    cudaDeviceProp gpu;
    DEVICELOOP_CHECK_CUDA(cudaGetDeviceProperties(&gpu, 0));
    if (gpu.major != 9 || gpu.minor != 0) GTEST_SKIP() << "products of a warpgroup need compute capability 9.0";
  }
};

}  // namespace deviceloop::testing
