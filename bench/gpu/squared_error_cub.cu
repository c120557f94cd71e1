#include "squared_error_cub.h"

#include <thrust/iterator/counting_iterator.h>
#include <thrust/iterator/transform_iterator.h>
#include <cub/device/device_reduce.cuh>

#include "../../cuda/runtime/check.h"

namespace deviceloop::bench {
namespace {

/// The square of difference i, taken in the working precision as ours.
template <class T>
struct SquaredDifference {
  const T* prediction;
  const T* target;
  __host__ __device__ double operator()(std::int64_t i) const {
    const T difference = prediction[i] - target[i];
    return static_cast<double>(difference * difference);
  }
};

template <class T>
std::size_t reduce(double* loss, const T* prediction, const T* target, std::int64_t count, void* workspace,
                   std::size_t workspace_bytes, cudaStream_t stream) {
  const auto squares = thrust::make_transform_iterator(thrust::counting_iterator<std::int64_t>(0),
                                                       SquaredDifference<T>{prediction, target});
  DEVICELOOP_CHECK_CUDA(cub::DeviceReduce::Sum(workspace, workspace_bytes, squares, loss, count, stream));
  return workspace_bytes;
}

}  // namespace

std::size_t squared_error_cub(double* loss, const float* prediction, const float* target, std::int64_t count,
                              void* workspace, std::size_t workspace_bytes, cudaStream_t stream) {
  return reduce(loss, prediction, target, count, workspace, workspace_bytes, stream);
}
std::size_t squared_error_cub(double* loss, const double* prediction, const double* target, std::int64_t count,
                              void* workspace, std::size_t workspace_bytes, cudaStream_t stream) {
  return reduce(loss, prediction, target, count, workspace, workspace_bytes, stream);
}

}  // namespace deviceloop::bench
