// The properties of a GPU, as plain data.
#pragma once

#include <deviceloop/plan.h>

namespace deviceloop::cuda {

/// The properties of the device `index`. Does not create a context.
GpuCaps query_gpu(int index);

}  // namespace deviceloop::cuda
