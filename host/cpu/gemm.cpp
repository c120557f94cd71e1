#include "gemm.h"

#if DEVICELOOP_HAVE_CBLAS

#include <dlfcn.h>

#include <algorithm>
#include <iterator>
#include <mutex>
#include <string_view>

extern "C" {
#include <cblas.h>
}

namespace deviceloop {
namespace {

// OpenBLAS' own functions, found in the process: which BLAS answers behind cblas.h is decided when the program starts,
// not when it is linked.
struct OpenBlas {
  using GetInt = int (*)();
  using SetInt = void (*)(int);
  using GetText = char* (*)();
  GetText config = nullptr;
  GetText core = nullptr;
  GetInt parallel = nullptr;
  GetInt threads = nullptr;
  SetInt set_threads = nullptr;
  GetInt openmp_threads = nullptr;
  SetInt set_openmp_threads = nullptr;

  // What openblas_get_parallel answers.
  enum Kind { serial = 0, pthreads = 1, openmp = 2 };
  bool present() const { return config != nullptr && parallel != nullptr; }
  Kind kind() const { return static_cast<Kind>(parallel()); }
  // The OpenMP build asks OpenMP, whose setting belongs to the calling thread; the pthreads build has one number for
  // the whole process.
  bool by_thread() const {
    return present() && kind() == openmp && openmp_threads != nullptr && set_openmp_threads != nullptr;
  }
  bool by_process() const { return present() && kind() == pthreads && threads != nullptr && set_threads != nullptr; }
};

const OpenBlas& openblas() {
  static const OpenBlas functions = [] {
    OpenBlas found;
    const auto look_up = [](auto& function, const char* symbol) {
      function = reinterpret_cast<std::remove_reference_t<decltype(function)>>(dlsym(RTLD_DEFAULT, symbol));
    };
    look_up(found.config, "openblas_get_config");
    look_up(found.core, "openblas_get_corename");
    look_up(found.parallel, "openblas_get_parallel");
    look_up(found.threads, "openblas_get_num_threads");
    look_up(found.set_threads, "openblas_set_num_threads");
    look_up(found.openmp_threads, "omp_get_max_threads");
    look_up(found.set_openmp_threads, "omp_set_num_threads");
    return found;
  }();
  return functions;
}

// The serial build hands its buffers out without a lock, so two calls at once share one and give wrong results (seen
// with Debian's 0.3.21): one call at a time, in the whole process.
std::mutex serial_mutex;

template <class Call>
void call_blas(const Call& call) {
  static const bool one_at_a_time = openblas().present() && openblas().kind() == OpenBlas::serial;
  if (!one_at_a_time) return call();
  const std::lock_guard lock(serial_mutex);
  call();
}

// Of the pthreads build: the first SingleThreadedBlas saves the number of threads, the last one restores it.
std::mutex process_mutex;
int process_users = 0;
int process_saved_threads = 0;

// OpenBLAS falls back to kernels of 2004 on a processor that is newer than itself, a quarter as fast as own code there.
bool openblas_is_too_old() {
#if defined(__x86_64__)
  const OpenBlas& blas = openblas();
  if (!blas.present() || blas.core == nullptr) return false;
  if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma")) return false;
  const std::string_view core = blas.core();
  constexpr std::string_view kBeforeAvx2[] = {"Unknown",    "Generic", "Prescott",    "Core2",  "Penryn",
                                              "Dunnington", "Nehalem", "Sandybridge", "Athlon", "Opteron",
                                              "Barcelona",  "Bobcat",  "Atom",        "Nano"};
  return std::find(std::begin(kBeforeAvx2), std::end(kBeforeAvx2), core) != std::end(kBeforeAvx2);
#else
  return false;
#endif
}

const char* newer_core() {
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx512f")) return "SKYLAKEX";
#endif
  return "HASWELL";
}

int to_int(std::int64_t size) { return static_cast<int>(size); }
CBLAS_TRANSPOSE to_cblas(Transpose transpose) { return transpose == Transpose::yes ? CblasTrans : CblasNoTrans; }

}  // namespace

template <>
void gemm(Transpose transpose_a, Transpose transpose_b, std::int64_t m, std::int64_t n, std::int64_t k, float alpha,
          const float* a, std::int64_t lda, const float* b, std::int64_t ldb, float beta, float* c, std::int64_t ldc) {
  if (gemm_is_own()) return own_gemm(transpose_a, transpose_b, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc);
  call_blas([&] {
    cblas_sgemm(CblasRowMajor, to_cblas(transpose_a), to_cblas(transpose_b), to_int(m), to_int(n), to_int(k), alpha, a,
                to_int(lda), b, to_int(ldb), beta, c, to_int(ldc));
  });
}

template <>
void gemm(Transpose transpose_a, Transpose transpose_b, std::int64_t m, std::int64_t n, std::int64_t k, double alpha,
          const double* a, std::int64_t lda, const double* b, std::int64_t ldb, double beta, double* c,
          std::int64_t ldc) {
  if (gemm_is_own()) return own_gemm(transpose_a, transpose_b, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc);
  call_blas([&] {
    cblas_dgemm(CblasRowMajor, to_cblas(transpose_a), to_cblas(transpose_b), to_int(m), to_int(n), to_int(k), alpha, a,
                to_int(lda), b, to_int(ldb), beta, c, to_int(ldc));
  });
}

SingleThreadedBlas::SingleThreadedBlas() {
  const OpenBlas& blas = openblas();
  if (blas.by_thread()) {
    saved_openmp_threads_ = blas.openmp_threads();
    blas.set_openmp_threads(1);
  } else if (blas.by_process()) {
    const std::lock_guard lock(process_mutex);
    if (process_users++ == 0) {
      process_saved_threads = blas.threads();
      blas.set_threads(1);
    }
  }
}

SingleThreadedBlas::~SingleThreadedBlas() {
  const OpenBlas& blas = openblas();
  if (blas.by_thread()) {
    blas.set_openmp_threads(saved_openmp_threads_);
  } else if (blas.by_process()) {
    const std::lock_guard lock(process_mutex);
    if (--process_users == 0) blas.set_threads(process_saved_threads);
  }
}

void prepare_gemm_here() {
  if (gemm_is_own()) prepare_own_gemm_here();
  const OpenBlas& blas = openblas();
  if (blas.by_thread()) blas.set_openmp_threads(1);
}

bool gemm_is_own() {
  static const bool own = openblas_is_too_old();
  return own;
}

std::string gemm_description() {
  const OpenBlas& blas = openblas();
  if (!blas.present()) return "a CBLAS other than OpenBLAS";
  // "OpenBLAS 0.3.21 NO_LAPACKE DYNAMIC_ARCH ...": the first two words.
  std::string text = blas.config();
  const auto end = text.find(' ', text.find(' ') + 1);
  if (end != std::string::npos) text.resize(end);
  if (gemm_is_own())
    return "own code, because " + text + " does not know this processor and would use its " + blas.core() +
           " kernels (OPENBLAS_CORETYPE=" + newer_core() + " in the environment makes it use newer ones)";
  if (blas.core != nullptr) text += std::string(" ") + blas.core();
  const char* const kinds[] = {", serial (one product at a time)", ", pthreads", ", OpenMP"};
  return text + (blas.kind() >= 0 && blas.kind() <= 2 ? kinds[blas.kind()] : "");
}

bool gemm_bits_verified() { return openblas().present(); }

}  // namespace deviceloop

#else

namespace deviceloop {

template <class T>
void gemm(Transpose transpose_a, Transpose transpose_b, std::int64_t m, std::int64_t n, std::int64_t k, T alpha,
          const T* a, std::int64_t lda, const T* b, std::int64_t ldb, T beta, T* c, std::int64_t ldc) {
  own_gemm(transpose_a, transpose_b, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc);
}
template void gemm(Transpose, Transpose, std::int64_t, std::int64_t, std::int64_t, float, const float*, std::int64_t,
                   const float*, std::int64_t, float, float*, std::int64_t);
template void gemm(Transpose, Transpose, std::int64_t, std::int64_t, std::int64_t, double, const double*, std::int64_t,
                   const double*, std::int64_t, double, double*, std::int64_t);

SingleThreadedBlas::SingleThreadedBlas() { (void)saved_openmp_threads_; }
SingleThreadedBlas::~SingleThreadedBlas() = default;
void prepare_gemm_here() { prepare_own_gemm_here(); }

std::string gemm_description() { return "own code"; }
bool gemm_is_own() { return true; }
bool gemm_bits_verified() { return true; }

}  // namespace deviceloop

#endif
