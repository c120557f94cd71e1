// Losses in double, written from PyTorch's formulas: nothing of what they check is used.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <functional>
#include <vector>

#include <deviceloop/spec.h>

#include "support/reference.h"

namespace deviceloop::reference {

inline double cross_entropy(const Table& prediction, const Table& y, Table& gradient) {
  const std::size_t classes = prediction.columns;
  double loss = 0;
  for (std::size_t n = 0; n < prediction.rows; ++n) {
    std::vector<double> target(classes, 0);
    if (y.columns == 1)
      target[static_cast<std::size_t>(y(n, 0))] = 1;
    else
      for (std::size_t j = 0; j < classes; ++j) target[j] = y(n, j);
    double sum = 0, total = 0;
    for (std::size_t j = 0; j < classes; ++j) {
      sum += std::exp(prediction(n, j));
      total += target[j];
    }
    for (std::size_t j = 0; j < classes; ++j) {
      loss -= target[j] * (prediction(n, j) - std::log(sum));
      gradient(n, j) = total * std::exp(prediction(n, j)) / sum - target[j];
    }
  }
  return loss;
}

inline double loss_of_element(Loss kind, double delta, double p, double y, double& gradient) {
  const double d = p - y;
  switch (kind) {
    case Loss::squared_error:
      gradient = 2 * d;
      return d * d;
    case Loss::absolute_error:
      gradient = d > 0 ? 1 : d < 0 ? -1 : 0;
      return std::abs(d);
    case Loss::huber:
      gradient = std::clamp(d, -delta, delta);
      return std::abs(d) <= delta ? d * d / 2 : delta * (std::abs(d) - delta / 2);
    case Loss::binary_cross_entropy:
      gradient = 1 / (1 + std::exp(-p)) - y;
      return -y * std::log(1 / (1 + std::exp(-p))) - (1 - y) * std::log(1 / (1 + std::exp(p)));
    case Loss::cross_entropy:
      break;
  }
  return NAN;
}

inline std::function<LossFunction> loss_function(const TrainingSpec& training) {
  return [training](const Table& prediction, const Table& y, Table& gradient) {
    double loss = 0, count = static_cast<double>(prediction.values.size());
    if (training.loss == Loss::cross_entropy) {
      loss = cross_entropy(prediction, y, gradient);
      count = static_cast<double>(prediction.rows);
    } else {
      for (std::size_t i = 0; i < prediction.values.size(); ++i)
        loss +=
            loss_of_element(training.loss, training.huber_delta, prediction.values[i], y.values[i], gradient.values[i]);
    }
    if (training.reduction == Reduction::sum) return loss;
    for (double& value : gradient.values) value /= count;
    return loss / count;
  };
}

/// The same with weights: each row is a loss of its own, and the mean divides by the number of all.
inline std::function<LossFunction> loss_function(const TrainingSpec& training, const std::vector<double>& weights) {
  TrainingSpec summed = training;
  summed.reduction = Reduction::sum;
  return [training, weights, of_row = loss_function(summed)](const Table& prediction, const Table& y, Table& gradient) {
    double loss = 0, count = 1;
    if (training.reduction == Reduction::mean)
      count = static_cast<double>(training.loss == Loss::cross_entropy ? prediction.rows : prediction.values.size());
    const auto row_of = [](const Table& table, std::size_t row) {
      Table one(1, table.columns);
      for (std::size_t j = 0; j < table.columns; ++j) one(0, j) = table(row, j);
      return one;
    };
    for (std::size_t n = 0; n < prediction.rows; ++n) {
      Table gradient_of_row(1, prediction.columns);
      loss += weights[n] / count * of_row(row_of(prediction, n), row_of(y, n), gradient_of_row);
      for (std::size_t j = 0; j < prediction.columns; ++j) gradient(n, j) = weights[n] / count * gradient_of_row(0, j);
    }
    return loss;
  };
}

}  // namespace deviceloop::reference
