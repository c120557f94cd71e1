// Training in double from the equations, with plain loops on all cores: what the training and the products of every
// device are held against. It shares nothing with the library; bench_test.cpp checks it by finite differences.
#pragma once

#include <cstdint>
#include <vector>

namespace deviceloop::bench {

/// A row-major [rows, columns] matrix.
struct Table {
  std::int64_t rows = 0;
  std::int64_t columns = 0;
  std::vector<double> values;

  Table() = default;
  Table(std::int64_t row_count, std::int64_t column_count)
      : rows(row_count), columns(column_count), values(static_cast<std::size_t>(row_count * column_count)) {}
  double* row(std::int64_t index) { return values.data() + index * columns; }
  const double* row(std::int64_t index) const { return values.data() + index * columns; }
};

Table transposed(const Table& in);

/// a [m, k] times b [k, n].
Table product(const Table& a, const Table& b);
/// out += a b.
void add_product(Table& out, const Table& a, const Table& b);

/// The weights [in_features, out_features] of a network, and its biases [1, out_features] or none.
struct Parameters {
  std::vector<Table> weights;
  std::vector<Table> biases;
};

/// What a step of the reference does.
struct ReferenceStep {
  double learning_rate = 0;
  /// The loss is the sum over the rows and outputs of (prediction - y)^2 or, with cross_entropy, over the rows of
  /// -log(softmax(predictions)[y]) with the number y [rows, 1] of a class; times `weight`.
  bool cross_entropy = false;
  double weight = 1;
  bool adam = false;  ///< by Kingma and Ba with beta1 0.9, beta2 0.999 and epsilon 1e-8; else gradient descent
  /// Step s takes the rows order[s batch] to order[(s + 1) batch - 1] of x and y; with a batch of 0 all rows.
  std::int64_t batch = 0;
  std::vector<std::int64_t> order = {};
};

/// `steps` steps, in place; returns the loss before each.
std::vector<double> train_reference(Parameters& parameters, const Table& x, const Table& y, const ReferenceStep& step,
                                    std::int64_t steps);

/// The root of the sum of squares of a - b, and of a.
/// @{
double distance(const Table& a, const Table& b);
double norm(const Table& a);
/// @}

}  // namespace deviceloop::bench
