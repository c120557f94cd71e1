// The optimizers' updates of parameters whose gradients lie in memory.
#include <tuple>
#include <type_traits>

#include "../../host/elementwise.h"
#include "../runtime/launch.h"
#include "alignment.h"
#include "groups.cuh"
#include "kernels.h"

namespace deviceloop::cuda {
namespace {

/// A thread takes one group of parameters. All pointers are aligned to 16 bytes.
template <class T, int width, class Optimizer>
__global__ void __launch_bounds__(kThreads)
    update_kernel(T* parameters, OptimizerState<T> state, const T* gradients,
                  const elementwise::StepScalars<T>* scalars, std::int64_t count) {
  constexpr int kStates = std::tuple_size_v<std::remove_const_t<decltype(Optimizer::kStates)>>;
  const std::int64_t begin = (std::int64_t{block_index()} * kThreads + thread_index()) * width;
  if (begin >= count) return;
  Group<T, width> parameter, gradient, states[elementwise::kMostStates];
  load_group<true>(parameter, parameters, begin, count);
  load_group<true>(gradient, gradients, begin, count);
#pragma unroll
  for (int s = 0; s < kStates; ++s) load_group<true>(states[s], state.values[s], begin, count);
  const elementwise::StepScalars<T> of_step = *scalars;
#pragma unroll
  for (int i = 0; i < width; ++i) {
    T kept[elementwise::kMostStates];
#pragma unroll
    for (int s = 0; s < kStates; ++s) kept[s] = states[s].values[i];
    Optimizer::update(parameter.values[i], kept, gradient.values[i], of_step);
#pragma unroll
    for (int s = 0; s < kStates; ++s) states[s].values[i] = kept[s];
  }
  store_group<true>(parameters, parameter, begin, count);
#pragma unroll
  for (int s = 0; s < kStates; ++s) store_group<true>(state.values[s], states[s], begin, count);
}

}  // namespace

template <class T>
void launch_update(OptimizerKind optimizer, T* parameters, const OptimizerState<T>& state, const T* gradients,
                   const elementwise::StepScalars<T>* scalars, std::int64_t count, cudaStream_t stream) {
  elementwise::with_optimizer(optimizer, [&](auto of) {
    constexpr int width = kVector<T>;
    const std::int64_t blocks = divide_up(count, std::int64_t{kThreads} * width);
    launch(update_kernel<T, width, decltype(of)>, {blocks, kThreads, 0}, stream, parameters, state, gradients, scalars,
           count);
  });
}

template void launch_update(OptimizerKind, float*, const OptimizerState<float>&, const float*,
                            const elementwise::StepScalars<float>*, std::int64_t, cudaStream_t);
template void launch_update(OptimizerKind, double*, const OptimizerState<double>&, const double*,
                            const elementwise::StepScalars<double>*, std::int64_t, cudaStream_t);

}  // namespace deviceloop::cuda
