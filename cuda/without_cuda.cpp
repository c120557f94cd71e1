// The joint's functions in a build without CUDA.
#include <deviceloop/error.h>

#include "../host/cuda_entry.h"

namespace deviceloop {

void query_gpus(DeviceCaps& caps) { caps.no_gpu_reason = "built without CUDA"; }

const char* cuda_toolkit() { return "none"; }

std::unique_ptr<Executor> make_cuda_executor(const NetworkSpec&, const TrainingSpec&, const Plan& plan) {
  throw Unsupported(std::string("plan ") + name(plan.executor) + ": built without CUDA; use the plan 'cpu'");
}

}  // namespace deviceloop
