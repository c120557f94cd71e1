#include "limits.h"

#include <algorithm>

#include <deviceloop/error.h>
#include <deviceloop/plan.h>

#include "cpu_rates.h"
#include "gpu.h"

namespace deviceloop::bench {
namespace {

constexpr std::int64_t kCpuGemmSize = 1024, kGpuGemmSize = 8192;
// On a machine that others use too a later measurement may be a better one; beyond the caches each takes tenths of a
// second.
constexpr int kMostMeasurements = 4;

std::string pass_name(int reads, int writes) {
  if (reads == 1 && writes == 1) return "copy";
  return (reads == 1 ? "read" : std::to_string(reads) + " reads") + (writes == 0 ? "" : " + write");
}

}  // namespace

template <class Measure>
double ThisMachine::fastest(const std::string& key, int most, const Measure& measure) {
  Fastest& found = measured_[key];
  if (found.measurements < most) {
    found.value = std::max(found.value, measure());
    ++found.measurements;
  }
  return found.value;
}

double ThisMachine::fma(Device device, Precision precision, int threads) {
  const bool on_cpu = device == Device::cpu;
  const double rate =
      fastest(std::string("fma ") + bench::name(device) + deviceloop::name(precision) + std::to_string(threads),
              kMostMeasurements,
              [&] { return on_cpu ? measure_fma_gflops(precision, threads) : measure_gpu_fma_gflops(precision); });
  // Several threads reach at least what one does, also where others had a core while they were measured.
  return threads > 1 ? std::max(rate, fma(device, precision, 1)) : rate;
}

double ThisMachine::gemm(Device device, Precision precision, int threads) {
  const bool on_cpu = device == Device::cpu;
  return fastest(std::string("gemm ") + bench::name(device) + deviceloop::name(precision) + std::to_string(threads), 1,
                 [&] {
                   if (on_cpu) return measure_gemm_gflops(precision, kCpuGemmSize, threads);
                   try {
                     return measure_gpu_gemm_gflops(precision, kGpuGemmSize);
                   } catch (const Unsupported&) {
                     return 0.0;  // no cuBLASLt here
                   }
                 });
}

double ThisMachine::pass(Device device, int reads, int writes, double footprint, int threads) {
  const std::string key = pass_name(reads, writes) + bench::name(device);
  if (device == Device::cuda)
    return fastest(key, kMostMeasurements, [&] {
      const double own = measure_gpu_pass_gb_per_s(reads, writes);
      return reads == 1 && writes == 1 ? std::max(own, measure_gpu_memcpy_gb_per_s()) : own;
    });
  footprint = std::min(footprint, beyond_caches());
  return fastest(key + std::to_string(footprint) + " " + std::to_string(threads), kMostMeasurements,
                 [&] { return measure_pass_gb_per_s(reads, writes, footprint, threads); });
}

std::vector<Rate> ThisMachine::rates(Device device) {
  const bool on_cpu = device == Device::cpu;
  std::vector<Rate> rates;
  std::vector<int> numbers = {0};
  if (on_cpu) numbers = threads_ == 1 ? std::vector<int>{1} : std::vector<int>{1, threads_};
  for (const Precision precision : {Precision::fp32, Precision::fp64})
    for (const int threads : numbers) {
      rates.push_back({device, "FMA", deviceloop::name(precision), threads, fma(device, precision, threads)});
      const std::string size = std::to_string(on_cpu ? kCpuGemmSize : kGpuGemmSize);
      if (const double rate = gemm(device, precision, threads); rate > 0)
        rates.push_back({device, "GEMM " + size, deviceloop::name(precision), threads, rate});
    }
  if (!on_cpu)
    for (const Precision precision : {Precision::tf32, Precision::bf16})
      if (const double rate = gemm(device, precision, 0); rate > 0)
        rates.push_back({device, "GEMM " + std::to_string(kGpuGemmSize), deviceloop::name(precision), 0, rate});
  for (const int threads : numbers)
    rates.push_back({device, on_cpu ? "copy beyond the caches" : "copy", "", threads,
                     pass(device, 1, 1, on_cpu ? beyond_caches() : 0, threads), "GB/s"});
  return rates;
}

Limit ThisMachine::limit(const Demand& demand) {
  Limit limit;
  const auto take = [&](double us, const std::string& by) {
    if (us > limit.us) limit = {us, by};
  };
  if (demand.flops > 0) {
    const double fma_rate = fma(demand.device, demand.precision, demand.threads);
    const double gemm_rate = gemm(demand.device, demand.precision, demand.threads);
    take(demand.flops / std::max(fma_rate, gemm_rate) / 1e3, fma_rate >= gemm_rate ? "FMA" : "GEMM");
  }
  if (demand.bytes > 0) {
    const bool on_gpu = demand.device == Device::cuda;
    // What stays in a GPU's L2 is not bounded by its memory.
    if (on_gpu && demand.footprint <= gpu_cache_bytes()) return limit;
    const double copy = pass(demand.device, 1, 1, demand.footprint, demand.threads);
    const double own = pass(demand.device, demand.reads, demand.writes, demand.footprint, demand.threads);
    const std::string by = own > copy ? pass_name(demand.reads, demand.writes) : "copy";
    take(demand.bytes / std::max(copy, own) / 1e3,
         by + " in " + (on_gpu ? "memory" : memory_level(demand.footprint, demand.threads)));
  }
  return limit;
}

}  // namespace deviceloop::bench
