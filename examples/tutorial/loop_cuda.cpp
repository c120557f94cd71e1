// The training loop by hand on a GPU: cuBLAS multiplies the large matrices,
// <deviceloop/cuda.h> does all the rest. Everything is enqueued on one stream, so that
// each operation begins when the one before it has ended; the host waits once, for the
// losses of all steps.
#include <cublas_v2.h>
#include <cuda_runtime_api.h>
#include <deviceloop/cuda.h>
#include <deviceloop/deviceloop.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <exception>
#include <stdexcept>
#include <string>
#include <vector>

namespace {

using namespace deviceloop;

constexpr std::int64_t kSamples = 128, kInputs = 1000, kHidden = 100, kOutputs = 1;
constexpr int kSteps = 500;
constexpr double kLearningRate = 1e-6;

void check(cudaError_t code) {
  if (code != cudaSuccess)
    throw std::runtime_error(std::string("CUDA: ") + cudaGetErrorString(code));
}
void check(cublasStatus_t code) {
  if (code != CUBLAS_STATUS_SUCCESS)
    throw std::runtime_error(std::string("cuBLAS: ") + cublasGetStatusString(code));
}

struct Stream {
  Stream() { check(cudaStreamCreateWithFlags(&handle, cudaStreamNonBlocking)); }
  ~Stream() { cudaStreamDestroy(handle); }
  Stream(const Stream&) = delete;
  Stream& operator=(const Stream&) = delete;
  cudaStream_t handle = nullptr;
};

struct Blas {
  explicit Blas(cudaStream_t stream) {
    check(cublasCreate(&handle));
    check(cublasSetStream(handle, stream));
  }
  ~Blas() { cublasDestroy(handle); }
  Blas(const Blas&) = delete;
  Blas& operator=(const Blas&) = delete;
  cublasHandle_t handle = nullptr;
};

/// A row-major matrix in the GPU's memory.
struct DeviceMatrix {
  DeviceMatrix(std::int64_t matrix_rows, std::int64_t matrix_columns)
      : rows(matrix_rows), columns(matrix_columns) {
    check(cudaMalloc(reinterpret_cast<void**>(&data), bytes()));
  }
  ~DeviceMatrix() { cudaFree(data); }
  DeviceMatrix(const DeviceMatrix&) = delete;
  DeviceMatrix& operator=(const DeviceMatrix&) = delete;
  std::int64_t size() const { return rows * columns; }
  std::size_t bytes() const {
    return static_cast<std::size_t>(size()) * sizeof(double);
  }
  std::int64_t rows, columns;
  double* data = nullptr;
};

/// Normal numbers, the same as those of `deviceloop train`.
void fill_normal(DeviceMatrix& matrix, std::uint32_t tensor, cudaStream_t stream) {
  std::vector<double> values(static_cast<std::size_t>(matrix.size()));
  deviceloop::fill_normal({values.data(), matrix.rows, matrix.columns}, 0, tensor);
  check(cudaMemcpyAsync(matrix.data, values.data(), matrix.bytes(),
                        cudaMemcpyHostToDevice, stream));
}

/// c = a b, or a^T b. cuBLAS knows column-major matrices only, in which each of ours is
/// its transpose, so it is asked for c^T = b^T a^T: the factors change places, and a
/// row is as long as `columns`.
void multiply(const Blas& blas, DeviceMatrix& c, const DeviceMatrix& a,
              bool transpose_a, const DeviceMatrix& b) {
  const double one = 1, zero = 0;
  const auto columns = [](const DeviceMatrix& matrix) {
    return static_cast<int>(matrix.columns);
  };
  check(cublasDgemm(blas.handle, CUBLAS_OP_N, transpose_a ? CUBLAS_OP_T : CUBLAS_OP_N,
                    columns(c), static_cast<int>(c.rows), static_cast<int>(b.rows),
                    &one, b.data, columns(b), a.data, columns(a), &zero, c.data,
                    columns(c)));
}

std::vector<double> train() {
  const Stream stream;
  const Blas blas(stream.handle);
  DeviceMatrix x(kSamples, kInputs), y(kSamples, kOutputs), w1(kInputs, kHidden),
      w2(kHidden, kOutputs);
  fill_normal(x, kTensorX, stream.handle);
  fill_normal(y, kTensorY, stream.handle);
  fill_normal(w1, tensor_of_weight(0), stream.handle);
  fill_normal(w2, tensor_of_weight(1), stream.handle);

  DeviceMatrix h(kSamples, kHidden), dz(kSamples, kHidden), p(kSamples, kOutputs),
      dp(kSamples, kOutputs);
  DeviceMatrix dw1(kInputs, kHidden), dw2(kHidden, kOutputs), losses(kSteps, 1);
  const std::size_t room =
      std::max(cuda::squared_error_workspace(p.size()),
               cuda::narrow_linear_gradient_workspace(kSamples, kHidden, kOutputs));
  DeviceMatrix workspace(static_cast<std::int64_t>(room / sizeof(double)) + 1, 1);

  for (int step = 0; step < kSteps; ++step) {
    // Z = X W1, and H = relu(Z) in its place: no biases
    multiply(blas, h, x, false, w1);
    cuda::bias_relu(h.data, h.data, nullptr, kSamples, kHidden, stream.handle);
    // P = H W2
    cuda::narrow_linear(p.data, h.data, w2.data, nullptr, kSamples, kHidden, kOutputs,
                        stream.handle);
    // the loss, and dP = 2 (P - Y)
    cuda::squared_error(losses.data + step, dp.data, p.data, y.data, p.size(),
                        workspace.data, workspace.bytes(), stream.handle);
    // dW2 = H^T dP, and dZ = dP W2^T where Z >= 0, else 0
    cuda::narrow_linear_gradient(dz.data, dw2.data, h.data, dp.data, w2.data, kSamples,
                                 kHidden, kOutputs, workspace.data, workspace.bytes(),
                                 stream.handle);
    // dW1 = X^T dZ, and both weights move against their slopes
    multiply(blas, dw1, x, true, dz);
    cuda::sgd_update(w1.data, dw1.data, kLearningRate, w1.size(), stream.handle);
    cuda::sgd_update(w2.data, dw2.data, kLearningRate, w2.size(), stream.handle);
  }

  std::vector<double> values(kSteps);
  check(cudaMemcpyAsync(values.data(), losses.data, losses.bytes(),
                        cudaMemcpyDeviceToHost, stream.handle));
  check(cudaStreamSynchronize(stream.handle));
  return values;
}

}  // namespace

int main() try {
  const std::vector<double> losses = train();
  for (int step = 0; step < kSteps; ++step)
    if (step % (step < 100 ? 10 : 100) == 0 || step == kSteps - 1)
      std::printf("%4d  %.2f\n", step, losses[static_cast<std::size_t>(step)]);
} catch (const std::exception& error) {
  std::fprintf(stderr, "loop_cuda: %s\n", error.what());
  return 2;
}
