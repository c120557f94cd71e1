// The only way to start a kernel. As device.cuh it has two definitions: this one for nvcc, and that of tests/simt.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

namespace deviceloop::cuda {

/// A grid of one dimension; threads is a multiple of 32.
struct LaunchConfig {
  std::int64_t blocks = 1;
  int threads = 256;
  int shared_bytes = 0;      ///< a block; more than 48 KiB only after prepare_kernel
  int cluster_blocks = 1;    ///< blocks of a cluster, from 2 on where the GPU has clusters; divides blocks
  bool cooperative = false;  ///< all blocks run at once, or the launch fails
};

/// The current device lets the kernel have config.shared_bytes, and clusters of any size. Once before the first launch.
void prepare_kernel(const void* kernel, const LaunchConfig& config);

/// How many clusters of such a launch the current device runs at once when nothing else is on it, or blocks where
/// cluster_blocks is 1. After prepare_kernel.
std::int64_t resident_clusters(const void* kernel, const LaunchConfig& config);

/// As launch below, with the addresses of the arguments.
void launch_erased(const void* kernel, const LaunchConfig& config, cudaStream_t stream, void** arguments);

}  // namespace deviceloop::cuda

#if defined(__CUDACC__)

#include <tuple>
#include <utility>

namespace deviceloop::cuda {

/// Enqueues kernel(arguments...), whose return value is nothing, on `stream` of the current device. Throws as
/// check_cuda does, naming the kernel; and InvalidArgument for a grid of no or too many blocks.
template <class... Parameters, class... Arguments>
void launch(void (*kernel)(Parameters...), const LaunchConfig& config, cudaStream_t stream, Arguments&&... arguments) {
  std::tuple<Parameters...> values(std::forward<Arguments>(arguments)...);
  std::apply(
      [&](auto&... value) {
        void* addresses[] = {&value...};
        launch_erased(reinterpret_cast<const void*>(kernel), config, stream, addresses);
      },
      values);
}

}  // namespace deviceloop::cuda

#elif defined(DEVICELOOP_SIMT)
#include <simt/launch.h>
#endif
