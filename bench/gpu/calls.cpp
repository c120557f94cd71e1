// Counts what this process asks of CUDA: the linker sends the library's calls here (--wrap in bench/CMakeLists.txt).
// Every launch of the library is one of cudaLaunchKernelExC or of a graph, and it waits for streams and events alone.
#include <cuda_profiler_api.h>
#include <cuda_runtime_api.h>

#include <atomic>

#include "../../cuda/runtime/check.h"
#include "../gpu.h"

namespace {

std::atomic<std::int64_t> launches{0}, synchronizations{0};

}  // namespace

extern "C" {

cudaError_t __real_cudaLaunchKernelExC(const cudaLaunchConfig_t*, const void*, void**);
cudaError_t __real_cudaGraphLaunch(cudaGraphExec_t, cudaStream_t);
cudaError_t __real_cudaStreamSynchronize(cudaStream_t);
cudaError_t __real_cudaEventSynchronize(cudaEvent_t);

cudaError_t __wrap_cudaLaunchKernelExC(const cudaLaunchConfig_t* config, const void* kernel, void** arguments) {
  ++launches;
  return __real_cudaLaunchKernelExC(config, kernel, arguments);
}
cudaError_t __wrap_cudaGraphLaunch(cudaGraphExec_t graph, cudaStream_t stream) {
  ++launches;
  return __real_cudaGraphLaunch(graph, stream);
}
cudaError_t __wrap_cudaStreamSynchronize(cudaStream_t stream) {
  ++synchronizations;
  return __real_cudaStreamSynchronize(stream);
}
cudaError_t __wrap_cudaEventSynchronize(cudaEvent_t event) {
  ++synchronizations;
  return __real_cudaEventSynchronize(event);
}

}  // extern "C"

namespace deviceloop::bench {

std::optional<CudaCalls> cuda_calls() { return CudaCalls{launches, synchronizations}; }

void start_profiler() { DEVICELOOP_CHECK_CUDA(cudaProfilerStart()); }
void stop_profiler() { DEVICELOOP_CHECK_CUDA(cudaProfilerStop()); }

}  // namespace deviceloop::bench
