// The stand-in for cuBLAS: products against their definition, and what the library refuses.
#include <cublas_v2.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <string>
#include <utility>
#include <vector>

#include "simt/control.h"

namespace {

constexpr cublasStatus_t kSuccess = CUBLAS_STATUS_SUCCESS, kInvalid = CUBLAS_STATUS_INVALID_VALUE;

cublasStatus_t call_gemm(cublasHandle_t handle, cublasOperation_t a_operation, cublasOperation_t b_operation, int m,
                         int n, int k, const float* alpha, const float* a, int lda, const float* b, int ldb,
                         const float* beta, float* c, int ldc) {
  return cublasSgemm(handle, a_operation, b_operation, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc);
}
cublasStatus_t call_gemm(cublasHandle_t handle, cublasOperation_t a_operation, cublasOperation_t b_operation, int m,
                         int n, int k, const double* alpha, const double* a, int lda, const double* b, int ldb,
                         const double* beta, double* c, int ldc) {
  return cublasDgemm(handle, a_operation, b_operation, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc);
}

/// Device memory, written and read on a stream.
template <class T>
struct Array {
  Array(const std::vector<T>& values, cudaStream_t on) : size(values.size()), stream(on) {
    EXPECT_EQ(cudaMalloc(reinterpret_cast<void**>(&data), bytes()), cudaSuccess);
    EXPECT_EQ(cudaMemcpyAsync(data, values.data(), bytes(), cudaMemcpyHostToDevice, stream), cudaSuccess);
  }
  ~Array() { cudaFree(data); }
  Array(const Array&) = delete;
  Array& operator=(const Array&) = delete;
  std::size_t bytes() const { return size * sizeof(T); }
  std::vector<T> read(cudaStream_t from) const {
    std::vector<T> values(size);
    EXPECT_EQ(cudaMemcpyAsync(values.data(), data, bytes(), cudaMemcpyDeviceToHost, from), cudaSuccess);
    return values;
  }
  std::vector<T> read() const { return read(stream); }
  T* data = nullptr;
  std::size_t size;
  cudaStream_t stream;
};

template <class T>
class SimtCublas : public ::testing::Test {
 protected:
  SimtCublas() {
    simt::reset();
    EXPECT_EQ(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), cudaSuccess);
    EXPECT_EQ(cublasCreate(&handle), kSuccess);
    EXPECT_EQ(cublasSetStream(handle, stream), kSuccess);
  }
  ~SimtCublas() override {
    EXPECT_EQ(cublasDestroy(handle), kSuccess);
    EXPECT_EQ(cudaStreamDestroy(stream), cudaSuccess);
    EXPECT_EQ(simt::live_objects(), 0);
    simt::reset();
  }

  /// The product of 2 x 3 and 3 x 4 with these pointers.
  cublasStatus_t small(const T* alpha, const T* a, const T* b, const T* beta, T* c) {
    return call_gemm(handle, CUBLAS_OP_N, CUBLAS_OP_N, 2, 4, 3, alpha, a, 2, b, 3, beta, c, 2);
  }

  static constexpr T kOne = 1, kZero = 0;
  cudaStream_t stream = nullptr;
  cublasHandle_t handle = nullptr;
};
using Precisions = ::testing::Types<float, double>;
TYPED_TEST_SUITE(SimtCublas, Precisions, );

/// Small integers, so that sums are exact in every order; none is 0.
template <class T>
std::vector<T> numbers(int count, int seed) {
  std::vector<T> values(static_cast<std::size_t>(count));
  for (std::size_t i = 0; i < values.size(); ++i)
    values[i] = static_cast<T>((static_cast<int>(i) * 7 + seed) % 11 - 5) * 2 + 1;
  return values;
}

TYPED_TEST(SimtCublas, MultipliesColumnMajorMatricesWithGaps) {
  using T = TypeParam;
  constexpr int m = 3, n = 4, k = 5, gap = 2;
  for (const auto ta : {CUBLAS_OP_N, CUBLAS_OP_T, CUBLAS_OP_C})
    for (const auto tb : {CUBLAS_OP_N, CUBLAS_OP_T, CUBLAS_OP_C})
      for (const auto& [alpha, beta] : {std::pair<T, T>{1, 0}, {2, 1}, {0, 3}, {-1, -2}}) {
        const int lda = (ta == CUBLAS_OP_N ? m : k) + gap, ldb = (tb == CUBLAS_OP_N ? k : n) + gap, ldc = m + gap;
        const std::vector<T> a = numbers<T>(lda * (ta == CUBLAS_OP_N ? k : m), 1);
        const std::vector<T> b = numbers<T>(ldb * (tb == CUBLAS_OP_N ? n : k), 2);
        std::vector<T> c = numbers<T>(ldc * n, 3);
        const Array<T> on_a(a, this->stream), on_b(b, this->stream), on_c(c, this->stream);
        ASSERT_EQ(
            call_gemm(this->handle, ta, tb, m, n, k, &alpha, on_a.data, lda, on_b.data, ldb, &beta, on_c.data, ldc),
            kSuccess);
        for (int i = 0; i < m; ++i)
          for (int j = 0; j < n; ++j) {
            T sum = 0;
            for (int p = 0; p < k; ++p)
              sum += a[static_cast<std::size_t>(ta == CUBLAS_OP_N ? p * lda + i : i * lda + p)] *
                     b[static_cast<std::size_t>(tb == CUBLAS_OP_N ? j * ldb + p : p * ldb + j)];
            T& element = c[static_cast<std::size_t>(j * ldc + i)];
            element = alpha * sum + beta * element;
          }
        EXPECT_EQ(on_c.read(), c) << "operations " << ta << " and " << tb << ", alpha " << alpha << ", beta " << beta;
      }
}

TYPED_TEST(SimtCublas, WithBetaZeroNothingOfTheOldResultIsLeft) {
  using T = TypeParam;
  const Array<T> a(numbers<T>(6, 1), this->stream), b(numbers<T>(12, 2), this->stream);
  const Array<T> c(std::vector<T>(8, T(NAN)), this->stream);
  ASSERT_EQ(this->small(&this->kOne, a.data, b.data, &this->kZero, c.data), kSuccess);
  for (const T value : c.read()) EXPECT_TRUE(std::isfinite(value));
  // And with alpha 0 nothing of the factors.
  const Array<T> not_numbers(std::vector<T>(12, T(NAN)), this->stream);
  ASSERT_EQ(this->small(&this->kZero, not_numbers.data, not_numbers.data, &this->kZero, c.data), kSuccess);
  EXPECT_EQ(c.read(), std::vector<T>(8, T(0)));
}

TYPED_TEST(SimtCublas, WorksInTheOrderOfItsStreamAndNotBefore) {
  using T = TypeParam;
  cudaStream_t other = nullptr;
  ASSERT_EQ(cudaStreamCreateWithFlags(&other, cudaStreamNonBlocking), cudaSuccess);
  {
    simt::set_order(simt::Order::kForward);  // a stream that nobody waits for does not run ahead
    const Array<T> a(std::vector<T>(6, 1), this->stream), b(std::vector<T>(12, 1), this->stream);
    const Array<T> c(std::vector<T>(8, T(-1)), this->stream);
    ASSERT_EQ(cudaStreamSynchronize(this->stream), cudaSuccess);
    T alpha = 1;
    ASSERT_EQ(this->small(&alpha, a.data, b.data, &this->kZero, c.data), kSuccess);
    alpha = 7;  // read at the call
    EXPECT_EQ(c.read(other), std::vector<T>(8, T(-1))) << "without waiting for its stream";
    EXPECT_EQ(c.read(this->stream), std::vector<T>(8, T(3)));
    // What the stream does before the product, the product sees.
    const std::vector<T> twos(6, 2);
    ASSERT_EQ(cudaMemcpyAsync(a.data, twos.data(), a.bytes(), cudaMemcpyHostToDevice, this->stream), cudaSuccess);
    ASSERT_EQ(this->small(&this->kOne, a.data, b.data, &this->kZero, c.data), kSuccess);
    EXPECT_EQ(c.read(), std::vector<T>(8, T(6)));
    EXPECT_EQ(simt::counts().launches, 2);
  }
  EXPECT_EQ(cudaStreamDestroy(other), cudaSuccess);
}

TYPED_TEST(SimtCublas, RefusesWhatTheLibraryRefuses) {
  using T = TypeParam;
  const Array<T> a(std::vector<T>(64, 1), this->stream), b(std::vector<T>(64, 1), this->stream);
  const Array<T> c(std::vector<T>(64, 1), this->stream);
  const auto gemm = [&](cublasOperation_t ta, cublasOperation_t tb, int m, int n, int k, int lda, int ldb, int ldc) {
    return call_gemm(this->handle, ta, tb, m, n, k, &this->kOne, a.data, lda, b.data, ldb, &this->kOne, c.data, ldc);
  };
  constexpr auto N = CUBLAS_OP_N, Y = CUBLAS_OP_T;  // no and yes
  EXPECT_EQ(gemm(N, N, 2, 4, 3, 2, 3, 2), kSuccess);
  EXPECT_EQ(gemm(N, N, 2, 4, 3, 1, 3, 2), kInvalid) << "A has 2 rows";
  EXPECT_EQ(gemm(Y, N, 2, 4, 3, 2, 3, 2), kInvalid) << "A has 3 rows";
  EXPECT_EQ(gemm(Y, N, 2, 4, 3, 3, 3, 2), kSuccess);
  EXPECT_EQ(gemm(N, N, 2, 4, 3, 2, 2, 2), kInvalid) << "B has 3 rows";
  EXPECT_EQ(gemm(N, Y, 2, 4, 3, 2, 3, 2), kInvalid) << "B has 4 rows";
  EXPECT_EQ(gemm(N, Y, 2, 4, 3, 2, 4, 2), kSuccess);
  EXPECT_EQ(gemm(N, N, 2, 4, 3, 2, 3, 1), kInvalid) << "C has 2 rows";
  EXPECT_EQ(gemm(N, N, -1, 4, 3, 2, 3, 2), kInvalid);
  EXPECT_EQ(gemm(N, N, 2, -1, 3, 2, 3, 2), kInvalid);
  EXPECT_EQ(gemm(N, N, 2, 4, -1, 2, 3, 2), kInvalid);
  EXPECT_EQ(gemm(CUBLAS_OP_CONJG, N, 2, 4, 3, 2, 3, 2), kInvalid);
  EXPECT_EQ(gemm(N, CUBLAS_OP_CONJG, 2, 4, 3, 2, 3, 2), kInvalid);
  EXPECT_EQ(gemm(N, N, 0, 4, 3, 0, 3, 1), kInvalid) << "a leading dimension is at least 1";
  EXPECT_EQ(gemm(N, N, 0, 4, 3, 1, 3, 1), kSuccess);
  EXPECT_EQ(this->small(nullptr, a.data, b.data, &this->kZero, c.data), kInvalid);
  EXPECT_EQ(this->small(&this->kOne, a.data, b.data, nullptr, c.data), kInvalid);
  EXPECT_EQ(this->small(&this->kOne, nullptr, b.data, &this->kZero, c.data), kInvalid);
  EXPECT_EQ(this->small(&this->kOne, a.data, nullptr, &this->kZero, c.data), kInvalid);
  EXPECT_EQ(this->small(&this->kOne, a.data, b.data, &this->kZero, nullptr), kInvalid);
  EXPECT_EQ(cublasCreate(nullptr), kInvalid);
}

TYPED_TEST(SimtCublas, MissesHandlesThatAreNoneAndDevicesThatAreGone) {
  cublasHandle_t other = nullptr;
  ASSERT_EQ(cublasCreate(&other), kSuccess);
  ASSERT_EQ(cublasDestroy(other), kSuccess);
  for (const cublasHandle_t none : {static_cast<cublasHandle_t>(nullptr), other}) {
    EXPECT_EQ(cublasSetStream(none, this->stream), CUBLAS_STATUS_NOT_INITIALIZED);
    EXPECT_EQ(cublasDestroy(none), CUBLAS_STATUS_NOT_INITIALIZED);
    EXPECT_EQ(call_gemm(none, CUBLAS_OP_N, CUBLAS_OP_N, 0, 0, 0, &this->kOne, nullptr, 1, nullptr, 1, &this->kOne,
                        nullptr, 1),
              CUBLAS_STATUS_NOT_INITIALIZED);
  }
  for (const auto& [code, status] : {std::pair{cudaErrorMemoryAllocation, CUBLAS_STATUS_ALLOC_FAILED},
                                     {cudaErrorNoDevice, CUBLAS_STATUS_NOT_INITIALIZED}}) {
    simt::fail_call(1, code);
    EXPECT_EQ(cublasCreate(&other), status);
    EXPECT_EQ(other, nullptr);
  }
  EXPECT_STRNE(cublasGetStatusString(CUBLAS_STATUS_NOT_INITIALIZED), cublasGetStatusString(CUBLAS_STATUS_SUCCESS));
}

TYPED_TEST(SimtCublas, MatrixBeyondItsAllocationIsReported) {
  using T = TypeParam;
  const std::vector<T> twelve(12, 1);
  for (const std::size_t small : {0u, 1u, 2u}) {
    std::vector<std::size_t> sizes{6, 12, 8};
    --sizes[small];
    const Array<T> a(std::vector<T>(sizes[0], 1), this->stream), b(std::vector<T>(sizes[1], 1), this->stream);
    const Array<T> c(std::vector<T>(sizes[2], 1), this->stream);
    ASSERT_EQ(this->small(&this->kOne, a.data, b.data, &this->kZero, c.data), kSuccess);
    EXPECT_THROW(cudaStreamSynchronize(this->stream), simt::KernelError) << "matrix " << small;
    // With alpha 0 the factors are not read.
    ASSERT_EQ(this->small(&this->kZero, a.data, b.data, &this->kZero, c.data), kSuccess);
    if (small < 2)
      EXPECT_EQ(cudaStreamSynchronize(this->stream), cudaSuccess);
    else
      EXPECT_THROW(cudaStreamSynchronize(this->stream), simt::KernelError);
  }
}

TYPED_TEST(SimtCublas, FactorsInDeviceMemoryAreReported) {
  using T = TypeParam;
  const Array<T> a(std::vector<T>(12, 1), this->stream);
  EXPECT_THROW(this->small(a.data, a.data, a.data, &this->kZero, a.data), simt::KernelError);
  EXPECT_THROW(this->small(&this->kOne, a.data, a.data, a.data, a.data), simt::KernelError);
}

}  // namespace
