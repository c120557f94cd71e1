// The functions by which a kernel uses the hardware. There are two definitions: this one for nvcc, and that of
// tests/simt, which runs the same kernels on the host. Grids and blocks have one dimension; blocks are whole warps.
#pragma once

#include <cstdint>

namespace deviceloop::cuda {

/// A wait ends at `time`, of clock_ns() (0: no limit), or when another block sets `*failed`. All blocks of a grid share
/// that word: it is 0 until a wait fails, then the code of the first wait that failed.
struct Deadline {
  std::uint64_t time;
  std::uint64_t* failed;
};

/// A value and its tag, the number that the reader waits for, such as that of a step: a reader that has seen the tag
/// has the value, without a separate flag. Stored in words of 8 bytes, each of which holds the tag and is written and
/// read as a whole: one word for a float, two for a double, with half of the value in each. Aligned to its own size;
/// the tag 0 means that nothing was published yet.
template <class T>
struct Tagged;
template <>
struct alignas(8) Tagged<float> {
  std::uint64_t words[1];
};
template <>
struct alignas(16) Tagged<double> {
  std::uint64_t words[2];
};

}  // namespace deviceloop::cuda

#if defined(__CUDACC__)

namespace deviceloop::cuda {

inline constexpr unsigned kWarpThreads = 32;

/// The index of this thread in its block.
__device__ inline unsigned thread_index() { return threadIdx.x; }
/// The same, read again: values that depend on it are computed again instead of being kept in registers across a loop.
__device__ inline unsigned thread_index_again() {
  unsigned index;
  asm volatile("mov.u32 %0, %%tid.x;" : "=r"(index));
  return index;
}
/// Threads of a block.
__device__ inline unsigned block_threads() { return blockDim.x; }
/// The index of this block in its grid.
__device__ inline unsigned block_index() { return blockIdx.x; }
/// Blocks of the grid.
__device__ inline unsigned grid_blocks() { return gridDim.x; }

/// The block's shared memory, of LaunchConfig::shared_bytes; its content is undefined at first. A kernel has one
/// Layout.
template <class Layout>
__device__ Layout& shared() {
  extern __shared__ __align__(16) unsigned char block_memory[];
  return *reinterpret_cast<Layout*>(block_memory);
}

/// Barrier of all threads of the block: after it, each of them sees what the others wrote before it, to any memory.
__device__ inline void block_barrier() { __syncthreads(); }

/// Barrier of all lanes of the warp: after it, each of them sees what the others wrote before it, to any memory.
__device__ inline void warp_barrier() { __syncwarp(); }

/// The value of the lane whose index differs by `mask`; all 32 lanes of a warp call it together.
template <class T>
__device__ T warp_shuffle_xor(T value, unsigned mask) {
  return __shfl_xor_sync(0xffffffffu, value, static_cast<int>(mask));
}

/// The index of this block in its cluster, and the number of blocks of the cluster: 0 and 1 if the launch has no
/// clusters.
/// @{
__device__ inline unsigned cluster_rank() {
#if __CUDA_ARCH__ >= 900
  return __clusterRelativeBlockRank();
#else
  return 0;
#endif
}
__device__ inline unsigned cluster_blocks() {
#if __CUDA_ARCH__ >= 900
  return __clusterSizeInBlocks();
#else
  return 1;
#endif
}
/// @}

/// Barrier of all threads of the cluster's blocks: after it, each of them sees what the others wrote before it, to any
/// memory.
__device__ inline void cluster_barrier() {
#if __CUDA_ARCH__ >= 900
  __cluster_barrier_arrive();
  __cluster_barrier_wait();
#else
  __syncthreads();
#endif
}

/// The address in the shared memory of the cluster's block `rank` that corresponds to `mine` in this block's. That
/// block must have begun and must not have ended: a cluster_barrier is needed before the first use and after the last.
template <class T>
__device__ T* peer_shared(T* mine, unsigned rank) {
#if __CUDA_ARCH__ >= 900
  return static_cast<T*>(__cluster_map_shared_rank(mine, rank));
#else
  return mine;
#endif
}

/// The GPU's clock in nanoseconds, the same for all of its blocks; it may advance in steps of a microsecond.
__device__ inline std::uint64_t clock_ns() {
  std::uint64_t time;
  asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(time));
  return time;
}

namespace detail {

// Accesses to words that blocks share, at the scope of the device. They do what cuda::atomic_ref does, without its
// header, which takes nvcc 1.5 s for every architecture of every file with a kernel.
__device__ inline std::uint64_t load_relaxed(const std::uint64_t* from) {
  std::uint64_t word;
  asm volatile("ld.relaxed.gpu.b64 %0, [%1];" : "=l"(word) : "l"(from) : "memory");
  return word;
}
__device__ inline unsigned load_acquire(const unsigned* from) {
  unsigned word;
  asm volatile("ld.acquire.gpu.b32 %0, [%1];" : "=r"(word) : "l"(from) : "memory");
  return word;
}
__device__ inline void add_release(unsigned* to, unsigned term) {
  asm volatile("red.release.gpu.add.u32 [%0], %1;" : : "l"(to), "r"(term) : "memory");
}
/// Compare and swap: writes `word` if *to is `expected`; returns the value before.
__device__ inline std::uint64_t swap_relaxed(std::uint64_t* to, std::uint64_t expected, std::uint64_t word) {
  std::uint64_t before;
  asm volatile("atom.cas.relaxed.gpu.b64 %0, [%1], %2, %3;"
               : "=l"(before)
               : "l"(to), "l"(expected), "l"(word)
               : "memory");
  return before;
}

/// Polls `arrived` until it holds. Every kPolls polls it checks whether the wait has to end.
template <class Arrived>
__device__ bool poll(Arrived arrived, const Deadline& deadline, std::uint64_t code) {
  constexpr int kPolls = 64;
  for (;;) {
    for (int i = 0; i < kPolls; ++i)
      if (arrived()) return true;
    if (load_relaxed(deadline.failed) != 0) return false;
    if (deadline.time != 0 && clock_ns() > deadline.time) {
      swap_relaxed(deadline.failed, 0, code);
      return false;
    }
  }
}

/// 32 bits of a value in the upper half, its tag in the lower half.
__device__ inline std::uint64_t tagged_word(std::uint32_t bits, unsigned tag) {
  return std::uint64_t{bits} << 32 | tag;
}

// How a block passes a word to another block: the tag and its value are in one word of 8 bytes, and the reader polls
// the word until it has the tag that it waits for. The word itself orders the read after the write, without a barrier.
// PTX performs an aligned access of 8 bytes as one memory operation; and a relaxed store and load of the same scope and
// the same bytes are morally strong in its memory model, so that they are no data race. A Tagged<double> is two such
// words, each with the tag and half of the value: nothing depends on 16 bytes being written at once.
//
// compute-sanitizer's racecheck knows only barriers: in a peer's shared memory it reports a hazard between the store of
// store_tagged_word and the load of load_tagged_word. No other pair may be accepted. Each is a function of its own that
// contains the instruction, so that reports name it; with an atomic_ref they would name a line of its library.
__device__ inline void store_tagged_word(std::uint64_t* to, std::uint64_t word) {
  asm volatile("st.relaxed.gpu.b64 [%0], %1;" : : "l"(to), "l"(word) : "memory");
}
__device__ inline std::uint64_t load_tagged_word(const std::uint64_t* from) {
  std::uint64_t word;
  asm volatile("ld.relaxed.gpu.b64 %0, [%1];" : "=l"(word) : "l"(from) : "memory");
  return word;
}

}  // namespace detail

/// Adds 1 to the counter that all blocks share. A thread that waits for the sum sees what this thread wrote before, and
/// what the other threads wrote before a block_barrier that this thread has passed.
__device__ inline void arrive(unsigned* counter) { detail::add_release(counter, 1u); }

/// Waits until *counter, which wraps around, has reached `value`, less than 2^31 ahead. False if the deadline's time
/// has passed, in which case this block leaves `code` (not 0) in *deadline.failed, or if another block has failed
/// before.
__device__ inline bool wait_until(unsigned* counter, unsigned value, const Deadline& deadline, std::uint64_t code) {
  return detail::poll([&] { return static_cast<int>(detail::load_acquire(counter) - value) >= 0; }, deadline, code);
}

/// Writes a value with its tag, to global memory or to a peer's shared memory. It orders no other access.
/// @{
__device__ inline void publish(Tagged<float>* word, float value, unsigned tag) {
  detail::store_tagged_word(&word->words[0], detail::tagged_word(__float_as_uint(value), tag));
}
__device__ inline void publish(Tagged<double>* word, double value, unsigned tag) {
  const auto bits = static_cast<std::uint64_t>(__double_as_longlong(value));
  detail::store_tagged_word(&word->words[0], detail::tagged_word(static_cast<std::uint32_t>(bits >> 32), tag));
  detail::store_tagged_word(&word->words[1], detail::tagged_word(static_cast<std::uint32_t>(bits), tag));
}
/// @}

/// Reads a value; false if it does not have that tag yet.
/// @{
__device__ inline bool try_read(Tagged<float>* word, unsigned tag, float& value) {
  const std::uint64_t got = detail::load_tagged_word(&word->words[0]);
  value = __uint_as_float(static_cast<std::uint32_t>(got >> 32));
  return static_cast<std::uint32_t>(got) == tag;
}
__device__ inline bool try_read(Tagged<double>* word, unsigned tag, double& value) {
  const std::uint64_t high = detail::load_tagged_word(&word->words[0]);
  const std::uint64_t low = detail::load_tagged_word(&word->words[1]);
  value = __longlong_as_double(static_cast<long long>((high & 0xffffffff00000000u) | low >> 32));
  return static_cast<std::uint32_t>(high) == tag && static_cast<std::uint32_t>(low) == tag;
}
/// @}

/// Waits for `used` values with that tag, at most `count`, which lie `stride` elements apart; each poll reads all of
/// them. The other elements of `values` become zero. Returns false as wait_until does.
template <int count, class T>
__device__ bool wait_tagged(T (&values)[count], Tagged<T>* words, std::int64_t stride, int used, unsigned tag,
                            const Deadline& deadline, std::uint64_t code) {
  return detail::poll(
      [&] {
        bool all = true;
#pragma unroll
        for (int i = 0; i < count; ++i) {
          values[i] = T(0);
          if (i < used) all &= try_read(words + i * stride, tag, values[i]);
        }
        return all;
      },
      deadline, code);
}

}  // namespace deviceloop::cuda

#else
#include <simt/device.h>
#endif
