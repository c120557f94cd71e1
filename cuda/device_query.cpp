// The joint's functions in a build with CUDA.
#include <cuda_runtime_api.h>

#include <cstdlib>
#include <string>

#include <deviceloop/error.h>

#include "../host/cuda_entry.h"
#include "runtime/check.h"
#include "runtime/cublaslt.h"
#include "runtime/gpu.h"
#include "runtime/range.h"

namespace deviceloop {
namespace {

/// "13.0" from 13000.
std::string version_text(int version) {
  return std::to_string(version / 1000) + "." + std::to_string(version % 1000 / 10);
}

std::string no_driver_reason() {
  int version = 0;
  if (cudaDriverGetVersion(&version) != cudaSuccess || version == 0) return "no NVIDIA driver found";
  return "the driver is for CUDA " + version_text(version) + ", older than the CUDA " + cuda_toolkit() +
         " of this build; update the driver";
}

std::string no_device_reason() {
  const char* visible = std::getenv("CUDA_VISIBLE_DEVICES");
  return visible == nullptr ? std::string("the NVIDIA driver finds no GPU")
                            : std::string("CUDA_VISIBLE_DEVICES is '") + visible + "', which shows no GPU";
}

}  // namespace

// Asks nothing that creates a context: that takes tenths of a second and hundreds of megabytes on each GPU. Therefore
// the memory is that of the whole GPU, and the current device stays what it was.
void query_gpus(DeviceCaps& caps) {
  const cuda::Range range("deviceloop: query devices");
  int count = 0;
  const cudaError_t code = cudaGetDeviceCount(&count);
  if (code == cudaErrorInsufficientDriver || code == cudaErrorNoDevice || (code == cudaSuccess && count == 0)) {
    caps.no_gpu_reason = code == cudaErrorInsufficientDriver ? no_driver_reason() : no_device_reason();
    cudaGetLastError();  // must not surface in the host application's next check
    return;
  }
  cuda::check_cuda(code, "cudaGetDeviceCount(&count)", __FILE__, __LINE__);
  for (int index = 0; index < count; ++index) caps.gpus.push_back(cuda::query_gpu(index));
}

std::string why_no_cublaslt() {
  try {
    cuda::cublaslt();
    return "";
  } catch (const Unsupported& error) {
    return error.what();
  }
}

const char* cuda_toolkit() {
  static_assert(CUDART_VERSION >= 12040, "the oldest toolkit that cmake/Cuda.cmake takes");
  static const std::string text = version_text(CUDART_VERSION);
  return text.c_str();
}

}  // namespace deviceloop
