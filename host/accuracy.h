// Which predictions of a classifier are right, the same on the CPU and in CUDA kernels.
#pragma once

#include <cmath>
#include <cstdint>

#include <deviceloop/spec.h>

#include "host_device.h"

namespace deviceloop {

/// How many predictions of [rows, columns] can be right or wrong: with cross_entropy rows, with binary_cross_entropy
/// all, with other losses none.
constexpr std::int64_t counted_predictions(Loss loss, std::int64_t rows, std::int64_t columns) {
  switch (loss) {
    case Loss::cross_entropy:
      return rows;
    case Loss::binary_cross_entropy:
      return rows * columns;
    case Loss::squared_error:
    case Loss::absolute_error:
    case Loss::huber:
      break;
  }
  return 0;
}

/// Whether log-odds say what a target, a probability, says; NaN does not.
template <class T>
DEVICELOOP_HOST_DEVICE inline bool is_right(T logit, T target) {
  return logit == logit && (logit > T(0)) == (target >= T(0.5));
}

/// The largest of numbered values, of equal ones the first; none of NaN and -infinity.
template <class T>
struct Largest {
  T value = -T(INFINITY);
  std::int64_t index = -1;
  DEVICELOOP_HOST_DEVICE void take(T other, std::int64_t number) {
    if (value < other || (value == other && number < index)) {
      value = other;
      index = number;
    }
  }
};

}  // namespace deviceloop
