// Sums in two stages and a fixed order: each block of a first kernel writes partial sums to slots of its own, a second
// kernel adds the slots of each output.
#pragma once

#include <cstdint>

#include "../../host/elementwise.h"
#include "../../host/planning/kernel_layout.h"
#include "../runtime/device.cuh"
#include "../runtime/launch.h"
#include "kernels.h"

namespace deviceloop::cuda {

/// Stores a sum over samples as the result.
template <class T>
struct Store {
  T* out;
  __device__ void operator()(std::int64_t index, double sum) const { out[index] = static_cast<T>(sum); }
};

/// A parameter and what the optimizer keeps for it, loaded before its gradient is known.
template <class T>
struct LoadedParameter {
  T value = 0, kept[elementwise::kMostStates] = {};

  __device__ void load(const GradientEnd<T>& of, std::int64_t index) {
    value = of.out[index];
#pragma unroll
    for (int s = 0; s < elementwise::kMostStates; ++s)
      if (of.state.values[s] != nullptr) kept[s] = of.state.values[s][index];
  }
  __device__ void update(const GradientEnd<T>& of, std::int64_t index, T gradient) {
    elementwise::update(of.optimizer, value, kept, gradient, *of.scalars);
    of.out[index] = value;
#pragma unroll
    for (int s = 0; s < elementwise::kMostStates; ++s)
      if (of.state.values[s] != nullptr) of.state.values[s][index] = kept[s];
  }
};

/// Ends with a sum over samples as a gradient, rounded to T first.
template <class T>
struct EndGradient {
  GradientEnd<T> end;
  __device__ void operator()(std::int64_t index, double sum) const {
    const T gradient = static_cast<T>(sum);
    if (end.scalars == nullptr) {
      end.out[index] = gradient;
      return;
    }
    LoadedParameter<T> parameter;
    parameter.load(end, index);
    parameter.update(end, index, gradient);
  }
};

/// Appends the loss of a step to the ring.
struct AppendLoss {
  LossRing ring;
  double scale;
  __device__ void operator()(std::int64_t, double sum) const {
    const std::int64_t step = ring.steps != nullptr ? *ring.steps : 0;
    ring.losses[step % ring.size] = sum * scale;
    if (ring.steps != nullptr) *ring.steps = step + 1;
  }
};

/// The sum over all threads of a block of kThreads, in every thread of its first warp. `partial` is shared memory, one
/// value per warp; it may be used again after the next barrier.
__device__ inline double block_sum(double value, double (&partial)[kThreads / kWarpThreads]) {
  const unsigned thread = thread_index();
  // In a butterfly both lanes of a pair add the same two numbers, so that all lanes get the same bits.
  for (unsigned mask = kWarpThreads / 2; mask > 0; mask /= 2) value += warp_shuffle_xor(value, mask);
  if (thread % kWarpThreads == 0) partial[thread / kWarpThreads] = value;
  block_barrier();
  double sum = 0;
  if (thread < kWarpThreads)
    for (const double each : partial) sum += each;
  return sum;
}

struct WarpSums {
  double values[kThreads / kWarpThreads];
};

/// By a block: a loss from its partial sums. Each thread adds every kThreads-th.
__device__ inline void append_loss(const LossSum& loss, WarpSums& sums) {
  double sum = 0;
  for (std::int64_t i = thread_index(); i < loss.count; i += kThreads) sum += loss.partial_sums[i];
  const double total = block_sum(sum, sums.values);
  if (thread_index() == 0) AppendLoss{loss.ring, loss.scale}(0, total);
}

/// By a block: finish(column, its sum) for the columns of a matrix in tile `across` of row_sum_layout(). The tiles of
/// rows are taken one after the other, each as column_sums_kernel adds it.
template <class T, class Finish>
__device__ void sum_columns(const Finish& finish, const T* matrix, std::int64_t rows, std::int64_t columns,
                            const PanelLayout& layout, std::int64_t across, double (&partial)[kThreads]) {
  const auto thread = static_cast<int>(thread_index());
  double total = 0;
  std::int64_t column = 0;
  for (std::int64_t down = 0; down < layout.tiles_down; ++down) {
    const PanelPlace place = panel_place(layout, rows, down * layout.tiles_across + across, thread);
    column = place.column;
    T sum = 0;
    if (column < columns)
#pragma unroll 8
      for (std::int64_t row = place.row; row < place.end_row; row += place.row_step)
        sum += matrix[row * columns + column];
    partial[thread] = static_cast<double>(sum);
    block_barrier();
    if (thread < layout.threads_across) {
      double tile = 0;
      for (int other = thread; other < kThreads; other += layout.threads_across) tile += partial[other];
      total += tile;
    }
    block_barrier();
  }
  if (thread < layout.threads_across && column < columns) finish(column, total);
}

struct SlotSums {
  double values[kThreads];
};

/// finish(j, sum of slots[j * count .. (j + 1) * count)) for `outputs` of them. The layout's `lanes` threads share a
/// row of slots, each adding every `lanes`th slot; their sums are then added pairwise.
template <class Finish>
__global__ void __launch_bounds__(kThreads)
    sum_slots_kernel(Finish finish, const double* slots, std::int64_t outputs, std::int64_t count, SlotLayout layout) {
  wait_for_grids_before();
  auto& sums = shared<SlotSums>().values;
  const auto thread = static_cast<int>(thread_index());
  const int lane = thread % layout.lanes;
  const std::int64_t output = std::int64_t{block_index()} * (kThreads / layout.lanes) + thread / layout.lanes;
  double sum = 0;
  if (output < outputs)
#pragma unroll 4
    for (std::int64_t slot = lane; slot < count; slot += layout.lanes) sum += slots[output * count + slot];
  sums[thread] = sum;
  for (int half = layout.lanes / 2; half > 0; half /= 2) {
    block_barrier();
    if (lane < half) sums[thread] += sums[thread + half];
  }
  if (lane == 0 && output < outputs) finish(output, sums[thread]);
}

template <class Finish>
void launch_sum_slots(const Finish& finish, const double* slots, std::int64_t outputs, std::int64_t count,
                      cudaStream_t stream) {
  const SlotLayout layout = slot_layout(outputs, count);
  launch(sum_slots_kernel<Finish>, waiting({layout.blocks, kThreads, sizeof(SlotSums)}), stream, finish, slots, outputs,
         count, layout);
}

}  // namespace deviceloop::cuda
