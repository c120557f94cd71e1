// Gradient descent in double, written from the equations element by element. It shares nothing with what it checks: no
// functor, no GEMM, no layout. reference_test.cpp checks it by finite differences and against recorded NumPy runs.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <limits>
#include <vector>

namespace deviceloop::reference {

/// A [rows, columns] matrix of doubles.
struct Table {
  std::size_t rows = 0;
  std::size_t columns = 0;
  std::vector<double> values;

  Table() = default;
  Table(std::size_t row_count, std::size_t column_count)
      : rows(row_count), columns(column_count), values(row_count * column_count) {}
  double& operator()(std::size_t row, std::size_t column) { return values[row * columns + column]; }
  double operator()(std::size_t row, std::size_t column) const { return values[row * columns + column]; }
};

/// One layer: a weight [in, out] and a bias of out values, or none.
struct Layer {
  Table weight;
  std::vector<double> bias;
};
using Network = std::vector<Layer>;

/// NaN stays.
inline double relu(double z) { return z < 0 ? 0 : z; }

/// An activation: its value at z, and the gradient there from that of the value.
struct Activation {
  double (*value)(double z);
  double (*gradient)(double z, double dh);
};
constexpr Activation kIdentity = {[](double z) { return z; }, [](double, double dh) { return dh; }};
constexpr Activation kRelu = {relu, [](double z, double dh) { return z < 0 ? 0 : dh; }};

/// Pre-activations of every layer; those of the last are the prediction.
inline std::vector<Table> forward(const Network& network, const Table& x, const Activation& activation = kRelu) {
  std::vector<Table> pre_activations;
  for (std::size_t l = 0; l < network.size(); ++l) {
    const Layer& layer = network[l];
    Table z(x.rows, layer.weight.columns);
    for (std::size_t n = 0; n < z.rows; ++n) {
      for (std::size_t j = 0; j < z.columns; ++j) z(n, j) = layer.bias.empty() ? 0 : layer.bias[j];
      for (std::size_t i = 0; i < layer.weight.rows; ++i) {
        const double input = l == 0 ? x(n, i) : activation.value(pre_activations[l - 1](n, i));
        for (std::size_t j = 0; j < z.columns; ++j) z(n, j) += input * layer.weight(i, j);
      }
    }
    pre_activations.push_back(std::move(z));
  }
  return pre_activations;
}

inline double loss(const Table& prediction, const Table& y) {
  double sum = 0;
  for (std::size_t i = 0; i < y.values.size(); ++i)
    sum += (prediction.values[i] - y.values[i]) * (prediction.values[i] - y.values[i]);
  return sum;
}

/// The loss of a prediction, and its gradient in it.
using LossFunction = double(const Table& prediction, const Table& y, Table& gradient);

inline double squared_error(const Table& prediction, const Table& y, Table& gradient) {
  for (std::size_t i = 0; i < y.values.size(); ++i) gradient.values[i] = 2 * (prediction.values[i] - y.values[i]);
  return loss(prediction, y);
}

/// The loss, and its gradient in every parameter.
inline double gradients(const Network& network, const Table& x, const Table& y, Network& out,
                        const Activation& activation = kRelu,
                        const std::function<LossFunction>& loss_of = squared_error,
                        const Activation& output_activation = kIdentity) {
  const std::vector<Table> z = forward(network, x, activation);
  out.assign(network.size(), {});
  Table dz(x.rows, network.back().weight.columns);
  Table prediction = z.back();
  for (double& value : prediction.values) value = output_activation.value(value);
  const double loss = loss_of(prediction, y, dz);
  for (std::size_t i = 0; i < dz.values.size(); ++i)
    dz.values[i] = output_activation.gradient(z.back().values[i], dz.values[i]);
  for (std::size_t l = network.size(); l-- > 0;) {
    const Layer& layer = network[l];
    out[l].weight = Table(layer.weight.rows, layer.weight.columns);
    out[l].bias.assign(layer.bias.size(), 0);
    Table dh(dz.rows, layer.weight.rows);
    for (std::size_t n = 0; n < dz.rows; ++n) {
      for (std::size_t j = 0; j < layer.bias.size(); ++j) out[l].bias[j] += dz(n, j);
      for (std::size_t i = 0; i < layer.weight.rows; ++i) {
        const double input = l == 0 ? x(n, i) : activation.value(z[l - 1](n, i));
        double sum = 0;
        for (std::size_t j = 0; j < layer.weight.columns; ++j) {
          out[l].weight(i, j) += input * dz(n, j);
          sum += dz(n, j) * layer.weight(i, j);
        }
        dh(n, i) = l > 0 ? activation.gradient(z[l - 1](n, i), sum) : sum;
      }
    }
    dz = dh;
  }
  return loss;
}

/// `steps` steps of gradient descent in place; returns the loss before each.
inline std::vector<double> train(Network& network, const Table& x, const Table& y, double learning_rate,
                                 std::int64_t steps, const Activation& activation = kRelu) {
  std::vector<double> losses;
  Network gradient;
  for (std::int64_t step = 0; step < steps; ++step) {
    losses.push_back(gradients(network, x, y, gradient, activation));
    for (std::size_t l = 0; l < network.size(); ++l) {
      for (std::size_t i = 0; i < network[l].weight.values.size(); ++i)
        network[l].weight.values[i] -= learning_rate * gradient[l].weight.values[i];
      for (std::size_t j = 0; j < network[l].bias.size(); ++j)
        network[l].bias[j] -= learning_rate * gradient[l].bias[j];
    }
  }
  return losses;
}

/// The larger of two errors. One that is NaN counts as infinite, so that no comparison drops it.
inline double larger_error(double a, double b) {
  return std::isnan(a) || std::isnan(b) ? std::numeric_limits<double>::infinity() : std::max(a, b);
}

/// |loss - expected|, relative to the expected loss or to a thousandth of the run's first, whichever is larger.
/// Infinite where one of them is not finite: a bound that is a multiple of infinity would hold for every loss.
inline double loss_error(double loss, double expected, double first) {
  const double scale = larger_error(expected, 1e-3 * first);
  if (!std::isfinite(scale)) return scale;
  return larger_error(0, std::abs(loss - expected) / scale);
}

/// |a - b| / |b| in the Frobenius norm; infinite where it would be NaN, as that of zeros, or where their sizes differ.
inline double relative_error(const std::vector<double>& a, const std::vector<double>& b) {
  if (a.size() != b.size()) return std::numeric_limits<double>::infinity();
  double difference = 0, norm = 0;
  for (std::size_t i = 0; i < b.size(); ++i) {
    difference += (a[i] - b[i]) * (a[i] - b[i]);
    norm += b[i] * b[i];
  }
  return larger_error(0, std::sqrt(difference) / std::sqrt(norm));
}

/// The fraction of hidden units, over all samples and hidden layers, whose pre-activation is not below 0.
inline double live_fraction(const Network& network, const Table& x) {
  const std::vector<Table> z = forward(network, x);
  double live = 0, all = 0;
  for (std::size_t l = 0; l + 1 < z.size(); ++l)
    for (const double value : z[l].values) {
      live += value < 0 ? 0 : 1;
      all += 1;
    }
  return live / all;
}

}  // namespace deviceloop::reference
