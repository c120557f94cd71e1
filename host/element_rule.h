// What the elements of data, weights of samples and classes must be: one rule for the host and for a GPU's kernel.
#pragma once

#include <cmath>
#include <cstdint>
#include <limits>
#include <type_traits>

#include <deviceloop/matrix.h>

#include "host_device.h"

namespace deviceloop {

struct ElementRule {
  enum class Kind {
    finite,        ///< in `type`
    weight,        ///< the same, and not negative
    class_number,  ///< one of 0, 1, ..., classes - 1
  };
  Kind kind = Kind::finite;
  ElementType type = ElementType::float32;
  std::int64_t classes = 0;
};

/// A double becomes infinite when rounded to float, from halfway between float's largest number and the next power of
/// two on.
constexpr double kLeastInfiniteFloat = 0x1.ffffffp127;

/// For kernels: `least_refused` is least_refused_magnitude(rule).
template <class T>
DEVICELOOP_HOST_DEVICE bool is_wrong(T element, ElementRule::Kind kind, double least_refused, double classes) {
  const double value = element;
  if (!(std::fabs(value) < least_refused)) return true;
  switch (kind) {
    case ElementRule::Kind::finite:
      return false;
    case ElementRule::Kind::weight:
      return !(value >= 0);
    case ElementRule::Kind::class_number:
      return !(value >= 0 && value < classes && value == std::trunc(value));
  }
  return true;
}

constexpr double least_refused_magnitude(const ElementRule& rule) {
  return rule.type == ElementType::float32 ? kLeastInfiniteFloat : std::numeric_limits<double>::infinity();
}

}  // namespace deviceloop
