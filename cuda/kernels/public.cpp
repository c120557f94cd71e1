// The functions of <deviceloop/cuda.h>: each checks its arguments, then launches its kernels.
#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>
#include <functional>
#include <initializer_list>
#include <string>

#include <deviceloop/cuda.h>
#include <deviceloop/error.h>

#include "../runtime/check.h"
#include "kernels.h"

namespace deviceloop::cuda {
namespace {

[[noreturn]] void refuse(const char* function, const std::string& what) {
  throw InvalidArgument(std::string("cuda::") + function + ": " + what);
}

/// A range of memory that the caller passes.
struct MemoryRange {
  const char* name;
  const void* begin;
  std::int64_t bytes;

  const char* end() const { return static_cast<const char*>(begin) + bytes; }
};

/// rows * columns * element_size, checked.
std::int64_t bytes_of(const char* function, std::int64_t rows, std::int64_t columns, std::size_t element_size) {
  std::int64_t bytes = 0;
  if (rows < 0 || columns < 0)
    refuse(function, "a size of " + std::to_string(rows < 0 ? rows : columns) + "; pass 0 or more");
  if (__builtin_mul_overflow(rows, columns, &bytes) ||
      __builtin_mul_overflow(bytes, static_cast<std::int64_t>(element_size), &bytes))
    refuse(function, std::to_string(rows) + " x " + std::to_string(columns) + " elements of " +
                         std::to_string(element_size) +
                         " bytes are more than any memory can hold; pass the sizes of the ranges");
  return bytes;
}

template <class T>
MemoryRange range_of(const char* function, const char* name, const T* begin, std::int64_t rows,
                     std::int64_t columns = 1) {
  const MemoryRange range{name, begin, bytes_of(function, rows, columns, sizeof(T))};
  if (begin == nullptr && range.bytes > 0)
    refuse(function, std::string(name) + " is null, but has " + std::to_string(range.bytes / sizeof(T)) +
                         " elements; pass device memory of that size");
  if (reinterpret_cast<std::uintptr_t>(begin) % alignof(T) != 0)
    refuse(function,
           std::string(name) + " is not aligned to its elements of " + std::to_string(sizeof(T)) + " bytes; align it");
  return range;
}

/// Refuses an output that overlaps one of `others`; the same begin is accepted if `may_be_same`.
void check_apart(const char* function, const MemoryRange& out, std::initializer_list<MemoryRange> others,
                 bool may_be_same) {
  for (const MemoryRange& other : others) {
    if (out.bytes == 0 || other.bytes == 0 || (may_be_same && out.begin == other.begin)) continue;
    if (std::less<>()(static_cast<const char*>(out.begin), other.end()) &&
        std::less<>()(static_cast<const char*>(other.begin), out.end()))
      refuse(function, std::string(out.name) + " overlaps " + other.name +
                           (may_be_same ? " in part; pass the same range or separate ones" : "; pass separate ranges"));
  }
}

/// The slots of a sum in the caller's workspace.
MemoryRange workspace_range(const char* function, void* workspace, std::size_t bytes, std::size_t needed) {
  if (bytes < needed)
    refuse(function, "the workspace has " + std::to_string(bytes) + " bytes, but " + std::to_string(needed) +
                         " are needed; call " + function + "_workspace for the size");
  return range_of(function, "workspace", static_cast<const double*>(workspace),
                  static_cast<std::int64_t>(needed / sizeof(double)));
}

std::size_t slot_bytes(std::int64_t slots) { return static_cast<std::size_t>(slots) * sizeof(double); }

template <class T>
void checked_relu(T* out, const T* in, std::int64_t count, Stream stream) {
  constexpr const char* function = "relu";
  check_apart(function, range_of(function, "out", out, count), {range_of(function, "in", in, count)}, true);
  if (count > 0) launch_relu(out, in, count, stream);
}

template <class T>
void checked_relu_gradient(T* dz, const T* z, const T* dh, std::int64_t count, Stream stream) {
  constexpr const char* function = "relu_gradient";
  check_apart(function, range_of(function, "dz", dz, count),
              {range_of(function, "z", z, count), range_of(function, "dh", dh, count)}, true);
  if (count > 0) launch_relu_gradient(dz, z, dh, count, stream);
}

template <class T>
void checked_mask_gradient(T* dz, const T* h, const T* dh, std::int64_t count, Stream stream) {
  constexpr const char* function = "mask_gradient";
  check_apart(function, range_of(function, "dz", dz, count),
              {range_of(function, "h", h, count), range_of(function, "dh", dh, count)}, true);
  if (count > 0) launch_activation_gradient({Activation::relu}, dz, h, dh, count, stream);
}

template <class T>
void checked_bias_relu(T* h, const T* z, const T* bias, std::int64_t batch, std::int64_t features, Stream stream) {
  constexpr const char* function = "bias_relu";
  const MemoryRange out = range_of(function, "h", h, batch, features);
  check_apart(function, out, {range_of(function, "z", z, batch, features)}, true);
  if (bias != nullptr) check_apart(function, out, {range_of(function, "bias", bias, features)}, false);
  if (out.bytes > 0) launch_bias_activation<T>({Activation::relu}, h, nullptr, z, bias, batch, features, stream);
}

template <class T>
void checked_squared_error(double* loss, T* gradient, const T* prediction, const T* target, std::int64_t count,
                           void* workspace, std::size_t workspace_bytes, Stream stream) {
  constexpr const char* function = "squared_error";
  const MemoryRange sum = range_of(function, "loss", loss, 1);
  const MemoryRange predictions = range_of(function, "prediction", prediction, count);
  const MemoryRange targets = range_of(function, "target", target, count);
  const MemoryRange slots = workspace_range(function, workspace, workspace_bytes, squared_error_workspace(count));
  check_apart(function, sum, {predictions, targets, slots}, false);
  check_apart(function, slots, {predictions, targets}, false);
  if (gradient != nullptr) {
    const MemoryRange gradients = range_of(function, "gradient", gradient, count);
    check_apart(function, gradients, {predictions, targets}, true);
    check_apart(function, gradients, {sum, slots}, false);
  }
  if (count == 0)
    DEVICELOOP_CHECK_CUDA(cudaMemsetAsync(loss, 0, sizeof(double), stream));
  else
    launch_loss<T>({}, {loss}, gradient, prediction, target, nullptr, count, 1, static_cast<double*>(workspace),
                   stream);
}

template <class T>
void checked_column_sums(T* sums, const T* matrix, std::int64_t batch, std::int64_t features, void* workspace,
                         std::size_t workspace_bytes, Stream stream) {
  constexpr const char* function = "column_sums";
  const MemoryRange out = range_of(function, "sums", sums, features);
  const MemoryRange in = range_of(function, "matrix", matrix, batch, features);
  const MemoryRange slots =
      workspace_range(function, workspace, workspace_bytes, column_sums_workspace(batch, features));
  check_apart(function, out, {in, slots}, false);
  check_apart(function, slots, {in}, false);
  if (out.bytes == 0) return;
  if (batch == 0)
    DEVICELOOP_CHECK_CUDA(cudaMemsetAsync(sums, 0, static_cast<std::size_t>(out.bytes), stream));
  else
    launch_column_sums<T>({sums}, matrix, batch, features, static_cast<double*>(workspace), stream);
}

void check_outputs(const char* function, std::int64_t out_features) {
  if (out_features < 1 || out_features > kMaxNarrowOutputs)
    refuse(function, std::to_string(out_features) + " outputs, but a narrow layer has 1 to " +
                         std::to_string(kMaxNarrowOutputs) + "; use a GEMM for wider ones");
}

template <class T>
void checked_narrow_linear(T* out, const T* in, const T* weights, const T* bias, std::int64_t batch,
                           std::int64_t in_features, std::int64_t out_features, Stream stream) {
  constexpr const char* function = "narrow_linear";
  check_outputs(function, out_features);
  const MemoryRange outputs = range_of(function, "out", out, batch, out_features);
  check_apart(function, outputs,
              {range_of(function, "in", in, batch, in_features),
               range_of(function, "weights", weights, in_features, out_features),
               bias != nullptr ? range_of(function, "bias", bias, out_features) : MemoryRange{"bias", nullptr, 0}},
              false);
  if (batch > 0)
    launch_narrow_linear(out, in, weights, bias, batch, in_features, static_cast<int>(out_features), stream);
}

template <class T>
void checked_narrow_linear_gradient(T* dz, T* dweights, const T* h, const T* dout, const T* weights, std::int64_t batch,
                                    std::int64_t in_features, std::int64_t out_features, void* workspace,
                                    std::size_t workspace_bytes, Stream stream) {
  constexpr const char* function = "narrow_linear_gradient";
  check_outputs(function, out_features);
  const MemoryRange out = range_of(function, "dweights", dweights, in_features, out_features);
  const MemoryRange inputs = range_of(function, "h", h, batch, in_features);
  const MemoryRange gradients = range_of(function, "dout", dout, batch, out_features);
  const MemoryRange layer = range_of(function, "weights", weights, in_features, out_features);
  const MemoryRange slots = workspace_range(function, workspace, workspace_bytes,
                                            narrow_linear_gradient_workspace(batch, in_features, out_features));
  check_apart(function, out, {inputs, gradients, layer, slots}, false);
  check_apart(function, slots, {inputs, gradients, layer}, false);
  if (dz != nullptr) {
    const MemoryRange masked = range_of(function, "dz", dz, batch, in_features);
    check_apart(function, masked, {inputs}, true);
    check_apart(function, masked, {out, gradients, layer, slots}, false);
  }
  if (out.bytes == 0) return;
  if (batch == 0)
    DEVICELOOP_CHECK_CUDA(cudaMemsetAsync(dweights, 0, static_cast<std::size_t>(out.bytes), stream));
  else
    launch_narrow_linear_gradient<T>(true, dz, {dweights}, {}, h, dout, weights, batch, in_features,
                                     static_cast<int>(out_features), static_cast<double*>(workspace), stream);
}

template <class T>
void checked_sgd_update(T* weights, const T* dweights, T learning_rate, std::int64_t count, Stream stream) {
  constexpr const char* function = "sgd_update";
  check_apart(function, range_of(function, "weights", weights, count),
              {range_of(function, "dweights", dweights, count)}, false);
  if (count > 0) launch_sgd_update(weights, dweights, learning_rate, count, stream);
}

}  // namespace

void relu(float* out, const float* in, std::int64_t count, Stream stream) { checked_relu(out, in, count, stream); }
void relu(double* out, const double* in, std::int64_t count, Stream stream) { checked_relu(out, in, count, stream); }

void relu_gradient(float* dz, const float* z, const float* dh, std::int64_t count, Stream stream) {
  checked_relu_gradient(dz, z, dh, count, stream);
}
void relu_gradient(double* dz, const double* z, const double* dh, std::int64_t count, Stream stream) {
  checked_relu_gradient(dz, z, dh, count, stream);
}

void bias_relu(float* h, const float* z, const float* bias, std::int64_t batch, std::int64_t features, Stream stream) {
  checked_bias_relu(h, z, bias, batch, features, stream);
}
void bias_relu(double* h, const double* z, const double* bias, std::int64_t batch, std::int64_t features,
               Stream stream) {
  checked_bias_relu(h, z, bias, batch, features, stream);
}

void mask_gradient(float* dz, const float* h, const float* dh, std::int64_t count, Stream stream) {
  checked_mask_gradient(dz, h, dh, count, stream);
}
void mask_gradient(double* dz, const double* h, const double* dh, std::int64_t count, Stream stream) {
  checked_mask_gradient(dz, h, dh, count, stream);
}

void squared_error(double* loss, float* gradient, const float* prediction, const float* target, std::int64_t count,
                   void* workspace, std::size_t workspace_bytes, Stream stream) {
  checked_squared_error(loss, gradient, prediction, target, count, workspace, workspace_bytes, stream);
}
void squared_error(double* loss, double* gradient, const double* prediction, const double* target, std::int64_t count,
                   void* workspace, std::size_t workspace_bytes, Stream stream) {
  checked_squared_error(loss, gradient, prediction, target, count, workspace, workspace_bytes, stream);
}
std::size_t squared_error_workspace(std::int64_t count) {
  bytes_of("squared_error_workspace", count, 1, sizeof(double));
  return slot_bytes(element_loss_slots<double>(count));  // double needs at least as many as float
}

void column_sums(float* sums, const float* matrix, std::int64_t batch, std::int64_t features, void* workspace,
                 std::size_t workspace_bytes, Stream stream) {
  checked_column_sums(sums, matrix, batch, features, workspace, workspace_bytes, stream);
}
void column_sums(double* sums, const double* matrix, std::int64_t batch, std::int64_t features, void* workspace,
                 std::size_t workspace_bytes, Stream stream) {
  checked_column_sums(sums, matrix, batch, features, workspace, workspace_bytes, stream);
}
std::size_t column_sums_workspace(std::int64_t batch, std::int64_t features) {
  bytes_of("column_sums_workspace", batch, features, sizeof(double));
  return slot_bytes(column_sums_slots(batch, features));
}

void narrow_linear(float* out, const float* in, const float* weights, const float* bias, std::int64_t batch,
                   std::int64_t in_features, std::int64_t out_features, Stream stream) {
  checked_narrow_linear(out, in, weights, bias, batch, in_features, out_features, stream);
}
void narrow_linear(double* out, const double* in, const double* weights, const double* bias, std::int64_t batch,
                   std::int64_t in_features, std::int64_t out_features, Stream stream) {
  checked_narrow_linear(out, in, weights, bias, batch, in_features, out_features, stream);
}

void narrow_linear_gradient(float* dz, float* dweights, const float* h, const float* dout, const float* weights,
                            std::int64_t batch, std::int64_t in_features, std::int64_t out_features, void* workspace,
                            std::size_t workspace_bytes, Stream stream) {
  checked_narrow_linear_gradient(dz, dweights, h, dout, weights, batch, in_features, out_features, workspace,
                                 workspace_bytes, stream);
}
void narrow_linear_gradient(double* dz, double* dweights, const double* h, const double* dout, const double* weights,
                            std::int64_t batch, std::int64_t in_features, std::int64_t out_features, void* workspace,
                            std::size_t workspace_bytes, Stream stream) {
  checked_narrow_linear_gradient(dz, dweights, h, dout, weights, batch, in_features, out_features, workspace,
                                 workspace_bytes, stream);
}
std::size_t narrow_linear_gradient_workspace(std::int64_t batch, std::int64_t in_features, std::int64_t out_features) {
  constexpr const char* function = "narrow_linear_gradient_workspace";
  check_outputs(function, out_features);
  bytes_of(function, batch, in_features, sizeof(double) * static_cast<std::size_t>(kMaxNarrowOutputs));
  return slot_bytes(narrow_linear_gradient_slots(batch, in_features, out_features));
}

void sgd_update(float* weights, const float* dweights, float learning_rate, std::int64_t count, Stream stream) {
  checked_sgd_update(weights, dweights, learning_rate, count, stream);
}
void sgd_update(double* weights, const double* dweights, double learning_rate, std::int64_t count, Stream stream) {
  checked_sgd_update(weights, dweights, learning_rate, count, stream);
}

}  // namespace deviceloop::cuda
