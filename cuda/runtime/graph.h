// Work captured once and enqueued again as a whole.
#pragma once

#include <cuda_runtime_api.h>

#include <memory>
#include <type_traits>

#include "check.h"

namespace deviceloop::cuda {

/// What `enqueue(stream)` puts on a stream, as a graph on the device. Empty until it is captured.
class Graph {
 public:
  Graph() = default;

  /// Captures, on a stream that is not blocking, and only this thread: other threads of the program keep working with
  /// CUDA as they like. What `enqueue` throws ends the capture. What the graph needs on the device goes there on
  /// `stream`, so that its first launch costs what any launch costs.
  template <class Enqueue>
  static Graph capture(cudaStream_t stream, Enqueue enqueue);

  void launch(cudaStream_t stream) const { DEVICELOOP_CHECK_CUDA(cudaGraphLaunch(exec_.get(), stream)); }

  explicit operator bool() const { return exec_ != nullptr; }

 private:
  struct DestroyGraph {
    void operator()(cudaGraph_t graph) const { cudaGraphDestroy(graph); }
  };
  struct DestroyExec {
    void operator()(cudaGraphExec_t exec) const { cudaGraphExecDestroy(exec); }
  };
  std::unique_ptr<std::remove_pointer_t<cudaGraphExec_t>, DestroyExec> exec_;
};

template <class Enqueue>
Graph Graph::capture(cudaStream_t stream, Enqueue enqueue) {
  cudaGraph_t captured = nullptr;
  DEVICELOOP_CHECK_CUDA(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
  try {
    enqueue(stream);
  } catch (...) {
    cudaStreamEndCapture(stream, &captured);
    if (captured != nullptr) cudaGraphDestroy(captured);
    cudaGetLastError();  // that of the ended capture; what matters is on its way up
    throw;
  }
  const cudaError_t ended = cudaStreamEndCapture(stream, &captured);
  const std::unique_ptr<std::remove_pointer_t<cudaGraph_t>, DestroyGraph> graph(captured);
  check_cuda(ended, "cudaStreamEndCapture(stream, &captured)", __FILE__, __LINE__);
  Graph made;
  cudaGraphExec_t exec = nullptr;
  DEVICELOOP_CHECK_CUDA(cudaGraphInstantiate(&exec, captured, 0));
  made.exec_.reset(exec);
  DEVICELOOP_CHECK_CUDA(cudaGraphUpload(exec, stream));
  return made;
}

}  // namespace deviceloop::cuda
