// A simulation on a GPU that trains a surrogate of itself while it runs. Particles fly
// in a box with soft walls. Each frame takes twenty small steps; the network learns to
// take them in one, from samples that the simulation leaves in its own arrays. All work
// is enqueued on the application's stream: between frames no data are copied, and the
// host waits for nothing.
//
//   particles [FRAMES] [PARTICLES]
#include <cublas_v2.h>
#include <cuda_runtime_api.h>
#include <deviceloop/cuda.h>
#include <deviceloop/deviceloop.h>

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <stdexcept>
#include <string>
#include <vector>

namespace {

using namespace deviceloop;

constexpr std::int64_t kState = 4;  // x, y and their velocities
constexpr int kSubsteps = 20, kTrainingSteps = 10;
constexpr float kTime = 0.01f, kStiffness = 200, kDrag = 0.02f;
constexpr float kPush = kTime * kStiffness;  // velocity that a wall gives a unit deep

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
  void wait() const { check(cudaStreamSynchronize(handle)); }
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

/// Row-major, in the GPU's memory.
struct DeviceMatrix {
  DeviceMatrix(std::int64_t matrix_rows, std::int64_t matrix_columns)
      : rows(matrix_rows), columns(matrix_columns) {
    check(cudaMalloc(reinterpret_cast<void**>(&data), bytes()));
  }
  DeviceMatrix(const std::vector<float>& values, std::int64_t matrix_rows,
               const Stream& stream)
      : DeviceMatrix(matrix_rows,
                     static_cast<std::int64_t>(values.size()) / matrix_rows) {
    check(cudaMemcpyAsync(data, values.data(), bytes(), cudaMemcpyHostToDevice,
                          stream.handle));
    stream.wait();
  }
  ~DeviceMatrix() { cudaFree(data); }
  DeviceMatrix(const DeviceMatrix&) = delete;
  DeviceMatrix& operator=(const DeviceMatrix&) = delete;

  std::size_t bytes() const {
    return static_cast<std::size_t>(rows * columns) * sizeof(float);
  }
  operator ConstMatrix() const {
    return on_device(static_cast<const float*>(data), rows, columns);
  }
  operator Matrix() const { return on_device(data, rows, columns); }
  std::vector<float> read(const Stream& stream) const {
    std::vector<float> values(static_cast<std::size_t>(rows * columns));
    check(cudaMemcpyAsync(values.data(), data, bytes(), cudaMemcpyDeviceToHost,
                          stream.handle));
    stream.wait();
    return values;
  }

  std::int64_t rows, columns;
  float* data = nullptr;
};

/// One particle a row. How deep it is in each of the four walls is
/// relu(state to_walls - 1); a small step is state flight + depths forces, where
/// positions move by the new velocity, which keeps the energy.
class Simulation {
 public:
  Simulation(std::int64_t particles, const Stream& stream)
      : stream_(stream),
        blas_(stream.handle),
        depths_(particles, kState),
        flight_({1, 0, 0, 0, 0, 1, 0, 0, kTime, 0, 1 - kDrag * kTime, 0, 0, kTime, 0,
                 1 - kDrag * kTime},
                kState, stream),
        to_walls_({1, -1, 0, 0, 0, 0, 1, -1, 0, 0, 0, 0, 0, 0, 0, 0}, kState, stream),
        forces_({-kTime * kPush, 0, -kPush, 0, kTime * kPush, 0, kPush, 0, 0,
                 -kTime * kPush, 0, -kPush, 0, kTime * kPush, 0, kPush},
                kState, stream),
        walls_({-1, -1, -1, -1}, 1, stream) {}

  /// to = the state a small step after `from`.
  void step(const DeviceMatrix& from, DeviceMatrix& to) {
    multiply(from, to_walls_, 0, depths_);
    cuda::bias_relu(depths_.data, depths_.data, walls_.data, from.rows, kState,
                    stream_.handle);
    multiply(from, flight_, 0, to);
    multiply(depths_, forces_, 1, to);
  }

  /// `to` = the state kSubsteps after `from`; `between` is overwritten.
  void advance(const DeviceMatrix& from, DeviceMatrix& between, DeviceMatrix& to) {
    step(from, between);
    for (int i = 1; i < kSubsteps; i += 2) {
      step(between, to);
      if (i + 2 < kSubsteps) step(to, between);
    }
  }

 private:
  /// out = a b + beta out. cuBLAS takes a row-major matrix for its transpose.
  void multiply(const DeviceMatrix& a, const DeviceMatrix& b, float beta,
                DeviceMatrix& out) {
    const float one = 1;
    check(cublasSgemm(blas_.handle, CUBLAS_OP_N, CUBLAS_OP_N,
                      static_cast<int>(b.columns), static_cast<int>(a.rows),
                      static_cast<int>(a.columns), &one, b.data,
                      static_cast<int>(b.columns), a.data, static_cast<int>(a.columns),
                      &beta, out.data, static_cast<int>(out.columns)));
  }

  const Stream& stream_;
  Blas blas_;
  DeviceMatrix depths_;
  DeviceMatrix flight_, to_walls_, forces_, walls_;
};

double mean_square(const std::vector<float>& a, const std::vector<float>& b) {
  double sum = 0;
  for (std::size_t i = 0; i < a.size(); ++i) {
    const double difference = static_cast<double>(a[i]) - b[i];
    sum += difference * difference;
  }
  return sum / static_cast<double>(a.size());
}

void run(int frames, std::int64_t particles) {
  const Stream stream;
  Simulation simulation(particles, stream);
  std::vector<float> start(static_cast<std::size_t>(particles * kState));
  fill_normal(Matrix(start.data(), particles, kState), 1, kTensorX, 0.5);
  DeviceMatrix before(start, particles, stream), after(particles, kState),
      between(particles, kState), predicted(particles, kState);
  simulation.advance(before, between, after);

  NetworkSpec network{.widths = {kState, 64, 64, kState}, .bias = true};
  TrainingSpec training;
  training.reduction = Reduction::mean;
  training.optimizer = {
      .kind = OptimizerKind::sgd, .learning_rate = 0.02, .momentum = 0.9};
  Trainer trainer(network, training, CudaOptions{.stream = stream.handle},
                  ExecutorKind::graph);
  trainer.initialize(2, Init::he);
  trainer.set_data(before, after);

  std::vector<TrainRun> runs;
  for (int frame = 0; frame < frames; ++frame) {
    simulation.step(after, before);  // a sample begins a step behind the last one's end
    simulation.advance(before, between, after);
    trainer.data_changed();
    runs.push_back(trainer.train_async(kTrainingSteps));
    trainer.predict(before, predicted);  // what a renderer would show
  }

  stream.wait();
  for (int frame = 0; frame < frames; ++frame) {
    TrainRun& of = runs[static_cast<std::size_t>(frame)];
    while (!of.done()) continue;
    if (frame % (frames < 10 ? 1 : frames / 10) == 0)
      std::printf("frame %3d: loss %.6f\n", frame, of.losses().back());
  }
  const std::vector<float> truth = after.read(stream);
  std::printf("mean squared error of the last frame: %.6f, of standing still %.6f\n",
              mean_square(predicted.read(stream), truth),
              mean_square(before.read(stream), truth));
}

}  // namespace

int main(int argc, char** argv) try {
  const int frames = argc > 1 ? std::atoi(argv[1]) : 200;
  const int particles = argc > 2 ? std::atoi(argv[2]) : 4096;
  if (frames < 1 || particles < 1) {
    std::fprintf(stderr, "particles [FRAMES] [PARTICLES]: two numbers above 0\n");
    return 2;
  }
  run(frames, particles);
} catch (const std::exception& error) {
  std::fprintf(stderr, "particles: %s\n", error.what());
  return 1;
}
