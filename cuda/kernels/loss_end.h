// The end of a loss whose partial sums lie in memory, by a launch of its own: for a loss without a step.
#pragma once

#include "kernels.h"

namespace deviceloop::cuda {

/// Appends the sum to the ring, added in the order in which launches that end a loss beside their work add it.
void launch_end_loss(const LossSum& loss, cudaStream_t stream);

}  // namespace deviceloop::cuda
