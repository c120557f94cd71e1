// predict/cuda/...: predictions from and to device arrays, as a graph of the caller's that holds one call of predict.
#include <algorithm>
#include <cmath>
#include <memory>
#include <string>
#include <vector>

#include <deviceloop/trainer.h>

#include "../../host/matrix_ops.h"
#include "../random_data.h"
#include "cases.h"
#include "device.h"

namespace deviceloop::bench {
namespace {

constexpr std::int64_t kCheckedRows = 64;

NetworkSpec network_of(const std::vector<std::int64_t>& widths) {
  NetworkSpec network;
  network.widths = widths;
  network.bias = true;
  return network;
}

TrainingSpec spec_of(Precision precision, DeviceKind device) {
  TrainingSpec spec;
  spec.precision = precision;
  spec.device.kind = device;
  return spec;
}

template <class T>
class PredictWork final : public Work {
 public:
  PredictWork(const std::vector<std::int64_t>& widths, std::int64_t rows, std::uint64_t seed)
      : widths_(widths),
        rows_(rows),
        seed_(seed),
        x_(rows * widths.front()),
        out_(rows * widths.back()),
        trainer_(network_of(widths), spec_of(kPrecision, DeviceKind::cuda), CudaOptions{.stream = stream_.get()},
                 ExecutorKind::graph) {
    trainer_.initialize(seed, Init::he);
    fill_random(x_, seed, kFirst, false, stream_);
    batch_ = Batch(1, stream_, [this](std::int64_t, cudaStream_t) { enqueue(); });
  }

  Demand demand() const override {
    Demand demand;
    demand.device = Device::cuda;
    demand.precision = kPrecision;
    demand.elements = static_cast<double>(rows_);
    double weights = 0;
    for (std::size_t layer = 0; layer + 1 < widths_.size(); ++layer)
      weights += static_cast<double>(widths_[layer]) * static_cast<double>(widths_[layer + 1]);
    demand.flops = 2 * static_cast<double>(rows_) * weights;
    demand.bytes = demand.footprint = static_cast<double>(x_.bytes() + out_.bytes()) + weights * sizeof(T);
    return demand;
  }

  void poison() override { out_.poison(stream_); }
  double run(std::int64_t calls) override { return batch_.us_of_a_launch(calls, stream_); }

  /// Some rows, the last among them, against those of the CPU in double.
  void check() override {
    Trainer reference(network_of(widths_), spec_of(Precision::fp64, DeviceKind::cpu));
    const NetworkSpec& network = reference.network();
    for (int layer = 0; layer < network.layers(); ++layer) {
      const std::int64_t in = network.in_features(layer), out = network.out_features(layer);
      std::vector<T> weight(static_cast<std::size_t>(in * out));
      trainer_.read_weight(layer, Matrix(weight.data(), in, out));
      reference.write_weight(layer, ConstMatrix(weight.data(), in, out));
    }
    const std::int64_t count = std::min(rows_, kCheckedRows), inputs = widths_.front(), outputs = widths_.back();
    for (const std::int64_t first : {std::int64_t{0}, rows_ - count}) {
      std::vector<T> x(static_cast<std::size_t>(count * inputs));
      for (std::size_t i = 0; i < x.size(); ++i)
        x[i] = random_value<T>(seed_, kFirst, first * inputs + static_cast<std::int64_t>(i));
      std::vector<double> expected(static_cast<std::size_t>(count * outputs));
      reference.predict(ConstMatrix(x.data(), count, inputs), Matrix(expected.data(), count, outputs));
      const std::vector<T> found = out_.read(first * outputs, count * outputs, stream_);
      double largest = 0;
      for (const double value : expected) largest = std::max(largest, std::abs(value));
      for (std::size_t i = 0; i < found.size(); ++i)
        if (!(std::abs(static_cast<double>(found[i]) - expected[i]) <= kBound * largest))
          throw WrongResult("prediction " + std::to_string(first * outputs + static_cast<std::int64_t>(i)) + " is " +
                            std::to_string(found[i]) + ", not " + std::to_string(expected[i]));
    }
  }

 private:
  static constexpr Precision kPrecision = sizeof(T) == sizeof(float) ? Precision::fp32 : Precision::fp64;
  static constexpr double kBound = kPrecision == Precision::fp32 ? 1e-5 : 1e-13;

  void enqueue() {
    trainer_.predict(on_device(static_cast<const T*>(x_.data()), rows_, widths_.front()),
                     on_device(out_.data(), rows_, widths_.back()));
  }

  const std::vector<std::int64_t> widths_;
  const std::int64_t rows_;
  const std::uint64_t seed_;
  const cuda::StreamOwner stream_;
  const DeviceArray<T> x_, out_;
  Trainer trainer_;
  Batch batch_;
};

}  // namespace

std::vector<Block> gpu_predict_blocks(const GpuCaps& gpu, std::uint64_t seed) {
  const auto make = [=](const Values& values) -> std::optional<Case> {
    const std::vector<std::int64_t> widths = widths_of(values);
    const std::int64_t rows = count_of(values, "n");
    const Precision precision = precision_of(values);
    Case made;
    made.name = "predict/cuda/" + values.at("layers") + "/n=" + std::to_string(rows) + "/" + name(precision);
    made.device = Device::cuda;
    if (static_cast<double>(rows * (widths.front() + widths.back())) * 8 > 0.9 * static_cast<double>(gpu.memory_bytes))
      made.refused = "its arrays take more memory than the GPU has";
    made.prepare = [=] {
      return with_type(element_type(precision), [&]<class T>(T*) -> std::unique_ptr<Work> {
        return std::make_unique<PredictWork<T>>(widths, rows, seed);
      });
    };
    return made;
  };
  const auto block = [&](bool by_default, std::vector<std::string> rows) {
    return Block{by_default, {{"layers", {"64-64-64-1"}}, {"n", std::move(rows)}, {"precision", {"fp32"}}}, make};
  };
  return {block(true, {"256", "16384", "1048576"}), block(false, powers_of_two(8, 20, 2))};
}

}  // namespace deviceloop::bench
