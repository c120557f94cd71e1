// Trains a fully fused MLP by tiny-cuda-nn, in fp16 and without biases: what `peer` starts and talks to. For each line
// on standard input, `classic loop`, `classic graph`, `jit loop` or `jit graph`, it trains twice from the same
// parameters: once to take the time of all steps, and once more to read the loss of each, which the library would have
// to wait for.
//
//   tiny_cuda_nn_train FOLDER SAMPLES INPUTS OUTPUTS UNITS HIDDEN_LAYERS STEPS RATE
//
// FOLDER holds arrays of float32 without a header: x [samples, inputs], y [samples, outputs], and the parameters, one
// matrix [outputs, inputs] of a layer after the other, the last one with outputs to a multiple of 16. RATE is that of
// the mean of squared errors. A line of JSON answers each line: {"seconds": ..., "losses": [...]}, losses being such
// means, or {"error": "..."}.
#include <tiny-cuda-nn/config.h>

#include <chrono>
#include <cstdint>
#include <cstdlib>
#include <exception>
#include <fstream>
#include <iostream>
#include <memory>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

namespace {

using tcnn::network_precision_t;

struct Case {
  std::string folder;
  std::uint32_t samples, inputs, outputs, units, hidden_layers;
  int steps;
  float rate;
};

void check(cudaError_t error) {
  if (error != cudaSuccess) throw std::runtime_error(cudaGetErrorString(error));
}

std::vector<float> read(const std::string& path) {
  std::ifstream file(path, std::ios::binary | std::ios::ate);
  if (!file) throw std::runtime_error("cannot read " + path);
  std::vector<float> values(static_cast<std::size_t>(file.tellg()) / sizeof(float));
  file.seekg(0);
  file.read(reinterpret_cast<char*>(values.data()), static_cast<std::streamsize>(values.size() * sizeof(float)));
  if (!file) throw std::runtime_error("cannot read all of " + path);
  return values;
}

/// A step is captured once, and replayed.
class Graph {
 public:
  template <class Step>
  Graph(cudaStream_t stream, const Step& step) {
    cudaGraph_t graph = nullptr;
    check(cudaStreamBeginCapture(stream, cudaStreamCaptureModeRelaxed));
    step();
    check(cudaStreamEndCapture(stream, &graph));
    check(cudaGraphInstantiate(&executable_, graph, nullptr, nullptr, 0));
    check(cudaGraphDestroy(graph));
  }
  ~Graph() { cudaGraphExecDestroy(executable_); }
  void launch(cudaStream_t stream) const { check(cudaGraphLaunch(executable_, stream)); }

 private:
  cudaGraphExec_t executable_ = nullptr;
};

class Training {
 public:
  Training(const Case& of, bool jit, cudaStream_t stream)
      : case_(of),
        stream_(stream),
        parameters_(read(of.folder + "/parameters")),
        x_(tcnn::GPUMatrixDynamic<float>(of.inputs, of.samples, jit ? tcnn::RM : tcnn::CM)),
        y_(of.outputs, of.samples) {
    const tcnn::json config = {
        {"loss", {{"otype", "L2"}}},
        {"optimizer", {{"otype", "SGD"}, {"learning_rate", of.rate}, {"l2_reg", 0.0f}}},
        {"encoding", {{"otype", "Identity"}}},
        {"network",
         {{"otype", "FullyFusedMLP"},
          {"activation", "ReLU"},
          {"output_activation", "None"},
          {"n_neurons", of.units},
          {"n_hidden_layers", of.hidden_layers}}},
    };
    model_ = tcnn::create_from_config(of.inputs, of.outputs, config);
    if (jit && !tcnn::supports_jit_fusion()) throw std::runtime_error("it has no JIT fusion here");
    model_.network->set_jit_fusion(jit);
    if (parameters_.size() != model_.network->n_params())
      throw std::runtime_error("the network has " + std::to_string(model_.network->n_params()) +
                               " parameters, and the file " + std::to_string(parameters_.size()));
    std::vector<float> x = read(of.folder + "/x");
    if (jit) {  // its kernels read one input of all samples after the other
      std::vector<float> transposed(x.size());
      for (std::size_t row = 0; row < of.samples; ++row)
        for (std::size_t i = 0; i < of.inputs; ++i) transposed[i * of.samples + row] = x[row * of.inputs + i];
      x = std::move(transposed);
    }
    const std::vector<float> y = read(of.folder + "/y");
    check(cudaMemcpy(x_.data(), x.data(), x.size() * sizeof(float), cudaMemcpyHostToDevice));
    check(cudaMemcpy(y_.data(), y.data(), y.size() * sizeof(float), cudaMemcpyHostToDevice));
    begin();
    step();  // allocates, and compiles with JIT
    check(cudaStreamSynchronize(stream_));
    if (jit && !model_.network->jit_fusion()) throw std::runtime_error("it could not compile its fused kernel");
  }

  double seconds(bool as_graph) {
    begin();
    std::unique_ptr<Graph> graph;
    if (as_graph) graph = std::make_unique<Graph>(stream_, [&] { step(); });
    check(cudaStreamSynchronize(stream_));
    const auto start = std::chrono::steady_clock::now();
    for (int i = 0; i < case_.steps; ++i) {
      if (graph)
        graph->launch(stream_);
      else
        step();
    }
    check(cudaStreamSynchronize(stream_));
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  }

  std::vector<float> losses() {
    begin();
    std::vector<float> losses;
    for (int i = 0; i < case_.steps; ++i) {
      const auto context = step();
      losses.push_back(model_.trainer->loss(stream_, *context));
    }
    return losses;
  }

 private:
  void begin() { model_.trainer->set_params_full_precision(parameters_.data(), parameters_.size()); }
  auto step() -> decltype(std::declval<tcnn::TrainableModel>().trainer->training_step(
      cudaStream_t(), std::declval<tcnn::GPUMatrixDynamic<float>&>(), std::declval<tcnn::GPUMatrix<float>&>())) {
    return model_.trainer->training_step(stream_, x_, y_);
  }

  Case case_;
  cudaStream_t stream_;
  std::vector<float> parameters_;
  tcnn::GPUMatrixDynamic<float> x_;
  tcnn::GPUMatrix<float> y_;
  tcnn::TrainableModel model_;
};

std::string answer(const Case& of, const std::string& line) {
  std::istringstream words(line);
  std::string kernels, mode;
  words >> kernels >> mode;
  cudaStream_t stream = nullptr;
  check(cudaStreamCreate(&stream));
  std::ostringstream out;
  out.precision(9);
  {
    Training training(of, kernels == "jit", stream);
    out << "{\"seconds\": " << training.seconds(mode == "graph") << ", \"losses\": [";
    bool is_first = true;
    for (const float loss : training.losses()) {
      out << (is_first ? "" : ", ");
      is_first = false;
      if (loss - loss == 0)
        out << loss;
      else
        out << "null";
    }
    out << "]}";
  }
  tcnn::free_all_gpu_memory_arenas();
  check(cudaStreamDestroy(stream));
  return out.str();
}

}  // namespace

int main(int count, char** words) {
  if (count != 9) {
    std::cerr << "usage: tiny_cuda_nn_train FOLDER SAMPLES INPUTS OUTPUTS UNITS HIDDEN_LAYERS STEPS RATE\n";
    return 2;
  }
  const auto number = [&](int i) { return static_cast<std::uint32_t>(std::strtoul(words[i], nullptr, 10)); };
  const Case of{words[1],
                number(2),
                number(3),
                number(4),
                number(5),
                number(6),
                static_cast<int>(number(7)),
                std::strtof(words[8], nullptr)};
  for (std::string line; std::getline(std::cin, line);) {
    std::string told;
    try {
      told = answer(of, line);
    } catch (const std::exception& error) {
      told = tcnn::json{{"error", error.what()}}.dump();
    }
    std::cout << told << std::endl;
  }
}
