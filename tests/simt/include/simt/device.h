// The second definition of what cuda/runtime/device.cuh declares, which includes this file behind Deadline and Tagged;
// for kernels compiled by g++. Outside of a kernel none of it may be called.
#pragma once

#include <cuda_runtime_api.h>

#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <type_traits>
#include <vector>

#include "inside.h"

// The other attributes of kernels are empty in CUDA's own headers already.
#define __launch_bounds__(...)

namespace simt {

/// A copy that has begun: it happens when its thread waits for it.
struct Copy {
  void* to;
  const void* from;
  std::size_t bytes;
};

struct ThreadProducts;

/// Where a thread stands, and the shared memory of its block.
struct Place {
  unsigned thread = 0, threads = 0, block = 0, blocks = 0, rank = 0, cluster_blocks = 0;
  void* shared = nullptr;
  void* owner = nullptr;  ///< the fixture's own record of the thread
  ThreadProducts* products = nullptr;
  mutable std::vector<Copy> copies{};
};

/// Of the thread that runs.
inline constinit thread_local const Place* place = nullptr;

/// In nanoseconds, of the grids that this host thread runs; never 0.
inline constinit thread_local std::uint64_t simulated_time = 1'000'000'000;

/// The block's shared memory; throws KernelError where it has fewer than `layout_bytes`.
void* shared_memory(std::size_t layout_bytes);

/// The same place in the shared memory of a block of the cluster; throws KernelError where there is none.
void* peer_shared(const void* mine, unsigned rank);

void block_barrier();

void cluster_barrier();
void cluster_arrive();
void cluster_wait();

/// Arrives at barrier 1 to 15 of the block, and waits for the end of that phase or not.
void part_barrier(int barrier, int threads, bool waits);

/// A wait for what other threads write.
struct Poll {
  const char* where;       ///< the function that waits
  std::uint64_t deadline;  ///< when it ends at the latest; 0 for never
  std::function<bool()> has_ended;
};

/// Returns when `poll` has ended.
void poll(Poll& poll);

/// Returns once all lanes of the warp have called it.
void warp_barrier();

/// The `bits` of the lane whose index differs by `mask`, all lanes having called it with the same `mask` and `bytes`.
std::uint64_t warp_shuffle_xor(std::uint64_t bits, std::size_t bytes, unsigned mask);

/// All lanes of the warp call it with `count` words each, which may be none; `all` then holds those of lane 0, of
/// lane 1, ...
void warp_gather(const char* name, const std::uint32_t* mine, unsigned count, std::uint32_t* all);

// Barriers of transactions. Each throws KernelError where PTX would leave the behaviour undefined.

void init_transactions(std::uint64_t* barrier, unsigned arrivals);
void arrive_transactions(std::uint64_t* barrier, std::size_t expected_bytes);
/// Whether the phase of that parity has ended. If not, the stores on their way to the barrier land now, as somebody
/// waits for them.
bool transactions_ended(const Place& waiting, const std::uint64_t* barrier, unsigned parity);

/// Places of the block `rank` of the cluster; the store lands at once in order kForward; else when somebody waits for
/// the barrier, or by chance before that in order kRandom. A block that ends before throws KernelError.
void store_async(void* to, const void* value, std::size_t bytes, std::uint64_t* barrier);

/// All that is on its way to blocks of this cluster lands.
void let_stores_land();

}  // namespace simt

namespace deviceloop::cuda {

inline constexpr unsigned kWarpThreads = 32;

inline unsigned thread_index() { return simt::place->thread; }
inline unsigned thread_index_again() { return simt::place->thread; }
inline unsigned block_threads() { return simt::place->threads; }
inline unsigned block_index() { return simt::place->block; }
inline unsigned grid_blocks() { return simt::place->blocks; }

template <class Layout>
Layout& shared() {
  static_assert(alignof(Layout) <= 1024, "a block's shared memory lies on 1024 bytes");
  return *static_cast<Layout*>(simt::shared_memory(sizeof(Layout)));
}

inline unsigned cluster_rank() { return simt::place->rank; }
inline unsigned cluster_blocks() { return simt::place->cluster_blocks; }

template <class T>
T* peer_shared(T* mine, unsigned rank) {
  return static_cast<T*>(simt::peer_shared(mine, rank));
}

inline void block_barrier() { simt::block_barrier(); }
inline void part_barrier(int barrier, int threads) { simt::part_barrier(barrier, threads, true); }
inline void part_arrive(int barrier, int threads) { simt::part_barrier(barrier, threads, false); }
inline void cluster_barrier() { simt::cluster_barrier(); }
inline void cluster_arrive() { simt::cluster_arrive(); }
inline void cluster_wait() { simt::cluster_wait(); }

inline void warp_barrier() { simt::warp_barrier(); }

inline void wait_for_grids_before() { ++simt::grid_waits; }

template <class T>
T warp_shuffle_xor(T value, unsigned mask) {
  static_assert(std::is_arithmetic_v<T> && (sizeof(T) == 4 || sizeof(T) == 8), "what __shfl_xor_sync takes");
  std::uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(T));
  bits = simt::warp_shuffle_xor(bits, sizeof(T), mask);
  std::memcpy(&value, &bits, sizeof(T));
  return value;
}

template <class T>
T warp_shuffle(T value, unsigned from) {
  static_assert(std::is_arithmetic_v<T> && (sizeof(T) == 4 || sizeof(T) == 8), "what __shfl_sync takes");
  constexpr unsigned kWords = sizeof(T) / 4;
  std::uint32_t mine[kWords], all[kWarpThreads * kWords];
  std::memcpy(mine, &value, sizeof(T));
  simt::warp_gather("warp_shuffle", mine, kWords, all);
  std::memcpy(&value, &all[from % kWarpThreads * kWords], sizeof(T));
  return value;
}
inline unsigned warp_ballot(bool flag) {
  const std::uint32_t mine = flag ? 1 : 0;
  std::uint32_t all[kWarpThreads];
  simt::warp_gather("warp_ballot", &mine, 1, all);
  unsigned lanes = 0;
  for (unsigned i = 0; i < kWarpThreads; ++i) lanes |= all[i] << i;
  return lanes;
}

inline std::uint64_t clock_ns() { return simt::simulated_time; }
inline unsigned clock_cycles() { return static_cast<unsigned>(simt::simulated_time); }
inline void wait_cycles(unsigned /*since*/, unsigned /*cycles*/) {}

template <int count>
void raise_registers() {
  static_assert(count % 8 == 0 && count >= 24 && count <= 256, "what setmaxnreg takes");
}
template <int count>
void lower_registers() {
  static_assert(count % 8 == 0 && count >= 24 && count <= 256, "what setmaxnreg takes");
}

// All threads of a grid run on one host thread: what follows needs no atomic access.

namespace detail {

template <class Arrived>
bool poll(const char* where, Arrived arrived, const Deadline& deadline, std::uint64_t code) {
  bool has_arrived = false;
  const auto has_ended = [&] {
    has_arrived = arrived();
    if (has_arrived || *deadline.failed != 0) return true;
    if (deadline.time == 0 || clock_ns() <= deadline.time) return false;
    *deadline.failed = code;
    return true;
  };
  if (!has_ended()) {
    simt::Poll waiting{where, deadline.time, std::ref(has_ended)};
    simt::poll(waiting);
  }
  return has_arrived;
}

inline std::uint64_t tagged_word(std::uint64_t bits, unsigned tag) { return bits << 32 | tag; }

}  // namespace detail

inline void arrive(unsigned* counter) { ++*counter; }

inline bool wait_until(unsigned* counter, unsigned value, const Deadline& deadline, std::uint64_t code) {
  return detail::poll(
      "wait_until", [&] { return static_cast<int>(*counter - value) >= 0; }, deadline, code);
}

inline bool has_failed(const Deadline& deadline) { return *deadline.failed != 0; }

inline void publish(Tagged<float>* word, float value, unsigned tag) {
  if (simt::loses_publication()) return;
  word->words[0] = detail::tagged_word(std::bit_cast<std::uint32_t>(value), tag);
}
inline void publish(Tagged<double>* word, double value, unsigned tag) {
  if (simt::loses_publication()) return;
  const auto bits = std::bit_cast<std::uint64_t>(value);
  word->words[0] = detail::tagged_word(bits >> 32, tag);
  word->words[1] = detail::tagged_word(bits & 0xffffffffu, tag);
}
template <class Unit>
void publish(TaggedUnit* to, const Unit& value, unsigned tag) {
  static_assert(sizeof(Unit) == 16);
  if (simt::loses_publication()) return;
  std::uint32_t bits[4];
  std::memcpy(bits, &value, sizeof bits);
  for (int i = 0; i < 4; ++i) to->words[i] = detail::tagged_word(bits[i], tag);
}

inline bool try_read(Tagged<float>* word, unsigned tag, float& value) {
  const std::uint64_t got = word->words[0];
  value = std::bit_cast<float>(static_cast<std::uint32_t>(got >> 32));
  return static_cast<std::uint32_t>(got) == tag;
}
inline bool try_read(Tagged<double>* word, unsigned tag, double& value) {
  const std::uint64_t high = word->words[0], low = word->words[1];
  value = std::bit_cast<double>((high & 0xffffffff00000000u) | low >> 32);
  return static_cast<std::uint32_t>(high) == tag && static_cast<std::uint32_t>(low) == tag;
}
template <class Unit>
bool try_read(const TaggedUnit* from, unsigned tag, Unit& value) {
  static_assert(sizeof(Unit) == 16);
  std::uint32_t bits[4];
  bool all = true;
  for (int i = 0; i < 4; ++i) {
    bits[i] = static_cast<std::uint32_t>(from->words[i] >> 32);
    all &= static_cast<std::uint32_t>(from->words[i]) == tag;
  }
  std::memcpy(&value, bits, sizeof bits);
  return all;
}

template <int count, class T>
bool wait_tagged(T (&values)[count], Tagged<T>* words, std::int64_t stride, int used, unsigned tag,
                 const Deadline& deadline, std::uint64_t code) {
  return detail::poll(
      "wait_tagged",
      [&] {
        bool all = true;
        for (int i = 0; i < count; ++i) {
          values[i] = T(0);
          if (i < used && !try_read(words + i * stride, tag, values[i])) all = false;
        }
        return all;
      },
      deadline, code);
}

template <int count, class T>
bool wait_tagged_at(T (&values)[count], Tagged<T>* words, const int (&offsets)[count], unsigned tag,
                    const Deadline& deadline, std::uint64_t code) {
  return detail::poll(
      "wait_tagged_at",
      [&] {
        bool all = true;
        for (int i = 0; i < count; ++i)
          if (!try_read(words + offsets[i], tag, values[i])) all = false;
        return all;
      },
      deadline, code);
}

template <int count, class Unit>
bool wait_tagged_at(Unit (&values)[count], const TaggedUnit* units, const int (&offsets)[count], unsigned tag,
                    const Deadline& deadline, std::uint64_t code) {
  return detail::poll(
      "wait_tagged_at",
      [&] {
        bool all = true;
        for (int i = 0; i < count; ++i)
          if (offsets[i] >= 0 && !try_read(units + offsets[i], tag, values[i])) all = false;
        return all;
      },
      deadline, code);
}

template <class T>
void copy_async(T* to, const T* from) {
  static_assert(sizeof(T) == 4 || sizeof(T) == 8 || sizeof(T) == 16, "what cp.async copies");
  simt::place->copies.push_back({to, from, sizeof(T)});
}
inline void wait_copies() {
  for (const simt::Copy& copy : simt::place->copies) std::memcpy(copy.to, copy.from, copy.bytes);
  simt::place->copies.clear();
}

template <class T>
struct Remote {
  T* place;

  Remote operator+(int elements) const { return {place + elements}; }
};

template <class T>
Remote<T> remote(T* mine, unsigned rank) {
  return {static_cast<T*>(simt::peer_shared(mine, rank))};
}

inline void init_transactions(TransactionBarrier* barrier, unsigned arrivals) {
  simt::init_transactions(&barrier->word, arrivals);
}
inline void fence_transactions_init() {}
inline void arrive(TransactionBarrier* barrier) { simt::arrive_transactions(&barrier->word, 0); }
inline void arrive_expecting(TransactionBarrier* barrier, unsigned bytes) {
  simt::arrive_transactions(&barrier->word, bytes);
}
inline bool try_wait(const TransactionBarrier* barrier, unsigned parity) {
  return simt::transactions_ended(*simt::place, &barrier->word, parity);
}
inline bool wait_transactions(const TransactionBarrier* barrier, unsigned parity, const Deadline& deadline,
                              std::uint64_t code) {
  const simt::Place& waiting = *simt::place;
  return detail::poll(
      "wait_transactions", [&] { return simt::transactions_ended(waiting, &barrier->word, parity); }, deadline, code);
}
template <class T>
void store_async(Remote<T> to, const T& value, Remote<TransactionBarrier> barrier) {
  static_assert(sizeof(T) == 4 || sizeof(T) == 8 || sizeof(T) == 16, "what st.async writes");
  simt::store_async(to.place, &value, sizeof(T), &barrier.place->word);
}
inline void let_stores_land() { simt::let_stores_land(); }

inline float round_to_tf32(float value) {
  const auto bits = std::bit_cast<std::uint32_t>(value);
  return (bits & 0x7f800000u) == 0x7f800000u ? value : std::bit_cast<float>((bits + 0x1000u) & ~0x1fffu);
}

inline void mma_tf32(float (&d)[4], const float (&a)[4], const float (&b)[2]) {
  constexpr unsigned kWords = 6;
  std::uint32_t mine[kWords], all[kWarpThreads * kWords];
  for (unsigned i = 0; i < kWords; ++i) mine[i] = std::bit_cast<std::uint32_t>(i < 4 ? a[i] : b[i - 4]) & ~0x1fffu;
  simt::warp_gather("mma_tf32", mine, kWords, all);
  const auto word = [&](unsigned lane, unsigned i) {
    return static_cast<double>(std::bit_cast<float>(all[lane * kWords + i]));
  };
  const unsigned lane = thread_index() % kWarpThreads;
  for (unsigned i = 0; i < 4; ++i) {
    double sum = d[i];
    for (unsigned k = 0; k < 8; ++k)
      sum += word(lane / 4 * 4 + k % 4, i / 2 + k / 4 * 2) * word((lane % 4 * 2 + i % 2) * 4 + k % 4, 4 + k / 4);
    d[i] = static_cast<float>(sum);
  }
}

}  // namespace deviceloop::cuda
