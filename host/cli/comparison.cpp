#include "comparison.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstddef>
#include <limits>

namespace deviceloop::cli {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

bool has_same_bits(double a, double b) { return std::bit_cast<std::uint64_t>(a) == std::bit_cast<std::uint64_t>(b); }

/// |difference| / scale, where 0 / 0 is no difference.
double relative(double difference, double scale) {
  if (!std::isfinite(difference) || !std::isfinite(scale)) return kInfinity;
  if (difference == 0) return 0;
  return scale == 0 ? kInfinity : std::fabs(difference) / scale;
}

std::span<const double> elements(const HostMatrix& matrix) {
  return {static_cast<const double*>(matrix.view().data), static_cast<std::size_t>(matrix.rows * matrix.columns)};
}

/// The Euclidean norm of value(0), value(1), ..., of numbers whose squares may overflow too.
template <class Value>
double norm(std::size_t count, const Value& value) {
  double largest = 0;
  for (std::size_t i = 0; i < count; ++i) {
    const double size = std::fabs(value(i));
    if (!std::isfinite(size)) return size;
    largest = std::max(largest, size);
  }
  if (largest == 0) return 0;
  double sum = 0;
  for (std::size_t i = 0; i < count; ++i) sum += (value(i) / largest) * (value(i) / largest);
  return largest * std::sqrt(sum);
}

/// Keeps the first of all that are offered.
template <class T>
void keep_first(std::optional<T>& kept, const T& offered) {
  if (!kept) kept = offered;
}

template <class T>
void keep_largest(std::optional<T>& kept, const T& offered) {
  if (!kept || offered.difference > kept->difference) kept = offered;
}

/// Against a run without rounding.
Bounds bounds_of(Precision precision) {
  switch (precision) {
    case Precision::fp32:
    case Precision::tf32x3:
      return {1e-4, 1e-5};
    case Precision::tf32:
    case Precision::fp16:
      return {1e-2, 1e-3};
    case Precision::bf16:
      return {1e-1, 1e-2};
    case Precision::fp64:
      break;
  }
  return {1e-10, 1e-10};
}

}  // namespace

Bounds bounds_of(Precision a, Precision b) {
  const Bounds of_a = bounds_of(a), of_b = bounds_of(b);
  return {std::max(of_a.loss, of_b.loss), std::max(of_a.weight, of_b.weight)};
}

std::int64_t next_comparison(std::int64_t steps, std::int64_t every, std::int64_t total) {
  if (every > 0) return total - steps <= every ? total : steps + every;
  for (std::int64_t power = 1;; power *= 10) {
    for (const std::int64_t factor : {1, 2, 5}) {
      if (power > total / factor) return total;
      if (factor * power > steps) return factor * power;
    }
    if (power > total / 10) return total;
  }
}

double LossComparison::add(std::span<const double> a, std::span<const double> b) {
  double largest_of_these = 0;
  for (std::size_t i = 0; i < a.size(); ++i, ++steps) {
    if (steps == 0) first_b = b[i];
    LossDifference at{steps, a[i], b[i], 0};
    at.difference = relative(a[i] - b[i], std::max(std::fabs(b[i]), 1e-3 * std::fabs(first_b)));
    if (!has_same_bits(a[i], b[i])) keep_first(first_different, at);
    keep_largest(largest, at);
    if (at.difference > bound) keep_first(first_exceeded, at);
    if (!std::isfinite(a[i])) keep_first(a_diverged, steps);
    if (!std::isfinite(b[i])) keep_first(b_diverged, steps);
    largest_of_these = std::max(largest_of_these, at.difference);
  }
  return largest_of_these;
}

ParameterDifference ParameterComparison::add(std::int64_t steps, const std::vector<ParameterInfo>& layout,
                                             const Parameters& a, const Parameters& b) {
  std::optional<ParameterDifference> largest_of_these;
  double largest_share = -1;  // of its bound
  largest_element.reset();
  for (std::size_t index = 0; index < layout.size(); ++index) {
    const ParameterInfo& info = layout[index];
    const std::span<const double> of_a = elements(a[index]), of_b = elements(b[index]);
    ParameterDifference at{steps, info.name, 0};
    at.difference = relative(norm(of_a.size(), [&](std::size_t i) { return of_a[i] - of_b[i]; }),
                             norm(of_b.size(), [&](std::size_t i) { return of_b[i]; }));
    for (std::size_t i = 0; i < of_a.size(); ++i) {
      if (!std::isfinite(of_a[i])) keep_first(a_diverged, at);
      if (!std::isfinite(of_b[i])) keep_first(b_diverged, at);
      if (has_same_bits(of_a[i], of_b[i])) continue;
      keep_first(first_different, at);
      const double before = largest_element ? std::fabs(largest_element->a - largest_element->b) : -1;
      if (std::fabs(of_a[i] - of_b[i]) > before)
        largest_element = {info.name, static_cast<std::int64_t>(i) / info.columns,
                           static_cast<std::int64_t>(i) % info.columns, of_a[i], of_b[i]};
    }
    keep_largest(largest, at);
    keep_largest(largest_of_these, at);
    const double bound = info.is_bias ? bounds.bias() : bounds.weight;
    if (at.difference > bound) keep_first(first_exceeded, at);
    const double share = relative(at.difference, bound);
    if (share <= largest_share) continue;
    largest_share = share;
    end = at;
    end_bound = bound;
  }
  if (a_diverged || b_diverged) largest_element.reset();
  return largest_of_these.value_or(ParameterDifference{steps});
}

const ComparisonRow& Comparison::add(std::span<const double> losses_a, std::span<const double> losses_b,
                                     const std::vector<ParameterInfo>& layout, const Parameters& a,
                                     const Parameters& b) {
  ComparisonRow row;
  row.loss_difference = losses.add(losses_a, losses_b);
  row.steps = losses.steps;
  row.loss_a = losses_a.back();
  row.loss_b = losses_b.back();
  row.parameter = parameters.add(row.steps, layout, a, b);
  return rows.emplace_back(std::move(row));
}

bool Comparison::has_diverged() const {
  return losses.a_diverged || losses.b_diverged || parameters.a_diverged || parameters.b_diverged;
}

}  // namespace deviceloop::cli
