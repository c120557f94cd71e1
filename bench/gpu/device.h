// What the cases and rates of a GPU share: memory, random data, and times by the GPU's own clock.
#pragma once

#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include <deviceloop/error.h>

#include "../../cuda/runtime/check.h"
#include "../../cuda/runtime/graph.h"
#include "../../cuda/runtime/owners.h"
#include "../case.h"

namespace deviceloop::bench {

/// `count` elements on the current GPU. Throws NotHere where they take more memory than is free.
template <class T>
class DeviceArray {
 public:
  DeviceArray() = default;
  explicit DeviceArray(std::int64_t count) : count_(count), memory_(allocate(bytes())) {}

  T* data() const { return static_cast<T*>(memory_.data()); }
  std::int64_t count() const { return count_; }
  std::size_t bytes() const { return static_cast<std::size_t>(count_) * sizeof(T); }

  void poison(const cuda::StreamOwner& stream) const {
    if (count_ > 0) DEVICELOOP_CHECK_CUDA(cudaMemsetAsync(data(), 0xff, bytes(), stream.get()));
  }

  /// use(part, begin, end) for parts of the `count` elements from `first`, after all work on `stream`: part[i] is
  /// number begin + i of these. They come through `staging`, a piece of pinned memory that the first call makes:
  /// reading 1 GiB into new memory takes the host longer than checking it.
  template <class Use>
  void read_parts(std::int64_t first, std::int64_t count, cuda::PinnedBuffer& staging, const cuda::StreamOwner& stream,
                  const Use& use, std::int64_t staging_bytes = 64 << 20) const {
    const std::int64_t most = std::min(count, staging_bytes / static_cast<std::int64_t>(sizeof(T)));
    if (staging.bytes() < static_cast<std::size_t>(most) * sizeof(T))
      staging = cuda::PinnedBuffer(static_cast<std::size_t>(most) * sizeof(T));
    for (std::int64_t begin = 0; begin < count; begin += most) {
      const std::int64_t end = std::min(begin + most, count);
      DEVICELOOP_CHECK_CUDA(cudaMemcpyAsync(staging.data(), data() + first + begin,
                                            static_cast<std::size_t>(end - begin) * sizeof(T), cudaMemcpyDeviceToHost,
                                            stream.get()));
      stream.wait();
      use(static_cast<const T*>(staging.data()), begin, end);
    }
  }

  /// Elements `first` to `first` + `count`, after all work on `stream`.
  std::vector<T> read(std::int64_t first, std::int64_t count, const cuda::StreamOwner& stream) const {
    std::vector<T> values(static_cast<std::size_t>(count));
    if (count > 0)
      DEVICELOOP_CHECK_CUDA(cudaMemcpyAsync(values.data(), data() + first, values.size() * sizeof(T),
                                            cudaMemcpyDeviceToHost, stream.get()));
    stream.wait();
    return values;
  }

 private:
  static cuda::DeviceBuffer allocate(std::size_t bytes) {
    try {
      return cuda::DeviceBuffer(bytes);
    } catch (const DeviceError& error) {
      if (error.code() != cudaErrorMemoryAllocation) throw;
      cudaGetLastError();  // it would be taken for that of the next launch
      throw NotHere("it takes more memory than the GPU has free");
    }
  }

  std::int64_t count_ = 0;
  cuda::DeviceBuffer memory_;
};

/// array[i] = random_value(seed, number, i), or random_activation of that.
template <class T>
void fill_random(const DeviceArray<T>& array, std::uint64_t seed, std::uint64_t number, bool activations,
                 const cuda::StreamOwner& stream);

/// The time of work on a stream, between two events.
class GpuStopwatch {
 public:
  GpuStopwatch() : begin_(make()), end_(make()) {}
  void start(const cuda::StreamOwner& stream) const {
    DEVICELOOP_CHECK_CUDA(cudaEventRecord(begin_.get(), stream.get()));
  }
  /// Microseconds since start(), once the work is done.
  double stop(const cuda::StreamOwner& stream) const {
    DEVICELOOP_CHECK_CUDA(cudaEventRecord(end_.get(), stream.get()));
    DEVICELOOP_CHECK_CUDA(cudaEventSynchronize(end_.get()));
    float milliseconds = 0;
    DEVICELOOP_CHECK_CUDA(cudaEventElapsedTime(&milliseconds, begin_.get(), end_.get()));
    return 1000 * static_cast<double>(milliseconds);
  }

 private:
  struct Destroy {
    void operator()(cudaEvent_t event) const { cudaEventDestroy(event); }
  };
  using Event = std::unique_ptr<CUevent_st, Destroy>;
  static Event make() {
    cudaEvent_t event = nullptr;
    DEVICELOOP_CHECK_CUDA(cudaEventCreateWithFlags(&event, cudaEventDefault));
    return Event(event);
  }

  Event begin_, end_;
};

/// Some launches, captured in a graph, so that short ones follow each other as they do in training and the host's time
/// a launch does not count.
class Batch {
 public:
  Batch() = default;
  /// Of enqueue(i, stream) for i in [0, launches).
  template <class Enqueue>
  Batch(std::int64_t launches, const cuda::StreamOwner& stream, const Enqueue& enqueue) : launches_(launches) {
    enqueue(0, stream.get());  // loads the kernel's code, which a capture had better not do
    stream.wait();
    graph_ = cuda::Graph::capture(stream.get(), [&](cudaStream_t captured) {
      for (std::int64_t i = 0; i < launches; ++i) enqueue(i, captured);
    });
  }

  /// Replays the graph until there were at least `calls` launches.
  std::int64_t replays(std::int64_t calls) const { return (calls + launches_ - 1) / launches_; }
  double us_of_a_launch(std::int64_t calls, const cuda::StreamOwner& stream) const {
    stopwatch_.start(stream);
    for (std::int64_t i = 0; i < replays(calls); ++i) graph_.launch(stream.get());
    return stopwatch_.stop(stream) / static_cast<double>(replays(calls) * launches_);
  }

 private:
  std::int64_t launches_ = 1;
  cuda::Graph graph_;
  GpuStopwatch stopwatch_;
};

}  // namespace deviceloop::bench
