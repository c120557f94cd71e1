// Clusters: how many are resident together, whether a cooperative launch takes them, and what an exchange through
// distributed shared memory costs.
#pragma once

#include <cooperative_groups.h>
#include <cuda_runtime.h>

#include <cstdint>
#include <string>

#include "gpu.cuh"

namespace probe {

namespace cg = cooperative_groups;

// Arrives and waits for all blocks of the grid: passes only if all of them are resident at once.
__global__ void __launch_bounds__(kThreads) all_resident_kernel(unsigned* arrived, Nanoseconds limit, Timed* out) {
  if (threadIdx.x != 0) return;
  Patience patience(limit);
  add_release(arrived, 1);
  patience.wait([&] { return load_acquire(arrived) >= gridDim.x; });
  if (patience.over()) atomicAdd(&out->faults, 1u);
  if (blockIdx.x == 0) out->done = 1;
}

inline bool all_resident(const Stream& stream, const Launch& shape, Nanoseconds limit) {
  Buffer<unsigned> arrived(1);
  Buffer<Timed> out(1);
  PROBE_CUDA(cudaMemsetAsync(arrived.get(), 0, arrived.bytes(), stream));
  PROBE_CUDA(cudaMemsetAsync(out.get(), 0, sizeof(Timed), stream));
  launch(shape, stream, all_resident_kernel, arrived.get(), limit, out.get());
  Timed timed = {};
  PROBE_CUDA(cudaMemcpyAsync(&timed, out.get(), sizeof timed, cudaMemcpyDeviceToHost, stream));
  stream.wait();
  if (timed.done == 0) throw Failure("the residency kernel did not run");
  return timed.faults == 0;
}

template <class Kernel>
int max_active_clusters(Kernel* kernel, Launch shape) {
  shape.blocks = shape.cluster;
  const LaunchConfig config(shape, nullptr);
  int clusters = 0;
  PROBE_CUDA(cudaOccupancyMaxActiveClusters(&clusters, reinterpret_cast<const void*>(kernel), &config.config));
  return clusters;
}

inline void probe_cluster_residency(const Context&, Record& record) {
  Stream stream;
  allow_shared(all_resident_kernel, kOneBlockShared);
  for (const bool small : {false, true})
    for (const unsigned size : {2u, 4u, 8u, 16u}) {
      const std::string name = text("%s_cluster_of_%u", small ? "128_threads_no_shared" : "512_threads_200_kib", size);
      attempt(record, name, [&](Record& part) {
        PROBE_CUDA(cudaFuncSetAttribute(reinterpret_cast<const void*>(all_resident_kernel),
                                        cudaFuncAttributeNonPortableClusterSizeAllowed, size > 8 ? 1 : 0));
        Launch shape;
        shape.threads = dim3(small ? 128 : kThreads);
        shape.shared = small ? 0 : kOneBlockShared;
        shape.cluster = size;
        const int stated = max_active_clusters(all_resident_kernel, shape);
        part.set("occupancy_query_clusters", stated);
        part.set("occupancy_query_blocks", stated * static_cast<int>(size));
        const auto fits = [&](int clusters) {
          shape.blocks = static_cast<unsigned>(clusters) * size;
          return all_resident(stream, shape, 20'000'000);
        };
        if (stated <= 0) throw NotRun("the occupancy query gives no cluster");
        // From the stated number down to the first that fits, or up to the last.
        int seen = stated;
        while (seen > 0 && !fits(seen)) --seen;
        if (seen == stated)
          while (seen < stated + 8 && fits(seen + 1)) ++seen;
        part.set("resident_together_clusters", seen);
        part.set("resident_together_blocks", seen * static_cast<int>(size));
        show("clusters of %u, %s: %d by the query, %d seen resident together", size,
             small ? "128 threads" : "512 threads and 200 KiB", stated, seen);
      });
    }
  PROBE_CUDA(cudaFuncSetAttribute(reinterpret_cast<const void*>(all_resident_kernel),
                                  cudaFuncAttributeNonPortableClusterSizeAllowed, 0));
}

// Grid barrier and cluster barrier in one launch; every thread counts.
__global__ void __launch_bounds__(kThreads) cooperative_cluster_kernel(unsigned* passed, Timed* out) {
  const cg::grid_group grid = cg::this_grid();
  const cg::cluster_group cluster = cg::this_cluster();
  if (!grid.is_valid()) return;
  for (int round = 0; round < 8; ++round) {
    cluster.sync();
    grid.sync();
  }
  if (threadIdx.x == 0) atomicAdd(passed, cluster.num_blocks());
  if (threadIdx.x == 0 && blockIdx.x == 0) out->done = 1;
}

inline void probe_cooperative_clusters(const Context&, Record& record) {
  Stream stream;
  allow_shared(cooperative_cluster_kernel, kOneBlockShared);
  allow_shared(all_resident_kernel, kOneBlockShared);
  for (const unsigned size : {2u, 4u, 8u}) {
    attempt(record, text("cluster_of_%u", size), [&](Record& part) {
      Launch shape;
      shape.cluster = size;
      shape.shared = kOneBlockShared;
      const int clusters = max_active_clusters(cooperative_cluster_kernel, shape);
      part.set("occupancy_query_clusters", clusters);
      if (clusters <= 0) throw Failure("the occupancy query gives no cluster");
      shape.blocks = static_cast<unsigned>(clusters) * size;
      Buffer<unsigned> passed(1);
      Buffer<Timed> out(1);
      PROBE_CUDA(cudaMemsetAsync(passed.get(), 0, passed.bytes(), stream));
      PROBE_CUDA(cudaMemsetAsync(out.get(), 0, sizeof(Timed), stream));
      // Residency is tried first with waits that give up: cooperative_groups' own do not.
      const bool safe = all_resident(stream, shape, 20'000'000);
      shape.cooperative = true;
      part.set("resident_without_the_cooperative_attribute", safe);
      if (!safe) throw NotRun("the grid is not resident as a whole, so its barrier is not tried");
      const cudaError_t code = try_launch(shape, stream, cooperative_cluster_kernel, passed.get(), out.get());
      part.set("accepted", code == cudaSuccess);
      part.set("launch_error", static_cast<int>(code));
      part.set("launch_error_name", cudaGetErrorName(code));
      part.set("blocks", shape.blocks);
      if (code == cudaSuccess) {
        unsigned count = 0;
        PROBE_CUDA(cudaMemcpyAsync(&count, passed.get(), sizeof count, cudaMemcpyDeviceToHost, stream));
        stream.wait();
        part.set("ran_correctly", count == shape.blocks * size);
      }
      // One cluster more than fits must be refused; if it is accepted its waits give up.
      Launch over = shape;
      over.blocks += size;
      Buffer<unsigned> arrived(1);
      PROBE_CUDA(cudaMemsetAsync(arrived.get(), 0, arrived.bytes(), stream));
      const cudaError_t refused = try_launch(over, stream, all_resident_kernel, arrived.get(), 5'000'000ull, out.get());
      part.set("one_cluster_more_error", static_cast<int>(refused));
      part.set("one_cluster_more_error_name", cudaGetErrorName(refused));
      stream.wait();
      show("cooperative launch with clusters of %u, %u blocks: %s; one cluster more: %s", size, shape.blocks,
           cudaGetErrorName(code), cudaGetErrorName(refused));
    });
  }
}

__device__ __forceinline__ unsigned cluster_rank() {
  unsigned value;
  asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(value));
  return value;
}

__device__ __forceinline__ unsigned cluster_size() {
  unsigned value;
  asm volatile("mov.u32 %0, %%cluster_nctarank;" : "=r"(value));
  return value;
}

// Hardware barrier over the blocks of a cluster, which are always resident together.
__device__ __forceinline__ void cluster_barrier() {
  asm volatile("barrier.cluster.arrive.release;" ::: "memory");
  asm volatile("barrier.cluster.wait.acquire;" ::: "memory");
}

__device__ __forceinline__ unsigned shared_address(const void* pointer) {
  return static_cast<unsigned>(__cvta_generic_to_shared(pointer));
}

// The address, in the cluster's shared memory, of what lies at `local` in block `rank`.
__device__ __forceinline__ unsigned peer_address(unsigned local, unsigned rank) {
  unsigned value;
  asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(value) : "r"(local), "r"(rank));
  return value;
}

__device__ __forceinline__ void mbarrier_init(unsigned address, unsigned arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(address), "r"(arrivals) : "memory");
}

__device__ __forceinline__ bool mbarrier_done(unsigned address, unsigned parity) {
  unsigned done;
  asm volatile(
      "{\n"
      ".reg .pred p;\n"
      "mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 p, [%1], %2;\n"
      "selp.u32 %0, 1, 0, p;\n"
      "}"
      : "=r"(done)
      : "r"(address), "r"(parity)
      : "memory");
  return done != 0;
}

__device__ __forceinline__ void mbarrier_expect(unsigned address, unsigned bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(address), "r"(bytes) : "memory");
}

enum class Exchange {
  kClusterBarrier,  // remote stores, then the hardware barrier
  kRemoteArrive,    // remote stores, a block barrier, one arrival a peer on its mbarrier
  kStoreAsync,      // st.async: the stores themselves complete the peer's mbarrier
  kBulkCopy,        // one bulk copy a peer out of own shared memory
};

constexpr unsigned kLargestCluster = 8;

struct ExchangeShared {
  std::uint64_t barriers[2];
  alignas(128) unsigned outbox[2][kThreads];
  alignas(128) unsigned inbox[2][kLargestCluster][kThreads];
};

// Each round every block gives 2 KiB, 4 bytes a thread, to every peer of its cluster and reads what the peers gave.
// Boxes and mbarriers are double-buffered by parity: a peer that is two rounds ahead has got this block's data of the
// round between, which it sends only after reading.
template <Exchange kMethod>
__global__ void __launch_bounds__(kThreads) cluster_exchange_kernel(Timed* out) {
  __shared__ ExchangeShared shared;
  const unsigned rank = cluster_rank(), size = cluster_size(), thread = threadIdx.x;
  constexpr unsigned kBytes = kThreads * sizeof(unsigned);
  if (thread == 0) {
    for (std::uint64_t& barrier : shared.barriers)
      mbarrier_init(shared_address(&barrier), kMethod == Exchange::kRemoteArrive ? size - 1 : 1);
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  }
  __syncthreads();
  cluster_barrier();
  Patience patience(kWaitLimit);
  Stopwatch watch;
  unsigned wrong = 0;
  for (int round = -kWarmRounds; round < kRounds; ++round) {
    if (round == 0 && thread == 0) watch.start();
    const unsigned step = static_cast<unsigned>(round + kWarmRounds);
    const unsigned box = step & 1, parity = (step >> 1) & 1;
    const unsigned barrier = shared_address(&shared.barriers[box]);
    const unsigned value = (step << 16) ^ (rank << 10) ^ thread;
    if constexpr (kMethod == Exchange::kStoreAsync || kMethod == Exchange::kBulkCopy)
      if (thread == 0) mbarrier_expect(barrier, (size - 1) * kBytes);
    if constexpr (kMethod == Exchange::kBulkCopy) {
      shared.outbox[box][thread] = value;
      asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
      __syncthreads();
      if (thread < size && thread != rank)
        asm volatile(
            "cp.async.bulk.shared::cluster.shared::cta.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(
                peer_address(shared_address(shared.inbox[box][rank]), thread)),
            "r"(shared_address(shared.outbox[box])), "r"(kBytes), "r"(peer_address(barrier, thread))
            : "memory");
    } else {
      const unsigned target = shared_address(&shared.inbox[box][rank][thread]);
      for (unsigned hop = 1; hop < size; ++hop) {
        const unsigned peer = rank + hop < size ? rank + hop : rank + hop - size;
        if constexpr (kMethod == Exchange::kStoreAsync)
          asm volatile("st.async.shared::cluster.mbarrier::complete_tx::bytes.u32 [%0], %1, [%2];" ::"r"(
                           peer_address(target, peer)),
                       "r"(value), "r"(peer_address(barrier, peer))
                       : "memory");
        else
          asm volatile("st.shared::cluster.u32 [%0], %1;" ::"r"(peer_address(target, peer)), "r"(value) : "memory");
      }
    }
    if constexpr (kMethod == Exchange::kRemoteArrive) {
      __syncthreads();
      if (thread < size && thread != rank)
        asm volatile("mbarrier.arrive.release.cluster.shared::cluster.b64 _, [%0];" ::"r"(peer_address(barrier, thread))
                     : "memory");
    }
    if constexpr (kMethod == Exchange::kClusterBarrier)
      cluster_barrier();
    else
      patience.wait([&] { return mbarrier_done(barrier, parity); });
    for (unsigned peer = 0; peer < size; ++peer)
      if (peer != rank && !patience.over())
        wrong += *static_cast<volatile unsigned*>(&shared.inbox[box][peer][thread]) !=
                 ((step << 16) ^ (peer << 10) ^ thread);
  }
  if (thread == 0 && blockIdx.x == 0) watch.report(out);
  if (patience.over() || wrong != 0) atomicAdd(&out->faults, 1u);
  __syncthreads();
  cluster_barrier();  // nobody leaves while a peer may still write to its shared memory
}

__global__ void __launch_bounds__(kThreads) cluster_barrier_kernel(Timed* out) {
  Stopwatch watch;
  for (int round = -kWarmRounds; round < kRounds; ++round) {
    if (round == 0 && threadIdx.x == 0) watch.start();
    cluster_barrier();
  }
  if (threadIdx.x == 0 && blockIdx.x == 0) watch.report(out);
}

inline void probe_cluster_exchange(const Context&, Record& record) {
  Stream stream;
  struct Method {
    const char* name;
    void (*kernel)(Timed*);
  };
  const Method methods[] = {
      {"barrier_only", cluster_barrier_kernel},
      {"stores_then_cluster_barrier", cluster_exchange_kernel<Exchange::kClusterBarrier>},
      {"stores_then_mbarrier_arrive", cluster_exchange_kernel<Exchange::kRemoteArrive>},
      {"async_stores_on_mbarrier", cluster_exchange_kernel<Exchange::kStoreAsync>},
      {"bulk_copy_on_mbarrier", cluster_exchange_kernel<Exchange::kBulkCopy>},
  };
  for (const unsigned size : {2u, 4u, 8u})
    for (const Method& method : methods)
      attempt(record, text("%s_cluster_of_%u", method.name, size), [&](Record& part) {
        Launch shape;
        shape.cluster = size;
        const auto time = [&](unsigned clusters) {
          shape.blocks = clusters * size;
          return time_rounds(stream, 11, kRounds, [&](Timed* out) { launch(shape, stream, method.kernel, out); });
        };
        const RoundTimes alone = time(1);
        // As many clusters as the starting case uses, or as many as 100 blocks give.
        const unsigned many = 100 / size;
        const RoundTimes together = time(many);
        part.set("one_cluster", alone.record());
        part.set(text("%u_clusters", many), together.record());
        show("cluster of %u, %s: %.0f ns alone, %.0f ns with %u clusters", size, method.name, median(alone.ns),
             median(together.ns), many);
      });
}

}  // namespace probe
