#include "executor.h"

#include "cpu_executor.h"
#include "cuda_entry.h"

namespace deviceloop {

std::unique_ptr<Executor> make_executor(const NetworkSpec& network, const TrainingSpec& training, const Plan& plan) {
  switch (plan.executor) {
    case ExecutorKind::cpu:
      return make_cpu_executor(network, training, plan);
    case ExecutorKind::graph:
    case ExecutorKind::persistent:
      break;
  }
  return make_cuda_executor(network, training, plan);
}

}  // namespace deviceloop
