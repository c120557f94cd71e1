// The functions by which a kernel uses the hardware. There are two definitions: this one for nvcc, and that of
// tests/simt, which runs the same kernels on the host. Grids and blocks have one dimension; blocks are whole warps.
#pragma once

#include <cstdint>
#include <cstring>

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

/// The same of 16 bytes of any kind: four words, each with the tag and a quarter of them.
struct alignas(32) TaggedUnit {
  std::uint64_t words[4];
};

/// A barrier in shared memory (PTX: mbarrier) that counts arrivals of threads and bytes of asynchronous stores. A phase
/// ends when all arrivals of init_transactions() are there and as many bytes have landed as arrive_expecting() has
/// announced in it; the next phase then begins with the same number of arrivals. Phases count from 0; a wait names the
/// parity of the phase whose end it waits for, so that no thread may be more than one phase behind.
struct alignas(8) TransactionBarrier {
  std::uint64_t word;
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

/// The block's shared memory, of LaunchConfig::shared_bytes, at a multiple of 1024 bytes; its content is undefined at
/// first. A kernel has one Layout.
template <class Layout>
__device__ Layout& shared() {
  extern __shared__ __align__(1024) unsigned char block_memory[];
  return *reinterpret_cast<Layout*>(block_memory);
}

/// Barrier of all threads of the block: after it, each of them sees what the others wrote before it, to any memory.
__device__ inline void block_barrier() { __syncthreads(); }

/// Barrier of all lanes of the warp: after it, each of them sees what the others wrote before it, to any memory.
__device__ inline void warp_barrier() { __syncwarp(); }

/// Barriers of a part of the block's threads, whole warps. `barrier` is 1 to 15, and `threads` counts all that take
/// part in a phase: those that arrive and wait, by part_barrier(), and those that only arrive, by part_arrive().
/// Whoever has passed part_barrier() sees what all of them wrote before.
/// @{
__device__ inline void part_barrier(int barrier, int threads) {
  asm volatile("bar.sync %0, %1;" : : "r"(barrier), "r"(threads) : "memory");
}
__device__ inline void part_arrive(int barrier, int threads) {
  asm volatile("bar.arrive %0, %1;" : : "r"(barrier), "r"(threads) : "memory");
}
/// @}

/// In a launch with LaunchConfig::waits the first thing that every thread does: until then this grid may run beside
/// those before it. After it they have ended, and what they wrote is seen. The grid behind may begin once all blocks
/// of this one have come here.
__device__ inline void wait_for_grids_before() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" : : : "memory");
  asm volatile("griddepcontrol.launch_dependents;" : : : "memory");
#endif
}

/// The value of the lane whose index differs by `mask`; all 32 lanes of a warp call it together.
template <class T>
__device__ T warp_shuffle_xor(T value, unsigned mask) {
  return __shfl_xor_sync(0xffffffffu, value, static_cast<int>(mask));
}

/// The value of lane `from`, and the lanes for which `flag` holds, lane i as bit i; all lanes call it together.
/// @{
template <class T>
__device__ T warp_shuffle(T value, unsigned from) {
  return __shfl_sync(0xffffffffu, value, static_cast<int>(from));
}
__device__ inline unsigned warp_ballot(bool flag) { return __ballot_sync(0xffffffffu, flag); }
/// @}

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

/// The two halves of cluster_barrier: what a thread does between them overlaps with the wait for the others.
/// @{
__device__ inline void cluster_arrive() {
#if __CUDA_ARCH__ >= 900
  __cluster_barrier_arrive();
#endif
}
__device__ inline void cluster_wait() {
#if __CUDA_ARCH__ >= 900
  __cluster_barrier_wait();
#else
  __syncthreads();
#endif
}
/// @}

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

/// A counter of this multiprocessor's clock cycles, which wraps around.
__device__ inline unsigned clock_cycles() {
  unsigned cycles;
  asm volatile("mov.u32 %0, %%clock;" : "=r"(cycles) : : "memory");
  return cycles;
}

/// Returns once `cycles` have passed since clock_cycles() was `since`. A poll that comes too early delays the words
/// that it polls for.
__device__ inline void wait_cycles(unsigned since, unsigned cycles) {
  while (clock_cycles() - since < cycles) {
  }
}

/// Raises or lowers the registers of each of this thread's warps' threads to `count`, a multiple of 8 from 24 to 256;
/// all warps of a warp group of 128 threads call it together. Code for one architecture alone (sm_90a) can do so:
/// elsewhere the registers stay those of __launch_bounds__, with which the kernel must do.
/// @{
template <int count>
__device__ void raise_registers() {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" : : "n"(count));
#endif
}
template <int count>
__device__ void lower_registers() {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" : : "n"(count));
#endif
}
/// @}

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

/// Polls `arrived` until it holds. Every kPolls polls it checks whether the wait has to end. `compact`: the loop over
/// the polls is not unrolled, which takes a register and saves much code.
template <bool compact = false, class Arrived>
__device__ bool poll(Arrived arrived, const Deadline& deadline, std::uint64_t code) {
  constexpr int kPolls = 64;
  for (;;) {
    if constexpr (compact) {
#pragma unroll 1
      for (int i = 0; i < kPolls; ++i)
        if (arrived()) return true;
    } else {
      for (int i = 0; i < kPolls; ++i)
        if (arrived()) return true;
    }
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

// How a block passes a word to another block through global memory: the tag and its value are in one word of 8 bytes,
// and the reader polls the word until it has the tag that it waits for. The word itself orders the read after the
// write, without a barrier. PTX performs an aligned access of 8 bytes as one memory operation; and a relaxed store and
// load of the same scope and the same bytes are morally strong in its memory model, so that they are no data race. A
// Tagged<double> is two such words, each with the tag and half of the value, and a TaggedUnit four: nothing depends on
// 16 bytes being written at once. Two words may travel by one access: PTX takes the elements of a vector for accesses
// of their own.
__device__ inline void store_tagged_word(std::uint64_t* to, std::uint64_t word) {
  asm volatile("st.relaxed.gpu.global.b64 [%0], %1;" : : "l"(__cvta_generic_to_global(to)), "l"(word) : "memory");
}
__device__ inline std::uint64_t load_tagged_word(const std::uint64_t* from) {
  std::uint64_t word;
  asm volatile("ld.relaxed.gpu.global.b64 %0, [%1];" : "=l"(word) : "l"(__cvta_generic_to_global(from)) : "memory");
  return word;
}
__device__ inline void store_tagged_pair(std::uint64_t* to, std::uint64_t first, std::uint64_t second) {
  asm volatile("st.relaxed.gpu.global.v2.b64 [%0], {%1, %2};"
               :
               : "l"(__cvta_generic_to_global(to)), "l"(first), "l"(second)
               : "memory");
}
__device__ inline void load_tagged_pair(const std::uint64_t* from, std::uint64_t& first, std::uint64_t& second) {
  asm volatile("ld.relaxed.gpu.global.v2.b64 {%0, %1}, [%2];"
               : "=l"(first), "=l"(second)
               : "l"(__cvta_generic_to_global(from))
               : "memory");
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

/// Whether a wait of some block has failed.
__device__ inline bool has_failed(const Deadline& deadline) { return detail::load_relaxed(deadline.failed) != 0; }

/// Writes a value with its tag to global memory. It orders no other access.
/// @{
__device__ inline void publish(Tagged<float>* word, float value, unsigned tag) {
  detail::store_tagged_word(&word->words[0], detail::tagged_word(__float_as_uint(value), tag));
}
__device__ inline void publish(Tagged<double>* word, double value, unsigned tag) {
  const auto bits = static_cast<std::uint64_t>(__double_as_longlong(value));
  detail::store_tagged_word(&word->words[0], detail::tagged_word(static_cast<std::uint32_t>(bits >> 32), tag));
  detail::store_tagged_word(&word->words[1], detail::tagged_word(static_cast<std::uint32_t>(bits), tag));
}
template <class Unit>
__device__ void publish(TaggedUnit* to, const Unit& value, unsigned tag) {
  static_assert(sizeof(Unit) == 16);
  std::uint32_t bits[4];
  std::memcpy(bits, &value, sizeof bits);
#pragma unroll
  for (int i = 0; i < 4; i += 2)
    detail::store_tagged_pair(to->words + i, detail::tagged_word(bits[i], tag), detail::tagged_word(bits[i + 1], tag));
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
template <class Unit>
__device__ bool try_read(const TaggedUnit* from, unsigned tag, Unit& value) {
  static_assert(sizeof(Unit) == 16);
  std::uint32_t bits[4];
  bool all = true;
#pragma unroll
  for (int i = 0; i < 4; i += 2) {
    std::uint64_t words[2];
    detail::load_tagged_pair(from->words + i, words[0], words[1]);
#pragma unroll
    for (int k = 0; k < 2; ++k) {
      bits[i + k] = static_cast<std::uint32_t>(words[k] >> 32);
      all &= static_cast<std::uint32_t>(words[k]) == tag;
    }
  }
  std::memcpy(&value, bits, sizeof bits);
  return all;
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

/// Begins to copy a value of 4, 8 or 16 bytes, aligned to its size, from global memory to this block's shared memory.
/// It has arrived when this thread has called wait_copies(), and other threads see it after a barrier behind that.
/// @{
template <class T>
__device__ void copy_async(T* to, const T* from) {
  static_assert(sizeof(T) == 4 || sizeof(T) == 8 || sizeof(T) == 16);
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.ca.shared.global [%0], [%1], %2;"
               :
               : "r"(static_cast<std::uint32_t>(__cvta_generic_to_shared(to))), "l"(from),
                 "n"(static_cast<int>(sizeof(T)))
               : "memory");
#else
  *to = *from;
#endif
}
__device__ inline void wait_copies() {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.wait_all;" : : : "memory");
#endif
}
/// @}

/// As wait_tagged, for the values at `offsets`, which may be the same for several.
template <int count, class T>
__device__ bool wait_tagged_at(T (&values)[count], Tagged<T>* words, const int (&offsets)[count], unsigned tag,
                               const Deadline& deadline, std::uint64_t code) {
  return detail::poll<true>(
      [&] {
        bool all = true;
#pragma unroll
        for (int i = 0; i < count; ++i) all &= try_read(words + offsets[i], tag, values[i]);
        return all;
      },
      deadline, code);
}

/// The same of units, where an offset below 0 stands for none, whose value is left as it is.
template <int count, class Unit>
__device__ bool wait_tagged_at(Unit (&values)[count], const TaggedUnit* units, const int (&offsets)[count],
                               unsigned tag, const Deadline& deadline, std::uint64_t code) {
  return detail::poll<true>(
      [&] {
        bool all = true;
#pragma unroll
        for (int i = 0; i < count; ++i)
          if (offsets[i] >= 0) all &= try_read(units + offsets[i], tag, values[i]);
        return all;
      },
      deadline, code);
}

/// A place in the shared memory of a block of the cluster, for store_async.
template <class T>
struct Remote {
  std::uint32_t address;

  __device__ Remote operator+(int elements) const {
    return {address + static_cast<std::uint32_t>(elements) * static_cast<std::uint32_t>(sizeof(T))};
  }
};

/// As peer_shared.
template <class T>
__device__ Remote<T> remote(T* mine, unsigned rank) {
  auto address = static_cast<std::uint32_t>(__cvta_generic_to_shared(mine));
#if __CUDA_ARCH__ >= 900
  asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(address) : "r"(address), "r"(rank));
#endif
  return {address};
}

// What follows needs clusters, compute capability 9.0; elsewhere it must not be called.

/// Prepares a barrier for phases of `arrivals` arrivals each. One thread calls it and, after all barriers,
/// fence_transactions_init(); then the block's threads pass a block_barrier, and the cluster's a cluster_barrier,
/// before anybody else uses them.
/// @{
__device__ inline void init_transactions(TransactionBarrier* barrier, unsigned arrivals) {
#if __CUDA_ARCH__ >= 900
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;"
               :
               : "r"(static_cast<std::uint32_t>(__cvta_generic_to_shared(barrier))), "r"(arrivals)
               : "memory");
#else
  __trap();
#endif
}
__device__ inline void fence_transactions_init() {
#if __CUDA_ARCH__ >= 900
  asm volatile("fence.mbarrier_init.release.cluster;" : : : "memory");
#endif
}
/// @}

/// One arrival at a barrier of this block; with the announcement of `bytes` more to be waited for in this phase.
/// @{
__device__ inline void arrive(TransactionBarrier* barrier) {
#if __CUDA_ARCH__ >= 900
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];"
               :
               : "r"(static_cast<std::uint32_t>(__cvta_generic_to_shared(barrier)))
               : "memory");
#else
  __trap();
#endif
}
__device__ inline void arrive_expecting(TransactionBarrier* barrier, unsigned bytes) {
#if __CUDA_ARCH__ >= 900
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;"
               :
               : "r"(static_cast<std::uint32_t>(__cvta_generic_to_shared(barrier))), "r"(bytes)
               : "memory");
#else
  __trap();
#endif
}
/// @}

/// Whether the phase of that parity has ended; if so, this thread sees all that landed in it, and what the threads that
/// arrived in it wrote before. It may wait a little for that.
__device__ inline bool try_wait(const TransactionBarrier* barrier, unsigned parity) {
#if __CUDA_ARCH__ >= 900
  std::uint32_t ended;
  asm volatile(
      "{\n.reg .pred ended;\nmbarrier.try_wait.parity.shared::cta.b64 ended, [%1], %2;\nselp.u32 %0, 1, 0, ended;\n}"
      : "=r"(ended)
      : "r"(static_cast<std::uint32_t>(__cvta_generic_to_shared(barrier))), "r"(parity)
      : "memory");
  return ended != 0;
#else
  __trap();
  return false;
#endif
}

/// Waits for the end of the phase of that parity. False as of wait_until.
__device__ inline bool wait_transactions(const TransactionBarrier* barrier, unsigned parity, const Deadline& deadline,
                                         std::uint64_t code) {
  return detail::poll<true>([&] { return try_wait(barrier, parity); }, deadline, code);
}

/// Writes `value`, of 4, 8 or 16 bytes and aligned to its size, to a block of the cluster, and adds its bytes to those
/// that have landed at `barrier`, of the same block. Who has waited for the barrier's phase sees the value; nothing
/// else orders it, and it may land at any time before: no thread may read or overwrite the place until that wait, and
/// that block may not end.
template <class T>
__device__ void store_async(Remote<T> to, const T& value, Remote<TransactionBarrier> barrier) {
  static_assert(sizeof(T) == 4 || sizeof(T) == 8 || sizeof(T) == 16);
#if __CUDA_ARCH__ >= 900
  if constexpr (sizeof(T) == 16) {
    std::uint32_t words[4];
    std::memcpy(words, &value, sizeof(T));
    asm volatile("st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v4.b32 [%0], {%1, %2, %3, %4}, [%5];"
                 :
                 : "r"(to.address), "r"(words[0]), "r"(words[1]), "r"(words[2]), "r"(words[3]), "r"(barrier.address)
                 : "memory");
  } else if constexpr (sizeof(T) == 8) {
    std::uint64_t word;
    std::memcpy(&word, &value, sizeof(T));
    asm volatile("st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.b64 [%0], %1, [%2];"
                 :
                 : "r"(to.address), "l"(word), "r"(barrier.address)
                 : "memory");
  } else {
    std::uint32_t word;
    std::memcpy(&word, &value, sizeof(T));
    asm volatile("st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.b32 [%0], %1, [%2];"
                 :
                 : "r"(to.address), "r"(word), "r"(barrier.address)
                 : "memory");
  }
#else
  __trap();
#endif
}

/// For the way out after a failed wait, when a block does not know what is still on its way to it: returns long after
/// the asynchronous stores that the cluster's threads issued before a cluster_barrier have landed.
__device__ inline void let_stores_land() {
  constexpr std::uint64_t kLongNs = 200'000;
  const std::uint64_t begin = clock_ns();
  while (clock_ns() - begin < kLongNs) {
  }
}

/// `value` rounded to TF32, 10 bits behind the leading one: to nearest, ties away from zero.
__device__ inline float round_to_tf32(float value) {
#if __CUDA_ARCH__ >= 800
  std::uint32_t bits;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(value));
  return __uint_as_float(bits);
#else
  const std::uint32_t bits = __float_as_uint(value);
  return (bits & 0x7f800000u) == 0x7f800000u ? value : __uint_as_float((bits + 0x1000u) & ~0x1fffu);
#endif
}

/// D += A B by the whole warp, for A [16, 8] and B [8, 8] in TF32 (other bits of a value are ignored) and D [16, 8] in
/// float; the order of a sum's terms is the machine's. Lane 4 r + c has of D rows r (d[0], d[1]) and r + 8 (d[2],
/// d[3]), columns 2 c and 2 c + 1; of A rows r and r + 8 of column c (a[0], a[1]) and of column c + 4 (a[2], a[3]); of
/// B rows c and c + 4 (b[0], b[1]) of column r. Compute capability 8.0 or newer.
__device__ inline void mma_tf32(float (&d)[4], const float (&a)[4], const float (&b)[2]) {
#if __CUDA_ARCH__ >= 800
  asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, "
      "%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(__float_as_uint(a[0])), "r"(__float_as_uint(a[1])), "r"(__float_as_uint(a[2])), "r"(__float_as_uint(a[3])),
        "r"(__float_as_uint(b[0])), "r"(__float_as_uint(b[1])));
#else
  __trap();
#endif
}

}  // namespace deviceloop::cuda

#else
#include <simt/device.h>
#endif
