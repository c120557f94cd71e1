// What the benchmark's cases of a GPU have on the fixture: in place of CUB, which g++ does not compile, one thread; and
// of the call that launches kernels, which here are not counted, nothing.
#include "../../bench/gpu/squared_error_cub.h"

#include "../../cuda/runtime/device.cuh"
#include "../../cuda/runtime/launch.h"

extern "C" cudaError_t __real_cudaLaunchKernelExC(const cudaLaunchConfig_t*, const void*, void**) {
  return cudaErrorNotSupported;
}

namespace deviceloop::bench {
namespace {

template <class T>
void squared_error_kernel(double* loss, const T* prediction, const T* target, std::int64_t count) {
  if (cuda::thread_index() != 0) return;
  *loss = 0;
  for (std::int64_t i = 0; i < count; ++i) {
    const T difference = prediction[i] - target[i];
    *loss += static_cast<double>(difference * difference);
  }
}

template <class T>
std::size_t reduce(double* loss, const T* prediction, const T* target, std::int64_t count, void* workspace,
                   cudaStream_t stream) {
  cuda::LaunchConfig config;
  config.threads = 32;
  if (workspace != nullptr) cuda::launch(squared_error_kernel<T>, config, stream, loss, prediction, target, count);
  return 1;
}

}  // namespace

std::size_t squared_error_cub(double* loss, const float* prediction, const float* target, std::int64_t count,
                              void* workspace, std::size_t, cudaStream_t stream) {
  return reduce(loss, prediction, target, count, workspace, stream);
}
std::size_t squared_error_cub(double* loss, const double* prediction, const double* target, std::int64_t count,
                              void* workspace, std::size_t, cudaStream_t stream) {
  return reduce(loss, prediction, target, count, workspace, stream);
}

}  // namespace deviceloop::bench
