// The joint between host/ and cuda/: the only functions of cuda/ that host/ knows. A build without CUDA defines them in
// cuda/without_cuda.cpp.
#pragma once

#include <memory>
#include <string>

#include <deviceloop/plan.h>
#include <deviceloop/spec.h>

#include "executor.h"

namespace deviceloop {

/// Fills caps.gpus, or caps.no_gpu_reason where there is none. Absence is not an error. Asks nothing of cuBLASLt.
void query_gpus(DeviceCaps& caps);

/// Why cuBLASLt cannot be had, empty where it can: asking loads it, which takes 50 ms and 150 MB.
std::string why_no_cublaslt();

/// The toolkit this was built with ("13.0"), or "none".
const char* cuda_toolkit();

std::unique_ptr<Executor> make_cuda_executor(const NetworkSpec& network, const TrainingSpec& training,
                                             const Plan& plan);

}  // namespace deviceloop
