// What is said of the samples of a case.
#pragma once

#include <algorithm>
#include <cmath>
#include <vector>

namespace deviceloop::bench {

/// Of at least one value; of an even number the mean of the two in the middle.
inline double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  const std::size_t half = values.size() / 2;
  return values.size() % 2 == 1 ? values[half] : (values[half - 1] + values[half]) / 2;
}

struct Summary {
  double median = 0;
  double minimum = 0;
  double noise_percent = 0;  ///< the median distance from the median, in percent of it: half of the samples are nearer
};

/// Of at least one positive value.
inline Summary summarize(const std::vector<double>& values) {
  Summary summary;
  summary.median = median(values);
  summary.minimum = *std::min_element(values.begin(), values.end());
  std::vector<double> distances;
  for (const double value : values) distances.push_back(std::abs(value - summary.median));
  summary.noise_percent = 100 * median(distances) / summary.median;
  return summary;
}

}  // namespace deviceloop::bench
