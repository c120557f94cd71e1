#include "check.h"

#include <cxxabi.h>

#include <algorithm>
#include <cstdlib>
#include <memory>
#include <sstream>
#include <string>

#include <deviceloop/error.h>

namespace deviceloop::cuda {
namespace {

/// What the caller can do about `code`.
const char* remedy(cudaError_t code) {
  switch (code) {
    case cudaErrorMemoryAllocation:
      return "too little memory is free on the device, or on the host if host memory was requested; take fewer "
             "samples, fewer steps a call, or end other programs that use that memory";
    case cudaErrorInitializationError:
      return "CUDA cannot be used in a process forked from one that used it; start that process by exec";
    case cudaErrorLaunchFailure:
    case cudaErrorIllegalAddress:
    case cudaErrorIllegalInstruction:
    case cudaErrorMisalignedAddress:
    case cudaErrorInvalidAddressSpace:
    case cudaErrorInvalidPc:
    case cudaErrorHardwareStackError:
    case cudaErrorAssert:
    case cudaErrorLaunchTimeout:
      return "earlier work may have caused this, and this process can no longer use CUDA; start it again with the "
             "environment variable CUDA_LAUNCH_BLOCKING=1, or under compute-sanitizer, to find the call";
    case cudaErrorECCUncorrectable:
    case cudaErrorContained:
    case cudaErrorDevicesUnavailable:
      return "the device cannot be used; see nvidia-smi";
    case cudaErrorStreamCaptureUnsupported:
    case cudaErrorStreamCaptureInvalidated:
    case cudaErrorStreamCaptureImplicit:
      return "a stream is being captured into a graph; make this call before or after that";
    default:
      return "see this code in the documentation of CUDA's runtime";
  }
}

}  // namespace

std::string kernel_name(const std::string& symbol) {
  const std::unique_ptr<char, decltype(&std::free)> readable(
      abi::__cxa_demangle(symbol.c_str(), nullptr, nullptr, nullptr), &std::free);
  std::string name = readable ? readable.get() : symbol;
  for (const std::string anonymous = "(anonymous namespace)::"; name.find(anonymous) != std::string::npos;)
    name.erase(name.find(anonymous), anonymous.size());
  name.erase(std::min(name.find_first_of("<("), name.size()));
  return name.substr(name.find_last_of(": ") + 1);
}

std::string built_architectures() {
#if defined(DEVICELOOP_CUDA_ARCHITECTURES)
  return DEVICELOOP_CUDA_ARCHITECTURES;
#else
  return "none";
#endif
}

bool runs_on(const std::string& architectures, int compute_capability) {
  std::istringstream entries(architectures);
  entries.exceptions(std::ios::badbit);  // memory that is refused is not the end
  for (std::string entry; std::getline(entries, entry, ',');) {
    const std::size_t begin = entry.find_first_not_of(' '), mark = entry.find('_');
    if (begin == std::string::npos || mark == std::string::npos) continue;
    const std::string kind = entry.substr(begin, mark - begin), number = entry.substr(mark + 1);
    const int code = std::atoi(number.c_str());
    const bool for_one_alone = number.back() == 'a', for_family = number.back() == 'f';
    if (for_one_alone && code == compute_capability) return true;
    if (for_one_alone || code > compute_capability) continue;
    if (code / 10 == compute_capability / 10 || (kind == "compute" && !for_family)) return true;
  }
  return false;
}

bool holds_hopper_code(const std::string& architectures) {
  return architectures.find("sm_90") != std::string::npos || architectures.find("compute_90") != std::string::npos;
}

void throw_cuda_error(cudaError_t code, const char* expression, const char* file, int line, const std::string& kernel) {
  cudaGetLastError();  // clears an error that is not sticky, so that the host application's next check does not see it
  const std::string what = std::string(cudaGetErrorName(code)) + " (" + std::to_string(static_cast<int>(code)) + ", " +
                           cudaGetErrorString(code) + ")";
  const std::string where = kernel.empty() ? "" : kernel + ": ";
  switch (code) {
    case cudaErrorInsufficientDriver:
    case cudaErrorNoDevice:
      throw Unsupported(where + "no GPU can be used: " + what +
                        "; install a driver for this version of CUDA, or use the CPU");
    case cudaErrorNoKernelImageForDevice:
    case cudaErrorInvalidDeviceFunction:
    case cudaErrorUnsupportedPtxVersion:
      throw Unsupported(where + "this build holds no code for the current GPU, only for " + built_architectures() +
                        ": " + what + "; build it with CMAKE_CUDA_ARCHITECTURES set to the GPU's");
    case cudaErrorInvalidResourceHandle:
    case cudaErrorContextIsDestroyed:
      throw InvalidArgument(where + "the stream is not one of the current device: " + what +
                            "; call cudaSetDevice with the device that it was made on");
    default:
      throw DeviceError(
          where + expression + " at " + file + ":" + std::to_string(line) + " failed: " + what + "; " + remedy(code),
          "CUDA runtime", static_cast<int>(code), expression, file, line);
  }
}

}  // namespace deviceloop::cuda
