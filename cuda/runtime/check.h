// Turns the error codes of CUDA's runtime into exceptions that say what to do.
#pragma once

#include <cuda_runtime_api.h>

#include <string>

namespace deviceloop::cuda {

/// Throws for `code`, which `expression` returned at file:line: Unsupported where no driver, no GPU or no code for the
/// GPU is found, InvalidArgument for a stream that is not the current device's, DeviceError for all other errors.
/// `kernel` is the name of the kernel that was to be launched, or empty.
[[noreturn]] void throw_cuda_error(cudaError_t code, const char* expression, const char* file, int line,
                                   const std::string& kernel = {});

inline void check_cuda(cudaError_t code, const char* expression, const char* file, int line) {
  if (code != cudaSuccess) [[unlikely]]
    throw_cuda_error(code, expression, file, line);
}

/// For what a destructor calls, whose failure is that of earlier work: the host application's next check must not see
/// it.
inline void drop_error(cudaError_t code) noexcept {
  if (code != cudaSuccess) cudaGetLastError();
}

/// The name of a kernel from the name of its symbol, mangled or not: "relu_kernel" of
/// "_ZN10deviceloop11relu_kernelIfEEvPT_", which is "void deviceloop::relu_kernel<float>(float*)".
std::string kernel_name(const std::string& symbol);

/// The architectures that the build has code for, such as "sm_80, sm_90".
std::string built_architectures();

/// Whether code for `architectures`, as above, runs on a GPU of that compute capability, 90 for 9.0: machine code (sm)
/// on GPUs of the same major and no smaller minor number, PTX (compute) on all that are not older. Code for one
/// architecture alone (sm_90a) runs on no other.
bool runs_on(const std::string& architectures, int compute_capability);

/// Whether a build for `architectures` has code for Hopper's tensor cores: deviceloop_hopper_architectures in
/// cmake/Cuda.cmake follows the same rule.
bool holds_hopper_code(const std::string& architectures);

}  // namespace deviceloop::cuda

/// Checks a call into CUDA's runtime.
#define DEVICELOOP_CHECK_CUDA(call) ::deviceloop::cuda::check_cuda((call), #call, __FILE__, __LINE__)
