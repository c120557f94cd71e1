#include "gpu.h"

#include <cuda_runtime_api.h>

#include <string>

#include "check.h"

namespace deviceloop::cuda {

GpuCaps query_gpu(int index) {
  cudaDeviceProp properties;
  DEVICELOOP_CHECK_CUDA(cudaGetDeviceProperties(&properties, index));
  GpuCaps gpu;
  gpu.name = properties.name;
  gpu.index = index;
  gpu.compute_capability = properties.major * 10 + properties.minor;
  gpu.multiprocessors = properties.multiProcessorCount;
  gpu.memory_bytes = properties.totalGlobalMem;
  int memory_khz = 0, bus_bits = 0;
  DEVICELOOP_CHECK_CUDA(cudaDeviceGetAttribute(&memory_khz, cudaDevAttrMemoryClockRate, index));
  DEVICELOOP_CHECK_CUDA(cudaDeviceGetAttribute(&bus_bits, cudaDevAttrGlobalMemoryBusWidth, index));
  gpu.memory_gb_per_s = 2.0 * memory_khz * bus_bits / 8 / 1e6;  // two transfers a clock
  gpu.l2_bytes = static_cast<std::uint64_t>(properties.l2CacheSize);
  gpu.shared_bytes = properties.sharedMemPerBlockOptin;
  gpu.cooperative = properties.cooperativeLaunch != 0;
  if (!runs_on(built_architectures(), gpu.compute_capability))
    gpu.no_code_reason = "this build holds code for " + built_architectures() + ", none for " + gpu.name +
                         ", which is sm_" + std::to_string(gpu.compute_capability) +
                         "; build it with CMAKE_CUDA_ARCHITECTURES=" + std::to_string(gpu.compute_capability);
  else if (gpu.compute_capability == 90 && !holds_hopper_code(built_architectures()))
    gpu.no_hopper_code_reason =
        "this build holds no code for the tensor cores of " + gpu.name + ", only " + built_architectures() +
        "; build it with CMAKE_CUDA_ARCHITECTURES, or CUDAARCHS in the environment, that hold 90";
  return gpu;
}

}  // namespace deviceloop::cuda
