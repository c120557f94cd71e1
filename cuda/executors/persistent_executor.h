// The executor of the plan `persistent`.
#pragma once

#include <memory>

#include "../../host/executor.h"

namespace deviceloop::cuda {

/// On the device plan.device. Throws Unsupported where that cannot run it, DeviceError where CUDA fails.
std::unique_ptr<Executor> make_persistent_executor(const NetworkSpec& network, const TrainingSpec& training,
                                                   const Plan& plan);

}  // namespace deviceloop::cuda
