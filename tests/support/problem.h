// A training problem as tests use it: data and initial weights rounded to the working precision, so that an executor
// and the double reference start from the same numbers.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include <deviceloop/deviceloop.h>

#include "support/reference.h"

namespace deviceloop {

struct Problem {
  NetworkSpec network;
  TrainingSpec training;
  reference::Table x, y;
  reference::Network start;

  /// Random data and weights, all by their seed.
  static Problem random(std::vector<std::int64_t> widths, bool bias, std::int64_t samples, Precision precision,
                        Init init, double learning_rate, std::uint64_t seed = 7) {
    Problem problem;
    problem.network.widths = std::move(widths);
    problem.network.bias = bias;
    problem.training.precision = precision;
    problem.training.optimizer.learning_rate = learning_rate;
    problem.x = filled(samples, problem.network.widths.front(), precision, seed, kTensorX);
    problem.y = filled(samples, problem.network.widths.back(), precision, seed, kTensorY);
    TrainingSpec on_cpu = problem.training;
    on_cpu.device.kind = DeviceKind::cpu;
    Trainer trainer(problem.network, on_cpu);
    trainer.initialize(seed, init);
    problem.start = problem.parameters_of(trainer);
    if (bias)  // zero biases would hide a bias that is left out
      for (std::size_t layer = 0; layer < problem.start.size(); ++layer)
        problem.start[layer].bias = filled(1, static_cast<std::int64_t>(problem.start[layer].bias.size()), precision,
                                           seed + 1, static_cast<std::uint32_t>(100 + layer))
                                        .values;
    return problem;
  }

  static reference::Table filled(std::int64_t rows, std::int64_t columns, Precision precision, std::uint64_t seed,
                                 std::uint32_t tensor) {
    reference::Table table(static_cast<std::size_t>(rows), static_cast<std::size_t>(columns));
    if (precision == Precision::fp64) {
      fill_normal(Matrix(table.values.data(), rows, columns), seed, tensor);
    } else {
      std::vector<float> values(table.values.size());
      fill_normal(Matrix(values.data(), rows, columns), seed, tensor);
      table.values.assign(values.begin(), values.end());
    }
    return table;
  }

  static ConstMatrix view(const reference::Table& table) {
    return ConstMatrix(table.values.data(), static_cast<std::int64_t>(table.rows),
                       static_cast<std::int64_t>(table.columns));
  }

  /// A trainer with this problem's data and initial weights.
  Trainer trainer(int threads = 1, std::optional<ExecutorKind> executor = std::nullopt) const {
    TrainingSpec spec = training;
    spec.threads = threads;
    Trainer trainer(network, spec, executor);
    set_parameters(trainer, start);
    trainer.set_data(view(x), view(y));
    return trainer;
  }

  void set_parameters(Trainer& trainer, const reference::Network& values) const {
    for (int layer = 0; layer < network.layers(); ++layer) {
      const reference::Layer& from = values[static_cast<std::size_t>(layer)];
      trainer.write_weight(layer, view(from.weight));
      if (network.bias)
        trainer.write_bias(layer, ConstMatrix(from.bias.data(), 1, static_cast<std::int64_t>(from.bias.size())));
    }
  }

  reference::Network parameters_of(const Trainer& trainer) const {
    reference::Network values;
    for (int layer = 0; layer < network.layers(); ++layer) {
      const std::int64_t in = network.in_features(layer), out = network.out_features(layer);
      reference::Layer to;
      to.weight = reference::Table(static_cast<std::size_t>(in), static_cast<std::size_t>(out));
      trainer.read_weight(layer, Matrix(to.weight.values.data(), in, out));
      if (network.bias) {
        to.bias.resize(static_cast<std::size_t>(out));
        trainer.read_bias(layer, Matrix(to.bias.data(), 1, out));
      }
      values.push_back(std::move(to));
    }
    return values;
  }
};

/// All parameters in one vector, for bitwise comparison.
inline std::vector<double> flat(const reference::Network& network) {
  std::vector<double> values;
  for (const reference::Layer& layer : network) {
    values.insert(values.end(), layer.weight.values.begin(), layer.weight.values.end());
    values.insert(values.end(), layer.bias.begin(), layer.bias.end());
  }
  return values;
}

}  // namespace deviceloop
