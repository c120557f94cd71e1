// The optimizers' updates of parameters whose gradients lie in memory.
#include <cmath>
#include <tuple>
#include <type_traits>

#include "../../host/elementwise.h"
#include "../../host/loss_scaling.h"
#include "../runtime/launch.h"
#include "alignment.h"
#include "groups.cuh"
#include "kernels.h"
#include "operands.cuh"
#include "slots.cuh"

namespace deviceloop::cuda {
namespace {

template <class Optimizer>
constexpr int kStates = std::tuple_size_v<std::remove_const_t<decltype(Optimizer::kStates)>>;

/// What an update sums beside its own work. The blocks for it come after `first_block` others: one for each tile of
/// columns of a range, then one for the loss.
template <class T>
struct SumBlocks {
  struct Range {
    SummedGradient<T> gradient;
    PanelLayout layout;
  };
  Range ranges[kMostSummedGradients];
  std::int64_t count;
  std::int64_t first_block;
  LossSum loss;
};

union ThreadSums {
  double values[kThreads];
  WarpSums warps;
};

/// By a block: the sums of its columns of a range, and the update by them; or the loss.
template <class T, class Optimizer>
__device__ void take_sums(T* parameters, const OptimizerState<T>& state, const SumBlocks<T>& summed,
                          const elementwise::StepScalars<T>* scalars) {
  std::int64_t across = std::int64_t{block_index()} - summed.first_block;
  std::int64_t index = 0;
  while (index < summed.count && across >= summed.ranges[index].layout.tiles_across)
    across -= summed.ranges[index++].layout.tiles_across;
  if (index == summed.count) return append_loss(summed.loss, shared<ThreadSums>().warps);
  const SummedGradient<T>& of = summed.ranges[index].gradient;
  const PanelLayout& layout = summed.ranges[index].layout;
  const auto finish = [&](std::int64_t column, double total) {
    const std::int64_t parameter = of.first + column;
    const elementwise::StepScalars<T> of_step = *scalars;
    T kept[elementwise::kMostStates];
#pragma unroll
    for (int s = 0; s < kStates<Optimizer>; ++s) kept[s] = state.values[s][parameter];
    T used = static_cast<T>(total);
    if constexpr (!Optimizer::adds_gradient) used = elementwise::clipped(used, of_step);
    Optimizer::update(parameters[parameter], kept, used, of_step);
#pragma unroll
    for (int s = 0; s < kStates<Optimizer>; ++s) state.values[s][parameter] = kept[s];
  };
  sum_columns(finish, of.matrix, of.rows, of.columns, layout, across, shared<ThreadSums>().values);
}

/// A thread takes one group of parameters. All pointers are aligned to 16 bytes. With `sums` some blocks and no others
/// take what is summed.
template <class T, int width, class Optimizer, bool sums>
__global__ void __launch_bounds__(kThreads)
    update_kernel(T* parameters, OptimizerState<T> state, const T* gradients, GradientFactor<T> factor,
                  SumBlocks<T> summed, const elementwise::StepScalars<T>* scalars, std::int64_t count,
                  RoundedCopy rounded) {
  wait_for_grids_before();
  const std::int64_t begin = (std::int64_t{block_index()} * kThreads + thread_index()) * width;
  if constexpr (sums) {
    if (block_index() >= summed.first_block) return take_sums<T, Optimizer>(parameters, state, summed, scalars);
    for (std::int64_t index = 0; index < summed.count; ++index) {
      const SummedGradient<T>& of = summed.ranges[index].gradient;
      if (begin >= of.first && begin < of.first + of.columns) return;
    }
  }
  if (begin >= count) return;
  const T multiplied = factor.value != nullptr ? *factor.value : T(1);
  if (factor.nan_skips && multiplied != multiplied) return;
  Group<T, width> parameter, gradient, states[elementwise::kMostStates];
  load_group<true>(parameter, parameters, begin, count);
  load_group<true>(gradient, gradients, begin, count);
#pragma unroll
  for (int s = 0; s < kStates<Optimizer>; ++s) load_group<true>(states[s], state.values[s], begin, count);
  const elementwise::StepScalars<T> of_step = *scalars;
#pragma unroll
  for (int i = 0; i < width; ++i) {
    T kept[elementwise::kMostStates];
#pragma unroll
    for (int s = 0; s < kStates<Optimizer>; ++s) kept[s] = states[s].values[i];
    T used = gradient.values[i];
    if (factor.value != nullptr) used *= multiplied;
    if constexpr (!Optimizer::adds_gradient) used = elementwise::clipped(used, of_step);
    Optimizer::update(parameter.values[i], kept, used, of_step);
#pragma unroll
    for (int s = 0; s < kStates<Optimizer>; ++s) states[s].values[i] = kept[s];
  }
  store_group<true>(parameters, parameter, begin, count);
  store_rounded(rounded, parameter, begin, count);
#pragma unroll
  for (int s = 0; s < kStates<Optimizer>; ++s) store_group<true>(state.values[s], states[s], begin, count);
}

template <class T>
struct StoreClipFactor {
  T* out;
  double clip_norm;
  __device__ void operator()(std::int64_t, double squares) const {
    *out = elementwise::clip_factor<T>(squares, clip_norm);
  }
};

/// By the sum of the squares of gradients, or NaN, as square_sum_kernel leaves it.
template <class T>
struct StoreScaledFactor {
  T* out;
  T* loss_scaling;
  double clip_norm;
  __device__ void operator()(std::int64_t, double squares) const {
    const bool are_finite = squares == squares;
    const T unscaled = 1 / LossScaling::scale(loss_scaling);
    const T clipped = clip_norm > 0 ? elementwise::clip_factor<T>(squares, clip_norm) : T(1);
    *out = are_finite ? unscaled * clipped : T(NAN);
    LossScaling::adapt(loss_scaling, are_finite);
  }
};

/// finish(block, the sum of the squares of its kThreads kTerms values). A thread adds kTerms of them in T. With
/// `loss_scaling` values are divided by its scale first, and where one of them is infinite or NaN the sum is NaN, which
/// that of finite values never is.
template <class T, class Finish>
__global__ void __launch_bounds__(kThreads)
    square_sum_kernel(Finish finish, const T* values, std::int64_t count, const T* loss_scaling) {
  wait_for_grids_before();
  const std::int64_t first = std::int64_t{block_index()} * kThreads * kTerms + thread_index();
  const T unscaled = loss_scaling != nullptr ? 1 / LossScaling::scale(loss_scaling) : T(1);
  T sum = 0;
  bool are_finite = true;
#pragma unroll 8
  for (int term = 0; term < kTerms; ++term) {
    const std::int64_t index = first + std::int64_t{term} * kThreads;
    const T read = index < count ? values[index] : T(0);
    if (!(read - read == T(0))) are_finite = false;
    const T value = read * unscaled;
    sum += value * value;
  }
  if (loss_scaling != nullptr && !are_finite) sum = T(NAN);
  const double total = block_sum(static_cast<double>(sum), shared<WarpSums>().values);
  if (thread_index() == 0) finish(block_index(), total);
}

}  // namespace

template <class T>
void launch_gradient_factor(T* factor, T* loss_scaling, const T* gradients, double clip_norm, std::int64_t count,
                            double* slots, cudaStream_t stream) {
  const std::int64_t blocks = divide_up(count, std::int64_t{kThreads} * kTerms);
  const LaunchConfig config = waiting({blocks, kThreads, sizeof(WarpSums)});
  const auto launch_with = [&](const auto& finish) {
    using Finish = std::decay_t<decltype(finish)>;
    if (blocks == 1) {
      launch(square_sum_kernel<T, Finish>, config, stream, finish, gradients, count, loss_scaling);
      return;
    }
    launch(square_sum_kernel<T, Store<double>>, config, stream, Store<double>{slots}, gradients, count, loss_scaling);
    launch_sum_slots(finish, slots, 1, blocks, stream);
  };
  if (loss_scaling != nullptr)
    launch_with(StoreScaledFactor<T>{factor, loss_scaling, clip_norm});
  else
    launch_with(StoreClipFactor<T>{factor, clip_norm});
}

template <class T>
void launch_update(OptimizerKind optimizer, T* parameters, const OptimizerState<T>& state, const T* gradients,
                   const GradientFactor<T>& factor, const UpdateSums<T>& sums,
                   const elementwise::StepScalars<T>* scalars, std::int64_t count, cudaStream_t stream,
                   const RoundedCopy& rounded) {
  constexpr int width = kVector<T>;
  const std::span<const SummedGradient<T>> summed = sums.gradients;
  SumBlocks<T> ranges{};
  ranges.count = static_cast<std::int64_t>(summed.size());
  ranges.loss = sums.loss;
  ranges.first_block = divide_up(count, std::int64_t{kThreads} * width);
  std::int64_t blocks = ranges.first_block;
  for (std::size_t index = 0; index < summed.size(); ++index) {
    const PanelLayout layout = row_sum_layout(summed[index].rows, summed[index].columns);
    ranges.ranges[index] = {summed[index], layout};
    blocks += layout.tiles_across;
  }
  if (sums.loss.count > 0) ++blocks;
  const bool has_sums = blocks > ranges.first_block;
  elementwise::with_optimizer(optimizer, [&](auto of) {
    using Of = decltype(of);
    const auto kernel = has_sums ? update_kernel<T, width, Of, true> : update_kernel<T, width, Of, false>;
    launch(kernel, waiting({blocks, kThreads, has_sums ? static_cast<int>(sizeof(ThreadSums)) : 0}), stream, parameters,
           state, gradients, factor, ranges, scalars, count, rounded);
  });
}

template void launch_update(OptimizerKind, float*, const OptimizerState<float>&, const float*,
                            const GradientFactor<float>&, const UpdateSums<float>&,
                            const elementwise::StepScalars<float>*, std::int64_t, cudaStream_t, const RoundedCopy&);
template void launch_update(OptimizerKind, double*, const OptimizerState<double>&, const double*,
                            const GradientFactor<double>&, const UpdateSums<double>&,
                            const elementwise::StepScalars<double>*, std::int64_t, cudaStream_t, const RoundedCopy&);

template void launch_gradient_factor(float*, float*, const float*, double, std::int64_t, double*, cudaStream_t);
template void launch_gradient_factor(double*, double*, const double*, double, std::int64_t, double*, cudaStream_t);

}  // namespace deviceloop::cuda
