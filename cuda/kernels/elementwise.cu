// The element-wise kernels: one functor an element, kGroupsPerThread groups a thread, all loads before the first store
// if it is short. An output may therefore be exactly one of the inputs: a thread writes only what it alone has read.
#include <cmath>
#include <type_traits>

#include "../../host/activations.h"
#include "../../host/elementwise.h"
#include "../runtime/launch.h"
#include "alignment.h"
#include "groups.cuh"
#include "kernels.h"
#include "operands.cuh"

namespace deviceloop::cuda {
namespace {

/// out[i] = function(in[i]...) for the groups of this thread, `at_once` of which are loaded before they are stored, as
/// store(out, group, first, count) does.
template <int width, int at_once = kGroupsPerThread, class T, class Function, class Store, class... In>
__device__ inline void map_groups_to(T* out, std::int64_t count, Function function, Store store, const In*... in) {
  const auto thread = static_cast<int>(thread_index());
  const std::int64_t block = block_index();
#pragma unroll 1
  for (int first = 0; first < kGroupsPerThread; first += at_once) {
    Group<T, width> loaded[at_once][sizeof...(in)];
#pragma unroll
    for (int item = 0; item < at_once; ++item) {
      const std::int64_t begin = group_index(block, thread, first + item) * width;
      int input = 0;
      (load_group<true>(loaded[item][input++], in, begin, count), ...);
    }
#pragma unroll
    for (int item = 0; item < at_once; ++item) {
      const std::int64_t begin = group_index(block, thread, first + item) * width;
      Group<T, width> result;
#pragma unroll
      for (int i = 0; i < width; ++i) {
        if constexpr (sizeof...(in) == 1)
          result.values[i] = function(loaded[item][0].values[i]);
        else
          result.values[i] = function(loaded[item][0].values[i], loaded[item][1].values[i]);
      }
      store(out, result, begin, count);
    }
  }
}

template <int width, class T, class Function, class... In>
__device__ inline void map_groups(T* out, std::int64_t count, Function function, const In*... in) {
  const auto store = [](T* to, const Group<T, width>& group, std::int64_t begin, std::int64_t end) {
    store_group<true>(to, group, begin, end);
  };
  map_groups_to<width>(out, count, function, store, in...);
}

/// out = relu(in)
template <class T, int width>
__global__ void __launch_bounds__(kThreads) relu_kernel(T* out, const T* in, std::int64_t count) {
  map_groups<width>(
      out, count, [](T z) { return elementwise::relu(z); }, in);
}

/// dz = z < 0 ? 0 : dh
template <class T, int width>
__global__ void __launch_bounds__(kThreads) relu_gradient_kernel(T* dz, const T* z, const T* dh, std::int64_t count) {
  map_groups<width>(
      dz, count, [](T at, T gradient) { return elementwise::relu_gradient(at, gradient); }, z, dh);
}

/// dz = formula.gradient(kept, dh), to `rounded` too
template <class T, int width, class Formula>
__global__ void __launch_bounds__(kThreads)
    activation_gradient_kernel(T* dz, const T* kept, const T* dh, std::int64_t count, Formula formula,
                               RoundedCopy rounded) {
  const auto store = [&rounded](T* to, const Group<T, width>& group, std::int64_t begin, std::int64_t end) {
    store_group<true>(to, group, begin, end);
    store_rounded(rounded, group, begin, end);
  };
  map_groups_to<width, activations::kIsShort<Formula> ? kGroupsPerThread : 1>(
      dz, count, [formula](T at, T gradient) { return formula.gradient(at, gradient); }, store, kept, dh);
}

/// `rounded` = values
__global__ void __launch_bounds__(kThreads) round_kernel(RoundedCopy rounded, const float* values, std::int64_t count) {
  const auto store = [&rounded](float*, const Group<float, kVector<float>>& group, std::int64_t begin,
                                std::int64_t end) { store_rounded(rounded, group, begin, end); };
  map_groups_to<kVector<float>>(
      static_cast<float*>(nullptr), count, [](float value) { return value; }, store, values);
}

/// weights -= learning_rate dweights
template <class T, int width>
__global__ void __launch_bounds__(kThreads)
    sgd_update_kernel(T* weights, const T* dweights, T learning_rate, std::int64_t count) {
  map_groups<width>(
      weights, count,
      [learning_rate](T weight, T gradient) { return elementwise::sgd_update(weight, gradient, learning_rate); },
      static_cast<const T*>(weights), dweights);
}

/// out = a x + b y
template <class T, int width>
__global__ void __launch_bounds__(kThreads)
    weighted_sum_kernel(T* out, T a, const T* x, T b, const T* y, std::int64_t count) {
  map_groups<width>(
      out, count, [a, b](T of_x, T of_y) { return elementwise::weighted_sum(a, of_x, b, of_y); }, x, y);
}

/// The grid of a kernel that takes groups of `width`.
LaunchConfig config_for(std::int64_t count, int width) { return {group_blocks(count, width), kThreads, 0}; }

}  // namespace

template <class T>
void launch_relu(T* out, const T* in, std::int64_t count, cudaStream_t stream) {
  if (aligned_to_16(out, in))
    launch(relu_kernel<T, kVector<T>>, config_for(count, kVector<T>), stream, out, in, count);
  else
    launch(relu_kernel<T, 1>, config_for(count, 1), stream, out, in, count);
}

template <class T>
void launch_relu_gradient(T* dz, const T* z, const T* dh, std::int64_t count, cudaStream_t stream) {
  if (aligned_to_16(dz, z, dh))
    launch(relu_gradient_kernel<T, kVector<T>>, config_for(count, kVector<T>), stream, dz, z, dh, count);
  else
    launch(relu_gradient_kernel<T, 1>, config_for(count, 1), stream, dz, z, dh, count);
}

template <class T>
void launch_activation_gradient(const ActivationOfStep& activation, T* dz, const T* kept, const T* dh,
                                std::int64_t count, cudaStream_t stream, const RoundedCopy& rounded) {
  activations::with_activation<T>(activation, [=](auto formula) {
    using Formula = decltype(formula);
    if (aligned_to_16(dz, kept, dh))
      launch(activation_gradient_kernel<T, kVector<T>, Formula>, config_for(count, kVector<T>), stream, dz, kept, dh,
             count, formula, rounded);
    else
      launch(activation_gradient_kernel<T, 1, Formula>, config_for(count, 1), stream, dz, kept, dh, count, formula,
             rounded);
  });
}

void launch_round(const RoundedCopy& rounded, const float* values, std::int64_t count, cudaStream_t stream) {
  launch(round_kernel, config_for(count, kVector<float>), stream, rounded, values, count);
}

template <class T>
void launch_sgd_update(T* weights, const T* dweights, T learning_rate, std::int64_t count, cudaStream_t stream) {
  if (aligned_to_16(weights, dweights))
    launch(sgd_update_kernel<T, kVector<T>>, config_for(count, kVector<T>), stream, weights, dweights, learning_rate,
           count);
  else
    launch(sgd_update_kernel<T, 1>, config_for(count, 1), stream, weights, dweights, learning_rate, count);
}

template <class T>
void launch_weighted_sum(T* out, T a, const T* x, T b, const T* y, std::int64_t count, cudaStream_t stream) {
  if (aligned_to_16(out, x, y))
    launch(weighted_sum_kernel<T, kVector<T>>, config_for(count, kVector<T>), stream, out, a, x, b, y, count);
  else
    launch(weighted_sum_kernel<T, 1>, config_for(count, 1), stream, out, a, x, b, y, count);
}

template void launch_relu(float*, const float*, std::int64_t, cudaStream_t);
template void launch_relu(double*, const double*, std::int64_t, cudaStream_t);
template void launch_relu_gradient(float*, const float*, const float*, std::int64_t, cudaStream_t);
template void launch_relu_gradient(double*, const double*, const double*, std::int64_t, cudaStream_t);
template void launch_activation_gradient(const ActivationOfStep&, float*, const float*, const float*, std::int64_t,
                                         cudaStream_t, const RoundedCopy&);
template void launch_activation_gradient(const ActivationOfStep&, double*, const double*, const double*, std::int64_t,
                                         cudaStream_t, const RoundedCopy&);
template void launch_sgd_update(float*, const float*, float, std::int64_t, cudaStream_t);
template void launch_sgd_update(double*, const double*, double, std::int64_t, cudaStream_t);
template void launch_weighted_sum(float*, float, const float*, float, const float*, std::int64_t, cudaStream_t);
template void launch_weighted_sum(double*, double, const double*, double, const double*, std::int64_t, cudaStream_t);

}  // namespace deviceloop::cuda
