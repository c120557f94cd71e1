// What only a GPU can show of the public kernels: capture into graphs, and arrays beyond 2^31 elements.
#include <gtest/gtest.h>

#include <cuda_runtime_api.h>
#include <thrust/count.h>
#include <thrust/device_ptr.h>
#include <thrust/execution_policy.h>
#include <thrust/fill.h>

#include <algorithm>
#include <cstdint>
#include <limits>
#include <memory>
#include <vector>

#include <deviceloop/cuda.h>
#include <deviceloop/error.h>

#include "support/cuda_test.h"

namespace deviceloop {
namespace {

using testing::DeviceArray;
using testing::random_values;

using CudaGraphs = testing::CudaTest;

struct DestroyGraph {
  void operator()(cudaGraph_t graph) const { cudaGraphDestroy(graph); }
};
struct DestroyGraphExec {
  void operator()(cudaGraphExec_t exec) const { cudaGraphExecDestroy(exec); }
};

TEST_F(CudaGraphs, CapturedKernelsGiveTheSameBitsOnEveryReplay) {
  const std::int64_t batch = 5000, features = 40;
  const auto weights = random_values<float>(features, 1), target = random_values<float>(batch, 2);
  const auto z = random_values<float>(batch * features, 3);
  const DeviceArray<float> device_z(z), device_weights(weights), device_target(target);
  const DeviceArray<float> h(batch * features), out(batch), dout(batch), dweights(features), dz(batch * features);
  const DeviceArray<double> loss(1);
  const std::size_t bytes =
      std::max(cuda::squared_error_workspace(batch), cuda::narrow_linear_gradient_workspace(batch, features, 1));
  const DeviceArray<double> workspace(static_cast<std::int64_t>(bytes / sizeof(double)));
  const cuda::StreamOwner stream;
  const auto step = [&] {
    cuda::bias_relu(h.data(), device_z.data(), static_cast<const float*>(nullptr), batch, features, stream.get());
    cuda::narrow_linear(out.data(), h.data(), device_weights.data(), static_cast<const float*>(nullptr), batch,
                        features, 1, stream.get());
    cuda::squared_error(loss.data(), dout.data(), out.data(), device_target.data(), batch, workspace.data(), bytes,
                        stream.get());
    cuda::narrow_linear_gradient(dz.data(), dweights.data(), h.data(), dout.data(), device_weights.data(), batch,
                                 features, 1, workspace.data(), bytes, stream.get());
    cuda::sgd_update(device_weights.data(), dweights.data(), 1e-6f, features, stream.get());
  };
  constexpr int kSteps = 3;
  std::vector<double> losses;
  for (int i = 0; i < kSteps; ++i) {
    step();
    losses.push_back(loss.read(stream)[0]);
  }
  const std::vector<float> trained = device_weights.read(stream);
  EXPECT_LT(losses[kSteps - 1], losses[0]);

  cudaGraph_t captured = nullptr;
  DEVICELOOP_CHECK_CUDA(cudaStreamBeginCapture(stream.get(), cudaStreamCaptureModeThreadLocal));
  step();
  DEVICELOOP_CHECK_CUDA(cudaStreamEndCapture(stream.get(), &captured));
  const std::unique_ptr<CUgraph_st, DestroyGraph> graph(captured);
  cudaGraphExec_t instance = nullptr;
  DEVICELOOP_CHECK_CUDA(cudaGraphInstantiate(&instance, graph.get(), 0));
  const std::unique_ptr<CUgraphExec_st, DestroyGraphExec> exec(instance);
  for (int repeat = 0; repeat < 2; ++repeat) {
    DEVICELOOP_CHECK_CUDA(cudaMemcpyAsync(device_weights.data(), weights.data(), features * sizeof(float),
                                          cudaMemcpyHostToDevice, stream.get()));
    for (int i = 0; i < kSteps; ++i) {
      DEVICELOOP_CHECK_CUDA(cudaGraphLaunch(exec.get(), stream.get()));
      EXPECT_EQ(loss.read(stream)[0], losses[i]) << "step " << i;
    }
    testing::expect_same(device_weights.read(stream), trained);
  }
}

class CudaLarge : public testing::CudaTest {
 protected:
  static constexpr std::int64_t kCount = (std::int64_t{1} << 31) + 1;
  /// `arrays` of kCount floats, or a failure where the GPU has no room for them.
  static bool has_room(int arrays) {
    std::size_t free = 0, total = 0;
    DEVICELOOP_CHECK_CUDA(cudaMemGetInfo(&free, &total));
    return free > arrays * kCount * sizeof(float) + (std::size_t{1} << 28);
  }
};

TEST_F(CudaLarge, ReluTakesMoreThan32BitsOfElements) {
  if (!has_room(2)) GTEST_SKIP() << "needs 18 GB of free GPU memory";
  const cuda::StreamOwner stream;
  const auto policy = thrust::cuda::par.on(stream.get());
  const cuda::DeviceBuffer in(kCount * sizeof(float)), out(kCount * sizeof(float));
  const thrust::device_ptr<float> first_in(static_cast<float*>(in.data())), first(static_cast<float*>(out.data()));
  thrust::fill_n(policy, first_in, kCount, -3.f);
  thrust::fill_n(policy, first, kCount, std::numeric_limits<float>::quiet_NaN());
  const std::int64_t positive[] = {0, (std::int64_t{1} << 31) - 1, std::int64_t{1} << 31};
  for (const std::int64_t index : positive) thrust::fill_n(policy, first_in + index, 1, 5.f);
  cuda::relu(static_cast<float*>(out.data()), static_cast<const float*>(in.data()), kCount, stream.get());
  EXPECT_EQ(thrust::count(policy, first, first + kCount, 5.f), 3);
  EXPECT_EQ(thrust::count(policy, first, first + kCount, 0.f), kCount - 3);
  for (const std::int64_t index : positive) EXPECT_EQ(static_cast<float>(first[index]), 5.f) << index;
}

TEST_F(CudaLarge, SquaredErrorTakesMoreThan32BitsOfElements) {
  if (!has_room(2)) GTEST_SKIP() << "needs 18 GB of free GPU memory";
  const cuda::StreamOwner stream;
  const auto policy = thrust::cuda::par.on(stream.get());
  const cuda::DeviceBuffer prediction(kCount * sizeof(float)), target(kCount * sizeof(float)), loss(sizeof(double));
  const cuda::DeviceBuffer workspace(cuda::squared_error_workspace(kCount));
  const thrust::device_ptr<float> first(static_cast<float*>(prediction.data()));
  const thrust::device_ptr<float> first_target(static_cast<float*>(target.data()));
  thrust::fill_n(policy, first, kCount, 2.5f);
  thrust::fill_n(policy, first_target, kCount, 1.5f);
  auto* gradient = static_cast<float*>(prediction.data());
  cuda::squared_error(static_cast<double*>(loss.data()), gradient, gradient, static_cast<const float*>(target.data()),
                      kCount, workspace.data(), workspace.bytes(), stream.get());
  double sum = 0;
  DEVICELOOP_CHECK_CUDA(cudaMemcpyAsync(&sum, loss.data(), sizeof sum, cudaMemcpyDeviceToHost, stream.get()));
  stream.wait();
  EXPECT_EQ(sum, static_cast<double>(kCount));
  EXPECT_EQ(thrust::count(policy, first, first + kCount, 2.f), kCount);
}

TEST_F(CudaGraphs, AStreamOfAnotherDeviceIsRefused) {
  int count = 0;
  DEVICELOOP_CHECK_CUDA(cudaGetDeviceCount(&count));
  if (count < 2) GTEST_SKIP() << "this machine has one GPU; the host fixture has two and tests this";
  const DeviceArray<float> a(8);
  std::unique_ptr<cuda::StreamOwner> other;
  {
    const cuda::CurrentDevice device(1);
    other = std::make_unique<cuda::StreamOwner>();
  }
  EXPECT_THROW(cuda::relu(a.data(), a.data(), 8, other->get()), InvalidArgument);
}

}  // namespace
}  // namespace deviceloop
