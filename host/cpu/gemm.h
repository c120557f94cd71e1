// Single-threaded matrix products of row-major matrices: a CBLAS where the build has one, own code where it has none or
// where OpenBLAS does not know the processor.
#pragma once

#include <cstdint>
#include <string>

#include "../floating_point.h"

namespace deviceloop {

enum class Transpose { no, yes };

/// c [m, n] = alpha op(a) op(b) + beta c with op(a) [m, k], op(b) [k, n]; ld are row strides in elements. c is not read
/// where beta is 0. Every size is below 2^31. The bits depend on the arguments only, not on the calling thread or on
/// how many run beside it, inside a SingleThreadedBlas.
template <class T>
void gemm(Transpose transpose_a, Transpose transpose_b, std::int64_t m, std::int64_t n, std::int64_t k, T alpha,
          const T* a, std::int64_t lda, const T* b, std::int64_t ldb, T beta, T* c, std::int64_t ldc);

/// The own code behind gemm. Built with optimisation, its bits are the same on every x86-64 processor with AVX2 and
/// FMA.
template <class T>
void own_gemm(Transpose transpose_a, Transpose transpose_b, std::int64_t m, std::int64_t n, std::int64_t k, T alpha,
              const T* a, std::int64_t lda, const T* b, std::int64_t ldb, T beta, T* c, std::int64_t ldc);

/// Gets the memory that own_gemm keeps for the calling thread, which it would otherwise get on its first call.
void prepare_own_gemm_here();

/// While one lives, gemm uses no threads of BLAS' own, on this thread and on those that called
/// prepare_gemm_here(). What the application had set, before or meanwhile, is restored when the last one goes. Made
/// on a thread, it also gets the memory that gemm needs there, so that no product is the one that memory is refused.
class SingleThreadedBlas {
 public:
  SingleThreadedBlas();
  ~SingleThreadedBlas();
  /// Throws Error where somebody else has set the number of OpenBLAS' threads since, which the pthreads build has one
  /// of for the whole process: gemm found it before or after a product, whose bits may be others, and set it to 1
  /// again. A number that was set and taken back within a single product is not found.
  void check() const;
  SingleThreadedBlas(const SingleThreadedBlas&) = delete;
  SingleThreadedBlas& operator=(const SingleThreadedBlas&) = delete;

 private:
  int saved_openmp_threads_ = 0;  // where that setting belongs to the thread
  std::uint64_t changes_ = 0;     // of others, before this one began
};

/// For threads of our own, once: gets the memory that gemm needs on this thread, and makes it single-threaded here
/// where BLAS keeps that setting by thread.
void prepare_gemm_here();

/// What multiplies in this process: "OpenBLAS 0.3.21 SkylakeX, pthreads", "CBLAS in /opt/libother.so, not OpenBLAS",
/// "own code", "own code, because OpenBLAS ...".
std::string gemm_description();

/// Whether gemm is own_gemm in this process.
bool gemm_is_own();

/// Whether the same bits for any number of threads are verified with this GEMM: own code and OpenBLAS.
bool gemm_bits_verified();

}  // namespace deviceloop
