// The joint between host/ and cuda/: the only functions of cuda/ that host/ knows. A build without CUDA defines them in
// cuda/without_cuda.cpp.
#pragma once

#include <memory>

#include <deviceloop/plan.h>
#include <deviceloop/spec.h>

#include "executor.h"

namespace deviceloop {

/// Fills caps.gpus, or caps.no_gpu_reason where there is none. Absence is not an error.
void query_gpus(DeviceCaps& caps);

/// The toolkit this was built with ("13.0"), or "none".
const char* cuda_toolkit();

std::unique_ptr<Executor> make_cuda_executor(const NetworkSpec& network, const TrainingSpec& training,
                                             const Plan& plan);

}  // namespace deviceloop
