// Owners of what CUDA's runtime gives out. They are made on the current device, move, and give back in their
// destructor, which never throws: what fails there has failed before.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <memory>
#include <utility>

#include "check.h"

namespace deviceloop::cuda {

/// Makes `device` the current one for this thread, until it goes out of scope; on the same thread, the last first. What
/// was current before comes back as it was, a context of the program's own too, and where there was none there is none:
/// cudaSetDevice would create one on the device before, hundreds of megabytes that nobody asked for.
class CurrentDevice {
 public:
  explicit CurrentDevice(int device);
  ~CurrentDevice();
  CurrentDevice(const CurrentDevice&) = delete;
  CurrentDevice& operator=(const CurrentDevice&) = delete;

 private:
  int device_;
  bool is_pushed_ = false;
};

namespace detail {
struct DestroyStream {
  void operator()(cudaStream_t stream) const { cudaStreamDestroy(stream); }
};
struct DestroyEvent {
  void operator()(cudaEvent_t event) const { cudaEventDestroy(event); }
};
struct FreeDevice {
  void operator()(void* memory) const { cudaFree(memory); }
};
struct FreePinned {
  void operator()(void* memory) const { cudaFreeHost(memory); }
};
}  // namespace detail

/// A stream that does not wait for the default stream, nor that for it.
class StreamOwner {
 public:
  StreamOwner() {
    cudaStream_t stream = nullptr;
    DEVICELOOP_CHECK_CUDA(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
    stream_.reset(stream);
  }
  cudaStream_t get() const { return stream_.get(); }
  /// Waits for all work on it.
  void wait() const { DEVICELOOP_CHECK_CUDA(cudaStreamSynchronize(get())); }

 private:
  std::unique_ptr<CUstream_st, detail::DestroyStream> stream_;
};

/// An event without times, which are what makes events slow.
class EventOwner {
 public:
  EventOwner() {
    cudaEvent_t event = nullptr;
    DEVICELOOP_CHECK_CUDA(cudaEventCreateWithFlags(&event, cudaEventDisableTiming));
    event_.reset(event);
  }
  cudaEvent_t get() const { return event_.get(); }

 private:
  std::unique_ptr<CUevent_st, detail::DestroyEvent> event_;
};

/// Memory on the device, on a border of 256 bytes, or pinned memory on the host; its content is undefined.
template <class Free>
class Buffer {
 public:
  Buffer() = default;
  explicit Buffer(std::size_t bytes);
  Buffer(Buffer&& other) noexcept : memory_(std::move(other.memory_)), bytes_(std::exchange(other.bytes_, 0)) {}
  Buffer& operator=(Buffer&& other) noexcept {
    memory_ = std::move(other.memory_);
    bytes_ = std::exchange(other.bytes_, 0);
    return *this;
  }
  /// Null where it has no bytes.
  void* data() const { return memory_.get(); }
  std::size_t bytes() const { return bytes_; }

 private:
  std::unique_ptr<void, Free> memory_;
  std::size_t bytes_ = 0;
};

using DeviceBuffer = Buffer<detail::FreeDevice>;
using PinnedBuffer = Buffer<detail::FreePinned>;

template <>
inline DeviceBuffer::Buffer(std::size_t bytes) : bytes_(bytes) {
  void* memory = nullptr;
  if (bytes > 0) DEVICELOOP_CHECK_CUDA(cudaMalloc(&memory, bytes));
  memory_.reset(memory);
}

template <>
inline PinnedBuffer::Buffer(std::size_t bytes) : bytes_(bytes) {
  void* memory = nullptr;
  if (bytes > 0) DEVICELOOP_CHECK_CUDA(cudaMallocHost(&memory, bytes));
  memory_.reset(memory);
}

}  // namespace deviceloop::cuda
