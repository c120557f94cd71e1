// What a bias adds to a layer: its sum with the pre-activation, fused with the activation, and its gradient.
#include <type_traits>

#include "../../host/activations.h"
#include "../runtime/launch.h"
#include "alignment.h"
#include "groups.cuh"
#include "kernels.h"
#include "operands.cuh"
#include "slots.cuh"

namespace deviceloop::cuda {
namespace {

/// h = formula.value(z + bias), and with `keeps` z + bias to `kept`, and h to `rounded`, for [rows, groups * width]
/// matrices without gaps. A thread has one group of columns, whose biases it loads once, and takes kGroupsPerThread
/// rows, all loaded before the first store where the formula is short: h and kept may be z.
template <class T, int width, class Formula, bool keeps>
__global__ void __launch_bounds__(kThreads)
    bias_activation_kernel(T* h, const T* z, const T* bias, std::int64_t rows, std::int64_t groups, PanelLayout layout,
                           T* kept, Formula formula, RoundedCopy rounded) {
  wait_for_grids_before();
  const PanelPlace place = panel_place(layout, rows, block_index(), static_cast<int>(thread_index()));
  if (place.column >= groups) return;
  const std::int64_t columns = groups * width;
  Group<T, width> biases{};
  if (bias != nullptr) load_group<true>(biases, bias, place.column * width, columns);
  constexpr int at_once = activations::kIsShort<Formula> ? kGroupsPerThread : 1;
#pragma unroll 1
  for (int first = 0; first < kGroupsPerThread; first += at_once) {
    Group<T, width> sums[at_once];
#pragma unroll
    for (int item = 0; item < at_once; ++item) {
      const std::int64_t row = place.row + (first + item) * place.row_step;
      if (row < place.end_row) load_group<true>(sums[item], z + row * columns, place.column * width, columns);
    }
#pragma unroll
    for (int item = 0; item < at_once; ++item) {
      const std::int64_t row = place.row + (first + item) * place.row_step;
      if (row >= place.end_row) continue;
      Group<T, width> pre_activation;
#pragma unroll
      for (int i = 0; i < width; ++i) {
        const T sum = bias != nullptr ? sums[item].values[i] + biases.values[i] : sums[item].values[i];
        if constexpr (keeps) pre_activation.values[i] = sum;
        sums[item].values[i] = formula.value(sum);
      }
      if constexpr (keeps) store_group<true>(kept + row * columns, pre_activation, place.column * width, columns);
      store_group<true>(h + row * columns, sums[item], place.column * width, columns);
      store_rounded(rounded, sums[item], row * columns + place.column * width, (row + 1) * columns);
    }
  }
}

template <bool keeps, class Formula, class T>
void launch_bias(Formula formula, T* h, T* kept, const T* z, const T* bias, std::int64_t rows, std::int64_t columns,
                 cudaStream_t stream, const RoundedCopy& rounded = {}) {
  const auto launch_groups = [&](auto width) {
    const std::int64_t groups = columns / width();
    const PanelLayout layout = panel_layout(rows, groups, kThreads, kGroupsPerThread);
    launch(bias_activation_kernel<T, width(), Formula, keeps>, waiting({layout.blocks(), kThreads, 0}), stream, h, z,
           bias, rows, groups, layout, kept, formula, rounded);
  };
  if (columns % kVector<T> == 0 && aligned_to_16(h, z, bias) && aligned_to_16(kept))
    launch_groups(std::integral_constant<int, kVector<T>>());
  else
    launch_groups(std::integral_constant<int, 1>());
}

struct ThreadSums {
  double values[kThreads];
};

/// finish(column * tiles_down + tile, the column's sum over the rows of a tile). A thread adds at most kTerms rows in
/// T; the threads of a column are then added in order in double.
template <class T, class Finish>
__global__ void __launch_bounds__(kThreads)
    column_sums_kernel(Finish finish, const T* matrix, std::int64_t rows, std::int64_t columns, PanelLayout layout) {
  wait_for_grids_before();
  auto& partial = shared<ThreadSums>().values;
  const auto thread = static_cast<int>(thread_index());
  const PanelPlace place = panel_place(layout, rows, block_index(), thread);
  T sum = 0;
  if (place.column < columns)
#pragma unroll 8
    for (std::int64_t row = place.row; row < place.end_row; row += place.row_step)
      sum += matrix[row * columns + place.column];
  partial[thread] = static_cast<double>(sum);
  block_barrier();
  if (thread >= layout.threads_across || place.column >= columns) return;
  double total = 0;
  for (int other = thread; other < kThreads; other += layout.threads_across) total += partial[other];
  finish(place.column * layout.tiles_down + place.tile_down, total);
}

}  // namespace

template <class T>
void launch_bias_activation(const ActivationOfStep& activation, T* h, T* kept, const T* z, const T* bias,
                            std::int64_t batch, std::int64_t features, cudaStream_t stream,
                            const RoundedCopy& rounded) {
  activations::with_activation<T>(activation, [=](auto formula) {
    using Formula = decltype(formula);
    if constexpr (Formula::may_keep_pre_activation)
      if (kept != nullptr) return launch_bias<true>(formula, h, kept, z, bias, batch, features, stream, rounded);
    launch_bias<false, Formula, T>(formula, h, nullptr, z, bias, batch, features, stream, rounded);
  });
}

template <class T>
void launch_add_bias(T* z, const T* bias, std::int64_t batch, std::int64_t features, cudaStream_t stream) {
  launch_bias<false, activations::Identity, T>({}, z, nullptr, z, bias, batch, features, stream);
}

template <class T>
void launch_column_sums(const GradientEnd<T>& sums, const T* matrix, std::int64_t batch, std::int64_t features,
                        double* slots, cudaStream_t stream) {
  const EndGradient<T> finish{sums};
  const PanelLayout layout = row_sum_layout(batch, features);
  const LaunchConfig config = waiting({layout.blocks(), kThreads, sizeof(ThreadSums)});
  if (layout.tiles_down == 1) {
    launch(column_sums_kernel<T, EndGradient<T>>, config, stream, finish, matrix, batch, features, layout);
    return;
  }
  launch(column_sums_kernel<T, Store<double>>, config, stream, Store<double>{slots}, matrix, batch, features, layout);
  launch_sum_slots(finish, slots, features, layout.tiles_down, stream);
}

template void launch_bias_activation(const ActivationOfStep&, float*, float*, const float*, const float*, std::int64_t,
                                     std::int64_t, cudaStream_t, const RoundedCopy&);
template void launch_bias_activation(const ActivationOfStep&, double*, double*, const double*, const double*,
                                     std::int64_t, std::int64_t, cudaStream_t, const RoundedCopy&);
template void launch_column_sums(const GradientEnd<float>&, const float*, std::int64_t, std::int64_t, double*,
                                 cudaStream_t);
template void launch_column_sums(const GradientEnd<double>&, const double*, std::int64_t, std::int64_t, double*,
                                 cudaStream_t);
template void launch_add_bias(float*, const float*, std::int64_t, std::int64_t, cudaStream_t);
template void launch_add_bias(double*, const double*, std::int64_t, std::int64_t, cudaStream_t);

}  // namespace deviceloop::cuda
