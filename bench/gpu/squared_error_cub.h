// The squared error by CUB's reduction, the rival of our own: the loss alone, summed in double.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>

namespace deviceloop::bench {

/// *loss = sum((prediction - target)^2) in device memory, asynchronously. With a null `workspace` it only returns the
/// bytes that the workspace needs; they depend on the count.
/// @{
std::size_t squared_error_cub(double* loss, const float* prediction, const float* target, std::int64_t count,
                              void* workspace, std::size_t workspace_bytes, cudaStream_t stream);
std::size_t squared_error_cub(double* loss, const double* prediction, const double* target, std::int64_t count,
                              void* workspace, std::size_t workspace_bytes, cudaStream_t stream);
/// @}

}  // namespace deviceloop::bench
