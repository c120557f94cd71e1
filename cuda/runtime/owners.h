// Owners of resources of CUDA's runtime. They are created on the current device, can be moved, and free the resource in
// their destructor, which never throws: an error there comes from earlier work.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <memory>
#include <utility>

#include "check.h"

namespace deviceloop::cuda {

/// Makes `device` the current device of this thread until the object goes out of scope; several on one thread are
/// destroyed in reverse order. The destructor restores the context that was current before, even one that the program
/// made itself, or none if there was none. cudaSetDevice would create a context on the previous device, which takes
/// hundreds of megabytes.
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
  void operator()(cudaStream_t stream) const { drop_error(cudaStreamDestroy(stream)); }
};
struct DestroyEvent {
  void operator()(cudaEvent_t event) const { drop_error(cudaEventDestroy(event)); }
};
struct FreeDevice {
  void operator()(void* memory) const { drop_error(cudaFree(memory)); }
};
struct FreePinned {
  void operator()(void* memory) const { drop_error(cudaFreeHost(memory)); }
};
}  // namespace detail

/// A stream that does not synchronize with the default stream.
class StreamOwner {
 public:
  StreamOwner() {
    cudaStream_t stream = nullptr;
    DEVICELOOP_CHECK_CUDA(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
    stream_.reset(stream);
  }
  cudaStream_t get() const { return stream_.get(); }
  /// Waits for all work on the stream.
  void wait() const { DEVICELOOP_CHECK_CUDA(cudaStreamSynchronize(get())); }

 private:
  std::unique_ptr<CUstream_st, detail::DestroyStream> stream_;
};

/// An event that records no times, since timing makes events slow.
class EventOwner {
 public:
  EventOwner() {
    cudaEvent_t event = nullptr;
    DEVICELOOP_CHECK_CUDA(cudaEventCreateWithFlags(&event, cudaEventDisableTiming));
    event_.reset(event);
  }
  cudaEvent_t get() const { return event_.get(); }
  /// Whether what it was recorded behind is done; of one that never was recorded too. Never waits.
  bool is_done() const {
    const cudaError_t code = cudaEventQuery(event_.get());
    if (code != cudaErrorNotReady) check_cuda(code, "cudaEventQuery(event_.get())", __FILE__, __LINE__);
    return code == cudaSuccess;
  }
  void wait() const { DEVICELOOP_CHECK_CUDA(cudaEventSynchronize(event_.get())); }

 private:
  std::unique_ptr<CUevent_st, detail::DestroyEvent> event_;
};

/// Memory on the device, aligned to 256 bytes, or pinned memory on the host; its content is undefined.
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
  /// Null if the buffer is empty.
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
