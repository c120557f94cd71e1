/// \file
/// The public CUDA kernels, for programs that have their own training loop: the element-wise passes, reductions and
/// narrow output layer of a training step on raw device pointers. Needs no CUDA header.
///
/// Every function enqueues its work on `stream`, a stream of the current device (null: its default stream), and returns
/// without waiting for it. It allocates no memory and may be captured into a graph. Matrices are row-major without
/// gaps, one row a sample. Sums are added in an order that depends only on the sizes, so their bits are the same on
/// every run and every GPU. A call with a count of 0 does nothing, unless the function says otherwise. Pointers need
/// only the alignment of their type; ranges aligned to 16 bytes are faster.
///
/// Throws InvalidArgument, and then has done nothing, for a null pointer, negative or overflowing sizes, a workspace
/// that is too small, a stream that does not belong to the current device, and ranges that overlap: an output may be
/// the same range as an input where the function says so, and must not overlap an input otherwise. Throws Unsupported
/// in a build without CUDA, if no driver or GPU is found, and if the build has no code for the GPU. Throws DeviceError
/// for every other error that CUDA reports, including errors of earlier work.
#pragma once

#include <cstddef>
#include <cstdint>

#include <deviceloop/export.h>
#include <deviceloop/stream.h>

namespace deviceloop::cuda {

/// The rectified linear unit, out[i] = in[i] < 0 ? 0 : in[i]; NaN and -0.0 pass unchanged. `out` may be `in`.
/// @{
DEVICELOOP_EXPORT void relu(float* out, const float* in, std::int64_t count, Stream stream);
DEVICELOOP_EXPORT void relu(double* out, const double* in, std::int64_t count, Stream stream);
/// @}

/// The gradient of relu: dz[i] = z[i] < 0 ? 0 : dh[i]. The gradient passes where the pre-activation z is exactly 0, and
/// where it is NaN. `dz` may be `z` or `dh`.
/// @{
DEVICELOOP_EXPORT void relu_gradient(float* dz, const float* z, const float* dh, std::int64_t count, Stream stream);
DEVICELOOP_EXPORT void relu_gradient(double* dz, const double* z, const double* dh, std::int64_t count, Stream stream);
/// @}

/// h = relu(z + bias), with `bias` [features] added to each row of z [batch, features]; a null `bias` adds nothing. The
/// sign of zero in h stores the mask that the gradient needs, so that z need not be kept: h is -0.0 exactly where z +
/// bias < 0, and a sum of -0.0 becomes +0.0. The two zeros compare equal. `h` may be `z`.
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

/// Writes *loss = sum((prediction - target)^2), in device memory, and in the same pass gradient = 2 (prediction -
/// target). Differences and squares are computed in the working precision, and sums of at most 32 squares too; these
/// sums are added in double. With a null `gradient` only the loss is computed; `gradient` may be `prediction` or
/// `target`. A count of 0 writes a loss of 0. `workspace` has at least squared_error_workspace(count) bytes, aligned to
/// 8 bytes, which are in use until the work is done.
/// @{
DEVICELOOP_EXPORT void squared_error(double* loss, float* gradient, const float* prediction, const float* target,
                                     std::int64_t count, void* workspace, std::size_t workspace_bytes, Stream stream);
DEVICELOOP_EXPORT void squared_error(double* loss, double* gradient, const double* prediction, const double* target,
                                     std::int64_t count, void* workspace, std::size_t workspace_bytes, Stream stream);
/// Size of the workspace in bytes; 0 for small counts.
DEVICELOOP_EXPORT std::size_t squared_error_workspace(std::int64_t count);
/// @}

/// sums[j] = sum over the rows of matrix[i][j], the gradient of a bias: `matrix` is [batch, features], `sums`
/// [features]. At most 32 terms are added in the working precision; these sums are added in double. A batch of 0 writes
/// zeros.
/// @{
DEVICELOOP_EXPORT void column_sums(float* sums, const float* matrix, std::int64_t batch, std::int64_t features,
                                   void* workspace, std::size_t workspace_bytes, Stream stream);
DEVICELOOP_EXPORT void column_sums(double* sums, const double* matrix, std::int64_t batch, std::int64_t features,
                                   void* workspace, std::size_t workspace_bytes, Stream stream);
/// Size of the workspace in bytes; 0 for small matrices.
DEVICELOOP_EXPORT std::size_t column_sums_workspace(std::int64_t batch, std::int64_t features);
/// @}

/// The largest number of outputs of a narrow layer.
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
/// with `dout` [batch, out_features]. With a null `dz` only dweights is computed; `dz` may be `h`. The sums of dweights
/// are added as in column_sums. A batch of 0 writes zeros to dweights.
/// @{
DEVICELOOP_EXPORT void narrow_linear_gradient(float* dz, float* dweights, const float* h, const float* dout,
                                              const float* weights, std::int64_t batch, std::int64_t in_features,
                                              std::int64_t out_features, void* workspace, std::size_t workspace_bytes,
                                              Stream stream);
DEVICELOOP_EXPORT void narrow_linear_gradient(double* dz, double* dweights, const double* h, const double* dout,
                                              const double* weights, std::int64_t batch, std::int64_t in_features,
                                              std::int64_t out_features, void* workspace, std::size_t workspace_bytes,
                                              Stream stream);
/// Size of the workspace in bytes; 0 for small layers.
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
