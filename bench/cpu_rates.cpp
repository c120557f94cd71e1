#include "cpu_rates.h"

#include <unistd.h>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>
#include <vector>

#include "../host/cpu/gemm.h"
#include "../host/cpu/thread_pool.h"
#include "../host/matrix_ops.h"
#include "random_data.h"

namespace deviceloop::bench {
namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

/// The seconds of the fastest of some calls: at least two, and as many as fit into about `budget` seconds.
template <class Call>
double fastest(double budget, const Call& call) {
  double best = 1e300;
  const Clock::time_point start = Clock::now();
  for (int i = 0; i < 2 || seconds_since(start) < budget; ++i) {
    const Clock::time_point begin = Clock::now();
    call();
    best = std::min(best, seconds_since(begin));
  }
  return best;
}

// ---------------------------------------------------------------------------------------------------------------------
// Arithmetic

/// rounds * Sums fused multiply-adds of vectors that never leave their registers.
template <class T, int VectorBytes, int Sums>
[[gnu::always_inline]] inline T multiply_add(std::int64_t rounds, T factor, T addend) {
  typedef T Vector __attribute__((vector_size(VectorBytes)));
  Vector sums[Sums];
#pragma GCC unroll 16
  for (int i = 0; i < Sums; ++i) sums[i] = Vector{} + static_cast<T>(i);
  for (std::int64_t round = 0; round < rounds; ++round) {
#pragma GCC unroll 16
    for (int i = 0; i < Sums; ++i) sums[i] = sums[i] * factor + addend;
  }
  Vector total{};
#pragma GCC unroll 16
  for (int i = 0; i < Sums; ++i) total += sums[i];
  return total[0];
}

template <class T>
struct Fma {
  T (*run)(std::int64_t rounds, T factor, T addend);
  double flops_a_round;
};

// Two units with a latency of 4 need 8 sums; 16 registers hold 10 beside the two operands, 32 hold 16.
template <class T>
T multiply_add_16(std::int64_t rounds, T factor, T addend) {
  return multiply_add<T, 16, 10>(rounds, factor, addend);
}
#if defined(__x86_64__)
template <class T>
[[gnu::target("avx2,fma")]] T multiply_add_32(std::int64_t rounds, T factor, T addend) {
  return multiply_add<T, 32, 10>(rounds, factor, addend);
}
template <class T>
[[gnu::target("avx512f")]] T multiply_add_64(std::int64_t rounds, T factor, T addend) {
  return multiply_add<T, 64, 16>(rounds, factor, addend);
}
#endif

template <class T>
Fma<T> best_fma() {
  const auto flops = [](int bytes, int sums) { return 2.0 * sums * bytes / sizeof(T); };
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx512f")) return {multiply_add_64<T>, flops(64, 16)};
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return {multiply_add_32<T>, flops(32, 10)};
#endif
  return {multiply_add_16<T>, flops(16, 10)};
}

template <class T>
double fma_gflops(int threads) {
  constexpr std::int64_t kRounds = 100000;
  const Fma<T> fma = best_fma<T>();
  // Volatile: read and written at run time, so that nothing is computed before or left out.
  volatile T factor = T(0.999), addend = T(0.001);
  std::vector<T> results(static_cast<std::size_t>(threads) * 64);
  ThreadPool pool(threads);
  const double seconds = fastest(0.1, [&] {
    pool.run(threads, [&](std::int64_t task, int) {
      results[static_cast<std::size_t>(task) * 64] = fma.run(kRounds, factor, addend);
    });
  });
  return fma.flops_a_round * kRounds * threads / seconds / 1e9;
}

template <class T>
double gemm_gflops(std::int64_t size, int threads) {
  const auto elements = static_cast<std::size_t>(size * size);
  struct Operands {
    std::vector<T> a, b, c;
  };
  std::vector<Operands> operands(static_cast<std::size_t>(threads));
  for (Operands& each : operands) {
    each.a.resize(elements);
    each.b.resize(elements);
    each.c.resize(elements);
    for (std::size_t i = 0; i < elements; ++i) {
      each.a[i] = random_value<T>(0, kFirst, static_cast<std::int64_t>(i));
      each.b[i] = random_value<T>(0, kSecond, static_cast<std::int64_t>(i));
    }
  }
  const SingleThreadedBlas single_threaded;
  ThreadPool pool(threads);
  const double seconds = fastest(0.15, [&] {
    pool.run(threads, [&](std::int64_t task, int) {
      Operands& each = operands[static_cast<std::size_t>(task)];
      gemm<T>(Transpose::no, Transpose::no, size, size, size, T(1), each.a.data(), size, each.b.data(), size, T(0),
              each.c.data(), size);
    });
  });
  return 2.0 * static_cast<double>(size) * static_cast<double>(size) * static_cast<double>(size) * threads / seconds /
         1e9;
}

// ---------------------------------------------------------------------------------------------------------------------
// Memory

constexpr std::size_t kAlignment = 64;

/// One thread's arrays, of `bytes` each, a multiple of kAlignment.
struct Arrays {
  std::byte* out;
  const std::byte* first;
  const std::byte* second;  ///< null where one is read
  std::size_t bytes;
};

/// out = first (xor second), or with no `out` the sum of all, which makes the reads needed. `streaming`: the stores go
/// past the caches.
template <int VectorBytes, bool streaming>
[[gnu::always_inline]] inline std::uint64_t pass(const Arrays& arrays) {
  typedef std::uint64_t Vector __attribute__((vector_size(VectorBytes)));
  const Vector* const first = reinterpret_cast<const Vector*>(arrays.first);
  const Vector* const second = reinterpret_cast<const Vector*>(arrays.second);
  Vector* const out = reinterpret_cast<Vector*>(arrays.out);
  const std::size_t count = arrays.bytes / VectorBytes;
  if (out == nullptr) {
    Vector sums[4] = {};
    for (std::size_t i = 0; i + 4 <= count; i += 4) {
#pragma GCC unroll 4
      for (std::size_t j = 0; j < 4; ++j) sums[j] += second == nullptr ? first[i + j] : first[i + j] ^ second[i + j];
    }
    const Vector sum = sums[0] + sums[1] + sums[2] + sums[3];
    std::uint64_t result = 0;
    std::memcpy(&result, &sum, sizeof result);
    return result;
  }
#pragma GCC unroll 4
  for (std::size_t i = 0; i < count; ++i) {
    const Vector value = second == nullptr ? first[i] : first[i] ^ second[i];
#if defined(__x86_64__)
    if constexpr (streaming) {
      asm volatile("vmovntps %1, %0" : "=m"(out[i]) : "v"(value));
      continue;
    }
#endif
    out[i] = value;
  }
#if defined(__x86_64__)
  if constexpr (streaming) _mm_sfence();
#endif
  return 0;
}

using Pass = std::uint64_t (*)(const Arrays&);

std::uint64_t pass_16(const Arrays& arrays) { return pass<16, false>(arrays); }
std::uint64_t pass_memcpy(const Arrays& arrays) {
  std::memcpy(arrays.out, arrays.first, arrays.bytes);
  return 0;
}
#if defined(__x86_64__)
[[gnu::target("avx2")]] std::uint64_t pass_32(const Arrays& arrays) { return pass<32, false>(arrays); }
[[gnu::target("avx2")]] std::uint64_t pass_32_streaming(const Arrays& arrays) { return pass<32, true>(arrays); }
[[gnu::target("avx512f")]] std::uint64_t pass_64(const Arrays& arrays) { return pass<64, false>(arrays); }
[[gnu::target("avx512f")]] std::uint64_t pass_64_streaming(const Arrays& arrays) { return pass<64, true>(arrays); }
#endif

std::vector<Pass> passes(int reads, int writes) {
  std::vector<Pass> found = {pass_16};
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx512f"))
    found = {pass_64, pass_64_streaming};
  else if (__builtin_cpu_supports("avx2"))
    found = {pass_32, pass_32_streaming};
#endif
  if (reads == 1 && writes == 1) found.push_back(pass_memcpy);
  return found;
}

long cache_bytes(int level) {
#if defined(_SC_LEVEL1_DCACHE_SIZE)
  const long bytes = sysconf(level == 1   ? _SC_LEVEL1_DCACHE_SIZE
                             : level == 2 ? _SC_LEVEL2_CACHE_SIZE
                                          : _SC_LEVEL3_CACHE_SIZE);
  if (bytes > 0) return bytes;
#endif
  return level == 1 ? 32 << 10 : level == 2 ? 1 << 20 : 32 << 20;
}

}  // namespace

double measure_fma_gflops(Precision precision, int threads) {
  return with_type(element_type(precision), [&]<class T>(T*) { return fma_gflops<T>(threads); });
}

double measure_gemm_gflops(Precision precision, std::int64_t size, int threads) {
  return with_type(element_type(precision), [&]<class T>(T*) { return gemm_gflops<T>(size, threads); });
}

double measure_pass_gb_per_s(int reads, int writes, double footprint, int threads) {
  const auto arrays = static_cast<std::size_t>(reads + writes);
  const double wanted = std::min(footprint, beyond_caches()) / static_cast<double>(arrays) / threads;
  const std::size_t bytes = std::max(static_cast<std::size_t>(wanted) / kAlignment, std::size_t{4}) * kAlignment;
  const std::size_t all = bytes * arrays * static_cast<std::size_t>(threads);
  const std::unique_ptr<void, decltype(&std::free)> memory(std::aligned_alloc(4096, (all + 4095) / 4096 * 4096),
                                                           &std::free);
  if (memory == nullptr) throw std::bad_alloc();
  ThreadPool pool(threads);
  const auto part = [&](std::int64_t task) {
    std::byte* const begin = static_cast<std::byte*>(memory.get()) + static_cast<std::size_t>(task) * arrays * bytes;
    return Arrays{writes == 1 ? begin : nullptr, begin + static_cast<std::size_t>(writes) * bytes,
                  reads == 2 ? begin + static_cast<std::size_t>(writes + 1) * bytes : nullptr, bytes};
  };
  pool.run(threads, [&](std::int64_t task, int) {
    std::byte* const begin = static_cast<std::byte*>(memory.get()) + static_cast<std::size_t>(task) * arrays * bytes;
    std::uint64_t value = 1;
    for (std::size_t i = 0; i < arrays * bytes; i += sizeof value) {
      value = value * 6364136223846793005u + 1442695040888963407u;
      std::memcpy(begin + i, &value, sizeof value);
    }
  });
  const double moved = static_cast<double>(bytes * arrays);
  // About 20 us a measurement, above what the clock and meeting the other threads cost.
  const auto turns = static_cast<std::int64_t>(std::max(1.0, 1e6 / moved));
  double best = 1e300;
  for (const Pass pass : passes(reads, writes))
    best = std::min(best, fastest(0.01, [&] {
                      pool.run(threads, [&](std::int64_t task, int) {
                        const Arrays mine = part(task);
                        [[maybe_unused]] volatile std::uint64_t sum = 0;
                        for (std::int64_t turn = 0; turn < turns; ++turn) sum = pass(mine);
                      });
                    }));
  return moved * static_cast<double>(turns) * threads / best / 1e9;
}

double beyond_caches() {
  return std::clamp(2.0 * static_cast<double>(cache_bytes(3)), 256.0 * (1 << 20), 512.0 * (1 << 20));
}

std::string memory_level(double footprint, int threads) {
  if (footprint <= static_cast<double>(cache_bytes(1)) * threads) return "L1";
  if (footprint <= static_cast<double>(cache_bytes(2)) * threads) return "L2";
  return footprint <= static_cast<double>(cache_bytes(3)) ? "L3" : "memory";
}

}  // namespace deviceloop::bench
