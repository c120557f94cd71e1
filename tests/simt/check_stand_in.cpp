// In place of cuda/runtime/check.cpp, for the fixture's own tests.
#include <string>

#include <deviceloop/error.h>

#include "runtime/check.h"

namespace deviceloop::cuda {

void throw_cuda_error(cudaError_t code, const char* expression, const char* file, int line, const std::string& kernel) {
  cudaGetLastError();
  const std::string message = (kernel.empty() ? "" : kernel + ": ") + cudaGetErrorName(code);
  if (code == cudaErrorInvalidResourceHandle) throw InvalidArgument(message);
  if (code == cudaErrorNoKernelImageForDevice) throw Unsupported(message);
  throw DeviceError(message, "CUDA runtime", code, expression, file, line);
}

}  // namespace deviceloop::cuda
