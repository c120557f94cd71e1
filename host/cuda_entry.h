// The joint between host/ and cuda/: the only functions of cuda/ that host/ knows. A build without CUDA defines them in
// cuda/without_cuda.cpp.
#pragma once

#include <memory>
#include <string>

#include <deviceloop/plan.h>
#include <deviceloop/spec.h>

#include "executor.h"
#include "planning/decision.h"

namespace deviceloop {

/// Fills caps.gpus, or caps.no_gpu_reason where there is none. Absence is not an error. Asks nothing of cuBLASLt.
void query_gpus(DeviceCaps& caps);

/// Why cuBLASLt cannot be had, empty where it can: asking loads it, which takes 50 ms and 150 MB.
std::string why_no_cublaslt();

/// The toolkit this was built with ("13.0"), or "none".
const char* cuda_toolkit();

/// Of a decision for one of them, on its device. They take as much of the device's memory as the plan says, all at
/// once. Throw DeviceError where CUDA fails, Unsupported where the GPU, or cuBLASLt, does not have what was planned
/// with.
/// @{
std::unique_ptr<Executor> make_graph_executor(const NetworkSpec& network, const TrainingSpec& training,
                                              const Decision& decision);
std::unique_ptr<Executor> make_persistent_executor(const NetworkSpec& network, const TrainingSpec& training,
                                                   const Decision& decision);
/// @}

}  // namespace deviceloop
