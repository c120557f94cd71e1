// How far two runs are from each other: differences of their losses and parameters, where these begin, and whether they
// stay within bounds. The second run, b, is the reference. Plain data, without a trainer.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include <deviceloop/spec.h>

#include "parameters.h"

namespace deviceloop::cli {

/// The bounds by which this library's tests compare executors, of relative differences: of the losses of all steps, and
/// of weights and biases at the end. A bias, which begins at 0, may differ by more.
struct Bounds {
  double loss = 0;
  double weight = 0;
  double bias() const { return 10 * weight; }
};
Bounds bounds_of(Precision a, Precision b);

/// After how many steps two runs of `total` are compared next, once they have done `steps`: 1, 2, 5, 10, 20, 50, ... or
/// every `every` steps, and at the end.
std::int64_t next_comparison(std::int64_t steps, std::int64_t every, std::int64_t total);

/// The losses of one step. The difference is relative to b's loss or, if that is smaller, to a thousandth of b's first
/// one; infinite where a loss is not finite.
struct LossDifference {
  std::int64_t step = 0;
  double a = 0, b = 0;
  double difference = 0;
};

/// The losses of the steps so far.
struct LossComparison {
  double bound = 0;
  std::int64_t steps = 0;
  double first_b = 0;
  std::optional<LossDifference> first_different{};  ///< bit for bit
  std::optional<LossDifference> largest{};          ///< the first of equal ones; empty before the first step
  std::optional<LossDifference> first_exceeded{};
  std::optional<std::int64_t> a_diverged{}, b_diverged{};  ///< the first step whose loss is not finite

  /// Adds the losses of the next steps, of each run the same number. Returns the largest difference among them.
  double add(std::span<const double> a, std::span<const double> b);
};

/// One parameter after some steps: the Frobenius norm of a - b divided by that of b; 0 where all elements are equal,
/// infinite where an element is not finite, or all of b are 0.
struct ParameterDifference {
  std::int64_t steps = 0;
  std::string name{};
  double difference = 0;
};

/// The element that differs most, by |a - b|.
struct ElementDifference {
  std::string name{};
  std::int64_t row = 0, column = 0;
  double a = 0, b = 0;
};

/// The parameters whenever they were compared. In fp32 a ReLU of one sample may have another sign in a step than in
/// fp64, after which parameters differ by more for some steps: the bounds are those at the end.
struct ParameterComparison {
  Bounds bounds{};
  std::optional<ParameterDifference> first_different{};  ///< bit for bit
  std::optional<ParameterDifference> largest{};          ///< the first of equal ones; empty before the first comparison
  std::optional<ParameterDifference> first_exceeded{};
  std::optional<ParameterDifference> a_diverged{}, b_diverged{};  ///< the first parameter that is not finite
  /// Of the last comparison: the difference that is the largest share of its bound, that bound, and the element that
  /// differs most; no such element where all bits were equal or one was not finite.
  std::optional<ParameterDifference> end{};
  double end_bound = 0;
  std::optional<ElementDifference> largest_element{};

  bool holds() const { return !end || end->difference <= end_bound; }
  /// Adds the parameters after `steps` steps, matrices of double in the order of `layout`. Returns the largest
  /// difference among them.
  ParameterDifference add(std::int64_t steps, const std::vector<ParameterInfo>& layout, const Parameters& a,
                          const Parameters& b);
};

/// One row of the table: the last losses, and the largest differences since the row before.
struct ComparisonRow {
  std::int64_t steps = 0;
  double loss_a = 0, loss_b = 0;
  double loss_difference = 0;
  ParameterDifference parameter{};
};

/// All of two runs.
struct Comparison {
  LossComparison losses{};
  ParameterComparison parameters{};
  std::vector<ComparisonRow> rows{};

  /// Adds a row.
  const ComparisonRow& add(std::span<const double> losses_a, std::span<const double> losses_b,
                           const std::vector<ParameterInfo>& layout, const Parameters& a, const Parameters& b);
  bool has_diverged() const;
  bool holds() const { return !losses.first_exceeded && parameters.holds(); }
};

}  // namespace deviceloop::cli
