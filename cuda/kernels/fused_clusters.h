// The kernel of fused.h for layouts with clusters, which fused.cu calls for them.
#pragma once

#include "fused.h"

namespace deviceloop::cuda {

void prepare_fused_clusters(const FusedLayout& layout);
void launch_fused_clusters(const FusedArguments& arguments, const FusedLayout& layout, bool cooperative,
                           cudaStream_t stream);

}  // namespace deviceloop::cuda
