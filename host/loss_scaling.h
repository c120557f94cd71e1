// The scale of the loss' gradient in fp16, whose range is narrow: small gradients would become 0, large ones infinite.
#pragma once

#include <cmath>

#include "host_device.h"

namespace deviceloop {

/// The gradient of the loss is multiplied by a power of two, and the gradients of the parameters are divided by it. It
/// adapts as that of PyTorch's GradScaler does, with its defaults: it begins with 2^16; where a gradient is infinite or
/// NaN, the parameters and what the optimizer keeps stay as they were, and the scale is halved; after 2000 steps in a
/// row without one it is doubled. It stays a normal number of fp32.
///
/// Kept as one of the optimizer's states, [1, 2], so that zeros are its beginning: how far the binary logarithm of the
/// scale is from 16, and how many steps had finite gradients since it last changed. Both are small whole numbers.
struct LossScaling {
  static constexpr int kFirstExponent = 16;
  static constexpr int kLeastExponent = -126;
  static constexpr int kMostExponent = 127;
  static constexpr int kGrowthSteps = 2000;
  static constexpr int kStateColumns = 2;

  template <class T>
  DEVICELOOP_HOST_DEVICE static T scale(const T* state) {
    return std::ldexp(T(1), kFirstExponent + static_cast<int>(state[0]));
  }

  /// After a step.
  template <class T>
  DEVICELOOP_HOST_DEVICE static void adapt(T* state, bool gradients_are_finite) {
    constexpr T kLeast = kLeastExponent - kFirstExponent, kMost = kMostExponent - kFirstExponent;
    if (!gradients_are_finite) {
      state[0] = state[0] > kLeast ? state[0] - 1 : kLeast;
      state[1] = 0;
    } else if (++state[1] >= T(kGrowthSteps)) {
      state[0] = state[0] < kMost ? state[0] + 1 : kMost;
      state[1] = 0;
    }
  }

  /// Whether these can be the numbers of a run.
  template <class T>
  static bool is_state(const T* state) {
    const auto is_whole = [](T value, int least, int most) {
      return value >= T(least) && value <= T(most) && value == std::trunc(value);
    };
    return is_whole(state[0], kLeastExponent - kFirstExponent, kMostExponent - kFirstExponent) &&
           is_whole(state[1], 0, kGrowthSteps - 1);
  }
};

}  // namespace deviceloop
