// The interface between host/ and cuda/: the only functions of cuda/ that host/ calls. A build without CUDA defines
// them in cuda/without_cuda.cpp.
#pragma once

#include <memory>
#include <string>

#include <deviceloop/plan.h>
#include <deviceloop/spec.h>

#include "executor.h"
#include "planning/decision.h"

namespace deviceloop {

/// Fills caps.gpus, or caps.no_gpu_reason if there is no GPU, which is no error. Does not load cuBLASLt.
void query_gpus(DeviceCaps& caps);

/// Why cuBLASLt is not available; empty if it is. The call loads it, which takes 50 ms and 150 MB.
std::string why_no_cublaslt();

/// The toolkit this was built with ("13.0"), or "none".
const char* cuda_toolkit();

/// Make the executor that `decision` chose, on its device. The executor allocates as much of the device's memory as the
/// plan says, all at once. They throw DeviceError if CUDA fails, Unsupported if the GPU or cuBLASLt lacks what the plan
/// assumed.
/// @{
std::unique_ptr<Executor> make_graph_executor(const NetworkSpec& network, const TrainingSpec& training,
                                              const Decision& decision);
std::unique_ptr<Executor> make_persistent_executor(const NetworkSpec& network, const TrainingSpec& training,
                                                   const Decision& decision);
/// @}

}  // namespace deviceloop
