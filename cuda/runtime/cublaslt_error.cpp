#include <cuda_runtime_api.h>

#include <string>

#include <deviceloop/error.h>

#include "cublaslt.h"

namespace deviceloop::cuda {

void throw_cublaslt_error(cublasStatus_t status, const char* expression, const char* file, int line) {
  cudaGetLastError();  // the error is reported below; the host application's next check must not see it again
  std::string name = std::to_string(static_cast<int>(status));
  try {
    name = std::string(cublaslt().get_status_name(status)) + " (" + name + ")";
  } catch (const Unsupported&) {
    // The message has only the number.
  }
  throw DeviceError(std::string(expression) + " at " + file + ":" + std::to_string(line) + " failed: " + name +
                        "; set CUBLASLT_LOG_LEVEL=5 in the environment to see why",
                    "cuBLASLt", static_cast<int>(status), expression, file, line);
}

}  // namespace deviceloop::cuda
