// Evaluations of validation data: how many predictions are right, what all panels add up to, and whether the parameters
// are the best so far. The losses of a panel are those of loss.cu.
#include "../../host/accuracy.h"
#include "../runtime/launch.h"
#include "kernels.h"
#include "slots.cuh"

namespace deviceloop::cuda {
namespace {

constexpr int kWarps = kThreads / kWarpThreads;

/// The number of the largest of `columns` values, in all lanes of the warp.
template <class T>
__device__ std::int64_t largest_of_row(const T* values, std::int64_t columns) {
  Largest<T> largest;
  for (std::int64_t j = thread_index() % kWarpThreads; j < columns; j += kWarpThreads) largest.take(values[j], j);
#pragma unroll
  for (unsigned mask = kWarpThreads / 2; mask > 0; mask /= 2) {
    const T other = warp_shuffle_xor(largest.value, mask);
    const std::int64_t number = warp_shuffle_xor(largest.index, mask);
    if (number >= 0) largest.take(other, number);
  }
  return largest.index;
}

/// counts[block] = how many predictions of its kLossRows rows are right. A warp takes a row after the other.
template <class T>
__global__ void __launch_bounds__(kThreads)
    count_right_kernel(double* counts, const T* prediction, const T* target, std::int64_t rows, std::int64_t columns,
                       bool by_row, bool has_classes) {
  const unsigned lane = thread_index() % kWarpThreads;
  double count = 0;
  for (int i = 0; i < kLossRows / kWarps; ++i) {
    const std::int64_t row = std::int64_t{block_index()} * kLossRows + i * kWarps + thread_index() / kWarpThreads;
    if (row >= rows) break;
    const T* const values = prediction + row * columns;
    if (by_row) {
      const std::int64_t predicted = largest_of_row(values, columns);
      const std::int64_t wanted =
          has_classes ? static_cast<std::int64_t>(target[row]) : largest_of_row(target + row * columns, columns);
      if (lane == 0 && predicted == wanted) count += 1;
    } else {
      for (std::int64_t j = lane; j < columns; j += kWarpThreads)
        if (is_right(values[j], target[row * columns + j])) count += 1;
    }
  }
  const double total = block_sum(count, shared<WarpSums>().values);
  if (thread_index() == 0) counts[block_index()] = total;
}

/// By one block. Each thread adds every kThreads-th term.
__global__ void __launch_bounds__(kThreads)
    end_evaluation_kernel(EvaluationState* state, const double* losses, std::int64_t loss_terms, const double* counts,
                          std::int64_t count_terms, bool may_be_best) {
  auto& partial = shared<WarpSums>().values;
  double loss = 0, count = 0;
  for (std::int64_t i = thread_index(); i < loss_terms; i += kThreads) loss += losses[i];
  for (std::int64_t i = thread_index(); i < count_terms; i += kThreads) count += counts[i];
  loss = block_sum(loss, partial);
  block_barrier();
  count = block_sum(count, partial);
  if (thread_index() != 0) return;
  state->loss = loss;
  state->correct = count;
  const bool is_best = may_be_best && loss < state->best_loss;
  state->is_best = is_best ? 1 : 0;
  if (is_best) state->best_loss = loss;
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    keep_best_kernel(T* kept, const T* values, const EvaluationState* state, std::int64_t count) {
  if (state->is_best == 0) return;
#pragma unroll
  for (int item = 0; item < kGroupsPerThread; ++item) {
    const std::int64_t index = group_index(block_index(), static_cast<int>(thread_index()), item);
    if (index < count) kept[index] = values[index];
  }
}

}  // namespace

template <class T>
void launch_count_right(double* counts, const LossOfStep& loss, const T* prediction, const T* target, std::int64_t rows,
                        std::int64_t columns, cudaStream_t stream) {
  launch(count_right_kernel<T>, {divide_up(rows, kLossRows), kThreads, sizeof(WarpSums)}, stream, counts, prediction,
         target, rows, columns, !is_by_element(loss.kind), loss.has_classes);
}

void launch_end_evaluation(EvaluationState* state, const double* losses, std::int64_t loss_terms, const double* counts,
                           std::int64_t count_terms, bool may_be_best, cudaStream_t stream) {
  launch(end_evaluation_kernel, {1, kThreads, sizeof(WarpSums)}, stream, state, losses, loss_terms, counts, count_terms,
         may_be_best);
}

template <class T>
void launch_keep_best(T* kept, const T* values, const EvaluationState* state, std::int64_t count, cudaStream_t stream) {
  launch(keep_best_kernel<T>, {group_blocks(count, 1), kThreads, 0}, stream, kept, values, state, count);
}

template void launch_count_right(double*, const LossOfStep&, const float*, const float*, std::int64_t, std::int64_t,
                                 cudaStream_t);
template void launch_count_right(double*, const LossOfStep&, const double*, const double*, std::int64_t, std::int64_t,
                                 cudaStream_t);
template void launch_keep_best(float*, const float*, const EvaluationState*, std::int64_t, cudaStream_t);
template void launch_keep_best(double*, const double*, const EvaluationState*, std::int64_t, cudaStream_t);

}  // namespace deviceloop::cuda
