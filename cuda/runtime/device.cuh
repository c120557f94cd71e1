// All that a kernel may ask of the machine. There are two definitions: this one for nvcc, and that of tests/simt, which
// runs the same kernels on the host. Grids and blocks have one dimension; blocks are whole warps.
#pragma once

#if defined(__CUDACC__)

namespace deviceloop::cuda {

inline constexpr unsigned kWarpThreads = 32;

/// Of this thread in its block.
__device__ inline unsigned thread_index() { return threadIdx.x; }
/// Threads of a block.
__device__ inline unsigned block_threads() { return blockDim.x; }
/// Of this block in its grid.
__device__ inline unsigned block_index() { return blockIdx.x; }
/// Blocks of the grid.
__device__ inline unsigned grid_blocks() { return gridDim.x; }

/// The block's shared memory, of LaunchConfig::shared_bytes; its content is undefined at first. One Layout a kernel.
template <class Layout>
__device__ Layout& shared() {
  extern __shared__ __align__(16) unsigned char block_memory[];
  return *reinterpret_cast<Layout*>(block_memory);
}

/// All threads of the block meet; what they wrote before, to any memory, each of them sees after.
__device__ inline void block_barrier() { __syncthreads(); }

/// The value of the lane whose index differs by `mask`; all 32 lanes of a warp call it together.
template <class T>
__device__ T warp_shuffle_xor(T value, unsigned mask) {
  return __shfl_xor_sync(0xffffffffu, value, static_cast<int>(mask));
}

}  // namespace deviceloop::cuda

#else
#include <simt/device.h>
#endif
