// Activations in kernels that know them at run time only.
#pragma once

#include "../../host/activations.h"

namespace deviceloop::cuda {

/// Each activation but ReLU is called: copied to every place, they would be most of the kernel, and take registers from
/// its products.
/// @{
template <class T>
DEVICELOOP_RARELY_CALLED T other_value(Activation activation, T leaky_slope, T z) {
  return activations::value({activation, static_cast<double>(leaky_slope)}, z);
}
template <class T>
DEVICELOOP_RARELY_CALLED T other_gradient(Activation activation, T leaky_slope, T kept, T dh) {
  return activations::gradient({activation, static_cast<double>(leaky_slope)}, kept, dh);
}
template <class T>
__device__ inline T activation_value(Activation activation, T leaky_slope, T z) {
  return activation == Activation::relu ? activations::Relu::value(z) : other_value(activation, leaky_slope, z);
}
template <class T>
__device__ inline T activation_gradient(Activation activation, T leaky_slope, T kept, T dh) {
  return activation == Activation::relu ? activations::Relu::gradient(kept, dh)
                                        : other_gradient(activation, leaky_slope, kept, dh);
}
/// @}

}  // namespace deviceloop::cuda
