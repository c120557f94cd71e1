// The training loop as a graph of kernels that the device replays by itself.
#pragma once

#include <memory>

#include "../../host/executor.h"

namespace deviceloop::cuda {

/// On the device that `plan` names. Takes make_graph_layout(...).bytes of its memory, all at once. Throws DeviceError
/// where that fails, Unsupported where a product needs cuBLASLt and that is not to be had.
std::unique_ptr<Executor> make_graph_executor(const NetworkSpec& network, const TrainingSpec& training,
                                              const Plan& plan);

}  // namespace deviceloop::cuda
