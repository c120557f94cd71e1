// The formulas of single elements, shared by the CPU's loops and the CUDA kernels: one definition, two drivers.
#pragma once

#include <array>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <span>

#include <deviceloop/spec.h>

#include "floating_point.h"
#include "host_device.h"

namespace deviceloop::elementwise {

/// relu(z); written with < so that NaN passes.
template <class T>
DEVICELOOP_HOST_DEVICE inline T relu(T z) {
  return z < T(0) ? T(0) : z;
}

/// The gradient of relu at pre-activation z, given that of its output: a z of exactly 0 passes, and so does NaN.
template <class T>
DEVICELOOP_HOST_DEVICE inline T relu_gradient(T z, T dh) {
  return z < T(0) ? T(0) : dh;
}

/// relu(z) that remembers the mask in the sign of its zero, so that no pre-activation need be kept: -0.0 where z < 0,
/// while a z of -0.0, whose gradient passes, becomes +0.0. As values the two are the same 0.
template <class T>
DEVICELOOP_HOST_DEVICE inline T relu_marked(T z) {
  return z < T(0) ? T(-0.0) : z + T(0);
}

/// True where the bits of h are those of -0.0. The sign bit alone would not do: a NaN may carry it.
DEVICELOOP_HOST_DEVICE inline bool is_marked(float h) {
  std::uint32_t bits;
  memcpy(&bits, &h, sizeof bits);
  return bits == 0x80000000u;
}
DEVICELOOP_HOST_DEVICE inline bool is_marked(double h) {
  std::uint64_t bits;
  memcpy(&bits, &h, sizeof bits);
  return bits == 0x8000000000000000u;
}

/// relu_gradient from an output of relu_marked instead of the pre-activation.
template <class T>
DEVICELOOP_HOST_DEVICE inline T relu_gradient_marked(T h, T dh) {
  return is_marked(h) ? T(0) : dh;
}

/// d (p - y)^2 / dp = 2 (p - y), from the difference.
template <class T>
DEVICELOOP_HOST_DEVICE inline T squared_error_gradient(T difference) {
  return difference + difference;
}

/// One step of gradient descent, rounded once.
template <class T>
DEVICELOOP_HOST_DEVICE inline T sgd_update(T weight, T gradient, T learning_rate) {
  return std::fma(-learning_rate, gradient, weight);
}

/// a x + b y, rounded after each operation.
template <class T>
DEVICELOOP_HOST_DEVICE inline T weighted_sum(T a, T x, T b, T y) {
  return a * x + b * y;
}

/// What the updates of one step read beside gradients and what they change, in the working precision: what follows from
/// Optimizer and the number of the step. On a GPU it lies in device memory, so that a captured graph reads its current
/// values; one and zero are what a product needs besides.
template <class T>
struct StepScalars {
  T learning_rate = T(0);
  T negative_rate = T(0);  ///< -learning_rate
  T one = T(1);
  T zero = T(0);
  T momentum = T(0);
  T weight_decay = T(0);
  T kept_weight = T(1);  ///< 1 - learning_rate weight_decay
  T one_minus_beta1 = T(0);
  T beta2 = T(0);
  T one_minus_beta2 = T(0);
  T epsilon = T(0);
  T adam_rate = T(0);         ///< learning_rate / (1 - beta1^t)
  T root_correction = T(1);   ///< sqrt(1 - beta2^t)
  T clip_value = T(0);        ///< infinite for none
  std::int64_t step = 0;      ///< how many were taken before
  std::int64_t nesterov = 0;  ///< 1 with Nesterov's momentum
};
// Without padding, so that a copy of all bytes has no byte that nothing has written.
static_assert(sizeof(StepScalars<float>) == 14 * sizeof(float) + 16 &&
              sizeof(StepScalars<double>) == 14 * sizeof(double) + 16);

/// The most numbers that an optimizer keeps for each parameter.
inline constexpr int kMostStates = 2;

/// Gradient descent as an optimizer: how a gradient changes a parameter and `state`, what the optimizer keeps for it.
struct GradientDescent {
  static constexpr std::array<const char*, 0> kStates{};  ///< the names of the numbers kept for each parameter
  static constexpr bool adds_gradient = true;  ///< adds a multiple of the gradient, which a product can do by itself
  static constexpr bool is_linear = true;      ///< in the parameter, what is kept for it, and the gradient together
  template <class T>
  DEVICELOOP_HOST_DEVICE static void update(T& parameter, T*, T gradient, const StepScalars<T>& scalars) {
    parameter = sgd_update(parameter, gradient, scalars.learning_rate);
  }
};

/// Stochastic gradient descent with momentum. Here and below the formulas are those of OptimizerKind, in PyTorch's
/// order and with no fused multiply-add, so that the CPU's loops over them are vectorised.
struct Sgd {
  static constexpr std::array<const char*, 1> kStates{"momentum"};
  static constexpr bool adds_gradient = false;
  static constexpr bool is_linear = true;
  template <class T>
  DEVICELOOP_HOST_DEVICE static void update(T& parameter, T* state, T gradient, const StepScalars<T>& scalars) {
    gradient += scalars.weight_decay * parameter;
    state[0] = scalars.momentum * state[0] + gradient;
    parameter -= scalars.learning_rate * (scalars.nesterov != 0 ? gradient + scalars.momentum * state[0] : state[0]);
  }
};

/// AdamW, where Adam's decay is none.
struct AdamW {
  static constexpr std::array<const char*, 2> kStates{"first_moment", "second_moment"};
  static constexpr bool adds_gradient = false;
  static constexpr bool is_linear = false;
  template <class T>
  DEVICELOOP_HOST_DEVICE static void update(T& parameter, T* state, T gradient, const StepScalars<T>& scalars) {
    state[0] += scalars.one_minus_beta1 * (gradient - state[0]);
    state[1] = scalars.beta2 * state[1] + scalars.one_minus_beta2 * gradient * gradient;
    const T scale = std::sqrt(state[1]) / scalars.root_correction + scalars.epsilon;
    parameter = scalars.kept_weight * parameter - scalars.adam_rate * (state[0] / scale);
  }
};

struct Adam : AdamW {
  template <class T>
  DEVICELOOP_HOST_DEVICE static void update(T& parameter, T* state, T gradient, const StepScalars<T>& scalars) {
    AdamW::update(parameter, state, gradient + scalars.weight_decay * parameter, scalars);
  }
};

struct RmsProp {
  static constexpr std::array<const char*, 2> kStates{"second_moment", "momentum"};
  static constexpr bool adds_gradient = false;
  static constexpr bool is_linear = false;
  template <class T>
  DEVICELOOP_HOST_DEVICE static void update(T& parameter, T* state, T gradient, const StepScalars<T>& scalars) {
    gradient += scalars.weight_decay * parameter;
    state[0] = scalars.beta2 * state[0] + scalars.one_minus_beta2 * gradient * gradient;
    state[1] = scalars.momentum * state[1] + gradient / (std::sqrt(state[0]) + scalars.epsilon);
    parameter -= scalars.learning_rate * state[1];
  }
};

/// The gradient in [-clip_value, clip_value]; NaN passes.
template <class T>
DEVICELOOP_HOST_DEVICE inline T clipped(T gradient, const StepScalars<T>& scalars) {
  return gradient > scalars.clip_value    ? scalars.clip_value
         : gradient < -scalars.clip_value ? -scalars.clip_value
                                          : gradient;
}

/// What gradients whose squares sum up to `squares` are multiplied by, so that their norm is at most clip_norm: as
/// PyTorch's clip_grad_norm_. NaN passes.
template <class T>
DEVICELOOP_HOST_DEVICE inline T clip_factor(double squares, double clip_norm) {
  const double factor = clip_norm / (std::sqrt(squares) + 1e-6);
  return static_cast<T>(factor > 1 ? 1 : factor);
}

/// An optimizer is a struct like GradientDescent, and a line in each of these two functions.
/// @{

/// use(an object of its struct): for the host.
template <class Use>
inline auto with_optimizer(OptimizerKind optimizer, Use use) {
  switch (optimizer) {
    case OptimizerKind::gradient_descent:
      break;
    case OptimizerKind::sgd:
      return use(Sgd());
    case OptimizerKind::adam:
      return use(Adam());
    case OptimizerKind::adamw:
      return use(AdamW());
    case OptimizerKind::rmsprop:
      return use(RmsProp());
  }
  return use(GradientDescent());
}

template <class T>
DEVICELOOP_HOST_DEVICE inline void update(OptimizerKind optimizer, T& parameter, T* state, T gradient,
                                          const StepScalars<T>& scalars) {
  switch (optimizer) {
    case OptimizerKind::gradient_descent:
      break;
    case OptimizerKind::sgd:
      return Sgd::update(parameter, state, clipped(gradient, scalars), scalars);
    case OptimizerKind::adam:
      return Adam::update(parameter, state, clipped(gradient, scalars), scalars);
    case OptimizerKind::adamw:
      return AdamW::update(parameter, state, clipped(gradient, scalars), scalars);
    case OptimizerKind::rmsprop:
      return RmsProp::update(parameter, state, clipped(gradient, scalars), scalars);
  }
  GradientDescent::update(parameter, state, gradient, scalars);
}
/// @}

inline std::span<const char* const> states_of(OptimizerKind optimizer) {
  return with_optimizer(optimizer, [](auto of) { return std::span<const char* const>(of.kStates); });
}

inline bool adds_gradient(OptimizerKind optimizer) {
  return with_optimizer(optimizer, [](auto of) { return of.adds_gradient; });
}

inline bool is_linear(OptimizerKind optimizer) {
  return with_optimizer(optimizer, [](auto of) { return of.is_linear; });
}

}  // namespace deviceloop::elementwise
