// gpu.h in a build without CUDA, where there is never a GPU to measure.
#include <deviceloop/error.h>

#include "gpu.h"

namespace deviceloop::bench {
namespace {

[[noreturn]] void refuse() { throw Unsupported("built without CUDA"); }

}  // namespace

std::vector<Block> gpu_blocks(const GpuCaps&, std::uint64_t) { return {}; }
double measure_gpu_fma_gflops(Precision) { refuse(); }
double measure_gpu_gemm_gflops(Precision, std::int64_t) { refuse(); }
double measure_gpu_memcpy_gb_per_s() { refuse(); }
double measure_gpu_pass_gb_per_s(int, int) { refuse(); }
double gpu_cache_bytes() { refuse(); }
std::optional<CudaCalls> cuda_calls() { return std::nullopt; }
void start_profiler() {}
void stop_profiler() {}

}  // namespace deviceloop::bench
