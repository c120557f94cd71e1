// The narrow layer, at most 16 outputs, which a GEMM library serves badly: memory-bound passes over its input.
#include <cmath>
#include <type_traits>

#include "../../host/elementwise.h"
#include "../runtime/launch.h"
#include "alignment.h"
#include "groups.cuh"
#include "kernels.h"
#include "slots.cuh"

namespace deviceloop::cuda {
namespace {

/// out = in weights (+ bias). A warp takes `rows` rows; its lanes take groups of inputs one after the other and add
/// their products in order, the lanes' sums are added in a butterfly. Groups are counted from the row's begin also
/// where rows lie askew. `outputs` is out_features or more; what is beyond is not computed.
template <class T, int outputs, int rows, bool aligned>
__global__ void __launch_bounds__(kThreads)
    narrow_linear_kernel(T* out, const T* in, const T* weights, const T* bias, std::int64_t batch,
                         std::int64_t in_features, int out_features) {
  constexpr int width = kVector<T>;
  constexpr int kWarps = kThreads / kWarpThreads;
  const auto lane = static_cast<int>(thread_index() % kWarpThreads);
  const std::int64_t warp = std::int64_t{block_index()} * kWarps + thread_index() / kWarpThreads;
  T sums[rows][outputs] = {};
  for (std::int64_t feature = lane * width; feature < in_features; feature += kWarpThreads * width) {
    Group<T, width> inputs[rows];
#pragma unroll
    for (int row = 0; row < rows; ++row) {
      const std::int64_t sample = warp * rows + row;
      if (sample < batch)
        load_group<aligned>(inputs[row], in + sample * in_features, feature, in_features);
      else
        inputs[row] = {};
    }
#pragma unroll
    for (int i = 0; i < width; ++i) {
      if (feature + i >= in_features) break;
#pragma unroll
      for (int output = 0; output < outputs; ++output) {
        if (output >= out_features) break;
        const T weight = weights[(feature + i) * out_features + output];
#pragma unroll
        for (int row = 0; row < rows; ++row)
          sums[row][output] = std::fma(inputs[row].values[i], weight, sums[row][output]);
      }
    }
  }
#pragma unroll
  for (int row = 0; row < rows; ++row)
#pragma unroll
    for (int output = 0; output < outputs; ++output) {
      T sum = sums[row][output];
#pragma unroll
      for (unsigned mask = kWarpThreads / 2; mask > 0; mask /= 2) sum += warp_shuffle_xor(sum, mask);
      const std::int64_t sample = warp * rows + row;
      // Each lane writes the output of its own number: neighbours lie together.
      if (lane == output && output < out_features && sample < batch)
        out[sample * out_features + output] = bias != nullptr ? sum + bias[output] : sum;
    }
}

struct ThreadSums {
  double values[kThreads];
};

/// dweights = h^T dout and dz = dout weights^T, `masked` by the marks of h or not. A thread has one feature and takes
/// at most kTerms samples, over which it adds in T; the threads of a feature are then added in order in double, for
/// finish((feature * out_features + output) * tiles_down + tile, sum). dz may be h: a thread writes only what it alone
/// has read. Only the block whose sums are final may change weights, which no other block reads then.
template <class T, class Finish, int outputs, bool masked>
__global__ void __launch_bounds__(kThreads)
    narrow_linear_gradient_kernel(T* dz, Finish finish, const T* h, const T* dout, const T* weights, std::int64_t batch,
                                  std::int64_t in_features, int out_features, PanelLayout layout) {
  auto& partial = shared<ThreadSums>().values;
  const auto thread = static_cast<int>(thread_index());
  const PanelPlace place = panel_place(layout, batch, block_index(), thread);
  const bool inside = place.column < in_features;
  T dweights[outputs] = {}, weight[outputs] = {};
  if (inside) {
#pragma unroll
    for (int output = 0; output < outputs; ++output)
      if (output < out_features) weight[output] = weights[place.column * out_features + output];
#pragma unroll 4
    for (std::int64_t sample = place.row; sample < place.end_row; sample += place.row_step) {
      const std::int64_t at = sample * in_features + place.column;
      const T activation = h[at];
      T dh = 0;
#pragma unroll
      for (int output = 0; output < outputs; ++output) {
        if (output >= out_features) break;
        const T gradient = dout[sample * out_features + output];
        dweights[output] = std::fma(activation, gradient, dweights[output]);
        dh = std::fma(gradient, weight[output], dh);
      }
      if (dz != nullptr) dz[at] = masked ? elementwise::relu_gradient_marked(activation, dh) : dh;
    }
  }
#pragma unroll
  for (int output = 0; output < outputs; ++output) {
    if (output >= out_features) break;
    if (output > 0) block_barrier();  // the sums before have been read
    partial[thread] = static_cast<double>(dweights[output]);
    block_barrier();
    if (thread >= layout.threads_across || !inside) continue;
    double total = 0;
    for (int other = thread; other < kThreads; other += layout.threads_across) total += partial[other];
    finish((place.column * out_features + output) * layout.tiles_down + place.tile_down, total);
  }
}

/// Calls use(std::integral_constant<int, n>) with the smallest power of two n that is not less than out_features.
template <class Use>
void with_outputs(int out_features, Use use) {
  switch (power_of_two(out_features, 16)) {
    case 1:
      return use(std::integral_constant<int, 1>());
    case 2:
      return use(std::integral_constant<int, 2>());
    case 4:
      return use(std::integral_constant<int, 4>());
    case 8:
      return use(std::integral_constant<int, 8>());
    default:
      return use(std::integral_constant<int, 16>());
  }
}

}  // namespace

template <class T>
void launch_narrow_linear(T* out, const T* in, const T* weights, const T* bias, std::int64_t batch,
                          std::int64_t in_features, int out_features, cudaStream_t stream) {
  const bool aligned = in_features % kVector<T> == 0 && aligned_to_16(in);
  with_outputs(out_features, [&](auto outputs) {
    const auto launch_rows = [&](auto rows) {
      const std::int64_t rows_per_block = std::int64_t{kThreads} / kWarpThreads * rows();
      const LaunchConfig config{divide_up(batch, rows_per_block), kThreads, 0};
      const auto kernel = aligned ? narrow_linear_kernel<T, outputs(), rows(), true>
                                  : narrow_linear_kernel<T, outputs(), rows(), false>;
      launch(kernel, config, stream, out, in, weights, bias, batch, in_features, out_features);
    };
    if (narrow_rows(batch) == 1)
      launch_rows(std::integral_constant<int, 1>());
    else
      launch_rows(std::integral_constant<int, 4>());
  });
}

namespace {

template <bool masked, class T, class Finish>
void launch_masked_gradient_to(const Finish& finish, T* dz, const T* h, const T* dout, const T* weights,
                               std::int64_t batch, std::int64_t in_features, int out_features, double* slots,
                               cudaStream_t stream) {
  const PanelLayout layout = row_sum_layout(batch, in_features);
  const LaunchConfig config{layout.blocks(), kThreads, sizeof(ThreadSums)};
  with_outputs(out_features, [&](auto outputs) {
    if (layout.tiles_down == 1)
      launch(narrow_linear_gradient_kernel<T, Finish, outputs(), masked>, config, stream, dz, finish, h, dout, weights,
             batch, in_features, out_features, layout);
    else
      launch(narrow_linear_gradient_kernel<T, Store<double>, outputs(), masked>, config, stream, dz,
             Store<double>{slots}, h, dout, weights, batch, in_features, out_features, layout);
  });
  if (layout.tiles_down > 1) launch_sum_slots(finish, slots, in_features * out_features, layout.tiles_down, stream);
}

template <class... Arguments>
void launch_gradient_to(bool masked, const Arguments&... arguments) {
  if (masked)
    launch_masked_gradient_to<true>(arguments...);
  else
    launch_masked_gradient_to<false>(arguments...);
}

}  // namespace

template <class T>
void launch_narrow_linear_gradient(bool masked, T* dz, T* dweights, const T* h, const T* dout, const T* weights,
                                   std::int64_t batch, std::int64_t in_features, int out_features, double* slots,
                                   cudaStream_t stream) {
  launch_gradient_to(masked, Store<T>{dweights}, dz, h, dout, weights, batch, in_features, out_features, slots, stream);
}

template <class T>
void launch_narrow_linear_descend(bool masked, T* dz, T* weights, const elementwise::StepScalars<T>* scalars,
                                  const T* h, const T* dout, std::int64_t batch, std::int64_t in_features,
                                  int out_features, double* slots, cudaStream_t stream) {
  const T* const before = weights;
  launch_gradient_to(masked, Descend<T>{weights, scalars}, dz, h, dout, before, batch, in_features, out_features, slots,
                     stream);
}

template void launch_narrow_linear(float*, const float*, const float*, const float*, std::int64_t, std::int64_t, int,
                                   cudaStream_t);
template void launch_narrow_linear(double*, const double*, const double*, const double*, std::int64_t, std::int64_t,
                                   int, cudaStream_t);
template void launch_narrow_linear_gradient(bool, float*, float*, const float*, const float*, const float*,
                                            std::int64_t, std::int64_t, int, double*, cudaStream_t);
template void launch_narrow_linear_gradient(bool, double*, double*, const double*, const double*, const double*,
                                            std::int64_t, std::int64_t, int, double*, cudaStream_t);

template void launch_narrow_linear_descend(bool, float*, float*, const elementwise::StepScalars<float>*, const float*,
                                           const float*, std::int64_t, std::int64_t, int, double*, cudaStream_t);
template void launch_narrow_linear_descend(bool, double*, double*, const elementwise::StepScalars<double>*,
                                           const double*, const double*, std::int64_t, std::int64_t, int, double*,
                                           cudaStream_t);

}  // namespace deviceloop::cuda
