// Losses and their gradients, in one pass over predictions whose losses are by element, in three by row.
#include <type_traits>

#include "../../host/elementwise.h"
#include "../../host/loss_scaling.h"
#include "../runtime/launch.h"
#include "alignment.h"
#include "groups.cuh"
#include "kernels.h"
#include "loss_end.h"
#include "loss_rows.cuh"
#include "operands.cuh"
#include "slots.cuh"

namespace deviceloop::cuda {
namespace {

/// Whether the loss of two zeros is 0: then nothing need be left out where groups are filled up with them.
template <class Formula>
inline constexpr bool kZeroOfZeros = true;
template <class T>
inline constexpr bool kZeroOfZeros<elementwise::Scaled<elementwise::BinaryCrossEntropy, T>> = false;

/// Of the rows of predictions: kernels are compiled for both, so that rows without weights cost nothing. With weights
/// there is one for all alignments.
/// @{
struct NoWeights {};
template <class T>
struct RowWeights {
  const T* values;
  std::int64_t columns;
};
/// @}

/// finish(block, the sum of the losses of the block's elements, times the weights of their rows); gradient = that of
/// each, unless it is null. A thread adds its kGroupsPerThread groups in T. Groups are counted from element 0 even if
/// the pointers are not aligned, so that the order of the sum does not depend on the addresses.
template <class T, bool aligned, class Formula, class Finish, class Weights>
__global__ void __launch_bounds__(kThreads)
    element_loss_kernel(Finish finish, Formula formula, LossGradient<T> gradient, const T* prediction, const T* target,
                        std::int64_t count, Weights weights) {
  wait_for_grids_before();
  constexpr bool is_weighted = !std::is_same_v<Weights, NoWeights>;
  constexpr int width = kVector<T>;
  static_assert(kGroupsPerThread * width <= kTerms);
  const auto thread = static_cast<int>(thread_index());
  const std::int64_t block = block_index();
  Group<T, width> predictions[kGroupsPerThread], targets[kGroupsPerThread];
#pragma unroll
  for (int item = 0; item < kGroupsPerThread; ++item) {
    const std::int64_t begin = group_index(block, thread, item) * width;
    load_group<aligned>(predictions[item], prediction, begin, count);
    load_group<aligned>(targets[item], target, begin, count);
  }
  const T loss_scale = gradient.loss_scaling != nullptr ? LossScaling::scale(gradient.loss_scaling) : T(1);
  T sum = 0;
#pragma unroll
  for (int item = 0; item < kGroupsPerThread; ++item) {
    Group<T, width> gradients;
    const std::int64_t begin = group_index(block, thread, item) * width;
    [[maybe_unused]] std::int64_t row = 0, column = 0;
    if constexpr (is_weighted) {
      row = begin / weights.columns;
      column = begin % weights.columns;
    }
#pragma unroll
    for (int i = 0; i < width; ++i) {
      elementwise::LossTerm<T> term = formula(predictions[item].values[i], targets[item].values[i]);
      if constexpr (is_weighted) {
        term = elementwise::weighted(term, begin + i < count ? weights.values[row] : T(0));
        if (++column == weights.columns) {
          column = 0;
          ++row;
        }
      }
      if (kZeroOfZeros<Formula> || begin + i < count) sum += term.value;
      gradients.values[i] = term.gradient * loss_scale;
    }
    if (gradient.out != nullptr) store_group<aligned>(gradient.out, gradients, begin, count);
    store_rounded(gradient.rounded, gradients, begin, count);
  }
  const double total = block_sum(static_cast<double>(sum), shared<WarpSums>().values);
  if (thread == 0) finish(block, total);
}

/// finish(block, the sum of the losses of the block's rows, times their weights). A warp takes a row after the other.
template <class T, class Finish, class Weights>
__global__ void __launch_bounds__(kThreads)
    cross_entropy_kernel(Finish finish, LossGradient<T> gradient, const T* prediction, const T* target,
                         std::int64_t rows, std::int64_t columns, bool has_classes, T scale, Weights weights) {
  wait_for_grids_before();
  constexpr int kWarps = kThreads / kWarpThreads;
  const std::int64_t target_columns = has_classes ? 1 : columns;
  if (gradient.loss_scaling != nullptr) scale *= LossScaling::scale(gradient.loss_scaling);
  double sum = 0;
  for (int i = 0; i < kLossRows / kWarps; ++i) {
    const std::int64_t row = std::int64_t{block_index()} * kLossRows + i * kWarps + thread_index() / kWarpThreads;
    if (row >= rows) break;
    T weight = 1;
    if constexpr (!std::is_same_v<Weights, NoWeights>) weight = weights.values[row];
    const T loss =
        cross_entropy_row(gradient.out != nullptr ? gradient.out + row * columns : nullptr, prediction + row * columns,
                          target + row * target_columns, columns, has_classes, scale * weight);
    if (gradient.rounded.high != nullptr)  // each lane what it has written
      for (std::int64_t j = thread_index() % kWarpThreads; j < columns; j += kWarpThreads)
        store_rounded(gradient.rounded, gradient.out[row * columns + j], row * columns + j);
    if (thread_index() % kWarpThreads == 0) sum += static_cast<double>(loss * weight);
  }
  const double total = block_sum(sum, shared<WarpSums>().values);
  if (thread_index() == 0) finish(block_index(), total);
}

__global__ void __launch_bounds__(kThreads) end_loss_kernel(LossSum loss) {
  wait_for_grids_before();
  append_loss(loss, shared<WarpSums>());
}

}  // namespace

void launch_end_loss(const LossSum& loss, cudaStream_t stream) {
  launch(end_loss_kernel, waiting({1, kThreads, sizeof(WarpSums)}), stream, loss);
}

namespace {

template <class T, class Finish>
void launch_blocks(const Finish& finish, const LossOfStep& loss, const LossGradient<T>& gradient, const T* prediction,
                   const T* target, const T* weights, std::int64_t rows, std::int64_t columns, cudaStream_t stream) {
  const std::int64_t count = rows * columns;
  const bool by_element = is_by_element(loss.kind);
  const std::int64_t blocks = loss_blocks<T>(by_element, rows, columns);
  const LaunchConfig config = waiting({blocks, kThreads, sizeof(WarpSums)});
  const auto launch_weighted = [&](const auto& row_weights) {
    using Weights = std::decay_t<decltype(row_weights)>;
    if (!by_element) {
      launch(cross_entropy_kernel<T, Finish, Weights>, config, stream, finish, gradient, prediction, target, rows,
             columns, loss.has_classes, static_cast<T>(loss.scale), row_weights);
      return;
    }
    elementwise::with_loss<T>(loss, [&](auto formula) {
      using Formula = decltype(formula);
      const auto launch_aligned = [&](auto aligned) {
        launch(element_loss_kernel<T, aligned(), Formula, Finish, Weights>, config, stream, finish, formula, gradient,
               prediction, target, count, row_weights);
      };
      if constexpr (std::is_same_v<Weights, NoWeights>)
        if (aligned_to_16(gradient.out, prediction, target)) return launch_aligned(std::true_type());
      launch_aligned(std::false_type());
    });
  };
  if (weights == nullptr)
    launch_weighted(NoWeights());
  else
    launch_weighted(RowWeights<T>{weights, columns});
}

}  // namespace

template <class T>
void launch_loss_blocks(const LossOfStep& loss, double* partial_sums,
                        const std::type_identity_t<LossGradient<T>>& gradient, const T* prediction, const T* target,
                        const T* weights, std::int64_t rows, std::int64_t columns, cudaStream_t stream) {
  launch_blocks(Store<double>{partial_sums}, loss, gradient, prediction, target, weights, rows, columns, stream);
}

template <class T>
void launch_loss(const LossOfStep& loss, const LossRing& ring, const std::type_identity_t<LossGradient<T>>& gradient,
                 const T* prediction, const T* target, const T* weights, std::int64_t rows, std::int64_t columns,
                 double* slots, cudaStream_t stream) {
  const AppendLoss append{ring, loss.scale};
  const std::int64_t blocks = loss_blocks<T>(is_by_element(loss.kind), rows, columns);
  if (blocks == 1) return launch_blocks(append, loss, gradient, prediction, target, weights, rows, columns, stream);
  launch_loss_blocks(loss, slots, gradient, prediction, target, weights, rows, columns, stream);
  launch_sum_slots(append, slots, 1, blocks, stream);
}

template void launch_loss_blocks(const LossOfStep&, double*, const LossGradient<float>&, const float*, const float*,
                                 const float*, std::int64_t, std::int64_t, cudaStream_t);
template void launch_loss_blocks(const LossOfStep&, double*, const LossGradient<double>&, const double*, const double*,
                                 const double*, std::int64_t, std::int64_t, cudaStream_t);
template void launch_loss(const LossOfStep&, const LossRing&, const LossGradient<float>&, const float*, const float*,
                          const float*, std::int64_t, std::int64_t, double*, cudaStream_t);
template void launch_loss(const LossOfStep&, const LossRing&, const LossGradient<double>&, const double*, const double*,
                          const double*, std::int64_t, std::int64_t, double*, cudaStream_t);

}  // namespace deviceloop::cuda
