// What stands in for cuda/ in a build without CUDA: the joint's functions and those of <deviceloop/cuda.h>.
#include <deviceloop/cuda.h>
#include <deviceloop/error.h>

#include "../host/cuda_entry.h"

namespace deviceloop {

void query_gpus(DeviceCaps& caps) { caps.no_gpu_reason = "built without CUDA"; }
std::string why_no_cublaslt() { return "built without CUDA"; }

const char* cuda_toolkit() { return "none"; }

namespace {

[[noreturn]] void refuse(ExecutorKind kind) {
  throw Unsupported(std::string("plan ") + name(kind) + ": built without CUDA; use the plan 'cpu'");
}

}  // namespace

std::unique_ptr<Executor> make_graph_executor(const NetworkSpec&, const TrainingSpec&, const Decision&,
                                              const Surroundings&) {
  refuse(ExecutorKind::graph);
}
std::unique_ptr<Executor> make_persistent_executor(const NetworkSpec&, const TrainingSpec&, const Decision&,
                                                   const Surroundings&) {
  refuse(ExecutorKind::persistent);
}
std::unique_ptr<Executor> make_fused_executor(const NetworkSpec&, const TrainingSpec&, const Decision&,
                                              const Surroundings&) {
  refuse(ExecutorKind::fused);
}

void check_device_range(const void*, std::uint64_t, int, const std::string& what) {
  throw Unsupported(what + " lies in device memory: built without CUDA; pass a view of host memory");
}

// Nothing is in a GPU's memory where check_device_range has refused it.
std::optional<NonFinite> find_wrong_on_device(const ConstMatrix&, const ElementRule&, int, const CudaOptions&) {
  return {};
}
void download_from_device(Matrix, const ConstMatrix&, int, const CudaOptions&) {}
std::shared_ptr<void> allocate_on_device(std::size_t, int, const CudaOptions&) { return {}; }

namespace cuda {
namespace {

/// `on_the_host` is the function that does the same there, if there is one.
[[noreturn]] void refuse(const char* function, const char* on_the_host = nullptr) {
  std::string message = std::string("deviceloop::cuda::") + function +
                        ": built without CUDA; configure with -DDEVICELOOP_CUDA=ON where the CUDA toolkit is";
  if (on_the_host != nullptr) message += std::string(", or call ") + on_the_host + " on host memory";
  throw Unsupported(message);
}

}  // namespace

void relu(float*, const float*, std::int64_t, Stream) { refuse("relu", "deviceloop::relu"); }
void relu(double*, const double*, std::int64_t, Stream) { refuse("relu", "deviceloop::relu"); }
void relu_gradient(float*, const float*, const float*, std::int64_t, Stream) {
  refuse("relu_gradient", "deviceloop::relu_gradient");
}
void relu_gradient(double*, const double*, const double*, std::int64_t, Stream) {
  refuse("relu_gradient", "deviceloop::relu_gradient");
}
void bias_relu(float*, const float*, const float*, std::int64_t, std::int64_t, Stream) { refuse("bias_relu"); }
void bias_relu(double*, const double*, const double*, std::int64_t, std::int64_t, Stream) { refuse("bias_relu"); }
void mask_gradient(float*, const float*, const float*, std::int64_t, Stream) { refuse("mask_gradient"); }
void mask_gradient(double*, const double*, const double*, std::int64_t, Stream) { refuse("mask_gradient"); }
void squared_error(double*, float*, const float*, const float*, std::int64_t, void*, std::size_t, Stream) {
  refuse("squared_error", "deviceloop::squared_error");
}
void squared_error(double*, double*, const double*, const double*, std::int64_t, void*, std::size_t, Stream) {
  refuse("squared_error", "deviceloop::squared_error");
}
std::size_t squared_error_workspace(std::int64_t) { refuse("squared_error_workspace"); }
void column_sums(float*, const float*, std::int64_t, std::int64_t, void*, std::size_t, Stream) {
  refuse("column_sums");
}
void column_sums(double*, const double*, std::int64_t, std::int64_t, void*, std::size_t, Stream) {
  refuse("column_sums");
}
std::size_t column_sums_workspace(std::int64_t, std::int64_t) { refuse("column_sums_workspace"); }
void narrow_linear(float*, const float*, const float*, const float*, std::int64_t, std::int64_t, std::int64_t, Stream) {
  refuse("narrow_linear");
}
void narrow_linear(double*, const double*, const double*, const double*, std::int64_t, std::int64_t, std::int64_t,
                   Stream) {
  refuse("narrow_linear");
}
void narrow_linear_gradient(float*, float*, const float*, const float*, const float*, std::int64_t, std::int64_t,
                            std::int64_t, void*, std::size_t, Stream) {
  refuse("narrow_linear_gradient");
}
void narrow_linear_gradient(double*, double*, const double*, const double*, const double*, std::int64_t, std::int64_t,
                            std::int64_t, void*, std::size_t, Stream) {
  refuse("narrow_linear_gradient");
}
std::size_t narrow_linear_gradient_workspace(std::int64_t, std::int64_t, std::int64_t) {
  refuse("narrow_linear_gradient_workspace");
}
void sgd_update(float*, const float*, float, std::int64_t, Stream) { refuse("sgd_update"); }
void sgd_update(double*, const double*, double, std::int64_t, Stream) { refuse("sgd_update"); }

}  // namespace cuda
}  // namespace deviceloop
