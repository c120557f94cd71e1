// The functions of cuBLAS that the examples call, on the host: they check their arguments as the library does, enqueue
// the product on the stream of the handle, and add in double.
#include <cublas_v2.h>
#include <sanitizer/asan_interface.h>

#include <algorithm>
#include <string>

#include "product.h"
#include "simt/control.h"
#include "work.h"

struct cublasContext {
  cudaStream_t stream = nullptr;
};

namespace {

/// Whether cublasCreate has made it, and nobody has destroyed it since.
bool is_alive(cublasHandle_t handle) {
  return handle != nullptr && __asan_region_is_poisoned(handle, sizeof *handle) == nullptr;
}

bool is_operation(cublasOperation_t operation) {
  return operation == CUBLAS_OP_N || operation == CUBLAS_OP_T || operation == CUBLAS_OP_C;
}

template <class T>
cublasStatus_t gemm(const char* function, cublasHandle_t handle, cublasOperation_t operation_a,
                    cublasOperation_t operation_b, int m, int n, int k, const T* alpha, const T* a, int lda, const T* b,
                    int ldb, const T* beta, T* c, int ldc) {
  if (!is_alive(handle)) return CUBLAS_STATUS_NOT_INITIALIZED;
  if (!is_operation(operation_a) || !is_operation(operation_b) || m < 0 || n < 0 || k < 0)
    return CUBLAS_STATUS_INVALID_VALUE;
  const bool at = operation_a != CUBLAS_OP_N, bt = operation_b != CUBLAS_OP_N;
  const simt::Matrix<const T> left{a, at ? k : m, at ? m : k, lda, at};
  const simt::Matrix<const T> right{b, bt ? n : k, bt ? k : n, ldb, bt};
  const simt::Matrix<T> result{c, m, n, ldc};
  const auto fits = [](const auto& matrix) { return matrix.leading >= std::max<std::int64_t>(matrix.rows, 1); };
  if (!fits(left) || !fits(right) || !fits(result) || alpha == nullptr || beta == nullptr)
    return CUBLAS_STATUS_INVALID_VALUE;
  for (const T* factor : {alpha, beta})  // read at the call, as the pointer mode of a new handle says
    if (__asan_region_is_poisoned(const_cast<T*>(factor), sizeof(T)) != nullptr)
      throw simt::KernelError(std::string(function) + ": alpha or beta lies in device memory, but is read by the host");
  if (m == 0 || n == 0) return CUBLAS_STATUS_SUCCESS;
  // Without terms there is nothing to read of A and B.
  const std::int64_t terms = *alpha == T(0) ? 0 : k;
  if (c == nullptr || (terms > 0 && (a == nullptr || b == nullptr))) return CUBLAS_STATUS_INVALID_VALUE;
  const cudaError_t code = simt::enqueue_library_kernel(handle->stream, [=, alpha = *alpha, beta = *beta] {
    if (terms > 0) {
      simt::check_memory(function, left);
      simt::check_memory(function, right);
    }
    simt::check_memory(function, result);
    simt::multiply<T>(alpha, left, right, terms, beta, {c, m, n, ldc}, result);
  });
  return code == cudaSuccess ? CUBLAS_STATUS_SUCCESS : CUBLAS_STATUS_EXECUTION_FAILED;
}

}  // namespace

extern "C" {

cublasStatus_t cublasCreate_v2(cublasHandle_t* handle) {
  if (handle == nullptr) return CUBLAS_STATUS_INVALID_VALUE;
  *handle = nullptr;
  if (const cudaError_t code = simt::library_call(); code != cudaSuccess)
    return code == cudaErrorMemoryAllocation ? CUBLAS_STATUS_ALLOC_FAILED : CUBLAS_STATUS_NOT_INITIALIZED;
  *handle = new cublasContext;
  simt::count_object(*handle, true);
  return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasDestroy_v2(cublasHandle_t handle) {
  if (!is_alive(handle)) return CUBLAS_STATUS_NOT_INITIALIZED;
  simt::count_object(handle, false);
  delete handle;
  return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasSetStream_v2(cublasHandle_t handle, cudaStream_t stream) {
  if (!is_alive(handle)) return CUBLAS_STATUS_NOT_INITIALIZED;
  handle->stream = stream;
  return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasSgemm_v2(cublasHandle_t handle, cublasOperation_t operation_a, cublasOperation_t operation_b,
                              int m, int n, int k, const float* alpha, const float* a, int lda, const float* b, int ldb,
                              const float* beta, float* c, int ldc) {
  return gemm("cublasSgemm", handle, operation_a, operation_b, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc);
}

cublasStatus_t cublasDgemm_v2(cublasHandle_t handle, cublasOperation_t operation_a, cublasOperation_t operation_b,
                              int m, int n, int k, const double* alpha, const double* a, int lda, const double* b,
                              int ldb, const double* beta, double* c, int ldc) {
  return gemm("cublasDgemm", handle, operation_a, operation_b, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc);
}

const char* cublasGetStatusString(cublasStatus_t status) {
  switch (status) {
    case CUBLAS_STATUS_SUCCESS:
      return "success";
    case CUBLAS_STATUS_NOT_INITIALIZED:
      return "the library was not initialized";
    case CUBLAS_STATUS_ALLOC_FAILED:
      return "the resource allocation failed";
    case CUBLAS_STATUS_INVALID_VALUE:
      return "an unsupported value or parameter was passed to the function";
    case CUBLAS_STATUS_EXECUTION_FAILED:
      return "the function failed to launch on the GPU";
    default:
      return "<unknown>";
  }
}

}  // extern "C"
