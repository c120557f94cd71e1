#include "launch.h"

#include <limits>
#include <string>

#include <deviceloop/error.h>

#include "check.h"

namespace deviceloop::cuda {
namespace {

std::string kernel_name(const void* kernel) {
  const char* name = nullptr;
  return cudaFuncGetName(&name, kernel) == cudaSuccess && name != nullptr ? name : "a kernel";
}

}  // namespace

void launch_erased(const void* kernel, const LaunchConfig& config, cudaStream_t stream, void** arguments) {
  if (config.blocks < 1 || config.blocks > std::numeric_limits<int>::max())
    throw InvalidArgument(kernel_name(kernel) + ": a grid of " + std::to_string(config.blocks) +
                          " blocks, of 1 to 2147483647 that can be; pass smaller ranges");
  cudaLaunchConfig_t launch{};
  launch.gridDim = dim3(static_cast<unsigned>(config.blocks));
  launch.blockDim = dim3(static_cast<unsigned>(config.threads));
  launch.dynamicSmemBytes = static_cast<std::size_t>(config.shared_bytes);
  launch.stream = stream;
  const cudaError_t code = cudaLaunchKernelExC(&launch, kernel, arguments);
  if (code != cudaSuccess) [[unlikely]]
    throw_cuda_error(code, "cudaLaunchKernelExC", __FILE__, __LINE__, kernel_name(kernel));
}

}  // namespace deviceloop::cuda
