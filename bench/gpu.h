// The joint between the cases that need no CUDA header and those that do: defined by the files in gpu/, and in a build
// without CUDA by without_cuda.cpp, where there are no such cases and nothing is counted.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include <deviceloop/plan.h>

#include "case.h"

namespace deviceloop::bench {

/// kernel/cuda/... and gemm/cuda/... on `gpu`, with data drawn from `seed`. Makes no context.
std::vector<Block> gpu_blocks(const GpuCaps& gpu, std::uint64_t seed);

/// What the current GPU reaches, the fastest of some runs.
/// @{
double measure_gpu_fma_gflops(Precision precision);
double measure_gpu_gemm_gflops(Precision precision, std::int64_t size);
double measure_gpu_memcpy_gb_per_s();
/// As measure_pass_gb_per_s of cpu_rates.h, on arrays that are far larger than the L2.
double measure_gpu_pass_gb_per_s(int reads, int writes);
/// Bytes of its L2.
double gpu_cache_bytes();
/// @}

/// Calls of this process into CUDA so far: launches of kernels and graphs, and waits for a stream or event.
struct CudaCalls {
  std::int64_t launches = 0;
  std::int64_t synchronizations = 0;
};
std::optional<CudaCalls> cuda_calls();

/// What ncu and nsys record with --profile-from-start off.
void start_profiler();
void stop_profiler();

}  // namespace deviceloop::bench
