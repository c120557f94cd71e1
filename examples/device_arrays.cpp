// The starting case on an application's own arrays in a GPU's memory, and on its own
// stream: 1000 inputs, one hidden layer of 100, one output; 128 samples. The
// application works in frames; each enqueues twenty steps and goes on at once. Prints
// the losses as `deviceloop train` does.
//
//   device_arrays [FRAMES [graph]]
//
// With `graph` it is trained by kernels beside which others run; otherwise as is
// fastest.
#include <cuda_runtime_api.h>
#include <deviceloop/deviceloop.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

namespace {

using namespace deviceloop;

constexpr std::int64_t kSamples = 128, kInputs = 1000, kStepsPerFrame = 20;

void check(cudaError_t code) {
  if (code != cudaSuccess)
    throw std::runtime_error(std::string("CUDA: ") + cudaGetErrorString(code));
}

struct Stream {
  Stream() { check(cudaStreamCreateWithFlags(&handle, cudaStreamNonBlocking)); }
  ~Stream() { cudaStreamDestroy(handle); }
  Stream(const Stream&) = delete;
  Stream& operator=(const Stream&) = delete;
  cudaStream_t handle = nullptr;
};

/// Standard normal numbers in the GPU's memory, row-major, one row a sample.
struct Samples {
  Samples(std::int64_t columns, std::uint32_t tensor, cudaStream_t stream) {
    std::vector<float> values(static_cast<std::size_t>(kSamples * columns));
    fill_normal(Matrix(values.data(), kSamples, columns), TrainingSpec{}.seed, tensor);
    const std::size_t bytes = values.size() * sizeof(float);
    check(cudaMalloc(reinterpret_cast<void**>(&data), bytes));
    view = on_device(data, kSamples, columns);
    check(cudaMemcpyAsync(data, values.data(), bytes, cudaMemcpyHostToDevice, stream));
    check(cudaStreamSynchronize(stream));
  }
  ~Samples() { cudaFree(data); }
  Samples(const Samples&) = delete;
  Samples& operator=(const Samples&) = delete;

  float* data = nullptr;
  ConstMatrix view;
};

void run(int frames, std::optional<ExecutorKind> plan) {
  const Stream stream;
  const Samples x(kInputs, kTensorX, stream.handle), y(1, kTensorY, stream.handle);
  TrainingSpec training;
  training.optimizer.learning_rate = 1e-6;
  Trainer trainer({.widths = {kInputs, 100, 1}}, training, {.stream = stream.handle},
                  plan);
  trainer.set_data(x.view, y.view);  // used where they lie

  std::vector<TrainRun> runs;
  for (int frame = 0; frame < frames; ++frame)
    runs.push_back(trainer.train_async(kStepsPerFrame));

  std::int64_t step = 0;
  for (TrainRun& of : runs)
    for (const double loss : of.wait().losses) {
      const bool is_last = step + 1 == frames * kStepsPerFrame;
      if (step % (step <= 100 ? 10 : 100) == 0 || is_last)
        std::printf("%lld: %.2f\n", static_cast<long long>(step), loss);
      ++step;
    }
}

}  // namespace

int main(int argc, char** argv) try {
  const int frames = argc > 1 ? std::atoi(argv[1]) : 25;
  const bool by_graph = argc > 2 && std::string_view(argv[2]) == "graph";
  if (frames < 1 || argc > (by_graph ? 3 : 2)) {
    std::fprintf(stderr,
                 "device_arrays [FRAMES [graph]]: a number above 0, and a plan\n");
    return 2;
  }
  run(frames, by_graph ? std::optional(ExecutorKind::graph) : std::nullopt);
} catch (const std::exception& error) {
  std::fprintf(stderr, "device_arrays: %s\n", error.what());
  return 1;
}
