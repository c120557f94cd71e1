// The matrix product that the build uses, and the own code that stands in for a BLAS.
#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <cmath>
#include <limits>
#include <thread>
#include <vector>

#include <deviceloop/error.h>
#include <deviceloop/random.h>

#include "cpu/gemm.h"
#include "support/openblas.h"

namespace deviceloop {
namespace {

template <class T>
using Gemm = void (*)(Transpose, Transpose, std::int64_t, std::int64_t, std::int64_t, T, const T*, std::int64_t,
                      const T*, std::int64_t, T, T*, std::int64_t);

template <class T>
struct Case {
  std::int64_t m, n, k;
  Transpose transpose_a, transpose_b;
  T alpha, beta;
  std::int64_t padding;  // columns behind every row of every matrix

  std::int64_t lda() const { return (transpose_a == Transpose::yes ? m : k) + padding; }
  std::int64_t ldb() const { return (transpose_b == Transpose::yes ? k : n) + padding; }
  std::int64_t ldc() const { return n + padding; }
};

template <class T>
double element(const std::vector<T>& matrix, std::int64_t stride, Transpose transpose, std::int64_t row,
               std::int64_t column) {
  return static_cast<double>(
      matrix[static_cast<std::size_t>(transpose == Transpose::yes ? column * stride + row : row * stride + column)]);
}

// Runs a case on small integers: every sum is exact, so any order gives the same bits.
template <class T>
void check_exact(Gemm<T> gemm, const Case<T>& c) {
  std::uint32_t state = 1;
  const auto fill = [&](std::int64_t count) {
    std::vector<T> values(static_cast<std::size_t>(count));
    for (T& value : values) {
      state = state * 1664525u + 1013904223u;
      value = static_cast<T>(static_cast<int>(state >> 28) - 8);
    }
    return values;
  };
  const auto a = fill((c.transpose_a == Transpose::yes ? c.k : c.m) * c.lda());
  const auto b = fill((c.transpose_b == Transpose::yes ? c.n : c.k) * c.ldb());
  auto out = fill(c.m * c.ldc());
  const auto before = out;
  if (c.beta == T(0))  // what c held must not matter
    for (std::int64_t i = 0; i < c.m; ++i)
      for (std::int64_t j = 0; j < c.n; ++j)
        out[static_cast<std::size_t>(i * c.ldc() + j)] = std::numeric_limits<T>::quiet_NaN();
  gemm(c.transpose_a, c.transpose_b, c.m, c.n, c.k, c.alpha, a.data(), c.lda(), b.data(), c.ldb(), c.beta, out.data(),
       c.ldc());
  for (std::int64_t i = 0; i < c.m; ++i) {
    for (std::int64_t j = 0; j < c.ldc(); ++j) {
      const auto at = static_cast<std::size_t>(i * c.ldc() + j);
      double expected = static_cast<double>(before[at]);
      if (j < c.n) {
        double sum = 0;
        for (std::int64_t p = 0; p < c.k; ++p)
          sum += element(a, c.lda(), c.transpose_a, i, p) * element(b, c.ldb(), c.transpose_b, p, j);
        expected = static_cast<double>(c.beta) * expected + static_cast<double>(c.alpha) * sum;
      }
      ASSERT_EQ(static_cast<double>(out[at]), expected)
          << c.m << "x" << c.n << "x" << c.k << " at " << i << "," << j << " alpha " << c.alpha << " beta " << c.beta;
    }
  }
}

template <class T>
void check_shapes(Gemm<T> gemm) {
  const SingleThreadedBlas single_threaded;
  const std::int64_t sizes[][3] = {{1, 1, 1},   {1, 17, 3},   {64, 1, 100}, {5, 33, 257},
                                   {97, 31, 2}, {13, 257, 1}, {7, 300, 65}, {100, 130, 600}};
  for (const auto& [m, n, k] : sizes)
    for (const Transpose transpose_a : {Transpose::no, Transpose::yes})
      for (const Transpose transpose_b : {Transpose::no, Transpose::yes})
        for (const T beta : {T(0), T(1)})
          check_exact<T>(gemm, {m, n, k, transpose_a, transpose_b, T(-0.25), beta, (m + n) % 3});
}

TEST(OwnGemm, IsExactOnSmallIntegersInEveryShape) {
  check_shapes<float>(own_gemm<float>);
  check_shapes<double>(own_gemm<double>);
}

TEST(Gemm, IsExactOnSmallIntegersInEveryShape) {
  check_shapes<float>(gemm<float>);
  check_shapes<double>(gemm<double>);
}

// Relative Frobenius error of an fp32 product of normal numbers, against double.
double error_of(Gemm<float> gemm, std::int64_t k) {
  const SingleThreadedBlas single_threaded;
  constexpr std::int64_t kSize = 48;
  std::vector<float> a(static_cast<std::size_t>(kSize * k)), b(a.size()), c(kSize * kSize);
  fill_normal(Matrix(a.data(), kSize, k), 3, 0);
  fill_normal(Matrix(b.data(), k, kSize), 3, 1);
  gemm(Transpose::no, Transpose::no, kSize, kSize, k, 1, a.data(), k, b.data(), kSize, 0, c.data(), kSize);
  double difference = 0, norm = 0;
  for (std::int64_t i = 0; i < kSize; ++i)
    for (std::int64_t j = 0; j < kSize; ++j) {
      double sum = 0;
      for (std::int64_t p = 0; p < k; ++p)
        sum += element(a, k, Transpose::no, i, p) * element(b, kSize, Transpose::no, p, j);
      difference += std::pow(sum - static_cast<double>(c[static_cast<std::size_t>(i * kSize + j)]), 2);
      norm += sum * sum;
    }
  return std::sqrt(difference / norm);
}

TEST(Gemm, RoundsNoMoreThanItsDepthExplains) {
  for (const std::int64_t k : {64, 1000, 4096}) {
    EXPECT_LE(error_of(own_gemm<float>, k), std::sqrt(static_cast<double>(k)) * 0x1p-24) << k;
    EXPECT_LE(error_of(gemm<float>, k), std::sqrt(static_cast<double>(k)) * 0x1p-24) << k;
    EXPECT_GT(error_of(gemm<float>, k), 0) << k;
  }
}

template <class T>
void multiply_ones() {
  const T a = 1, b = 1;
  T c = 0;
  gemm<T>(Transpose::no, Transpose::no, 1, 1, 1, 1, &a, 1, &b, 1, 0, &c, 1);
  EXPECT_EQ(c, 1);
}

TEST(SingleThreadedBlas, FindsANumberOfThreadsThatSomebodySets) {
  SKIP_UNLESS_OPENBLAS_HAS_THREADS();
  const OpenBlasThreads threads(2);
  for (const bool in_double : {false, true}) {
    {
      const SingleThreadedBlas undisturbed, disturbed;
      EXPECT_EQ(openblas_get_num_threads(), 1);
      multiply_ones<float>();
      EXPECT_NO_THROW(disturbed.check());
      openblas_set_num_threads(3);
      EXPECT_NO_THROW(disturbed.check());  // no product has met it
      in_double ? multiply_ones<double>() : multiply_ones<float>();
      EXPECT_EQ(openblas_get_num_threads(), 1);
      EXPECT_THROW(disturbed.check(), Error);
      EXPECT_THROW(undisturbed.check(), Error);  // who was first does not matter
      const SingleThreadedBlas later;
      EXPECT_NO_THROW(later.check());
    }
    EXPECT_EQ(openblas_get_num_threads(), 3);
    openblas_set_num_threads(2);
  }
}

// A product that OpenBLAS shares among its threads where it may, which shows in its last digits.
struct LargeProduct {
  explicit LargeProduct(std::int64_t depth) : k(depth), a(static_cast<std::size_t>(kSize * depth)), b(a.size()) {
    fill_normal(Matrix(a.data(), kSize, k), 5, 0);
    fill_normal(Matrix(b.data(), k, kSize), 5, 1);
  }
  std::vector<float> compute() const {
    std::vector<float> c(kSize * kSize);
    gemm<float>(Transpose::no, Transpose::no, kSize, kSize, k, 1, a.data(), k, b.data(), kSize, 0, c.data(), kSize);
    return c;
  }

  static constexpr std::int64_t kSize = 768;
  const std::int64_t k;
  std::vector<float> a, b;
};

TEST(SingleThreadedBlas, SetsTheNumberBackBeforeAProduct) {
  SKIP_UNLESS_OPENBLAS_HAS_THREADS();
  const OpenBlasThreads threads(2);
  const LargeProduct product(700);
  const SingleThreadedBlas single_threaded;
  const std::vector<float> expected = product.compute();
  openblas_set_num_threads(2);
  EXPECT_EQ(product.compute(), expected);
  EXPECT_THROW(single_threaded.check(), Error);
}

TEST(SingleThreadedBlas, FindsANumberThatIsSetDuringAProduct) {
  SKIP_UNLESS_OPENBLAS_HAS_THREADS();
  using Clock = std::chrono::steady_clock;
  const OpenBlasThreads threads(1);
  const LargeProduct product(6000);  // takes tens of milliseconds
  for (int attempt = 0;; ++attempt) {
    const SingleThreadedBlas single_threaded;
    std::atomic<bool> begins = false;
    Clock::time_point set;
    std::thread other([&] {
      while (!begins) std::this_thread::yield();
      std::this_thread::sleep_for(std::chrono::milliseconds(2));
      openblas_set_num_threads(2);
      set = Clock::now();
    });
    begins = true;
    product.compute();
    const Clock::time_point end = Clock::now();
    other.join();
    openblas_set_num_threads(1);
    if (set < end) {
      EXPECT_THROW(single_threaded.check(), Error);
      return;
    }
    ASSERT_LT(attempt, 50) << "the other thread was always late";
  }
}

TEST(SingleThreadedBlas, LeavesANumberThatWasSetAfterTheLastProduct) {
  SKIP_UNLESS_OPENBLAS_HAS_THREADS();
  const OpenBlasThreads threads(2);
  {
    const SingleThreadedBlas single_threaded;
    multiply_ones<float>();
    openblas_set_num_threads(3);
  }
  EXPECT_EQ(openblas_get_num_threads(), 3);
}

TEST(SingleThreadedBlas, MeetsANumberThatWasSetBesideAnother) {
  SKIP_UNLESS_OPENBLAS_HAS_THREADS();
  const OpenBlasThreads threads(2);
  {
    const SingleThreadedBlas first;
    openblas_set_num_threads(3);
    const SingleThreadedBlas second;
    EXPECT_EQ(openblas_get_num_threads(), 1);
    multiply_ones<float>();
    EXPECT_NO_THROW(second.check());
    EXPECT_THROW(first.check(), Error);
  }
  EXPECT_EQ(openblas_get_num_threads(), 3);
}

TEST(Gemm, SaysWhatItIs) { EXPECT_FALSE(gemm_description().empty()); }

}  // namespace
}  // namespace deviceloop
