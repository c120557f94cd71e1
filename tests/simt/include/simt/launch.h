// The second definition of what cuda/runtime/launch.h declares, which includes this file behind LaunchConfig.
#pragma once

#include <cuda_runtime_api.h>

#include <functional>
#include <tuple>
#include <utility>

#include "inside.h"

namespace deviceloop::cuda {
struct LaunchConfig;
}

namespace simt {

/// Enqueues a kernel, of which `thread` runs one thread. Throws as deviceloop::cuda::launch does.
void enqueue_kernel(const void* kernel, const deviceloop::cuda::LaunchConfig& config, cudaStream_t stream,
                    std::function<void()> thread);

/// The memory that this takes is the fixture's.
std::function<void()> thread_of(auto call) {
  const Inside inside;
  return call;
}

}  // namespace simt

namespace deviceloop::cuda {

template <class... Parameters, class... Arguments>
void launch(void (*kernel)(Parameters...), const LaunchConfig& config, cudaStream_t stream, Arguments&&... arguments) {
  std::tuple<Parameters...> values(std::forward<Arguments>(arguments)...);
  simt::enqueue_kernel(reinterpret_cast<const void*>(kernel), config, stream,
                       simt::thread_of([kernel, values] { std::apply(kernel, values); }));
}

}  // namespace deviceloop::cuda
