/// \file
/// The public kernel layer on the CPU, for people who bring their own loop. Single-threaded, allocation-free, the same
/// bits for the same input on every x86-64 and AArch64 machine in the default floating-point environment; unlike
/// Trainer, these functions compute in the caller's, with its rounding and its treatment of subnormal numbers. Every
/// function throws InvalidArgument where sizes differ or where ranges overlap in part; `out` may be exactly one of the
/// inputs.
#pragma once

#include <span>

#include <deviceloop/export.h>

namespace deviceloop {

/// The rectified linear unit, out[i] = in[i] < 0 ? 0 : in[i]; NaN and -0.0 pass. `out` and `in` are of one size.
/// @{
DEVICELOOP_EXPORT void relu(std::span<float> out, std::span<const float> in);
DEVICELOOP_EXPORT void relu(std::span<double> out, std::span<const double> in);
/// @}

/// The gradient of relu: dz[i] = z[i] < 0 ? 0 : dh[i]. A pre-activation z of exactly 0 passes its gradient, and so does
/// NaN. The three are of one size: `dh` is the gradient of the loss by relu(z), `dz` that by z.
/// @{
DEVICELOOP_EXPORT void relu_gradient(std::span<float> dz, std::span<const float> z, std::span<const float> dh);
DEVICELOOP_EXPORT void relu_gradient(std::span<double> dz, std::span<const double> z, std::span<const double> dh);
/// @}

/// Returns sum((prediction - target)^2) and, in the same pass, writes gradient = 2 (prediction - target). The
/// difference is taken in the working precision, squares are summed over at most 32 terms in it and from there in
/// double, in a fixed order. An empty `gradient` asks for the loss alone; else the three are of one size.
/// @{
DEVICELOOP_EXPORT double squared_error(std::span<float> gradient, std::span<const float> prediction,
                                       std::span<const float> target);
DEVICELOOP_EXPORT double squared_error(std::span<double> gradient, std::span<const double> prediction,
                                       std::span<const double> target);
/// @}

}  // namespace deviceloop
