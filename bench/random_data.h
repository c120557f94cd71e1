// Random arrays that the host and a GPU draw alike: every number follows from the seed and its place, so that a check
// knows the inputs without reading them back.
#pragma once

#include <cstdint>

#include "../host/elementwise.h"

namespace deviceloop::bench {

/// The numbers of different arrays of one case.
/// @{
constexpr std::uint64_t kFirst = 1, kSecond = 2, kThird = 3, kFourth = 4;
/// @}

/// Number `index` of array `array` under `seed`: uniform in (-2, 2), never 0.
template <class T>
DEVICELOOP_HOST_DEVICE inline T random_value(std::uint64_t seed, std::uint64_t array, std::int64_t index) {
  // The finalizer of SplitMix64 (Steele et al. 2014).
  std::uint64_t x = (seed * 8 + array) * 0xd1342543de82ef95u + static_cast<std::uint64_t>(index);
  x += 0x9e3779b97f4a7c15u;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
  x ^= x >> 31;
  const double uniform = (static_cast<double>(static_cast<std::int64_t>(x >> 12)) + 0.5) * 0x1p-52;  // in (0, 1)
  return static_cast<T>((x & 1) != 0 ? 2 * uniform : -2 * uniform);
}

/// The same as a hidden layer has it: -0.0 where it is negative.
template <class T>
DEVICELOOP_HOST_DEVICE inline T random_activation(std::uint64_t seed, std::uint64_t array, std::int64_t index) {
  const T value = random_value<T>(seed, array, index);
  return value < 0 ? T(-0.0) : value;
}

}  // namespace deviceloop::bench
