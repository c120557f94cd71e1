// What the inputs of a network go through before it sees them: a factor for all of them, then a mean and a deviation
// for each column. The targets may go through the same, and what the network predicts then goes back. The command
// computes both from the training data, and they are saved with the weights; the trainer gets data that are scaled
// already.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include <deviceloop/matrix.h>

#include "parameters.h"

namespace deviceloop {

/// x -> (factor x - mean[column]) / deviation[column], or factor x where mean and deviation are empty.
struct InputScaling {
  double factor = 1;                ///< finite, not 0
  std::vector<double> mean{};       ///< of each column, as it is after the factor
  std::vector<double> deviation{};  ///< as many, above 0

  bool is_identity() const { return factor == 1 && mean.empty(); }

  /// The scaled matrix in `type`: computed in double and rounded once. mean has as many entries as the matrix has
  /// columns, or none. Throws InvalidArgument, beginning with `name`, for an element that is not finite, before or
  /// after, with its row and column.
  HostMatrix apply(HostMatrix matrix, ElementType type, const std::string& name) const;

  /// The reverse, from scaled elements in `type`: computed in double and rounded once. What is not finite stays so, and
  /// what `type` cannot hold becomes infinite.
  HostMatrix undo(HostMatrix matrix, ElementType type) const;
};

/// The most columns that standardized() takes, so that a weights file's header has room for its numbers.
constexpr std::int64_t kMaxStandardizedColumns = 1'000'000;

/// The scaling by `factor` that then gives every column of x the mean 0 and the population standard deviation 1. A
/// column whose elements are all equal has the deviation 1 in it, so that it is only centred. Sums run in double over
/// the rows in their order. x has at least one row. Throws InvalidArgument, beginning with `name`, for an element that
/// is not finite, for a column that spans more than float64 holds, and for too many columns.
InputScaling standardized(ConstMatrix x, double factor, const std::string& name);

/// The population standard deviation of each column, as standardized() computes it; 0 where all elements are equal, NaN
/// where a column spans more than float64 holds. x is finite and has at least one row.
std::vector<double> column_deviations(ConstMatrix x);

}  // namespace deviceloop
