// The kernel of fused.h for layouts in tf32 and tf32x3, which fused.cu calls for them. What is rounded to tf32, to
// nearest and ties to even as host/precision.h does: the inputs, the weights, each hidden layer, the gradient of the
// outputs and those of the hidden layers. In tf32x3 each of these is the sum of two such values, and of their product
// the three terms but that of both remainders are added: the errors are those of fp32. Derivatives of activations other
// than relu are rounded as operands: in tf32 to ten bits of mantissa, in tf32x3 not at all; those below 2^-6 to
// multiples of 2^-16 and 2^-29. The weights are read where they are: FusedArguments::operands is not used.
#pragma once

#include "fused.h"

namespace deviceloop::cuda {

void launch_fused_tf32_tiles(std::uint32_t* tiles, const float* x, int inputs, const FusedLayout& layout,
                             cudaStream_t stream);
void prepare_fused_tf32(const FusedLayout& layout);
void launch_fused_tf32(const FusedArguments& arguments, const FusedLayout& layout, cudaStream_t stream);

}  // namespace deviceloop::cuda
