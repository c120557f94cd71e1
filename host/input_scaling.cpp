#include "input_scaling.h"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <utility>

#include <deviceloop/error.h>

#include "matrix_ops.h"

namespace deviceloop {
namespace {

/// Calls work(row, factor times its elements, in double) for each row.
template <class Work>
void for_each_row(ConstMatrix x, double factor, const Work& work) {
  std::vector<double> values(static_cast<std::size_t>(x.columns));
  with_type(x.type, [&]<class T>(T*) {
    for (std::int64_t row = 0; row < x.rows; ++row) {
      const T* const in = static_cast<const T*>(x.data) + row * x.row_stride;
      for (std::size_t column = 0; column < values.size(); ++column)
        values[column] = factor * static_cast<double>(in[column]);
      work(row, values);
    }
  });
}

/// Beside the factor the mean and the deviation of each column; the deviation is 0 where all elements are equal, and
/// neither is finite where a column spans more than float64 holds.
InputScaling statistics_of(ConstMatrix x, double factor) {
  const auto columns = static_cast<std::size_t>(x.columns);
  const auto rows = static_cast<double>(x.rows);

  std::vector<double> least(columns), most(columns);
  for_each_row(x, factor, [&](std::int64_t row, const std::vector<double>& values) {
    for (std::size_t column = 0; column < columns; ++column) {
      least[column] = row == 0 ? values[column] : std::min(least[column], values[column]);
      most[column] = row == 0 ? values[column] : std::max(most[column], values[column]);
    }
  });
  // Elements are counted from the least, in units of what the column spans: from 0 to 1, whatever the column's mean and
  // range are, so that sums lose no digits to a large mean and squares neither overflow nor underflow.
  std::vector<double> span(columns);
  for (std::size_t column = 0; column < columns; ++column) {
    span[column] = most[column] - least[column];
    if (span[column] == 0) span[column] = 1;
  }
  std::vector<double> mean(columns), square(columns), rest(columns);
  for_each_row(x, factor, [&](std::int64_t, const std::vector<double>& values) {
    for (std::size_t column = 0; column < columns; ++column)
      mean[column] += (values[column] - least[column]) / span[column];
  });
  for (double& value : mean) value /= rows;
  for_each_row(x, factor, [&](std::int64_t, const std::vector<double>& values) {
    for (std::size_t column = 0; column < columns; ++column) {
      const double difference = (values[column] - least[column]) / span[column] - mean[column];
      rest[column] += difference;
      square[column] += difference * difference;
    }
  });

  InputScaling scaling;
  scaling.factor = factor;
  for (std::size_t column = 0; column < columns; ++column) {
    const double correction = rest[column] / rows;  // what rounding has left out of the mean
    const double variance = square[column] / rows - correction * correction;
    const double deviation = span[column] * std::sqrt(variance);
    scaling.mean.push_back(least[column] + span[column] * (mean[column] + correction));
    scaling.deviation.push_back(deviation);
  }
  return scaling;
}

}  // namespace

HostMatrix InputScaling::apply(HostMatrix matrix, ElementType type, const std::string& name) const {
  check_finite(std::as_const(matrix).view(), ElementType::float64, name);
  HostMatrix converted;
  if (matrix.type != type) converted = HostMatrix(type, matrix.rows, matrix.columns);
  HostMatrix& out = matrix.type == type ? matrix : converted;
  for_each_row(std::as_const(matrix).view(), factor, [&](std::int64_t row, std::vector<double>& values) {
    for (std::size_t column = 0; column < mean.size(); ++column)
      values[column] = (values[column] - mean[column]) / deviation[column];
    const ConstMatrix scaled(values.data(), 1, matrix.columns);
    if (auto bad = find_non_finite(scaled, type)) {
      bad->row = row;
      throw InvalidArgument(name + ": scaled, " + describe(*bad, type) +
                            "; scale it by another factor, use fp64, or drop such samples");
    }
    convert(rows_of(out.view(), row, 1), scaled);
  });
  return matrix.type == type ? std::move(matrix) : std::move(converted);
}

HostMatrix InputScaling::undo(HostMatrix matrix, ElementType type) const {
  HostMatrix converted;
  if (matrix.type != type) converted = HostMatrix(type, matrix.rows, matrix.columns);
  HostMatrix& out = matrix.type == type ? matrix : converted;
  for_each_row(std::as_const(matrix).view(), 1, [&](std::int64_t row, std::vector<double>& values) {
    for (std::size_t column = 0; column < values.size(); ++column) {
      if (!mean.empty()) values[column] = values[column] * deviation[column] + mean[column];
      values[column] /= factor;
    }
    convert(rows_of(out.view(), row, 1), ConstMatrix(values.data(), 1, matrix.columns));
  });
  return matrix.type == type ? std::move(matrix) : std::move(converted);
}

InputScaling standardized(ConstMatrix x, double factor, const std::string& name) {
  if (x.columns > kMaxStandardizedColumns)
    throw InvalidArgument(name + " has " + std::to_string(x.columns) + " columns, and at most " +
                          std::to_string(kMaxStandardizedColumns) + " can be standardized; scale it by a factor alone");
  check_finite(x, ElementType::float64, name);
  InputScaling scaling = statistics_of(x, factor);
  for (std::size_t column = 0; column < scaling.deviation.size(); ++column) {
    double& deviation = scaling.deviation[column];
    if (!is_finite(deviation))
      throw InvalidArgument(name + ": scaled, column " + std::to_string(column) +
                            " spans more than float64 holds (counted from 0); scale it by a smaller factor");
    if (!(deviation > 0)) deviation = 1;
  }
  return scaling;
}

std::vector<double> column_deviations(ConstMatrix x) { return statistics_of(x, 1).deviation; }

}  // namespace deviceloop
