// The only way to launch a kernel. Like device.cuh it has two definitions: this one for nvcc, and that of tests/simt.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

namespace deviceloop::cuda {

/// A grid of one dimension; threads is a multiple of 32.
struct LaunchConfig {
  std::int64_t blocks = 1;
  int threads = 256;
  int shared_bytes = 0;      ///< per block; more than 48 KiB only after prepare_kernel
  int cluster_blocks = 1;    ///< per cluster; divides blocks; more than 1 only if the GPU has clusters
  bool cooperative = false;  ///< all blocks are resident at once, or the launch fails
  bool waits = false;        ///< the kernel begins with wait_for_grids_before()
};

/// Of a kernel that begins with wait_for_grids_before().
constexpr LaunchConfig waiting(LaunchConfig config) {
  config.waits = true;
  return config;
}

/// While one lives, the launches of the calling thread whose kernels wait for the grids before begin before those end,
/// and so hide what a launch takes. For a stream that is captured, with kernels alone, for GPUs of compute capability
/// 9.0 or more; where the driver is too old it changes nothing.
class OverlappedLaunches {
 public:
  explicit OverlappedLaunches(bool overlap) : before_(current()) { current() = overlap; }
  ~OverlappedLaunches() { current() = before_; }
  OverlappedLaunches(const OverlappedLaunches&) = delete;
  OverlappedLaunches& operator=(const OverlappedLaunches&) = delete;

  static bool& current() {
    static thread_local bool overlap = false;
    return overlap;
  }

 private:
  bool before_;
};

/// Raises the kernel's limit of shared memory on the current device, so that config.shared_bytes are allowed, and
/// allows clusters of config's size. Call it once before the first launch.
void prepare_kernel(const void* kernel, const LaunchConfig& config);

/// How many clusters of such a launch (blocks, if cluster_blocks is 1) can be resident on the current device when
/// nothing else runs on it. Call it after prepare_kernel.
std::int64_t resident_clusters(const void* kernel, const LaunchConfig& config);

/// The same as launch below, but takes the addresses of the arguments.
void launch_erased(const void* kernel, const LaunchConfig& config, cudaStream_t stream, void** arguments);

}  // namespace deviceloop::cuda

#if defined(__CUDACC__)

#include <tuple>
#include <utility>

namespace deviceloop::cuda {

/// Enqueues kernel(arguments...) on `stream` of the current device. Throws as check_cuda does, naming the kernel, and
/// InvalidArgument if the grid has no blocks or too many.
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
