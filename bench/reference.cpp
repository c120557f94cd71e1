#include "reference.h"

#include <algorithm>
#include <cmath>

#include "parallel.h"

namespace deviceloop::bench {
namespace {

// Elements, and multiplications, that are worth a thread.
constexpr std::int64_t kElementsOfAThread = 1 << 15, kProductsOfAThread = 1 << 17;
// Rows whose gradient is worth tables of its own, as large as all parameters.
constexpr std::int64_t kRowsOfAThread = 32;
// Elements of the widest layer in a panel of rows, so that its tables stay in a core's caches; and the fewest rows.
constexpr std::int64_t kPanelElements = 1 << 15, kPanelRows = 64;

/// use(i) for all elements.
template <class Use>
void for_each_element(const Table& table, const Use& use) {
  in_parallel(
      static_cast<std::int64_t>(table.values.size()),
      [&](std::int64_t begin, std::int64_t end) {
        for (std::int64_t i = begin; i < end; ++i) use(static_cast<std::size_t>(i));
      },
      kElementsOfAThread);
}

/// Rows `first` and on, or those that `order` has from `first` on.
Table rows_of(const Table& table, const std::vector<std::int64_t>& order, std::int64_t first, std::int64_t count) {
  Table rows(count, table.columns);
  for (std::int64_t row = 0; row < count; ++row) {
    const std::int64_t from = order.empty() ? first + row : order[static_cast<std::size_t>(first + row)];
    std::copy_n(table.row(from), table.columns, rows.row(row));
  }
  return rows;
}

void transpose(Table& out, const Table& in) {
  constexpr std::int64_t kRows = 8;  // as many as a cache line of `out` holds
  in_parallel(
      in.rows,
      [&](std::int64_t begin, std::int64_t end) {
        for (std::int64_t first = begin; first < end; first += kRows)
          for (std::int64_t j = 0; j < in.columns; ++j)
            for (std::int64_t i = first; i < std::min(first + kRows, end); ++i) out.row(j)[i] = in.row(i)[j];
      },
      kElementsOfAThread / std::max<std::int64_t>(in.columns, 1) + 1);
}

/// Tables of zeros, as large as those of `parameters`.
Parameters zeros_like(const Parameters& parameters) {
  Parameters zeros;
  for (const Table& table : parameters.weights) zeros.weights.emplace_back(table.rows, table.columns);
  for (const Table& table : parameters.biases) zeros.biases.emplace_back(table.rows, table.columns);
  return zeros;
}

/// The sum of squared errors; `predictions` become its gradient, times `weight`.
double squared_errors(Table& predictions, const Table& y, double weight) {
  double loss = 0;
  for (std::size_t i = 0; i < predictions.values.size(); ++i) {
    const double difference = predictions.values[i] - y.values[i];
    loss += difference * difference;
    predictions.values[i] = weight * 2 * difference;
  }
  return weight * loss;
}

/// The same of the cross-entropy with the classes y.
double cross_entropies(Table& predictions, const Table& y, double weight) {
  double loss = 0;
  for (std::int64_t i = 0; i < predictions.rows; ++i) {
    double* const row = predictions.row(i);
    const double largest = *std::max_element(row, row + predictions.columns);
    double sum = 0;
    for (std::int64_t j = 0; j < predictions.columns; ++j) sum += std::exp(row[j] - largest);
    const auto own = static_cast<std::int64_t>(y.row(i)[0]);
    loss += largest + std::log(sum) - row[own];
    for (std::int64_t j = 0; j < predictions.columns; ++j)
      row[j] = weight * (std::exp(row[j] - largest) / sum - (j == own ? 1 : 0));
  }
  return weight * loss;
}

/// Adds to `gradient` what the rows of x and y give; returns their loss. `turned` has the weights transposed.
double add_gradient(Parameters& gradient, const Parameters& parameters, const std::vector<Table>& turned,
                    const Table& x, const Table& y, const ReferenceStep& step) {
  const std::size_t layers = parameters.weights.size();
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
    Table& out = inputs[layer + 1] = Table(z[layer].rows, z[layer].columns);
    for_each_element(out, [&, &in = z[layer]](std::size_t i) { out.values[i] = in.values[i] < 0 ? 0 : in.values[i]; });
  }
  Table dz = z.back();
  const double loss = (step.cross_entropy ? cross_entropies : squared_errors)(dz, y, step.weight);
  for (std::size_t layer = layers; layer-- > 0;) {
    add_product(gradient.weights[layer], transposed(inputs[layer]), dz);
    if (!parameters.biases.empty())
      for (std::int64_t i = 0; i < dz.rows; ++i)
        for (std::int64_t j = 0; j < dz.columns; ++j)
          gradient.biases[layer].values[static_cast<std::size_t>(j)] += dz.row(i)[j];
    if (layer == 0) break;
    dz = product(dz, turned[layer]);
    for_each_element(dz, [&, &before = z[layer - 1]](std::size_t i) {
      if (before.values[i] < 0) dz.values[i] = 0;
    });
  }
  return loss;
}

}  // namespace

Table transposed(const Table& in) {
  Table out(in.columns, in.rows);
  transpose(out, in);
  return out;
}

void add_product(Table& out, const Table& a, const Table& b) {
  constexpr std::int64_t kRows = 8;  // that share a row of b while it is in a cache
  const std::int64_t least = kProductsOfAThread / std::max<std::int64_t>(a.columns * b.columns, 1) + 1;
  in_parallel(
      a.rows,
      [&](std::int64_t begin, std::int64_t end) {
        for (std::int64_t first = begin; first < end; first += kRows)
          for (std::int64_t k = 0; k < a.columns; ++k)
            for (std::int64_t i = first; i < std::min(first + kRows, end); ++i) {
              const double factor = a.row(i)[k];
              const double* const from = b.row(k);
              double* const to = out.row(i);
              for (std::int64_t j = 0; j < b.columns; ++j) to[j] += factor * from[j];
            }
      },
      least);
}

Table product(const Table& a, const Table& b) {
  Table out(a.rows, b.columns);
  add_product(out, a, b);
  return out;
}

std::vector<double> train_reference(Parameters& parameters, const Table& x, const Table& y, const ReferenceStep& step,
                                    std::int64_t steps) {
  const std::int64_t batch = step.batch == 0 ? x.rows : step.batch;
  // Adam's means of the gradient and of its square.
  Parameters first, second;
  if (step.adam) first = second = zeros_like(parameters);
  std::int64_t widest = x.columns;
  std::vector<Table> turned;
  for (const Table& weight : parameters.weights) {
    widest = std::max(widest, weight.columns);
    turned.emplace_back(weight.columns, weight.rows);
  }
  const std::int64_t panel = std::max(kPanelElements / widest, kPanelRows);
  // Each part of the rows has a gradient of its own; where there is one part, its products are shared among the cores.
  const std::int64_t parts = std::clamp<std::int64_t>(batch / kRowsOfAThread, 1, core_count());
  const std::int64_t rows = (batch + parts - 1) / parts;
  std::vector<Parameters> gradients(static_cast<std::size_t>(parts));
  std::vector<double> loss_of_part(gradients.size()), losses;
  const auto use_part = [&](std::int64_t part, std::int64_t begin) {
    const auto number = static_cast<std::size_t>(part);
    if (gradients[number].weights.empty()) gradients[number] = zeros_like(parameters);
    for (auto* tables : {&gradients[number].weights, &gradients[number].biases})
      for (Table& table : *tables) for_each_element(table, [&](std::size_t i) { table.values[i] = 0; });
    loss_of_part[number] = 0;
    const std::int64_t end = std::min((part + 1) * rows, batch);
    for (std::int64_t from = part * rows; from < end; from += panel) {
      const std::int64_t count = std::min(panel, end - from);
      loss_of_part[number] +=
          add_gradient(gradients[number], parameters, turned, rows_of(x, step.order, begin + from, count),
                       rows_of(y, step.order, begin + from, count), step);
    }
  };
  for (std::int64_t number = 0; number < steps; ++number) {
    const std::int64_t position = step.batch == 0 ? 0 : number * batch;
    for (std::size_t layer = 1; layer < turned.size(); ++layer) transpose(turned[layer], parameters.weights[layer]);
    in_parallel(parts, [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t part = begin; part < end; ++part) use_part(part, position);
    });
    double loss = 0;
    for (const double each : loss_of_part) loss += each;
    losses.push_back(loss);
    for (const auto tensors : {&Parameters::weights, &Parameters::biases})
      for (std::size_t layer = 0; layer < (parameters.*tensors).size(); ++layer) {
        Table& table = (parameters.*tensors)[layer];
        for_each_element(table, [&](std::size_t i) {
          double slope = 0;
          for (const Parameters& gradient : gradients) slope += (gradient.*tensors)[layer].values[i];
          if (!step.adam) {
            table.values[i] -= step.learning_rate * slope;
            return;
          }
          double& mean = (first.*tensors)[layer].values[i];
          double& square = (second.*tensors)[layer].values[i];
          mean = 0.9 * mean + (1 - 0.9) * slope;
          square = 0.999 * square + (1 - 0.999) * slope * slope;
          const double t = static_cast<double>(number + 1);
          table.values[i] -= step.learning_rate * (mean / (1 - std::pow(0.9, t))) /
                             (std::sqrt(square / (1 - std::pow(0.999, t))) + 1e-8);
        });
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
