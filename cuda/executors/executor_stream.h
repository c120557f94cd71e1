// The stream of an executor: its own, or the caller's.
#pragma once

#include <cuda_runtime_api.h>

#include <optional>

#include <deviceloop/error.h>
#include <deviceloop/stream.h>

#include "../runtime/graph.h"
#include "../runtime/owners.h"

namespace deviceloop::cuda {

/// Whether the stream is one of the caller's, who captures it.
inline bool is_captured(const std::optional<Stream>& callers) {
  if (!callers || *callers == nullptr) return false;  // the default stream cannot be captured
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  DEVICELOOP_CHECK_CUDA(cudaStreamIsCapturing(*callers, &status));
  return status != cudaStreamCaptureStatusNone;
}

/// Throws InvalidArgument where it is.
inline void refuse_capture(const std::optional<Stream>& callers) {
  if (is_captured(callers))
    throw InvalidArgument(
        "the trainer's stream is being captured, which can take enqueue_step and, between arrays in the GPU's memory, "
        "predict, and nothing else; end the capture first, and call prepare or predict before it begins");
}

class ExecutorStream {
 public:
  /// Empty: the executor's own. On the current device.
  explicit ExecutorStream(std::optional<Stream> callers)
      : active_(callers ? *callers : own_.get()), ordinary_(active_) {}
  /// Work that still runs must not lose its memory; what fails now has failed before.
  ~ExecutorStream() { drop_error(cudaStreamSynchronize(ordinary_)); }
  ExecutorStream(const ExecutorStream&) = delete;
  ExecutorStream& operator=(const ExecutorStream&) = delete;

  cudaStream_t get() const { return active_; }
  void wait() const { DEVICELOOP_CHECK_CUDA(cudaStreamSynchronize(get())); }

  /// The work that `enqueue()` puts on get(), as a graph. It is captured on the own stream: others may use the caller's
  /// at the same time, and the default stream cannot be captured.
  template <class Enqueue>
  Graph capture(const Enqueue& enqueue) {
    active_ = own_.get();
    try {
      Graph graph = Graph::capture(active_, [&](cudaStream_t) { enqueue(); });
      DEVICELOOP_CHECK_CUDA(cudaStreamSynchronize(active_));
      active_ = ordinary_;
      return graph;
    } catch (...) {
      active_ = ordinary_;
      throw;
    }
  }

 private:
  StreamOwner own_;
  cudaStream_t active_;
  const cudaStream_t ordinary_;
};

}  // namespace deviceloop::cuda
