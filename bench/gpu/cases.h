// The cases of a GPU, by area; together they are gpu_blocks of ../gpu.h.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include <deviceloop/cuda.h>
#include <deviceloop/plan.h>

#include "../case.h"

namespace deviceloop::bench {

/// Enqueued behind each launch with each of its outputs, so that a test can plant a wrong result.
using Spoil = std::function<void(void* output, std::size_t bytes, cuda::Stream stream)>;

/// kernel/cuda/KERNEL/n=N/PRECISION and kernel/cuda/KERNEL/batch=B/features=F/PRECISION: <deviceloop/cuda.h>, and CUB.
/// The arrays are rotated: as many copies of them as are four times the L2, at most 256.
std::vector<Block> gpu_kernel_blocks(const GpuCaps& gpu, std::uint64_t seed, const Spoil& spoil = {});

/// gemm/cuda/PRODUCT/LAYERS/layer=L/n=N/PRECISION: the products of a step by cuBLASLt. Operands stay where they are, as
/// they do from step to step.
std::vector<Block> gpu_gemm_blocks(const GpuCaps& gpu, std::uint64_t seed);

/// predict/cuda/LAYERS/n=ROWS/PRECISION: predictions on device arrays by the plan `graph`.
std::vector<Block> gpu_predict_blocks(const GpuCaps& gpu, std::uint64_t seed);

}  // namespace deviceloop::bench
