// The number of OpenBLAS' threads, as an application sets it.
#pragma once

#include <gtest/gtest.h>

#include "cpu/gemm.h"

extern "C" {
[[gnu::weak]] int openblas_get_num_threads();
[[gnu::weak]] int openblas_get_parallel();
[[gnu::weak]] void openblas_set_num_threads(int);
}

/// Skips a test where the number is not one for the whole process, or nothing here uses it.
#define SKIP_UNLESS_OPENBLAS_HAS_THREADS()                                                   \
  using GetInt = int (*)();                                                                  \
  if (const GetInt parallel = openblas_get_parallel; parallel == nullptr || parallel() != 1) \
    GTEST_SKIP() << "this is not OpenBLAS' pthreads build";                                  \
  if (::deviceloop::gemm_is_own() || !::deviceloop::gemm_bits_verified()) GTEST_SKIP() << "OpenBLAS does not multiply"

namespace deviceloop {

/// Asks OpenBLAS for a number of threads, and leaves it as it was.
class OpenBlasThreads {
 public:
  explicit OpenBlasThreads(int threads) : kept_(openblas_get_num_threads()) { openblas_set_num_threads(threads); }
  ~OpenBlasThreads() { openblas_set_num_threads(kept_); }
  OpenBlasThreads(const OpenBlasThreads&) = delete;
  OpenBlasThreads& operator=(const OpenBlasThreads&) = delete;

 private:
  const int kept_;
};

}  // namespace deviceloop
