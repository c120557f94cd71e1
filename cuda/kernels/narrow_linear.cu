// The narrow layer, at most 16 outputs, which a GEMM library serves badly: memory-bound passes over its input.
#include <cmath>
#include <type_traits>

#include "../../host/elementwise.h"
#include "../../host/loss_scaling.h"
#include "../runtime/launch.h"
#include "alignment.h"
#include "groups.cuh"
#include "kernels.h"
#include "loss_rows.cuh"
#include "operands.cuh"
#include "slots.cuh"

namespace deviceloop::cuda {
namespace {

/// out = in weights (+ bias). A warp takes `rows` rows; its lanes take groups of inputs one after the other and add
/// their products in order, the lanes' sums are added in a butterfly. Groups are counted from the row's begin also
/// where rows lie askew. `outputs` is out_features or more; what is beyond is not computed. Here and below operands are
/// read through `rounded`.
template <class T, int outputs, int rows, bool aligned, class Rounded>
__global__ void __launch_bounds__(kThreads)
    narrow_linear_kernel(T* out, const T* in, const T* weights, const T* bias, std::int64_t batch,
                         std::int64_t in_features, int out_features, Rounded rounded) {
  wait_for_grids_before();
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
      T input[rows];
#pragma unroll
      for (int row = 0; row < rows; ++row) input[row] = rounded(inputs[row].values[i]);
#pragma unroll
      for (int output = 0; output < outputs; ++output) {
        if (output >= out_features) break;
        const T weight = rounded(weights[(feature + i) * out_features + output]);
#pragma unroll
        for (int row = 0; row < rows; ++row) sums[row][output] = std::fma(input[row], weight, sums[row][output]);
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

/// gradient = that of the loss by the predictions in weights (+ bias), and of each block partial_sums = the sum of its
/// rows' losses. A warp takes a row as narrow_linear_kernel does; of it each lane has the output of its own number,
/// whose losses are added in a butterfly in T, and the rows of a block then in double. The gradient is multiplied by
/// the scale of `loss_scaling`, unless that is null.
template <class T, int outputs, bool aligned, class Rounded>
__global__ void __launch_bounds__(kThreads)
    narrow_loss_kernel(LossOfStep loss, bool by_element, double* partial_sums, T* gradient, const T* in,
                       const T* weights, const T* bias, const T* target, const T* row_weights, std::int64_t batch,
                       std::int64_t in_features, int out_features, const T* loss_scaling, Rounded rounded) {
  wait_for_grids_before();
  constexpr int width = kVector<T>;
  const auto lane = static_cast<int>(thread_index() % kWarpThreads);
  const std::int64_t row = std::int64_t{block_index()} * (kThreads / kWarpThreads) + thread_index() / kWarpThreads;
  double sum = 0;
  if (row < batch) {
    // What the end needs is loaded first.
    const int target_columns = loss.has_classes ? 1 : out_features;
    const T goal = lane < target_columns ? target[row * target_columns + lane] : T(0);
    const T added = bias != nullptr && lane < out_features ? bias[lane] : T(0);
    const T weight = row_weights != nullptr ? row_weights[row] : T(1);
    T sums[outputs] = {};
    for (std::int64_t feature = lane * width; feature < in_features; feature += kWarpThreads * width) {
      Group<T, width> inputs;
      load_group<aligned>(inputs, in + row * in_features, feature, in_features);
#pragma unroll
      for (int i = 0; i < width; ++i) {
        if (feature + i >= in_features) break;
        const T input = rounded(inputs.values[i]);
#pragma unroll
        for (int output = 0; output < outputs; ++output)
          if (output < out_features)
            sums[output] = std::fma(input, rounded(weights[(feature + i) * out_features + output]), sums[output]);
      }
    }
    T prediction = 0;
#pragma unroll
    for (int output = 0; output < outputs; ++output) {
      const T all = warp_sum(sums[output]);
      if (lane == output) prediction = all;
    }
    if (bias != nullptr) prediction += added;
    sum = row_loss(loss, by_element, gradient + row * out_features, prediction, goal, target + row * target_columns,
                   row_weights != nullptr, weight, out_features);
    // Each lane what it has written.
    if (loss_scaling != nullptr && lane < out_features)
      gradient[row * out_features + lane] *= LossScaling::scale(loss_scaling);
  }
  const double total = block_sum(lane == 0 ? sum : 0.0, shared<WarpSums>().values);
  if (thread_index() == 0) partial_sums[block_index()] = total;
}

/// Columns that a thread of the gradient takes: an access of 16 bytes, or of 8 where it would keep too many sums.
template <class T, int outputs>
constexpr int kGradientWidth = outputs > 8 ? kVector<T> / 2 : kVector<T>;

/// Rows of a thread that are under way at once, limited by its registers.
template <int outputs>
constexpr int kGradientRows = outputs == 1   ? 8
                              : outputs <= 4 ? 4
                                             : 2;

/// A block's sums over the rows of its threads, one behind the other by thread, so that neighbours use different banks;
/// the pad does the same for those of one thread.
template <class T, int outputs>
union GradientSums {
  T values[outputs][kGradientWidth<T, outputs>][kThreads + 2];
  double of_bias[kThreads];
  WarpSums of_loss;
};

/// dweights = h^T dout and dz = dout weights^T, `masked` by the marks of h or not. A block takes a tile of the layout;
/// a thread has one group of columns and takes at most kTerms rows, some of them loaded together, over which it adds in
/// T in their order. The threads' sums are added in double: `lanes` threads take those of every `lanes`th thread of a
/// column, and their sums are added pairwise; with `slots` these are sums over a tile's rows, for a second kernel. dz
/// may be h: a thread writes only what it alone has read. Weights are updated by the only block that reads them, after
/// it has. Where operands are rounded, dz is stored to `copy` too. Blocks behind the tiles take the column sums of
/// dout, unless dbias.out is null, and end the loss, if there is one.
template <class T, int outputs, bool masked, bool aligned, class Rounded>
__global__ void __launch_bounds__(kThreads)
    narrow_linear_gradient_kernel(T* dz, GradientEnd<T> end, GradientEnd<T> dbias, double* slots, const T* h,
                                  const T* dout, const T* weights, std::int64_t batch, std::int64_t in_features,
                                  int out_features, ColumnGroupLayout layout, PanelLayout bias_layout, LossSum loss,
                                  Rounded rounded, RoundedCopy copy) {
  wait_for_grids_before();
  if (block_index() >= layout.blocks()) {
    auto& memory = shared<GradientSums<T, outputs>>();
    if (dbias.out == nullptr || block_index() > layout.blocks()) return append_loss(loss, memory.of_loss);
    return sum_columns(EndGradient<T>{dbias}, dout, batch, out_features, bias_layout, 0, memory.of_bias);
  }
  constexpr int width = kGradientWidth<T, outputs>;
  constexpr int rows = kGradientRows<outputs>;
  auto& partial = shared<GradientSums<T, outputs>>().values;
  const auto thread = static_cast<int>(thread_index());
  const auto tiles_across = static_cast<unsigned>(layout.tiles_across);  // a grid has fewer than 2^31 blocks
  const std::int64_t down = block_index() / tiles_across, across = block_index() % tiles_across;
  const std::int64_t first_column = across * layout.groups * width;
  const int row_step = kThreads / layout.groups;
  const int thread_row = thread / layout.groups;
  const std::int64_t column = first_column + thread % layout.groups * width;
  const std::int64_t begin = down * layout.rows_per_tile;
  const std::int64_t end_row = begin + layout.rows_per_tile < batch ? begin + layout.rows_per_tile : batch;

  // The sums of which this thread has a share at the end, and what the first of them changes: loaded first, as the end
  // would have to wait for it.
  const int sums = layout.groups * width * out_features;
  const int lanes = power_of_two_below(kThreads / sums, static_cast<int>(kWarpThreads));
  const int lane = thread % lanes;
  const auto index_of = [&](int sum) { return first_column * out_features + sum; };
  const std::int64_t results = in_features * out_features;
  const bool updates = end.scalars != nullptr && slots == nullptr;
  LoadedParameter<T> parameter;
  if (updates && lane == 0 && thread / lanes < sums && index_of(thread / lanes) < results)
    parameter.load(end, index_of(thread / lanes));

  T dweights[outputs][width] = {}, weight[outputs][width] = {};
  if (thread_row < row_step && column < in_features) {
#pragma unroll
    for (int output = 0; output < outputs; ++output)
#pragma unroll
      for (int i = 0; i < width; ++i)
        if (output < out_features && column + i < in_features)
          weight[output][i] = rounded(weights[(column + i) * out_features + output]);
    // Aligned rows are whole groups: there is no rest, nor code for one.
    const auto load_columns = [&](Group<T, width>& group, const T* row) {
      if constexpr (aligned)
        group = *reinterpret_cast<const Group<T, width>*>(row + column);
      else
        load_group<false>(group, row, column, in_features);
    };
    const auto store_columns = [&](T* row, const Group<T, width>& group) {
      if constexpr (aligned)
        *reinterpret_cast<Group<T, width>*>(row + column) = group;
      else
        store_group<false>(row, group, column, in_features);
    };
    [[maybe_unused]] const auto store_copy = [&](std::int64_t row_begin, const Group<T, width>& group) {
      if constexpr (aligned)
        store_rounded(copy, group, row_begin + column, row_begin + in_features);
      else
        for (int i = 0; i < width; ++i)
          if (column + i < in_features) store_rounded(copy, group.values[i], row_begin + column + i);
    };
    // Of the next row of this thread; `left` rows of it are still to come.
    const std::int64_t first_row = begin + thread_row;
    const T* in = h + first_row * in_features;
    const T* of_outputs = dout + first_row * out_features;
    T* to = dz != nullptr ? dz + first_row * in_features : nullptr;
    const std::int64_t step = row_step * in_features;
    const int outputs_step = row_step * out_features;
    auto left = static_cast<int>((end_row - first_row + row_step - 1) / row_step);
    for (; left > 0; left -= rows) {
      // All loads before the first store, which might be to what they read.
      Group<T, width> activations[rows];
      T gradients[rows][outputs];
#pragma unroll
      for (int r = 0; r < rows; ++r) {
        activations[r] = {};
        if (r < left) load_columns(activations[r], in);
#pragma unroll
        for (int output = 0; output < outputs; ++output)
          gradients[r][output] = r < left && output < out_features ? rounded(of_outputs[output]) : T(0);
        in += step;
        of_outputs += outputs_step;
      }
#pragma unroll
      for (int r = 0; r < rows; ++r) {
        if (r >= left) break;
        Group<T, width> below;
#pragma unroll
        for (int i = 0; i < width; ++i) {
          const T activation = activations[r].values[i], operand = rounded(activation);
          T dh = 0;
#pragma unroll
          for (int output = 0; output < outputs; ++output) {
            if (output >= out_features) break;
            dweights[output][i] = std::fma(operand, gradients[r][output], dweights[output][i]);
            dh = std::fma(gradients[r][output], weight[output][i], dh);
          }
          below.values[i] = masked ? elementwise::relu_gradient_marked(activation, dh) : dh;
        }
        if (dz == nullptr) continue;
        store_columns(to, below);
        if constexpr (!std::is_same_v<Rounded, AsTheyAre>)
          if (copy.high != nullptr) store_copy(to - dz, below);
        to += step;
      }
    }
  }

#pragma unroll
  for (int output = 0; output < outputs; ++output)
#pragma unroll
    for (int i = 0; i < width; ++i) partial[output][i][thread] = dweights[output][i];
  block_barrier();
  for (int first = 0; first < sums; first += kThreads / lanes) {
    const int sum = first + thread / lanes;
    const int of_tile = outputs == 1 ? sum : sum / out_features, output = outputs == 1 ? 0 : sum % out_features;
    double total = 0;
    if (sum < sums)
      for (int row = lane; row < row_step; row += lanes)
        total += static_cast<double>(partial[output][of_tile % width][of_tile / width + row * layout.groups]);
    for (int mask = lanes / 2; mask > 0; mask /= 2) total += warp_shuffle_xor(total, static_cast<unsigned>(mask));
    const std::int64_t index = index_of(sum);
    if (lane != 0 || sum >= sums || index >= results) continue;
    if (slots != nullptr) {
      slots[index * layout.tiles_down + down] = total;
    } else if (updates) {
      if (first > 0) parameter.load(end, index);
      parameter.update(end, index, static_cast<T>(total));
    } else {
      end.out[index] = static_cast<T>(total);
    }
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
                          std::int64_t in_features, int out_features, cudaStream_t stream, Precision precision) {
  const bool aligned = in_features % kVector<T> == 0 && aligned_to_16(in);
  with_operands<T>(precision, [&](auto rounded) {
    using Rounded = decltype(rounded);
    with_outputs(out_features, [&](auto outputs) {
      const auto launch_rows = [&](auto rows) {
        const std::int64_t rows_per_block = std::int64_t{kThreads} / kWarpThreads * rows();
        const LaunchConfig config = waiting({divide_up(batch, rows_per_block), kThreads, 0});
        const auto kernel = aligned ? narrow_linear_kernel<T, outputs(), rows(), true, Rounded>
                                    : narrow_linear_kernel<T, outputs(), rows(), false, Rounded>;
        launch(kernel, config, stream, out, in, weights, bias, batch, in_features, out_features, rounded);
      };
      if (narrow_rows(batch) == 1)
        launch_rows(std::integral_constant<int, 1>());
      else
        launch_rows(std::integral_constant<int, 4>());
    });
  });
}

template <class T>
void launch_narrow_loss(const LossOfStep& loss, double* partial_sums, T* gradient, const T* in, const T* weights,
                        const T* bias, const T* target, const T* row_weights, std::int64_t batch,
                        std::int64_t in_features, int out_features, cudaStream_t stream,
                        const std::type_identity_t<T>* loss_scaling, Precision precision) {
  const bool aligned = in_features % kVector<T> == 0 && aligned_to_16(in);
  const LaunchConfig config = waiting({narrow_loss_blocks(batch), kThreads, sizeof(WarpSums)});
  with_operands<T>(precision, [&](auto rounded) {
    using Rounded = decltype(rounded);
    with_outputs(out_features, [&](auto outputs) {
      const auto kernel =
          aligned ? narrow_loss_kernel<T, outputs(), true, Rounded> : narrow_loss_kernel<T, outputs(), false, Rounded>;
      launch(kernel, config, stream, loss, is_by_element(loss.kind), partial_sums, gradient, in, weights, bias, target,
             row_weights, batch, in_features, out_features, loss_scaling, rounded);
    });
  });
}

template <class T>
void launch_narrow_linear_gradient(bool masked, T* dz, const GradientEnd<T>& dweights, const GradientEnd<T>& dbias,
                                   const T* h, const T* dout, const T* weights, std::int64_t batch,
                                   std::int64_t in_features, int out_features, double* slots, cudaStream_t stream,
                                   const LossSum& loss, Precision precision, const RoundedCopy& copy) {
  const bool aligned = in_features % kVector<T> == 0 && aligned_to_16(h, dz);
  const auto launch_outputs = [&](auto outputs, auto rounded) {
    using Rounded = decltype(rounded);
    const ColumnGroupLayout layout = column_group_layout(batch, in_features, kGradientWidth<T, outputs()>);
    const int more_blocks = (dbias.out != nullptr ? 1 : 0) + (loss.count > 0 ? 1 : 0);
    const LaunchConfig config = waiting({layout.blocks() + more_blocks, kThreads, sizeof(GradientSums<T, outputs()>)});
    const auto run = [&](auto kernel) {
      launch(kernel, config, stream, dz, dweights, dbias, layout.tiles_down > 1 ? slots : nullptr, h, dout, weights,
             batch, in_features, out_features, layout, row_sum_layout(batch, out_features), loss, rounded, copy);
    };
    if (masked)
      run(aligned ? narrow_linear_gradient_kernel<T, outputs(), true, true, Rounded>
                  : narrow_linear_gradient_kernel<T, outputs(), true, false, Rounded>);
    else
      run(aligned ? narrow_linear_gradient_kernel<T, outputs(), false, true, Rounded>
                  : narrow_linear_gradient_kernel<T, outputs(), false, false, Rounded>);
    if (layout.tiles_down == 1) return;
    launch_sum_slots(EndGradient<T>{dweights}, slots, in_features * out_features, layout.tiles_down, stream);
  };
  with_operands<T>(precision, [&](auto rounded) {
    with_outputs(out_features, [&](auto outputs) { launch_outputs(outputs, rounded); });
  });
}

template void launch_narrow_loss(const LossOfStep&, double*, float*, const float*, const float*, const float*,
                                 const float*, const float*, std::int64_t, std::int64_t, int, cudaStream_t,
                                 const float*, Precision);
template void launch_narrow_loss(const LossOfStep&, double*, double*, const double*, const double*, const double*,
                                 const double*, const double*, std::int64_t, std::int64_t, int, cudaStream_t,
                                 const double*, Precision);
template void launch_narrow_linear(float*, const float*, const float*, const float*, std::int64_t, std::int64_t, int,
                                   cudaStream_t, Precision);
template void launch_narrow_linear(double*, const double*, const double*, const double*, std::int64_t, std::int64_t,
                                   int, cudaStream_t, Precision);
template void launch_narrow_linear_gradient(bool, float*, const GradientEnd<float>&, const GradientEnd<float>&,
                                            const float*, const float*, const float*, std::int64_t, std::int64_t, int,
                                            double*, cudaStream_t, const LossSum&, Precision, const RoundedCopy&);
template void launch_narrow_linear_gradient(bool, double*, const GradientEnd<double>&, const GradientEnd<double>&,
                                            const double*, const double*, const double*, std::int64_t, std::int64_t,
                                            int, double*, cudaStream_t, const LossSum&, Precision, const RoundedCopy&);

}  // namespace deviceloop::cuda
