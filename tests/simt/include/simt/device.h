// The second definition of what cuda/runtime/device.cuh declares, for kernels compiled by g++. Outside of a kernel none
// of it may be called.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>

// The other attributes of kernels are empty in CUDA's own headers already.
#define __launch_bounds__(...)

namespace simt {

/// Where a thread stands, and the shared memory of its block.
struct Place {
  unsigned thread = 0, threads = 0, block = 0, blocks = 0;
  void* shared = nullptr;
};

/// Of the thread that runs.
inline constinit thread_local const Place* place = nullptr;

/// The block's shared memory; throws KernelError where it has fewer than `layout_bytes`.
void* shared_memory(std::size_t layout_bytes);

void block_barrier();

/// The `bits` of the lane whose index differs by `mask`, all lanes having called it with the same `mask` and `bytes`.
std::uint64_t warp_shuffle_xor(std::uint64_t bits, std::size_t bytes, unsigned mask);

}  // namespace simt

namespace deviceloop::cuda {

inline constexpr unsigned kWarpThreads = 32;

inline unsigned thread_index() { return simt::place->thread; }
inline unsigned block_threads() { return simt::place->threads; }
inline unsigned block_index() { return simt::place->block; }
inline unsigned grid_blocks() { return simt::place->blocks; }

template <class Layout>
Layout& shared() {
  static_assert(alignof(Layout) <= 16, "a block's shared memory lies on 16 bytes");
  return *static_cast<Layout*>(simt::shared_memory(sizeof(Layout)));
}

inline void block_barrier() { simt::block_barrier(); }

template <class T>
T warp_shuffle_xor(T value, unsigned mask) {
  static_assert(std::is_arithmetic_v<T> && (sizeof(T) == 4 || sizeof(T) == 8), "what __shfl_xor_sync takes");
  std::uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(T));
  bits = simt::warp_shuffle_xor(bits, sizeof(T), mask);
  std::memcpy(&value, &bits, sizeof(T));
  return value;
}

}  // namespace deviceloop::cuda
