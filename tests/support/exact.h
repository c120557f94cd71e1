// Arithmetic that counts its own significant bits: for tests that demand equality, which is only fair where no order of
// sums and no fused operation can round.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <limits>
#include <vector>

#include "support/reference.h"

namespace deviceloop::exact {

/// A table whose values are all multiples of `unit`, a power of two.
struct Table {
  reference::Table table;
  double unit = 1;
};

/// The most significant bits that any intermediate result needed, whatever the order it was computed in.
class BitCounter {
 public:
  /// `magnitude` bounds every partial sum of terms that are multiples of `unit`. One that is not finite needs more bits
  /// than any type has.
  void count(double magnitude, double unit) {
    if (magnitude == 0) return;
    const double bits = std::floor(std::log2(magnitude / unit)) + 1;
    most_ = std::isfinite(bits) ? std::max(most_, static_cast<int>(bits)) : std::numeric_limits<int>::max();
  }
  int most() const { return most_; }

 private:
  int most_ = 0;
};

/// op(a) op(b) (+ base), with op the transpose where asked.
inline Table multiply(const Table& a, bool transpose_a, const Table& b, bool transpose_b, BitCounter& bits) {
  const auto& left = a.table;
  const auto& right = b.table;
  const std::size_t rows = transpose_a ? left.columns : left.rows, depth = transpose_a ? left.rows : left.columns;
  const std::size_t columns = transpose_b ? right.rows : right.columns;
  Table out{reference::Table(rows, columns), a.unit * b.unit};
  for (std::size_t i = 0; i < rows; ++i)
    for (std::size_t j = 0; j < columns; ++j) {
      double magnitude = 0;
      for (std::size_t k = 0; k < depth; ++k) {
        const double term = (transpose_a ? left(k, i) : left(i, k)) * (transpose_b ? right(j, k) : right(k, j));
        out.table(i, j) += term;
        magnitude += std::abs(term);
      }
      bits.count(magnitude, out.unit);
    }
  return out;
}

/// a + factor b, element by element; b may be a row added to every row of a. The factor is a power of two or its
/// negative.
inline Table add(const Table& a, double factor, const Table& b, BitCounter& bits) {
  Table out{a.table, std::min(a.unit, std::abs(factor) * b.unit)};
  for (std::size_t i = 0; i < a.table.values.size(); ++i) {
    const double term = factor * b.table.values[i % b.table.values.size()];
    bits.count(std::abs(a.table.values[i]) + std::abs(term), out.unit);
    out.table.values[i] += term;
  }
  return out;
}

struct Layer {
  Table weight;
  Table bias;  ///< no rows without bias
};

/// A forward pass: what every layer got, its pre-activations, prediction - target, and the loss.
struct Pass {
  std::vector<Table> inputs, z;
  Table difference;
  double loss = 0;
  int live = 0, blocked = 0;  ///< hidden units whose gradient passes, or not
};

inline Pass forward(const std::vector<Layer>& layers, const Table& x, const Table& y, BitCounter& bits) {
  Pass pass;
  pass.inputs = {x};
  for (std::size_t l = 0; l < layers.size(); ++l) {
    Table z = multiply(pass.inputs.back(), false, layers[l].weight, false, bits);
    if (layers[l].bias.table.rows != 0) z = add(z, 1, layers[l].bias, bits);
    pass.z.push_back(z);
    if (l + 1 == layers.size()) break;
    for (double& value : z.table.values) {
      ++(value < 0 ? pass.blocked : pass.live);
      value = reference::relu(value);
    }
    pass.inputs.push_back(z);
  }
  pass.difference = add(pass.z.back(), -1, y, bits);
  double largest = 0;
  for (const double difference : pass.difference.table.values) {
    pass.loss += difference * difference;
    largest = reference::larger_error(largest, difference * difference);
  }
  // Squares are summed over at most 32 terms in the working precision.
  bits.count(32 * largest, pass.difference.unit * pass.difference.unit);
  return pass;
}

/// dZ of every layer.
inline std::vector<Table> gradients(const std::vector<Layer>& layers, const Pass& pass, BitCounter& bits) {
  std::vector<Table> dz(layers.size());
  dz.back() = pass.difference;
  for (double& value : dz.back().table.values) value *= 2;
  for (std::size_t l = layers.size() - 1; l > 0; --l) {
    dz[l - 1] = multiply(dz[l], false, layers[l].weight, true, bits);
    for (std::size_t i = 0; i < dz[l - 1].table.values.size(); ++i)
      if (pass.z[l - 1].table.values[i] < 0) dz[l - 1].table.values[i] = 0;
  }
  return dz;
}

/// [rows, columns] of 1.
inline Table ones(std::size_t rows, std::size_t columns) {
  Table out{reference::Table(rows, columns), 1};
  std::fill(out.table.values.begin(), out.table.values.end(), 1.0);
  return out;
}

/// The parameters after one step of gradient descent, to the last bit.
inline std::vector<Layer> updated(const std::vector<Layer>& layers, const Pass& pass, double learning_rate,
                                  BitCounter& bits) {
  std::vector<Layer> out(layers.size());
  const std::vector<Table> dz = gradients(layers, pass, bits);
  for (std::size_t l = 0; l < layers.size(); ++l) {
    const Table dw = multiply(pass.inputs[l], true, dz[l], false, bits);
    out[l].weight = add(layers[l].weight, -learning_rate, dw, bits);
    if (layers[l].bias.table.rows == 0) continue;
    const Table db = multiply(ones(1, dz[l].table.rows), false, dz[l], false, bits);
    out[l].bias = add(layers[l].bias, -learning_rate, db, bits);
  }
  return out;
}

/// The first layer's pre-activations after that step, by the Gram formulation.
inline Table updated_pre_activation(const std::vector<Layer>& layers, const Pass& pass, double learning_rate,
                                    BitCounter& bits) {
  Table kernel = multiply(pass.inputs[0], false, pass.inputs[0], true, bits);
  if (layers[0].bias.table.rows != 0) kernel = add(kernel, 1, ones(1, 1), bits);
  const Table change = multiply(kernel, false, gradients(layers, pass, bits)[0], false, bits);
  return add(pass.z[0], -learning_rate, change, bits);
}

}  // namespace deviceloop::exact
