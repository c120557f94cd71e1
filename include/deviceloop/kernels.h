/// \file
/// The public CPU kernels, for programs that have their own training loop. They run on the calling thread and allocate
/// no memory. In the default floating-point environment, the same input gives the same bits on every x86-64 and AArch64
/// machine; unlike Trainer, these functions compute in the caller's environment, with its rounding and its treatment of
/// subnormal numbers. Every function throws InvalidArgument if sizes differ or if ranges overlap in part; an output may
/// be the same range as an input.
#pragma once

#include <span>

#include <deviceloop/export.h>

namespace deviceloop {

/// The rectified linear unit, out[i] = in[i] < 0 ? 0 : in[i]; NaN and -0.0 pass unchanged. `out` and `in` have the same
/// size.
/// @{
DEVICELOOP_EXPORT void relu(std::span<float> out, std::span<const float> in);
DEVICELOOP_EXPORT void relu(std::span<double> out, std::span<const double> in);
/// @}

/// The gradient of relu: dz[i] = z[i] < 0 ? 0 : dh[i]. The gradient passes where the pre-activation z is exactly 0, and
/// where it is NaN. All three have the same size: `dh` is the gradient of the loss with respect to relu(z), `dz` that
/// with respect to z.
/// @{
DEVICELOOP_EXPORT void relu_gradient(std::span<float> dz, std::span<const float> z, std::span<const float> dh);
DEVICELOOP_EXPORT void relu_gradient(std::span<double> dz, std::span<const double> z, std::span<const double> dh);
/// @}

/// Returns sum((prediction - target)^2) and, in the same pass, writes gradient = 2 (prediction - target). Differences
/// and squares are computed in the working precision, and sums of at most 32 squares too; these sums are added in
/// double, in a fixed order. With an empty `gradient` only the loss is computed; otherwise all three have the same
/// size.
/// @{
DEVICELOOP_EXPORT double squared_error(std::span<float> gradient, std::span<const float> prediction,
                                       std::span<const float> target);
DEVICELOOP_EXPORT double squared_error(std::span<double> gradient, std::span<const double> prediction,
                                       std::span<const double> target);
/// @}

}  // namespace deviceloop
