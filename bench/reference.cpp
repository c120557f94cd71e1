#include "reference.h"

#include <algorithm>
#include <cmath>

#include "parallel.h"

namespace deviceloop::bench {
Table transposed(const Table& in) {
  Table out(in.columns, in.rows);
  for (std::int64_t i = 0; i < in.rows; ++i)
    for (std::int64_t j = 0; j < in.columns; ++j) out.row(j)[i] = in.row(i)[j];
  return out;
}

Table product(const Table& a, const Table& b) {
  Table out(a.rows, b.columns);
  constexpr std::int64_t kRows = 8;  // that share a row of b while it is in a cache
  in_parallel(a.rows, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t first = begin; first < end; first += kRows)
      for (std::int64_t k = 0; k < a.columns; ++k)
        for (std::int64_t i = first; i < std::min(first + kRows, end); ++i) {
          const double factor = a.row(i)[k];
          const double* const from = b.row(k);
          double* const to = out.row(i);
          for (std::int64_t j = 0; j < b.columns; ++j) to[j] += factor * from[j];
        }
  });
  return out;
}

std::vector<double> train_reference(Parameters& parameters, const Table& x, const Table& y, double learning_rate,
                                    std::int64_t steps) {
  std::vector<double> losses;
  const std::size_t layers = parameters.weights.size();
  for (std::int64_t step = 0; step < steps; ++step) {
    // Pre-activations of each layer, and the input of each.
    std::vector<Table> z(layers), inputs(layers);
    inputs[0] = x;
    for (std::size_t layer = 0; layer < layers; ++layer) {
      z[layer] = product(inputs[layer], parameters.weights[layer]);
      if (!parameters.biases.empty())
        for (std::int64_t i = 0; i < z[layer].rows; ++i)
          for (std::int64_t j = 0; j < z[layer].columns; ++j)
            z[layer].row(i)[j] += parameters.biases[layer].values[static_cast<std::size_t>(j)];
      if (layer + 1 == layers) break;
      inputs[layer + 1] = z[layer];
      for (double& value : inputs[layer + 1].values) value = value < 0 ? 0 : value;
    }
    double loss = 0;
    Table dz = z.back();
    for (std::size_t i = 0; i < dz.values.size(); ++i) {
      const double difference = dz.values[i] - y.values[i];
      loss += difference * difference;
      dz.values[i] = 2 * difference;
    }
    losses.push_back(loss);
    for (std::size_t layer = layers; layer-- > 0;) {
      Table below;
      if (layer > 0) {
        below = product(dz, transposed(parameters.weights[layer]));
        for (std::size_t i = 0; i < below.values.size(); ++i)
          if (z[layer - 1].values[i] < 0) below.values[i] = 0;
      }
      const Table gradient = product(transposed(inputs[layer]), dz);
      for (std::size_t i = 0; i < gradient.values.size(); ++i)
        parameters.weights[layer].values[i] -= learning_rate * gradient.values[i];
      if (!parameters.biases.empty())
        for (std::int64_t i = 0; i < dz.rows; ++i)
          for (std::int64_t j = 0; j < dz.columns; ++j)
            parameters.biases[layer].values[static_cast<std::size_t>(j)] -= learning_rate * dz.row(i)[j];
      dz = std::move(below);
    }
  }
  return losses;
}

double distance(const Table& a, const Table& b) {
  double sum = 0;
  for (std::size_t i = 0; i < a.values.size(); ++i) sum += (a.values[i] - b.values[i]) * (a.values[i] - b.values[i]);
  return std::sqrt(sum);
}

double norm(const Table& a) {
  double sum = 0;
  for (const double value : a.values) sum += value * value;
  return std::sqrt(sum);
}

}  // namespace deviceloop::bench
