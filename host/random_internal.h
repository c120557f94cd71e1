// The parts of the random number generator that tests check one by one.
#pragma once

#include <cstdint>

namespace deviceloop {

/// log(x) for a normal x > 0, within 2 units in the last place, by + - * / alone.
double portable_log(double x);

/// The x with P(X <= x) = p for a standard normal X, 0 < p < 1.
double inverse_normal(double p);

/// The elements 2 pair and 2 pair + 1 of a tensor.
struct NormalPair {
  double first = 0;
  double second = 0;
};
NormalPair normal_pair(std::uint64_t seed, std::uint32_t tensor, std::uint64_t pair);

}  // namespace deviceloop
