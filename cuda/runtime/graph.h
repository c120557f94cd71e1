// A CUDA graph: work that is captured once and then launched as a whole, any number of times.
#pragma once

#include <cuda_runtime_api.h>

#include <memory>
#include <type_traits>

#include "check.h"

namespace deviceloop::cuda {

/// The work that `enqueue(stream)` puts on a stream, as a graph on the device. Empty until it is captured.
class Graph {
 public:
  Graph() = default;

  /// Captures on a non-blocking stream, in the mode that restricts this thread only: other threads of the program may
  /// use CUDA freely. An exception of `enqueue` ends the capture and is passed on. The graph is uploaded to the device
  /// on `stream`, so that its first launch takes as long as any other.
  template <class Enqueue>
  static Graph capture(cudaStream_t stream, Enqueue enqueue);

  void launch(cudaStream_t stream) const { DEVICELOOP_CHECK_CUDA(cudaGraphLaunch(exec_.get(), stream)); }

  explicit operator bool() const { return exec_ != nullptr; }

 private:
  struct DestroyGraph {
    void operator()(cudaGraph_t graph) const { drop_error(cudaGraphDestroy(graph)); }
  };
  struct DestroyExec {
    void operator()(cudaGraphExec_t exec) const { drop_error(cudaGraphExecDestroy(exec)); }
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
    cudaGetLastError();  // clears the error of the ended capture; the caller gets the exception
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
