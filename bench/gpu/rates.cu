// What the current GPU reaches at best, and gpu_blocks.
#include <type_traits>

#include "../../cuda/kernels/kernels.h"
#include "../../cuda/runtime/device.cuh"
#include "../../cuda/runtime/gemm.h"
#include "../../cuda/runtime/launch.h"
#include "../../host/matrix_ops.h"
#include "../../host/precision.h"
#include "../gpu.h"
#include "../random_data.h"
#include "cases.h"
#include "device.h"

namespace deviceloop::bench {
namespace {

constexpr int kMeasurements = 15;

/// The fastest of some times of enqueue(stream), after one that is not counted, in microseconds.
template <class Enqueue>
double fastest_us(const cuda::StreamOwner& stream, const Enqueue& enqueue) {
  const GpuStopwatch stopwatch;
  double best = 1e300;
  for (int i = 0; i <= kMeasurements; ++i) {
    stopwatch.start(stream);
    enqueue(stream.get());
    const double us = stopwatch.stop(stream);
    if (i > 0) best = std::min(best, us);
  }
  return best;
}

int attribute(cudaDeviceAttr which) {
  int device = 0, value = 0;
  DEVICELOOP_CHECK_CUDA(cudaGetDevice(&device));
  DEVICELOOP_CHECK_CUDA(cudaDeviceGetAttribute(&value, which, device));
  return value;
}

// ---------------------------------------------------------------------------------------------------------------------
// Arithmetic

constexpr int kSums = 16, kRounds = 4096;

/// kSums independent sums a thread, in registers.
template <class T>
__global__ void fma_kernel(T* out, T factor, T addend) {
  T sums[kSums];
#pragma unroll
  for (int i = 0; i < kSums; ++i) sums[i] = static_cast<T>(i + static_cast<int>(cuda::thread_index()));
  for (int round = 0; round < kRounds; ++round) {
#pragma unroll
    for (int i = 0; i < kSums; ++i) sums[i] = fma(sums[i], factor, addend);
  }
  T total = 0;
#pragma unroll
  for (int i = 0; i < kSums; ++i) total += sums[i];
  out[std::int64_t{cuda::block_index()} * cuda::block_threads() + cuda::thread_index()] = total;
}

template <class T>
double fma_gflops() {
  cuda::LaunchConfig config;
  config.blocks = 8 * std::int64_t{attribute(cudaDevAttrMultiProcessorCount)};
  const std::int64_t threads = config.blocks * config.threads;
  const cuda::StreamOwner stream;
  const DeviceArray<T> out(threads);
  const double us = fastest_us(
      stream, [&](cudaStream_t on) { cuda::launch(fma_kernel<T>, config, on, out.data(), T(0.999), T(0.001)); });
  return 2.0 * kSums * kRounds * static_cast<double>(threads) / us / 1e3;
}

template <class T>
double gemm_gflops(std::int64_t size, Precision precision) {
  const cuda::StreamOwner stream;
  const DeviceArray<T> a(size * size), b(size * size), out(size * size), factors(2);
  const DeviceArray<char> workspace(static_cast<std::int64_t>(kGemmWorkspaceBytes));
  fill_random(a, 0, kFirst, false, stream);
  fill_random(b, 0, kSecond, false, stream);
  const T host_factors[] = {1, 0};
  DEVICELOOP_CHECK_CUDA(
      cudaMemcpyAsync(factors.data(), host_factors, sizeof host_factors, cudaMemcpyHostToDevice, stream.get()));
  const cuda::GemmLibrary library(workspace.data());
  // In the place of the elements their rounded form.
  if constexpr (std::is_same_v<T, float>)
    for (const DeviceArray<T>* operand : {&a, &b})
      if (operand_parts(precision) > 0) {
        const DeviceArray<T> values(size * size);
        DEVICELOOP_CHECK_CUDA(cudaMemcpyAsync(values.data(), operand->data(),
                                              static_cast<std::size_t>(size * size) * sizeof(T),
                                              cudaMemcpyDeviceToDevice, stream.get()));
        cuda::launch_round({operand->data(), nullptr, precision}, values.data(), size * size, stream.get());
        DEVICELOOP_CHECK_CUDA(cudaStreamSynchronize(stream.get()));
      }
  const cuda::Gemm gemm(library, {size, size, size, false, false}, precision);
  const double us = fastest_us(stream, [&](cudaStream_t on) {
    gemm.run(factors.data(), a.data(), b.data(), factors.data() + 1, out.data(), on);
  });
  const auto n = static_cast<double>(size);
  return 2 * n * n * n / us / 1e3;
}

// ---------------------------------------------------------------------------------------------------------------------
// Memory

/// Of one pass: `reads` (1 or 2) arrays read and `writes` (0 or 1) written, `turns` groups of 16 bytes a thread, all
/// loaded before the first is stored. A pass without writes stores what it never computes.
template <int reads, int writes, int turns, bool streaming>
__global__ void __launch_bounds__(256)
    pass_kernel(float4* out, const float4* first, const float4* second, std::int64_t groups) {
  const auto load = [](const float4* from) { return streaming ? __ldcs(from) : *from; };
  const std::int64_t begin = std::int64_t{cuda::block_index()} * turns * cuda::block_threads() + cuda::thread_index();
  float4 values[turns];
  float sum = 0;
#pragma unroll
  for (int turn = 0; turn < turns; ++turn) {
    const std::int64_t at = begin + turn * std::int64_t{cuda::block_threads()};
    values[turn] = float4{0, 0, 0, 0};
    if (at >= groups) continue;
    values[turn] = load(first + at);
    if (reads == 2) {
      const float4 other = load(second + at);
      values[turn].x += other.x;
      values[turn].y += other.y;
      values[turn].z += other.z;
      values[turn].w += other.w;
    }
  }
#pragma unroll
  for (int turn = 0; turn < turns; ++turn) {
    const std::int64_t at = begin + turn * std::int64_t{cuda::block_threads()};
    if (writes == 0)
      sum += values[turn].x + values[turn].y + values[turn].z + values[turn].w;
    else if (at < groups && streaming)
      __stcs(out + at, values[turn]);
    else if (at < groups)
      out[at] = values[turn];
  }
  if (writes == 0 && sum == 1e38f) *out = values[0];
}

/// Arrays of 1 GiB where they fit thrice: far larger than any L2.
class PassArrays {
 public:
  PassArrays() {
    std::size_t free = 0, total = 0;
    DEVICELOOP_CHECK_CUDA(cudaMemGetInfo(&free, &total));
    const auto groups = static_cast<std::int64_t>(std::min(free / 4, std::size_t{1} << 30) / sizeof(float4));
    for (DeviceArray<float>& array : arrays_) {
      array = DeviceArray<float>(4 * groups);
      fill_random(array, 0, kFirst, false, stream);
    }
  }
  float4* at(std::size_t i) const { return reinterpret_cast<float4*>(arrays_[i].data()); }
  std::int64_t groups() const { return arrays_[0].count() / 4; }
  std::size_t bytes() const { return arrays_[0].bytes(); }

  const cuda::StreamOwner stream;

 private:
  DeviceArray<float> arrays_[3];
};

template <int reads, int writes, int turns, bool streaming>
double pass_us(const PassArrays& arrays) {
  cuda::LaunchConfig config;
  config.blocks = (arrays.groups() + std::int64_t{turns} * config.threads - 1) / (std::int64_t{turns} * config.threads);
  return fastest_us(arrays.stream, [&](cudaStream_t on) {
    cuda::launch(pass_kernel<reads, writes, turns, streaming>, config, on, arrays.at(0), arrays.at(1), arrays.at(2),
                 arrays.groups());
  });
}

template <int reads, int writes>
double pass_gb_per_s() {
  const PassArrays arrays;
  const double us = std::min({pass_us<reads, writes, 1, false>(arrays), pass_us<reads, writes, 4, false>(arrays),
                              pass_us<reads, writes, 8, false>(arrays), pass_us<reads, writes, 1, true>(arrays),
                              pass_us<reads, writes, 4, true>(arrays), pass_us<reads, writes, 8, true>(arrays)});
  return (reads + writes) * static_cast<double>(arrays.bytes()) / us / 1e3;
}

}  // namespace

std::vector<Block> gpu_blocks(const GpuCaps& gpu, std::uint64_t seed) {
  std::vector<Block> blocks = gpu_kernel_blocks(gpu, seed);
  for (Block& block : gpu_gemm_blocks(gpu, seed)) blocks.push_back(std::move(block));
  for (Block& block : gpu_predict_blocks(gpu, seed)) blocks.push_back(std::move(block));
  return blocks;
}

double measure_gpu_fma_gflops(Precision precision) {
  return with_type(element_type(precision), []<class T>(T*) { return fma_gflops<T>(); });
}

double measure_gpu_gemm_gflops(Precision precision, std::int64_t size) {
  return with_type(element_type(precision), [=]<class T>(T*) { return gemm_gflops<T>(size, precision); });
}

double measure_gpu_memcpy_gb_per_s() {
  const PassArrays arrays;
  const double us = fastest_us(arrays.stream, [&](cudaStream_t on) {
    DEVICELOOP_CHECK_CUDA(cudaMemcpyAsync(arrays.at(0), arrays.at(1), arrays.bytes(), cudaMemcpyDeviceToDevice, on));
  });
  return 2 * static_cast<double>(arrays.bytes()) / us / 1e3;
}

double measure_gpu_pass_gb_per_s(int reads, int writes) {
  if (writes == 0) return reads == 1 ? pass_gb_per_s<1, 0>() : pass_gb_per_s<2, 0>();
  return reads == 1 ? pass_gb_per_s<1, 1>() : pass_gb_per_s<2, 1>();
}

double gpu_cache_bytes() { return attribute(cudaDevAttrL2CacheSize); }

}  // namespace deviceloop::bench
