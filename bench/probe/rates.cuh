// The rates that this machine reaches: memory, L2, fused multiply-adds.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>
#include <vector>

#include "gpu.cuh"

namespace probe {

constexpr int kUnroll = 4;

// One block moves kUnroll * blockDim vectors at a time; with as many blocks as tiles it does so once.
template <bool kStreaming>
__global__ void __launch_bounds__(kThreads) copy_kernel(float4* out, const float4* in, std::size_t count) {
  const std::size_t tile = static_cast<std::size_t>(blockDim.x) * kUnroll;
  for (std::size_t begin = blockIdx.x * tile; begin < count; begin += gridDim.x * tile) {
    float4 values[kUnroll];
#pragma unroll
    for (int i = 0; i < kUnroll; ++i) {
      const std::size_t index = begin + threadIdx.x + static_cast<std::size_t>(i) * blockDim.x;
      if (index < count) values[i] = kStreaming ? __ldcs(in + index) : in[index];
    }
#pragma unroll
    for (int i = 0; i < kUnroll; ++i) {
      const std::size_t index = begin + threadIdx.x + static_cast<std::size_t>(i) * blockDim.x;
      if (index < count) {
        if (kStreaming)
          __stcs(out + index, values[i]);
        else
          out[index] = values[i];
      }
    }
  }
}

// Reads everything `passes` times through L2, past L1; the sum only keeps the loads.
__global__ void __launch_bounds__(kThreads) read_kernel(float* out, const float4* in, std::size_t count, int passes) {
  const std::size_t tile = static_cast<std::size_t>(blockDim.x) * kUnroll;
  float sum = 0;
  for (int pass = 0; pass < passes; ++pass)
    for (std::size_t begin = blockIdx.x * tile; begin < count; begin += gridDim.x * tile) {
      float4 values[kUnroll];
#pragma unroll
      for (int i = 0; i < kUnroll; ++i) {
        const std::size_t index = begin + threadIdx.x + static_cast<std::size_t>(i) * blockDim.x;
        values[i] = index < count ? __ldcg(in + index) : float4{};
      }
#pragma unroll
      for (int i = 0; i < kUnroll; ++i) sum += values[i].x + values[i].y + values[i].z + values[i].w;
    }
  if (sum == 0.12345678f) *out = sum;  // as good as never: the loads stay and nothing is written
}

inline void probe_memory_rates(const Context& context, Record& record) {
  Stream stream;
  constexpr std::size_t kCount = (std::size_t{1} << 30) / sizeof(float4);
  Buffer<float4> a(kCount), b(kCount), c(kCount), d(kCount);
  std::uint64_t seed = 1;
  for (const Buffer<float4>* buffer : {&a, &b, &c, &d})
    fill_normal(stream, reinterpret_cast<float*>(buffer->get()), 4 * kCount, seed++);
  stream.wait();
  // Two pairs in turn, so that no run finds its data in L2.
  const Buffer<float4>* sources[] = {&a, &b};
  const Buffer<float4>* targets[] = {&c, &d};
  const double moved = 2.0 * a.bytes();
  attempt(record, "copy_memcpy_1_gib", [&](Record& part) {
    const std::vector<double> us = time_events_us(stream, 15, [&](int i) {
      PROBE_CUDA(
          cudaMemcpyAsync(targets[i % 2]->get(), sources[i % 2]->get(), a.bytes(), cudaMemcpyDeviceToDevice, stream));
    });
    part = rate(us, moved, "gbps");
    show("copy of 1 GiB, cudaMemcpyAsync: %.0f GB/s read + written", moved / median(us) / 1e3);
  });
  const unsigned tiles = static_cast<unsigned>(kCount / (kThreads * kUnroll));
  struct Case {
    const char* name;
    void (*kernel)(float4*, const float4*, std::size_t);
    unsigned blocks;
  };
  const Case copies[] = {
      {"copy_float4_one_tile_a_block_1_gib", copy_kernel<false>, tiles},
      {"copy_float4_one_tile_a_block_streaming_1_gib", copy_kernel<true>, tiles},
      {"copy_float4_resident_grid_1_gib", copy_kernel<false>, 4 * multiprocessors(context)},
      {"copy_float4_resident_grid_streaming_1_gib", copy_kernel<true>, 4 * multiprocessors(context)},
  };
  for (const Case& copy : copies)
    attempt(record, copy.name, [&](Record& part) {
      for (const Buffer<float4>* target : targets)
        PROBE_CUDA(cudaMemsetAsync(target->get(), 0xff, target->bytes(), stream));
      Launch shape;
      shape.blocks = copy.blocks;
      const std::vector<double> us = time_events_us(stream, 15, [&](int i) {
        launch(shape, stream, copy.kernel, targets[i % 2]->get(), sources[i % 2]->get(), kCount);
      });
      part = rate(us, moved, "gbps");
      // A sample from both ends shows that the copy is one.
      float first[2] = {}, last[2] = {};
      for (int side = 0; side < 2; ++side) {
        const float4* data = (side == 0 ? sources : targets)[0]->get();
        PROBE_CUDA(cudaMemcpyAsync(&first[side], data, sizeof(float), cudaMemcpyDeviceToHost, stream));
        PROBE_CUDA(cudaMemcpyAsync(&last[side], reinterpret_cast<const float*>(data + kCount) - 1, sizeof(float),
                                   cudaMemcpyDeviceToHost, stream));
      }
      stream.wait();
      if (first[0] != first[1] || last[0] != last[1]) throw Failure("the copy differs from its source");
      show("%s: %.0f GB/s read + written", copy.name, moved / median(us) / 1e3);
    });
  Buffer<float> sums(1);
  attempt(record, "read_1_gib", [&](Record& part) {
    Launch shape;
    shape.blocks = tiles / 8;
    const Buffer<float4>* all[] = {&a, &b, &c, &d};
    const std::vector<double> us = time_events_us(
        stream, 15, [&](int i) { launch(shape, stream, read_kernel, sums.get(), all[i % 4]->get(), kCount, 1); });
    part = rate(us, moved / 2, "gbps");
    show("read of 1 GiB: %.0f GB/s", moved / 2 / median(us) / 1e3);
  });
  attempt(record, "read_l2_resident", [&](Record& part) {
    // As many tiles as blocks, about 16 MiB, so that every multiprocessor reads the same amount.
    Launch shape;
    shape.blocks = 4 * multiprocessors(context);
    const std::size_t small = static_cast<std::size_t>(shape.blocks) * kThreads * kUnroll;
    constexpr int kPasses = 50;
    const std::vector<double> us = time_events_us(
        stream, 15, [&](int) { launch(shape, stream, read_kernel, sums.get(), a.get(), small, kPasses); });
    const double bytes = static_cast<double>(small) * sizeof(float4);
    part = rate(us, bytes * kPasses, "gbps");
    part.set("resident_bytes", bytes);
    show("read of %.1f MB in L2: %.0f GB/s", bytes / 1e6, bytes * kPasses / median(us) / 1e3);
  });
}

constexpr int kSums = 16;

// Nothing but fused multiply-adds on registers.
__global__ void __launch_bounds__(kThreads, 2) fma_kernel(float* out, float factor, float addend, int rounds) {
  float sums[kSums];
#pragma unroll
  for (int i = 0; i < kSums; ++i) sums[i] = static_cast<float>(threadIdx.x + i);
  for (int round = 0; round < rounds; ++round)
#pragma unroll
    for (int repeat = 0; repeat < 8; ++repeat)
#pragma unroll
      for (int i = 0; i < kSums; ++i) sums[i] = fmaf(sums[i], factor, addend);
  float total = 0;
#pragma unroll
  for (int i = 0; i < kSums; ++i) total += sums[i];
  out[blockIdx.x * blockDim.x + threadIdx.x] = total;
}

inline void probe_fma_rate(const Context& context, Record& record) {
  Stream stream;
  constexpr int kFmaRounds = 8192;
  for (const unsigned blocks_each : {1u, 2u})
    attempt(record, text("fp32_fma_%u_threads_a_multiprocessor", blocks_each * kThreads), [&](Record& part) {
      Launch shape;
      shape.blocks = blocks_each * multiprocessors(context);
      Buffer<float> out(static_cast<std::size_t>(shape.blocks) * kThreads);
      const std::vector<double> us = time_events_us(
          stream, 11, [&](int) { launch(shape, stream, fma_kernel, out.get(), 0.99991f, 0.123f, kFmaRounds); });
      const double flop = 2.0 * kSums * 8 * kFmaRounds * kThreads * shape.blocks;
      part = rate(us, flop, "tflops");
      show("fp32 FMA, %u threads a multiprocessor: %.1f TFLOP/s", blocks_each * kThreads, flop / median(us) / 1e6);
    });
}

}  // namespace probe
