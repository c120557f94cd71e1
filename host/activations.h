// The activations of hidden layers: formulas of single elements, shared by the CPU's loops and the CUDA kernels.
// <deviceloop/spec.h> has their definitions. The value of NaN is NaN; so is the gradient, but for the activations of
// straight lines, which pass that of the value on. At infinities both are the limit, where there is one.
#pragma once

#include <cmath>
#include <type_traits>

#include <deviceloop/spec.h>

#include "elementary.h"
#include "elementwise.h"
#include "host_device.h"

namespace deviceloop {

/// An activation with its settings, as a step has it.
struct ActivationOfStep {
  Activation kind = Activation::identity;
  double leaky_slope = 0.01;
};

namespace activations {

/// Its gradient follows from its output, which therefore keeps the mask.
struct Relu {
  static constexpr bool may_keep_pre_activation = false;
  template <class T>
  DEVICELOOP_ELEMENT static T value(T z) {
    return elementwise::relu_marked(z);
  }
  /// `kept` is the pre-activation where that is kept, else the value; `dh` the gradient of the value.
  template <class T>
  DEVICELOOP_ELEMENT static T gradient(T kept, T dh) {
    return elementwise::relu_gradient_marked(kept, dh);
  }
};

struct Identity {
  static constexpr bool may_keep_pre_activation = false;
  template <class T>
  DEVICELOOP_ELEMENT static T value(T z) {
    return z;
  }
  template <class T>
  DEVICELOOP_ELEMENT static T gradient(T, T dh) {
    return dh;
  }
};

/// The value is above 0 where the pre-activation is, unless the slope is below 0: then the pre-activation is kept. With
/// a slope of 0 the value at -infinity is NaN, as PyTorch's.
template <class T>
struct LeakyRelu {
  static constexpr bool may_keep_pre_activation = true;
  T slope;
  DEVICELOOP_ELEMENT T value(T z) const { return z > T(0) ? z : slope * z; }
  DEVICELOOP_ELEMENT T gradient(T kept, T dh) const { return kept > T(0) ? dh : slope * dh; }
};

/// e^z is h + 1 below 0.
struct Elu {
  static constexpr bool may_keep_pre_activation = false;
  template <class T>
  DEVICELOOP_ELEMENT static T value(T z) {
    const T below = elementary::expm1(z);
    return z > T(0) ? z : below;
  }
  template <class T>
  DEVICELOOP_ELEMENT static T gradient(T h, T dh) {
    return h > T(0) ? dh : dh * (h + T(1));
  }
};

/// sigmoid(z) and its derivative, neither of which is a difference of numbers near 1 for z far above 0.
template <class T>
struct Sigmoids {
  T value, derivative;
};
template <class T>
DEVICELOOP_ELEMENT inline Sigmoids<T> sigmoids(T z) {
  const T smaller = elementary::sigmoid(-std::fabs(z));
  const T larger = T(1) - smaller;
  return {z < T(0) ? smaller : larger, smaller * larger};
}

/// Beyond it, SiLU and both forms of GELU are 0 or z when rounded, and their derivatives 0 or 1.
template <class T>
DEVICELOOP_ELEMENT inline T bounded(T z) {
  return elementary::at_most(elementary::at_least(z, T(-800)), T(800));
}

struct Silu {
  static constexpr bool may_keep_pre_activation = true;
  template <class T>
  DEVICELOOP_ELEMENT static T value(T z) {
    return elementary::at_least(z, T(-800)) * elementary::sigmoid(z);
  }
  template <class T>
  DEVICELOOP_ELEMENT static T gradient(T z, T dh) {
    const Sigmoids<T> s = sigmoids(z);
    return dh * std::fma(bounded(z), s.derivative, s.value);
  }
};

/// For z far below 0, 1 + erf is a small difference and loses relative accuracy, as in the definition.
struct Gelu {
  static constexpr bool may_keep_pre_activation = true;
  template <class T>
  DEVICELOOP_ELEMENT static T value(T z) {
    return elementary::at_least(z, T(-800)) * distribution(z);
  }
  template <class T>
  DEVICELOOP_ELEMENT static T gradient(T z, T dh) {
    const T x = bounded(z);
    const T density = T(0.39894228040143267794) * elementary::exp(T(-0.5) * x * x);
    return dh * std::fma(x, density, distribution(x));
  }

 private:
  /// Of the standard normal distribution, up to z.
  template <class T>
  DEVICELOOP_ELEMENT static T distribution(T z) {
    return T(0.5) * (T(1) + elementary::erf(T(0.70710678118654752440) * z));
  }
};

/// (1 + tanh(u)) / 2 is sigmoid(2 u).
struct GeluTanh {
  static constexpr bool may_keep_pre_activation = true;
  static constexpr double kScale = 1.59576912160573071176;  ///< 2 sqrt(2 / pi)
  static constexpr double kCubic = 0.044715;
  template <class T>
  DEVICELOOP_ELEMENT static T value(T z) {
    return elementary::at_least(z, T(-800)) * elementary::sigmoid(twice_u(z));
  }
  template <class T>
  DEVICELOOP_ELEMENT static T gradient(T z, T dh) {
    const T x = bounded(z);
    const Sigmoids<T> s = sigmoids(twice_u(x));
    const T slope = T(kScale) * std::fma(T(3 * kCubic) * x, x, T(1));
    return dh * std::fma(x * slope, s.derivative, s.value);
  }

 private:
  template <class T>
  DEVICELOOP_ELEMENT static T twice_u(T z) {
    return T(kScale) * z * std::fma(T(kCubic) * z, z, T(1));
  }
};

struct Tanh {
  static constexpr bool may_keep_pre_activation = false;
  template <class T>
  DEVICELOOP_ELEMENT static T value(T z) {
    return elementary::tanh(z);
  }
  template <class T>
  DEVICELOOP_ELEMENT static T gradient(T h, T dh) {
    return dh * std::fma(-h, h, T(1));
  }
};

struct Sigmoid {
  static constexpr bool may_keep_pre_activation = false;
  template <class T>
  DEVICELOOP_ELEMENT static T value(T z) {
    return elementary::sigmoid(z);
  }
  template <class T>
  DEVICELOOP_ELEMENT static T gradient(T h, T dh) {
    return dh * (h * (T(1) - h));
  }
};

/// sigmoid(z) is 1 - e^-h: as accurate, since h of a z far below 0 is small.
struct Softplus {
  static constexpr bool may_keep_pre_activation = false;
  template <class T>
  DEVICELOOP_ELEMENT static T value(T z) {
    return elementary::softplus(z);
  }
  template <class T>
  DEVICELOOP_ELEMENT static T gradient(T h, T dh) {
    return dh * -elementary::expm1(-h);
  }
};

struct Sine {
  static constexpr bool may_keep_pre_activation = true;
  template <class T>
  DEVICELOOP_ELEMENT static T value(T z) {
    return elementary::sin(z);
  }
  template <class T>
  DEVICELOOP_ELEMENT static T gradient(T z, T dh) {
    return dh * elementary::cos(z);
  }
};

/// Whether it is a few instructions, which a kernel may have many copies of.
template <class Formula>
inline constexpr bool kIsShort = std::is_same_v<Formula, Relu> || std::is_same_v<Formula, Identity>;
template <class T>
inline constexpr bool kIsShort<LeakyRelu<T>> = true;

/// use(an object of its struct, for elements of type T). An activation is a struct like those above, and a line here.
/// In a kernel, `use` must be a function for the device.
#if defined(__CUDACC__)
#pragma nv_exec_check_disable
#endif
template <class T, class Use>
DEVICELOOP_HOST_DEVICE constexpr auto with_activation(const ActivationOfStep& activation, Use use) {
  switch (activation.kind) {
    case Activation::relu:
      break;
    case Activation::identity:
      return use(Identity());
    case Activation::leaky_relu:
      return use(LeakyRelu<T>{static_cast<T>(activation.leaky_slope)});
    case Activation::elu:
      return use(Elu());
    case Activation::silu:
      return use(Silu());
    case Activation::gelu:
      return use(Gelu());
    case Activation::gelu_tanh:
      return use(GeluTanh());
    case Activation::tanh:
      return use(Tanh());
    case Activation::sigmoid:
      return use(Sigmoid());
    case Activation::softplus:
      return use(Softplus());
    case Activation::sine:
      return use(Sine());
  }
  return use(Relu());
}

/// Whether its gradient needs the pre-activation, else its value.
constexpr bool keeps_pre_activation(const ActivationOfStep& activation) {
  if (activation.kind == Activation::leaky_relu) return activation.leaky_slope < 0;
  return with_activation<float>(activation, [](auto formula) { return decltype(formula)::may_keep_pre_activation; });
}

/// For code that knows the activation at run time only.
/// @{
template <class T>
DEVICELOOP_ELEMENT inline T value(const ActivationOfStep& activation, T z) {
  return with_activation<T>(activation, [=](auto formula) { return formula.value(z); });
}
template <class T>
DEVICELOOP_ELEMENT inline T gradient(const ActivationOfStep& activation, T kept, T dh) {
  return with_activation<T>(activation, [=](auto formula) { return formula.gradient(kept, dh); });
}
/// @}

}  // namespace activations
}  // namespace deviceloop
