// The clock under load, and what calls from the host cost: launches, synchronization, eight bytes to the host.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <vector>

#include "gpu.cuh"

namespace probe {

inline void probe_clock(const Context& context, Record& record) {
  Stream stream;
  Buffer<Timed> out(1);
  Launch shape;
  shape.blocks = multiprocessors(context);
  std::vector<double> mhz;
  for (int sample = 0; sample < 5; ++sample) {
    PROBE_CUDA(cudaMemsetAsync(out.get(), 0, sizeof(Timed), stream));
    launch(shape, stream, spin_kernel, 20'000'000ull, out.get());
    Timed timed = {};
    PROBE_CUDA(cudaMemcpyAsync(&timed, out.get(), sizeof timed, cudaMemcpyDeviceToHost, stream));
    stream.wait();
    if (timed.ns == 0) throw Failure("%globaltimer did not advance");
    mhz.push_back(1e3 * static_cast<double>(timed.cycles) / static_cast<double>(timed.ns));
  }
  record.set("multiprocessor_clock", figures(mhz, "mhz"));
  show("multiprocessor clock under a light load: %.0f MHz", median(mhz));
}

__global__ void empty_kernel() {}

__global__ void write_host_kernel(volatile std::uint64_t* host, std::uint64_t value) { *host = value; }

// Waits on the CPU until the device's write is seen.
inline void wait_for_host_value(const volatile std::uint64_t* host, std::uint64_t value) {
  const Clock::time_point start = Clock::now();
  while (*host != value)
    if (microseconds_since(start) > 1e6) throw Failure("the host did not see the device's write within a second");
}

inline void probe_host_calls(const Context&, Record& record) {
  Stream stream;
  attempt(record, "launch", [&](Record& part) {
    std::vector<double> burst, single, device;
    const Launch shape;
    const LaunchConfig config(shape, stream);
    const void* kernel = reinterpret_cast<const void*>(empty_kernel);
    for (int i = 0; i < 100; ++i) PROBE_CUDA(cudaLaunchKernelExC(&config.config, kernel, nullptr));
    stream.wait();
    for (int sample = 0; sample < 20; ++sample) {
      const Clock::time_point start = Clock::now();
      for (int i = 0; i < 200; ++i) PROBE_CUDA(cudaLaunchKernelExC(&config.config, kernel, nullptr));
      burst.push_back(microseconds_since(start) / 200);
      stream.wait();
      const Clock::time_point alone = Clock::now();
      PROBE_CUDA(cudaLaunchKernelExC(&config.config, kernel, nullptr));
      single.push_back(microseconds_since(alone));
      stream.wait();
    }
    device = time_events_us(stream, 10, [&](int) {
      for (int i = 0; i < 500; ++i) PROBE_CUDA(cudaLaunchKernelExC(&config.config, kernel, nullptr));
    });
    for (double& value : device) value /= 500;
    part.set("call_in_burst_of_200", figures(burst, "us"));
    part.set("call_on_idle_stream", figures(single, "us"));
    part.set("time_of_back_to_back_launches", figures(device, "us"));  // the host's or the device's, the longer
    show("launch of an empty kernel: %.2f us a call in a burst, %.2f us alone; %.2f us each back to back",
         median(burst), median(single), median(device));
  });
  attempt(record, "graph_launch", [&](Record& part) {
    Graph graph;
    graph.capture(stream, [&] { launch(Launch(), stream, empty_kernel); });
    graph.instantiate(stream);
    std::vector<double> call, until_done;
    for (int sample = -5; sample < 30; ++sample) {
      stream.wait();
      const Clock::time_point start = Clock::now();
      graph.launch(stream);
      const double launched = microseconds_since(start);
      stream.wait();
      if (sample < 0) continue;
      call.push_back(launched);
      until_done.push_back(microseconds_since(start));
    }
    part.set("call_of_one_node", figures(call, "us"));
    part.set("call_until_synchronized", figures(until_done, "us"));
    show("launch of a graph of one node: %.2f us; until synchronized %.2f us", median(call), median(until_done));
  });
  attempt(record, "synchronize_idle_stream", [&](Record& part) {
    std::vector<double> values;
    for (int sample = 0; sample < 100; ++sample) {
      const Clock::time_point start = Clock::now();
      stream.wait();
      values.push_back(microseconds_since(start));
    }
    part.set("call", figures(values, "us"));
    show("cudaStreamSynchronize on an idle stream: %.2f us", median(values));
  });
  attempt(record, "eight_bytes_to_host", [&](Record& part) {
    struct Pinned {
      Pinned() { PROBE_CUDA(cudaHostAlloc(&address, 64, cudaHostAllocMapped)); }
      ~Pinned() { (void)cudaFreeHost(address); }
      void* address = nullptr;
    };
    const Pinned pinned;
    volatile std::uint64_t* host = static_cast<std::uint64_t*>(pinned.address);
    constexpr std::uint64_t kCount = 64;
    std::vector<std::uint64_t> values(kCount);
    for (std::uint64_t i = 0; i < kCount; ++i) values[i] = 1000 + i;
    Buffer<std::uint64_t> device(kCount);
    PROBE_CUDA(cudaMemcpyAsync(device.get(), values.data(), device.bytes(), cudaMemcpyHostToDevice, stream));
    stream.wait();
    std::vector<double> call, seen, written;
    for (std::uint64_t i = 0; i < kCount; ++i) {
      *host = 0;
      Clock::time_point start = Clock::now();
      PROBE_CUDA(cudaMemcpyAsync(pinned.address, device.get() + i, 8, cudaMemcpyDeviceToHost, stream));
      const double called = microseconds_since(start);
      wait_for_host_value(host, values[i]);
      if (i >= 4) call.push_back(called), seen.push_back(microseconds_since(start));
      stream.wait();
      *host = 0;
      Launch shape;
      shape.threads = dim3(1);
      start = Clock::now();
      launch(shape, stream, write_host_kernel, host, values[i]);
      wait_for_host_value(host, values[i]);
      if (i >= 4) written.push_back(microseconds_since(start));
      stream.wait();
    }
    part.set("memcpy_async_call", figures(call, "us"));
    part.set("memcpy_async_until_seen_by_the_host", figures(seen, "us"));
    part.set("kernel_store_to_mapped_memory_until_seen", figures(written, "us"));
    show("8 bytes to the host: call %.2f us, seen after %.2f us; stored by a kernel, seen after %.2f us", median(call),
         median(seen), median(written));
  });
}

}  // namespace probe
