// What a GPU is, as plain data.
#pragma once

#include <deviceloop/plan.h>

namespace deviceloop::cuda {

/// Of the device `index`. Asks nothing that creates a context.
GpuCaps query_gpu(int index);

}  // namespace deviceloop::cuda
