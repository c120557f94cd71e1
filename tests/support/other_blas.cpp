// A BLAS other than OpenBLAS, as a library: cblas_sgemm, cblas_dgemm or both, by a plain loop. Says at exit how many
// products it was asked for.
#include <atomic>
#include <cstdio>

namespace {

std::atomic<long> products = 0;

struct Count {
  ~Count() { std::fprintf(stderr, "%ld products by the other BLAS\n", products.load()); }
} count;

template <class T>
[[maybe_unused]] void multiply(bool transpose_a, bool transpose_b, int m, int n, int k, T alpha, const T* a, int lda,
                               const T* b, int ldb, T beta, T* c, int ldc) {
  ++products;
  for (long i = 0; i < m; ++i) {
    for (long j = 0; j < n; ++j) {
      T sum = 0;
      for (long p = 0; p < k; ++p)
        sum += (transpose_a ? a[p * lda + i] : a[i * lda + p]) * (transpose_b ? b[j * ldb + p] : b[p * ldb + j]);
      c[i * ldc + j] = alpha * sum + (beta == 0 ? T(0) : beta * c[i * ldc + j]);
    }
  }
}

constexpr int kTranspose = 112;  // CblasTrans; the library's matrices are row-major

}  // namespace

extern "C" {

#if DEVICELOOP_OTHER_SGEMM
void cblas_sgemm(int, int transpose_a, int transpose_b, int m, int n, int k, float alpha, const float* a, int lda,
                 const float* b, int ldb, float beta, float* c, int ldc) {
  multiply(transpose_a == kTranspose, transpose_b == kTranspose, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc);
}
#endif

#if DEVICELOOP_OTHER_DGEMM
void cblas_dgemm(int, int transpose_a, int transpose_b, int m, int n, int k, double alpha, const double* a, int lda,
                 const double* b, int ldb, double beta, double* c, int ldc) {
  multiply(transpose_a == kTranspose, transpose_b == kTranspose, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc);
}
#endif
}
