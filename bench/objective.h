// What a run minimizes and by which optimizer, by the names that cases, `serve` and the peers of bench/compare share.
#pragma once

#include <algorithm>
#include <iterator>
#include <string>
#include <vector>

#include <deviceloop/spec.h>

namespace deviceloop::bench {

struct NamedLoss {
  const char* name;
  Loss loss;
  Reduction reduction;
};
/// The sum of squared errors, their mean, and the mean over the rows of the cross-entropy with class numbers.
inline constexpr NamedLoss kLosses[] = {{"squared", Loss::squared_error, Reduction::sum},
                                        {"mse", Loss::squared_error, Reduction::mean},
                                        {"cross-entropy", Loss::cross_entropy, Reduction::mean}};

struct NamedOptimizer {
  const char* name;
  OptimizerKind kind;
};
/// With PyTorch's defaults.
inline constexpr NamedOptimizer kOptimizers[] = {{"gd", OptimizerKind::gradient_descent},
                                                 {"adam", OptimizerKind::adam}};

template <class Table>
std::vector<std::string> names_in(const Table& table) {
  std::vector<std::string> names;
  for (const auto& each : table) names.push_back(each.name);
  return names;
}

/// The entry of that name; null if there is none.
template <class Table>
auto find_in(const Table& table, const std::string& name) -> decltype(std::begin(table)) {
  const auto found =
      std::find_if(std::begin(table), std::end(table), [&](const auto& each) { return each.name == name; });
  return found == std::end(table) ? nullptr : found;
}

}  // namespace deviceloop::bench
