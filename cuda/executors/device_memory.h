// Memory of the device for an executor: the runtime's, or the caller's.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <utility>

#include <deviceloop/cuda_options.h>
#include <deviceloop/error.h>

#include "../../host/text.h"
#include "../runtime/owners.h"

namespace deviceloop::cuda {

class DeviceMemory {
 public:
  static constexpr std::uintptr_t kAlignment = 256;

  /// On the current device. Throws Unsupported where the caller has none.
  DeviceMemory(std::size_t bytes, const CudaOptions& options) : bytes_(bytes), free_(options.free) {
    if (!options.allocate) {
      buffer_ = DeviceBuffer(bytes);
      memory_ = buffer_.data();
      return;
    }
    memory_ = options.allocate(bytes);
    if (memory_ == nullptr)
      throw Unsupported("CudaOptions::allocate has no " + bytes_text(bytes) +
                        " of device memory; give it more, use fewer samples, or the plan 'cpu'");
    if (reinterpret_cast<std::uintptr_t>(memory_) % kAlignment != 0) {
      free_(memory_, bytes_);
      throw InvalidArgument("CudaOptions::allocate gave memory that is not aligned to 256 bytes; align it");
    }
  }
  ~DeviceMemory() {
    if (memory_ != nullptr && buffer_.data() == nullptr) free_(memory_, bytes_);
  }
  DeviceMemory(const DeviceMemory&) = delete;
  DeviceMemory& operator=(const DeviceMemory&) = delete;

  void* data() const { return memory_; }
  std::size_t bytes() const { return bytes_; }

 private:
  std::size_t bytes_;
  std::function<void(void*, std::size_t)> free_;
  DeviceBuffer buffer_;  ///< empty where the memory is the caller's
  void* memory_ = nullptr;
};

}  // namespace deviceloop::cuda
