/// \file
/// How a trainer uses a GPU that its application uses too. Needs no CUDA header.
#pragma once

#include <cstddef>
#include <functional>
#include <optional>

#include <deviceloop/export.h>
#include <deviceloop/stream.h>

namespace deviceloop {

/// The caller's stream, and the caller's way to get device memory. Neither is used by the plan `cpu`.
struct CudaOptions {
  /// All work of the trainer is enqueued on this stream of its device: it begins after what the stream holds, and what
  /// follows in the stream begins after it. Null is CUDA's default stream. The stream must outlive the trainer. Empty:
  /// the trainer has a stream of its own.
  std::optional<cuda::Stream> stream{};
  /// Takes the device memory, on the trainer's device, which is current then, aligned to 256 bytes; null where there is
  /// none. An exception of it passes through. Both or none are given; none: cudaMalloc and cudaFree.
  std::function<void*(std::size_t bytes)> allocate{};
  /// Gives back what `allocate` gave, with the same number of bytes, once no work of the trainer uses it. Must not
  /// throw.
  std::function<void(void* memory, std::size_t bytes)> free{};
};

}  // namespace deviceloop
