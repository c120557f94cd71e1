/// \file
/// The public kernel layer on NVIDIA GPUs, for people who bring their own loop: the element-wise passes, reductions and
/// narrow output layer of a training step on raw device pointers. Needs no CUDA header.
///
/// Every function is asynchronous on `stream`, which belongs to the current device (null: its default stream),
/// allocates nothing, waits for nothing and may be captured into a graph. Matrices are row-major without gaps, one row
/// a sample. Sums run in an order that depends on the sizes alone: the same bits on every run and every GPU. A count of
/// 0 does nothing. Pointers need the alignment of their type only; ranges that begin on 16 bytes are faster.
///
/// Throws InvalidArgument, and has done nothing then, for a null pointer, negative or overflowing sizes, a workspace
/// that is too small, a stream that is not the current device's, and ranges that overlap: an output may be exactly one
/// of the inputs where a function says so, and is apart from them otherwise. Throws Unsupported in a build without
/// CUDA, where no driver or GPU is found, and for a GPU that the build holds no code for; DeviceError for what else
/// CUDA reports, errors of earlier work among it.
#pragma once

#include <cstddef>
#include <cstdint>

#include <deviceloop/export.h>

struct CUstream_st;

namespace deviceloop::cuda {

/// CUDA's cudaStream_t.
using Stream = CUstream_st*;

/// The rectified linear unit, out[i] = in[i] < 0 ? 0 : in[i]; NaN and -0.0 pass. `out` may be `in`.
/// @{
DEVICELOOP_EXPORT void relu(float* out, const float* in, std::int64_t count, Stream stream);
DEVICELOOP_EXPORT void relu(double* out, const double* in, std::int64_t count, Stream stream);
/// @}

/// The gradient of relu: dz[i] = z[i] < 0 ? 0 : dh[i]. A pre-activation z of exactly 0 passes its gradient, and so does
/// NaN. `dz` may be `z` or `dh`.
/// @{
DEVICELOOP_EXPORT void relu_gradient(float* dz, const float* z, const float* dh, std::int64_t count, Stream stream);
DEVICELOOP_EXPORT void relu_gradient(double* dz, const double* z, const double* dh, std::int64_t count, Stream stream);
/// @}

/// h = relu(z + bias), with `bias` [features] added to each row of z [batch, features]; null for none. The result keeps
/// its own mask, so that z need not be stored: h is -0.0 exactly where z + bias < 0, and a sum of -0.0 becomes +0.0. As
/// values the two are the same 0. `h` may be `z`.
/// @{
DEVICELOOP_EXPORT void bias_relu(float* h, const float* z, const float* bias, std::int64_t batch, std::int64_t features,
                                 Stream stream);
DEVICELOOP_EXPORT void bias_relu(double* h, const double* z, const double* bias, std::int64_t batch,
                                 std::int64_t features, Stream stream);
/// @}

/// The gradient of bias_relu from its result: dz[i] = 0 where h[i] is -0.0, else dh[i]. `dz` may be `h` or `dh`.
/// @{
DEVICELOOP_EXPORT void mask_gradient(float* dz, const float* h, const float* dh, std::int64_t count, Stream stream);
DEVICELOOP_EXPORT void mask_gradient(double* dz, const double* h, const double* dh, std::int64_t count, Stream stream);
/// @}

/// *loss = sum((prediction - target)^2), in device memory, and in the same pass gradient = 2 (prediction - target). The
/// difference is taken in the working precision, squares are summed over at most 32 terms in it and from there in
/// double. A null `gradient` asks for the loss alone; it may be `prediction` or `target`. A count of 0 writes a loss of
/// 0. `workspace` has squared_error_workspace(count) bytes on an 8-byte border, in use until the work is done.
/// @{
DEVICELOOP_EXPORT void squared_error(double* loss, float* gradient, const float* prediction, const float* target,
                                     std::int64_t count, void* workspace, std::size_t workspace_bytes, Stream stream);
DEVICELOOP_EXPORT void squared_error(double* loss, double* gradient, const double* prediction, const double* target,
                                     std::int64_t count, void* workspace, std::size_t workspace_bytes, Stream stream);
/// Bytes; 0 for small counts.
DEVICELOOP_EXPORT std::size_t squared_error_workspace(std::int64_t count);
/// @}

/// sums[j] = sum over the rows of matrix[i][j], the gradient of a bias: `matrix` is [batch, features], `sums`
/// [features]. At most 32 terms are added in the working precision, from there in double. A batch of 0 writes zeros.
/// @{
DEVICELOOP_EXPORT void column_sums(float* sums, const float* matrix, std::int64_t batch, std::int64_t features,
                                   void* workspace, std::size_t workspace_bytes, Stream stream);
DEVICELOOP_EXPORT void column_sums(double* sums, const double* matrix, std::int64_t batch, std::int64_t features,
                                   void* workspace, std::size_t workspace_bytes, Stream stream);
/// Bytes; 0 for small matrices.
DEVICELOOP_EXPORT std::size_t column_sums_workspace(std::int64_t batch, std::int64_t features);
/// @}

/// The most outputs of a narrow layer.
inline constexpr std::int64_t kMaxNarrowOutputs = 16;

/// A narrow layer, out = in weights (+ bias): `in` [batch, in_features], `weights` [in_features, out_features], `bias`
/// [out_features] or null, `out` [batch, out_features], with at most kMaxNarrowOutputs outputs.
/// @{
DEVICELOOP_EXPORT void narrow_linear(float* out, const float* in, const float* weights, const float* bias,
                                     std::int64_t batch, std::int64_t in_features, std::int64_t out_features,
                                     Stream stream);
DEVICELOOP_EXPORT void narrow_linear(double* out, const double* in, const double* weights, const double* bias,
                                     std::int64_t batch, std::int64_t in_features, std::int64_t out_features,
                                     Stream stream);
/// @}

/// The backward pass of a narrow layer after a bias_relu, in one pass over its input `h` [batch, in_features]:
///
///     dweights = h^T dout                                  [in_features, out_features]
///     dz       = 0 where h is -0.0, else dout weights^T    [batch, in_features]
///
/// with `dout` [batch, out_features]. A null `dz` asks for dweights alone; `dz` may be `h`. Sums of dweights as in
/// column_sums. A batch of 0 writes zeros to dweights.
/// @{
DEVICELOOP_EXPORT void narrow_linear_gradient(float* dz, float* dweights, const float* h, const float* dout,
                                              const float* weights, std::int64_t batch, std::int64_t in_features,
                                              std::int64_t out_features, void* workspace, std::size_t workspace_bytes,
                                              Stream stream);
DEVICELOOP_EXPORT void narrow_linear_gradient(double* dz, double* dweights, const double* h, const double* dout,
                                              const double* weights, std::int64_t batch, std::int64_t in_features,
                                              std::int64_t out_features, void* workspace, std::size_t workspace_bytes,
                                              Stream stream);
/// Bytes; 0 for small layers.
DEVICELOOP_EXPORT std::size_t narrow_linear_gradient_workspace(std::int64_t batch, std::int64_t in_features,
                                                               std::int64_t out_features);
/// @}

/// One step of gradient descent, weights[i] -= learning_rate dweights[i], rounded once (a fused multiply-add).
/// @{
DEVICELOOP_EXPORT void sgd_update(float* weights, const float* dweights, float learning_rate, std::int64_t count,
                                  Stream stream);
DEVICELOOP_EXPORT void sgd_update(double* weights, const double* dweights, double learning_rate, std::int64_t count,
                                  Stream stream);
/// @}

}  // namespace deviceloop::cuda
