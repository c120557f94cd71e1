// The cases, by area.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include <deviceloop/plan.h>

#include "case.h"

namespace deviceloop::bench {

/// The public kernels that kernel/... times, so that a test can put a wrong one in.
template <class T>
struct Kernels {
  std::function<void(std::span<T>, std::span<const T>)> relu;
  std::function<void(std::span<T>, std::span<const T>, std::span<const T>)> relu_gradient;
  std::function<double(std::span<T>, std::span<const T>, std::span<const T>)> squared_error;
};
template <class T>
Kernels<T> public_kernels();

struct CaseOptions {
  DeviceCaps caps;         ///< of the machine, without GPUs where they are not wanted
  int threads = 0;         ///< of training on the CPU; 0: the planner's choice
  std::uint64_t seed = 0;  ///< of all data
};

/// kernel/KERNEL/n=N/PRECISION: the kernels of <deviceloop/kernels.h> on one core.
std::vector<Block> kernel_blocks(const CaseOptions& options, const Kernels<float>& fp32 = public_kernels<float>(),
                                 const Kernels<double>& fp64 = public_kernels<double>());

/// gemm/PRODUCT/LAYERS/layer=L/n=N/PRECISION: the products of a step on one core, each whole.
std::vector<Block> gemm_blocks(const CaseOptions& options);

/// train/PLAN/LAYERS/n=N/PRECISION, where make_plan takes it; behind it /bias, /LOSS, /OPTIMIZER and /batch=ROWS where
/// it is not full-batch gradient descent on the sum of squared errors, /FORMULATION where it is not primal, /tuned and
/// /steps=S.
std::vector<Block> train_blocks(const CaseOptions& options);

/// plan/make_plan/..., plan/set_data/... and plan/first_loss/..., named as training is.
std::vector<Block> plan_blocks(const CaseOptions& options);

}  // namespace deviceloop::bench
