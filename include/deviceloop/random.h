/// \file
/// Normal random numbers that are the same on every machine: Philox4x32-10 (Salmon et al. 2011) and the inverse normal
/// distribution function (Wichura 1988, AS 241), with + - * / and square roots only.
#pragma once

#include <cstdint>

#include <deviceloop/export.h>
#include <deviceloop/matrix.h>

namespace deviceloop {

/// Numbers of the tensors of a run, so that each tensor has a random stream of its own under one seed: the inputs, the
/// targets, and the weight of each layer, counted from 0.
/// @{
constexpr std::uint32_t kTensorX = 0;
constexpr std::uint32_t kTensorY = 1;
constexpr std::uint32_t tensor_of_weight(int layer) { return 2 + 2 * static_cast<std::uint32_t>(layer); }
/// @}

/// Fills a host matrix with normal numbers of mean 0 and standard deviation `deviation`, drawn in double and rounded
/// once, in the default floating-point environment as Trainer does. Element (r, c) is number r * columns + c of tensor
/// `tensor` under `seed`. Throws InvalidArgument for a null, negative or device matrix.
DEVICELOOP_EXPORT void fill_normal(Matrix out, std::uint64_t seed, std::uint32_t tensor, double deviation = 1);

}  // namespace deviceloop
