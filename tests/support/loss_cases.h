// Losses that tests train by, with targets and weights of the samples; tests/reference/record_losses.py has the same.
#pragma once

#include <cmath>
#include <cstddef>
#include <vector>

#include <deviceloop/spec.h>

#include "support/reference.h"

namespace deviceloop {

struct LossCase {
  Loss loss;
  Reduction reduction;
  double delta = 1;
  bool classes = false;
};

inline const std::vector<LossCase>& loss_cases() {
  static const std::vector<LossCase> all = {
      {Loss::squared_error, Reduction::mean},
      {Loss::absolute_error, Reduction::sum},
      {Loss::absolute_error, Reduction::mean},
      {Loss::huber, Reduction::sum, 0.7},
      {Loss::huber, Reduction::mean, 2},
      {Loss::binary_cross_entropy, Reduction::sum},
      {Loss::binary_cross_entropy, Reduction::mean},
      {Loss::cross_entropy, Reduction::sum},
      {Loss::cross_entropy, Reduction::mean},
      {Loss::cross_entropy, Reduction::sum, 1, true},
      {Loss::cross_entropy, Reduction::mean, 1, true},
  };
  return all;
}

/// Targets that are probabilities, in rows that need not sum up to 1, or classes.
inline reference::Table targets_of(const LossCase& of, const reference::Table& normal) {
  reference::Table y = normal;
  if (of.classes) y = reference::Table(normal.rows, 1);
  for (std::size_t i = 0; i < y.values.size(); ++i)
    if (of.classes)
      y.values[i] = static_cast<double>(i * 7 % normal.columns);
    else if (of.loss == Loss::binary_cross_entropy || of.loss == Loss::cross_entropy)
      y.values[i] = std::abs(normal.values[i]) / 4 - std::floor(std::abs(normal.values[i]) / 4);
  return y;
}

/// From 0 to 3, in quarters, which every precision holds.
inline std::vector<double> weights_of(std::size_t rows) {
  std::vector<double> weights(rows);
  for (std::size_t row = 0; row < rows; ++row)
    weights[row] = row % 4 == 1 ? 0 : 0.25 * static_cast<double>(1 + row * 5 % 12);
  return weights;
}

}  // namespace deviceloop
