#include "gemm.h"

#if DEVICELOOP_HAVE_CBLAS

#include <dlfcn.h>
#if defined(__GLIBC__)
#include <link.h>
#endif

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <filesystem>
#include <iterator>
#include <mutex>
#include <string_view>

#include <deviceloop/error.h>

extern "C" {
#include <cblas.h>
}

// What the library asks of OpenBLAS. A build with OpenBLAS links these functions like any other, so that a static
// libopenblas.a brings them along and a shared library that contains one uses its own copy's. With another CBLAS they
// are weak: it may turn out to be OpenBLAS when the program starts. OpenMP's are weak always: the OpenMP build alone
// has them.
#if DEVICELOOP_OPENBLAS
#define DEVICELOOP_OF_OPENBLAS
#else
#define DEVICELOOP_OF_OPENBLAS [[gnu::weak]]
#endif
extern "C" {
DEVICELOOP_OF_OPENBLAS char* openblas_get_config();
DEVICELOOP_OF_OPENBLAS char* openblas_get_corename();
DEVICELOOP_OF_OPENBLAS int openblas_get_parallel();
DEVICELOOP_OF_OPENBLAS int openblas_get_num_threads();
DEVICELOOP_OF_OPENBLAS void openblas_set_num_threads(int);
[[gnu::weak]] int omp_get_max_threads();
[[gnu::weak]] void omp_set_num_threads(int);
}

namespace deviceloop {
namespace {

// OpenBLAS falls back to kernels of 2004 on a processor that is newer than itself, a quarter as fast as own code there.
bool is_too_old([[maybe_unused]] std::string_view core) {
#if defined(__x86_64__)
  if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma")) return false;
  constexpr std::string_view kBeforeAvx2[] = {"Unknown",    "Generic", "Prescott",    "Core2",  "Penryn",
                                              "Dunnington", "Nehalem", "Sandybridge", "Athlon", "Opteron",
                                              "Barcelona",  "Bobcat",  "Atom",        "Nano"};
  return std::find(std::begin(kBeforeAvx2), std::end(kBeforeAvx2), core) != std::end(kBeforeAvx2);
#else
  return false;
#endif
}

// The program or library in which an address lies.
struct Object {
  const void* base = nullptr;
  std::string file{};  // empty in a program without shared libraries, all of which is one object
};

template <class Function>
Object object_of([[maybe_unused]] const char* symbol, Function* function) {
  void* address = reinterpret_cast<void*>(function);
  Dl_info info{};
#if defined(__GLIBC__)
  // A program that is not position-independent and takes the function's address has an entry of its own, which stands
  // for the function everywhere and calls the next one of this name.
  void* entry = nullptr;
  if (dladdr1(address, &info, &entry, RTLD_DL_SYMENT) != 0 && entry != nullptr &&
      static_cast<const ElfW(Sym)*>(entry)->st_shndx == SHN_UNDEF)
    if (void* const next = dlsym(RTLD_NEXT, symbol)) address = next;
#endif
  if (dladdr(address, &info) == 0) return {};
  return {info.dli_fbase, info.dli_fname != nullptr ? info.dli_fname : ""};
}

// Whether two addresses are of one BLAS. Debian's libblas.so.3 of OpenBLAS has a copy of OpenBLAS' CBLAS that computes
// in the libopenblas.so.0 beside it.
bool is_one_blas(const Object& gemm, const Object& openblas) {
  if (gemm.base == openblas.base) return true;
  std::error_code error;
  const auto real = std::filesystem::canonical(gemm.file, error);
  return !error && real.filename().string().starts_with("libblas.so") &&
         real.parent_path() == std::filesystem::canonical(openblas.file, error).parent_path() && !error;
}

// What multiplies in this process, and how it is kept to one thread. Which BLAS answers behind cblas.h is decided when
// the program starts: a library that comes first, by LD_PRELOAD or by the application's link line, takes the place of
// the one that the build found.
struct Blas {
  using GetInt = int (*)();
  using SetInt = void (*)(int);
  using GetText = char* (*)();
  // OpenBLAS' functions, null where the process has none.
  GetText config = openblas_get_config;
  GetText core = openblas_get_corename;
  GetInt parallel = openblas_get_parallel;
  GetInt threads = openblas_get_num_threads;
  SetInt set_threads = openblas_set_num_threads;
  GetInt openmp_threads = omp_get_max_threads;
  SetInt set_openmp_threads = omp_set_num_threads;

  // What openblas_get_parallel answers.
  enum Kind { serial = 0, pthreads = 1, openmp = 2 };
  Kind kind() const { return static_cast<Kind>(parallel()); }

  bool is_openblas = false;  // what multiplies is the OpenBLAS that these functions are of
  bool is_left_out = false;  // own code multiplies instead
  std::string other{};       // what it is, where not
  bool one_at_a_time = false;
  bool by_process = false;  // threads and set_threads: one number for the process
  bool by_thread = false;   // openmp_threads and set_openmp_threads: a setting of the calling thread
  bool is_watched = false;  // `threads` tells how many the next product uses

  Blas();

 private:
  bool numbers_by_process() const;
};

// OpenBLAS 0.3.22 and 0.3.23, built with OpenMP, obey openblas_set_num_threads instead of OpenMP once it was called, or
// once a product has met another number than the one before. With the others it would free buffers in use by the
// application's products, and is not called.
bool Blas::numbers_by_process() const {
  if (kind() != openmp) return kind() == pthreads;
  int release = 0;
  return std::sscanf(config(), "OpenBLAS 0.3.%d", &release) == 1 && (release == 22 || release == 23);
}

Blas::Blas() {
  // A program that was linked without OpenMP can have resolved the weak references to nothing for good.
  const auto look_up = [](auto& function, const char* symbol) {
    if (function == nullptr)
      function = reinterpret_cast<std::remove_reference_t<decltype(function)>>(dlsym(RTLD_DEFAULT, symbol));
  };
  look_up(openmp_threads, "omp_get_max_threads");
  look_up(set_openmp_threads, "omp_set_num_threads");
  const bool has_openmp = openmp_threads != nullptr && set_openmp_threads != nullptr;
  const bool has_openblas =
      config != nullptr && core != nullptr && parallel != nullptr && threads != nullptr && set_threads != nullptr;

  const Object sgemm = object_of("cblas_sgemm", cblas_sgemm), dgemm = object_of("cblas_dgemm", cblas_dgemm);
  const auto belongs = [&](const char* symbol, auto* function) {
    return function != nullptr && is_one_blas(sgemm, object_of(symbol, function));
  };
  const bool is_one = sgemm.base == dgemm.base;
  const bool counts = is_one && belongs("openblas_get_num_threads", threads);
  const bool sets = counts && belongs("openblas_set_num_threads", set_threads);
  is_openblas = has_openblas && sets && belongs("openblas_get_config", config) &&
                belongs("openblas_get_corename", core) && belongs("openblas_get_parallel", parallel);
  if (is_openblas) {
    is_left_out = is_too_old(core());
    if (is_left_out) return;
    one_at_a_time = kind() == serial;
    by_thread = kind() == openmp && has_openmp;
    by_process = is_watched = numbers_by_process();
    return;
  }
  if (counts) {
    // Linked before the library, an application's libopenblas.a gives it what the application's own calls need, and a
    // shared OpenBLAS the rest: nothing tells which kind multiplies.
    other = "OpenBLAS in " + sgemm.file + ", of unknown version and kind (one product at a time)";
    one_at_a_time = true;
    by_process = sets;
    by_thread = has_openmp;
    is_watched = sets && !has_openmp;  // built with OpenMP, it changes the number by itself
    return;
  }
  // A BLAS that nothing is known of: libraries of this kind may be called by several threads at once, and those on
  // OpenMP take its number of threads. It may also pass calls on to OpenBLAS.
  if (!is_one)
    other = "cblas_sgemm in " + sgemm.file + " and cblas_dgemm in " + dgemm.file + ", not one OpenBLAS";
  else if (sgemm.file.empty())
    other = "a CBLAS other than OpenBLAS";
  else
    other = "CBLAS in " + sgemm.file + ", not OpenBLAS";
  by_thread = has_openmp;
  by_process = has_openblas && numbers_by_process();
  if (!is_one && has_openblas) {  // one of the two products is OpenBLAS'
    one_at_a_time = kind() == serial;
    is_watched = by_process;
  }
}

const Blas& blas() {
  static const Blas found;
  return found;
}

// The serial build hands its buffers out without a lock, so two calls at once share one and give wrong results (seen
// with Debian's 0.3.21): one call at a time, in the whole process.
std::mutex serial_mutex;

// Where the number of threads is one for the process, the first SingleThreadedBlas saves it and the last one restores
// it. Meanwhile anybody else may change it: see SingleThreadedBlas::check.
std::mutex process_mutex;
int process_users = 0;
int process_saved_threads = 0;
int process_found_threads = 0;  // at the last change
std::atomic<std::uint64_t> process_changes = 0;

// With process_mutex held; `found` is not 1. It is what the application wants for the time after.
void undo_change(int found) {
  process_changes.fetch_add(1, std::memory_order_relaxed);
  process_found_threads = process_saved_threads = found;
  blas().set_threads(1);
}

void look_for_change(const Blas& watched) {
  const int found = watched.threads();
  if (found == 1) return;
  const std::lock_guard lock(process_mutex);
  undo_change(found);
}

template <class Call>
void call_blas(const Call& call) {
  const Blas& here = blas();
  std::unique_lock<std::mutex> lock;
  if (here.one_at_a_time) lock = std::unique_lock(serial_mutex);
  if (!here.is_watched) return call();
  look_for_change(here);
  call();
  look_for_change(here);
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
  if (gemm_is_own()) prepare_own_gemm_here();
  if (blas().by_thread) {
    saved_openmp_threads_ = blas().openmp_threads();
    blas().set_openmp_threads(1);
  }
  if (!blas().by_process) return;
  const std::lock_guard lock(process_mutex);
  if (process_users++ == 0) {
    process_saved_threads = blas().threads();
    blas().set_threads(1);
  } else if (const int found = blas().threads(); found != 1) {
    undo_change(found);
  }
  changes_ = process_changes.load(std::memory_order_relaxed);
}

SingleThreadedBlas::~SingleThreadedBlas() {
  if (blas().by_process) {
    const std::lock_guard lock(process_mutex);
    // Another number than 1 was set by the application since the last product.
    if (--process_users == 0 && blas().threads() == 1) blas().set_threads(process_saved_threads);
  }
  if (blas().by_thread) blas().set_openmp_threads(saved_openmp_threads_);
}

void SingleThreadedBlas::check() const {
  if (!blas().is_watched || process_changes.load(std::memory_order_relaxed) == changes_) return;
  const std::lock_guard lock(process_mutex);
  throw Error(
      "the number of OpenBLAS' threads, one for the whole process, was set to " +
      std::to_string(process_found_threads) +
      " while deviceloop computed, by the application or a library that it uses, so last digits may differ; set it "
      "(openblas_set_num_threads) between the calls of deviceloop or in the callback of a run");
}

void prepare_gemm_here() {
  if (gemm_is_own()) prepare_own_gemm_here();
  if (blas().by_thread) blas().set_openmp_threads(1);
}

bool gemm_is_own() { return blas().is_left_out; }

std::string gemm_description() {
  if (!blas().is_openblas) return blas().other;
  // "OpenBLAS 0.3.21 NO_LAPACKE DYNAMIC_ARCH ...": the first two words.
  std::string text = blas().config();
  const auto end = text.find(' ', text.find(' ') + 1);
  if (end != std::string::npos) text.resize(end);
  if (gemm_is_own())
    return "own code, because " + text + " does not know this processor and would use its " + blas().core() +
           " kernels (OPENBLAS_CORETYPE=" + newer_core() + " in the environment makes it use newer ones)";
  text += std::string(" ") + blas().core();
  const char* const kinds[] = {", serial (one product at a time)", ", pthreads", ", OpenMP"};
  return text + (blas().kind() >= 0 && blas().kind() <= 2 ? kinds[blas().kind()] : "");
}

bool gemm_bits_verified() { return blas().is_openblas; }

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

SingleThreadedBlas::SingleThreadedBlas() {
  prepare_own_gemm_here();
  (void)saved_openmp_threads_;
  (void)changes_;
}
SingleThreadedBlas::~SingleThreadedBlas() = default;
void SingleThreadedBlas::check() const {}
void prepare_gemm_here() { prepare_own_gemm_here(); }

std::string gemm_description() { return "own code"; }
bool gemm_is_own() { return true; }
bool gemm_bits_verified() { return true; }

}  // namespace deviceloop

#endif
