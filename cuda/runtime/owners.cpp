#include "owners.h"

#include <cuda.h>

#include <string>

#include <deviceloop/error.h>

namespace deviceloop::cuda {
namespace {

/// Asks for a version of the function that every driver for the supported toolkits has.
template <class Function>
void find_function(Function& function, const char* name) {
  void* found = nullptr;
  cudaDriverEntryPointQueryResult result = cudaDriverEntryPointSymbolNotFound;
#if CUDART_VERSION >= 12050
  DEVICELOOP_CHECK_CUDA(cudaGetDriverEntryPointByVersion(name, &found, 12040, cudaEnableDefault, &result));
#else
  DEVICELOOP_CHECK_CUDA(cudaGetDriverEntryPoint(name, &found, cudaEnableDefault, &result));
#endif
  if (result != cudaDriverEntryPointSuccess || found == nullptr)
    throw Unsupported(std::string("the NVIDIA driver has no ") + name + "; update it, or use the CPU");
  function = reinterpret_cast<Function>(found);
}

/// The functions of the driver API in use, found at run time: a program linked to them could not start without a
/// driver.
struct Driver {
  Driver() {
    find_function(retain, "cuDevicePrimaryCtxRetain");
    find_function(release, "cuDevicePrimaryCtxRelease");
    find_function(push, "cuCtxPushCurrent");
    find_function(pop, "cuCtxPopCurrent");
  }
  decltype(&cuDevicePrimaryCtxRetain) retain = nullptr;
  decltype(&cuDevicePrimaryCtxRelease) release = nullptr;
  decltype(&cuCtxPushCurrent) push = nullptr;
  decltype(&cuCtxPopCurrent) pop = nullptr;
};

const Driver& driver() {
  static const Driver functions;
  return functions;
}

/// The error codes of the driver and of the runtime are the same numbers.
cudaError_t as_runtime(CUresult code) { return static_cast<cudaError_t>(code); }

}  // namespace

CurrentDevice::CurrentDevice(int device) : device_(device) {
  int before = 0;
  DEVICELOOP_CHECK_CUDA(cudaGetDevice(&before));
  if (device == before) return;
  const Driver& functions = driver();
  // Makes the runtime retain the context too; otherwise the destructor's release would destroy it.
  DEVICELOOP_CHECK_CUDA(cudaInitDevice(device, 0, 0));
  CUcontext context = nullptr;
  DEVICELOOP_CHECK_CUDA(as_runtime(functions.retain(&context, device)));
  const CUresult pushed = functions.push(context);
  if (pushed != CUDA_SUCCESS) functions.release(device);
  check_cuda(as_runtime(pushed), "cuCtxPushCurrent(context)", __FILE__, __LINE__);
  is_pushed_ = true;
}

CurrentDevice::~CurrentDevice() {
  if (!is_pushed_) return;
  CUcontext context = nullptr;
  driver().pop(&context);
  driver().release(device_);
}

}  // namespace deviceloop::cuda
