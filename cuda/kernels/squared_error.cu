// The squared error: loss and gradient in one pass.
#include <type_traits>

#include "../../host/elementwise.h"
#include "../runtime/launch.h"
#include "alignment.h"
#include "groups.cuh"
#include "kernels.h"
#include "slots.cuh"

namespace deviceloop::cuda {
namespace {

/// Appends the loss of a step to the ring.
struct Append {
  LossRing ring;
  __device__ void operator()(std::int64_t, double loss) const {
    const std::int64_t step = *ring.steps;
    ring.losses[step % ring.size] = loss;
    *ring.steps = step + 1;
  }
};

struct WarpSums {
  double values[kThreads / kWarpThreads];
};

/// sums[block] = sum over the block's elements of (prediction - target)^2; gradient = 2 (prediction - target), unless
/// it is null. A thread adds its kGroupsPerThread groups in T. Groups are counted from element 0 even if the pointers
/// are not aligned, so that the order of the sum does not depend on the addresses.
template <class T, bool aligned, class Finish>
__global__ void __launch_bounds__(kThreads)
    squared_error_kernel(Finish finish, T* gradient, const T* prediction, const T* target, std::int64_t count) {
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
  T sum = 0;
#pragma unroll
  for (int item = 0; item < kGroupsPerThread; ++item) {
    Group<T, width> differences;
#pragma unroll
    for (int i = 0; i < width; ++i) {
      const T difference = predictions[item].values[i] - targets[item].values[i];
      sum += difference * difference;
      differences.values[i] = elementwise::squared_error_gradient(difference);
    }
    if (gradient != nullptr)
      store_group<aligned>(gradient, differences, group_index(block, thread, item) * width, count);
  }
  const double total = block_sum(static_cast<double>(sum), shared<WarpSums>().values);
  if (thread == 0) finish(block, total);
}

template <class T, class Finish>
void launch_squared_error_to(const Finish& finish, T* gradient, const T* prediction, const T* target,
                             std::int64_t count, double* slots, cudaStream_t stream) {
  const std::int64_t blocks = group_blocks(count, kVector<T>);
  const bool aligned = aligned_to_16(gradient, prediction, target);
  const auto launch_blocks = [&](const auto& finish_block) {
    using FinishBlock = std::decay_t<decltype(finish_block)>;
    const auto kernel =
        aligned ? squared_error_kernel<T, true, FinishBlock> : squared_error_kernel<T, false, FinishBlock>;
    launch(kernel, {blocks, kThreads, sizeof(WarpSums)}, stream, finish_block, gradient, prediction, target, count);
  };
  if (blocks == 1) return launch_blocks(finish);
  launch_blocks(Store<double>{slots});
  launch_sum_slots(finish, slots, 1, blocks, stream);
}

}  // namespace

template <class T>
void launch_squared_error(double* loss, T* gradient, const T* prediction, const T* target, std::int64_t count,
                          double* slots, cudaStream_t stream) {
  launch_squared_error_to(Store<double>{loss}, gradient, prediction, target, count, slots, stream);
}

template <class T>
void launch_squared_error(const LossRing& ring, T* gradient, const T* prediction, const T* target, std::int64_t count,
                          double* slots, cudaStream_t stream) {
  launch_squared_error_to(Append{ring}, gradient, prediction, target, count, slots, stream);
}

template void launch_squared_error(double*, float*, const float*, const float*, std::int64_t, double*, cudaStream_t);
template void launch_squared_error(double*, double*, const double*, const double*, std::int64_t, double*, cudaStream_t);

template void launch_squared_error(const LossRing&, float*, const float*, const float*, std::int64_t, double*,
                                   cudaStream_t);
template void launch_squared_error(const LossRing&, double*, const double*, const double*, std::int64_t, double*,
                                   cudaStream_t);

}  // namespace deviceloop::cuda
