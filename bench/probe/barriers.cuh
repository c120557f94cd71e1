// Barriers of a block and of the grid, and hops from one multiprocessor to another through L2.
#pragma once

#include <cooperative_groups.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>
#include <vector>

#include "gpu.cuh"

namespace probe {

namespace cg = cooperative_groups;

__global__ void __launch_bounds__(kThreads) block_barrier_kernel(int rounds, Timed* out) {
  Stopwatch watch;
  for (int round = -kWarmRounds; round < rounds; ++round) {
    if (round == 0 && threadIdx.x == 0) watch.start();
    __syncthreads();
  }
  if (threadIdx.x == 0) watch.report(out);
}

// The barrier that the persistent executor would use: one release-add a block on a counter that only ever rises, and
// one thread of each block that polls it.
__global__ void __launch_bounds__(kThreads) own_grid_barrier_kernel(unsigned* counter, Timed* out) {
  Patience patience(kWaitLimit);
  Stopwatch watch;
  unsigned target = 0;
  for (int round = -kWarmRounds; round < kRounds; ++round) {
    if (round == 0 && threadIdx.x == 0) watch.start();
    target += gridDim.x;
    __syncthreads();
    if (threadIdx.x == 0) {
      add_release(counter, 1);
      patience.wait([&] { return static_cast<int>(load_acquire(counter) - target) >= 0; });
    }
    __syncthreads();
  }
  if (threadIdx.x != 0) return;
  if (blockIdx.x == 0) watch.report(out);
  if (patience.over()) atomicAdd(&out->faults, 1u);
}

// cooperative_groups' barrier takes no deadline; the cooperative launch guarantees that all blocks are resident.
__global__ void __launch_bounds__(kThreads) cg_grid_barrier_kernel(Timed* out) {
  const cg::grid_group grid = cg::this_grid();
  if (!grid.is_valid()) return;
  Stopwatch watch;
  for (int round = -kWarmRounds; round < kRounds; ++round) {
    if (round == 0 && threadIdx.x == 0) watch.start();
    grid.sync();
  }
  if (threadIdx.x == 0 && blockIdx.x == 0) watch.report(out);
}

inline void probe_barriers(const Context& context, Record& record) {
  Stream stream;
  attempt(record, "block_512_threads", [&](Record& part) {
    const RoundTimes times = time_rounds(stream, 15, 20 * kRounds, [&](Timed* out) {
      launch(Launch(), stream, block_barrier_kernel, 20 * kRounds, out);
    });
    part = times.record();
    show("block barrier, 512 threads: %.1f ns", median(times.ns));
  });
  allow_shared(own_grid_barrier_kernel, kOneBlockShared);
  allow_shared(cg_grid_barrier_kernel, kOneBlockShared);
  std::vector<unsigned> counts = {32, 64, 100};
  counts.push_back(multiprocessors(context));
  Buffer<unsigned> counter(64);
  for (const unsigned blocks : counts) {
    if (blocks > multiprocessors(context)) continue;
    Launch shape;
    shape.blocks = blocks;
    shape.shared = kOneBlockShared;
    shape.cooperative = true;
    attempt(record, text("grid_own_%u_blocks", blocks), [&](Record& part) {
      const RoundTimes times = time_rounds(stream, 15, kRounds, [&](Timed* out) {
        PROBE_CUDA(cudaMemsetAsync(counter.get(), 0, counter.bytes(), stream));
        launch(shape, stream, own_grid_barrier_kernel, counter.get(), out);
      });
      part = times.record();
      show("grid barrier, own, %u blocks: %.0f ns", blocks, median(times.ns));
    });
    attempt(record, text("grid_cooperative_groups_%u_blocks", blocks), [&](Record& part) {
      const RoundTimes times =
          time_rounds(stream, 15, kRounds, [&](Timed* out) { launch(shape, stream, cg_grid_barrier_kernel, out); });
      part = times.record();
      show("grid barrier, cooperative_groups, %u blocks: %.0f ns", blocks, median(times.ns));
    });
  }
}

// Block 0 and block `partner` answer each other; one round is two hops. The two words lie in lines of their own.
template <bool kPacked>
__global__ void ping_pong_kernel(std::uint64_t* words, unsigned partner, Timed* out) {
  if (threadIdx.x != 0 || (blockIdx.x != 0 && blockIdx.x != partner)) return;
  const bool first = blockIdx.x == 0;
  std::uint64_t* mine = words + (first ? 0 : 32);
  std::uint64_t* theirs = words + (first ? 32 : 0);
  const auto publish = [&](unsigned step) {
    if constexpr (kPacked)
      store_relaxed(mine, (static_cast<std::uint64_t>(step) << 32) | step);
    else
      store_release(reinterpret_cast<unsigned*>(mine), step);
  };
  const auto seen = [&](unsigned step) {
    if constexpr (kPacked)
      return static_cast<unsigned>(load_relaxed(theirs) >> 32) == step;
    else
      return load_acquire(reinterpret_cast<const unsigned*>(theirs)) == step;
  };
  Patience patience(kWaitLimit);
  Stopwatch watch;
  for (int round = -kWarmRounds; round < kRounds; ++round) {
    const unsigned step = static_cast<unsigned>(round + kWarmRounds + 1);
    if (round == 0) watch.start();
    if (first) publish(step);
    patience.wait([&] { return seen(step); });
    if (!first) publish(step);
  }
  if (first) watch.report(out);
  if (patience.over()) atomicAdd(&out->faults, 1u);
}

// Every block publishes `words_each` words of {step, value} and reads those of all blocks; then a block barrier, so
// that nobody overwrites what a neighbour thread still reads. Slots are double-buffered by the parity of the step. All
// words of a thread are loaded before any is looked at: one after the other they would cost a trip to L2 each.
template <int kWordsOfThread>
__global__ void __launch_bounds__(kThreads) all_to_all_kernel(std::uint64_t* slots, unsigned words_each, Timed* out) {
  const unsigned words = gridDim.x * words_each;
  Patience patience(kWaitLimit);
  Stopwatch watch;
  unsigned wrong = 0;
  for (int round = -kWarmRounds; round < kRounds; ++round) {
    if (round == 0 && threadIdx.x == 0) watch.start();
    const unsigned step = static_cast<unsigned>(round + kWarmRounds + 1);
    std::uint64_t* buffer = slots + (step & 1) * words;
    if (threadIdx.x < words_each) {
      const unsigned index = blockIdx.x * words_each + threadIdx.x;
      store_relaxed(buffer + index, (static_cast<std::uint64_t>(step) << 32) | (index ^ step));
    }
    std::uint64_t read[kWordsOfThread];
    patience.wait([&] {
      bool ready = true;
#pragma unroll
      for (int i = 0; i < kWordsOfThread; ++i) {
        const unsigned index = threadIdx.x + i * kThreads;
        if (index < words) read[i] = load_relaxed(buffer + index);
      }
#pragma unroll
      for (int i = 0; i < kWordsOfThread; ++i)
        if (threadIdx.x + i * kThreads < words) ready &= static_cast<unsigned>(read[i] >> 32) == step;
      return ready;
    });
#pragma unroll
    for (int i = 0; i < kWordsOfThread; ++i) {
      const unsigned index = threadIdx.x + i * kThreads;
      if (!patience.over() && index < words) wrong += static_cast<unsigned>(read[i]) != (index ^ step);
    }
    __syncthreads();
  }
  if (threadIdx.x == 0 && blockIdx.x == 0) watch.report(out);
  if (patience.over() || wrong != 0) atomicAdd(&out->faults, 1u);
}

inline void probe_hops(const Context& context, Record& record) {
  Stream stream;
  const unsigned count = multiprocessors(context);
  allow_shared(ping_pong_kernel<false>, kOneBlockShared);
  allow_shared(ping_pong_kernel<true>, kOneBlockShared);
  allow_shared(all_to_all_kernel<1>, kOneBlockShared);
  allow_shared(all_to_all_kernel<7>, kOneBlockShared);
  Buffer<std::uint64_t> words(2 * 8192);
  const auto ping_pong = [&](auto kernel, const char* name) {
    attempt(record, name, [&](Record& part) {
      // The distance to L2, and to the partner, depends on where the blocks lie: one figure a pair.
      std::vector<double> pairs;
      for (unsigned partner = 1; partner < count; partner += 10) {
        Launch shape;
        shape.blocks = partner + 1;
        shape.threads = dim3(32);
        shape.shared = kOneBlockShared;
        shape.cooperative = true;
        pairs.push_back(median(time_rounds(stream, 3, 2 * kRounds, [&](Timed* out) {
                                 PROBE_CUDA(cudaMemsetAsync(words.get(), 0, words.bytes(), stream));
                                 launch(shape, stream, kernel, words.get(), partner, out);
                               }).ns));
      }
      part = figures(pairs, "ns");
      part.set("maximum_ns", *std::max_element(pairs.begin(), pairs.end()));
      show("%s: %.0f ns (%.0f to %.0f over pairs of multiprocessors)", name, median(pairs), minimum(pairs),
           *std::max_element(pairs.begin(), pairs.end()));
    });
  };
  ping_pong(ping_pong_kernel<false>, "hop_release_acquire");
  ping_pong(ping_pong_kernel<true>, "hop_packed_word");
  struct Case {
    unsigned blocks, words_each;
  };
  for (const Case& c : {Case{25, 1}, Case{25, 128}, Case{100, 32}, Case{count, 1}}) {
    if (c.blocks > count) continue;
    const unsigned total = c.blocks * c.words_each;
    attempt(record, text("all_to_all_%u_blocks_%u_words_each", c.blocks, c.words_each), [&](Record& part) {
      Launch shape;
      shape.blocks = c.blocks;
      shape.shared = kOneBlockShared;
      shape.cooperative = true;
      const bool one = total <= kThreads;
      if (!one && total > 7 * kThreads) throw Failure("too many words for the kernel");
      const RoundTimes times = time_rounds(stream, 15, kRounds, [&](Timed* out) {
        PROBE_CUDA(cudaMemsetAsync(words.get(), 0, words.bytes(), stream));
        launch(shape, stream, one ? all_to_all_kernel<1> : all_to_all_kernel<7>, words.get(), c.words_each, out);
      });
      part = times.record();
      part.set("block_barriers_a_round", 1);
      show("all-to-all, %u blocks x %u words {step, value}: %.0f ns with its block barrier", c.blocks, c.words_each,
           median(times.ns));
    });
  }
}

}  // namespace probe
