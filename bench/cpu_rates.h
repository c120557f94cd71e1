// What the processor reaches at best, each the fastest of several short measurements.
#pragma once

#include <string>

#include <deviceloop/spec.h>

namespace deviceloop::bench {

/// Fused multiply-adds on registers, in the widest vectors that the processor has.
double measure_fma_gflops(Precision precision, int threads);

/// Products of [size, size] matrices by the library's gemm, one a thread.
double measure_gemm_gflops(Precision precision, std::int64_t size, int threads);

/// A plain pass over arrays of `footprint` bytes together, cut into parts for the threads: `reads` (1 or 2) of them are
/// read and `writes` (0 or 1) written. One to one it is memcpy where that is faster.
double measure_pass_gb_per_s(int reads, int writes, double footprint, int threads);

/// The bytes from which on arrays count as beyond the caches, and more of which no pass takes.
double beyond_caches();

/// "L1", "L2", "L3" or "memory": where so many bytes fit, each thread having a part of them.
std::string memory_level(double footprint, int threads);

}  // namespace deviceloop::bench
