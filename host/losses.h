// The losses, as formulas of one prediction or of a row of them, shared by the CPU's loops and the CUDA kernels.
#pragma once

#include <cmath>
#include <cstdint>

#include <deviceloop/spec.h>

#include "elementary.h"
#include "elementwise.h"

namespace deviceloop {

/// A loss with its settings, as a step has it.
struct LossOfStep {
  Loss kind = Loss::squared_error;
  double scale = 1;  ///< what the sum over all predictions is multiplied by, and with it the gradient
  double huber_delta = 1;
  bool has_classes = false;  ///< targets are [batch, 1], the number of each row's class; of cross_entropy
};

/// Whether each prediction has a loss of its own, else a row of them.
constexpr bool is_by_element(Loss loss) {
  switch (loss) {
    case Loss::squared_error:
    case Loss::absolute_error:
    case Loss::huber:
    case Loss::binary_cross_entropy:
      return true;
    case Loss::cross_entropy:
      break;
  }
  return false;
}

namespace elementwise {

/// The loss of one prediction, and its derivative by the prediction.
template <class T>
struct LossTerm {
  T value;
  T gradient;
};

/// Formulas of losses by element: called with a prediction and its target. NaN passes through all of them.
/// @{
struct SquaredError {
  template <class T>
  DEVICELOOP_HOST_DEVICE LossTerm<T> operator()(T prediction, T target) const {
    const T difference = prediction - target;
    return {difference * difference, squared_error_gradient(difference)};
  }
};

struct AbsoluteError {
  template <class T>
  DEVICELOOP_HOST_DEVICE LossTerm<T> operator()(T prediction, T target) const {
    const T difference = prediction - target;
    if (difference > T(0)) return {difference, T(1)};
    return {-difference, difference < T(0) ? T(-1) : difference};  // 0 or NaN
  }
};

template <class T>
struct Huber {
  T delta;
  DEVICELOOP_HOST_DEVICE LossTerm<T> operator()(T prediction, T target) const {
    const T difference = prediction - target, size = std::abs(difference);
    if (size > delta) return {delta * (size - T(0.5) * delta), difference < T(0) ? -delta : delta};
    return {T(0.5) * difference * difference, difference};
  }
};

/// Of a logit z and the probability y: log(1 + e^z) - y z.
struct BinaryCrossEntropy {
  template <class T>
  DEVICELOOP_HOST_DEVICE LossTerm<T> operator()(T logit, T target) const {
    return {elementary::softplus(logit) - target * logit, elementary::sigmoid(logit) - target};
  }
};

/// With the gradient times a factor; the loss is multiplied as a whole.
template <class Formula, class T>
struct Scaled {
  Formula formula;
  T scale;
  DEVICELOOP_HOST_DEVICE LossTerm<T> operator()(T prediction, T target) const {
    LossTerm<T> term = formula(prediction, target);
    term.gradient *= scale;
    return term;
  }
};
/// @}

/// The term of a row with a weight.
template <class T>
DEVICELOOP_HOST_DEVICE inline LossTerm<T> weighted(const LossTerm<T>& term, T weight) {
  return {term.value * weight, term.gradient * weight};
}

/// use(the formula of a loss by element): for loops and launches on the host.
template <class T, class Use>
inline void with_loss(const LossOfStep& loss, Use use) {
  const T scale = static_cast<T>(loss.scale);
  switch (loss.kind) {
    case Loss::squared_error:
      if (loss.scale == 1) return use(SquaredError());
      return use(Scaled<SquaredError, T>{{}, scale});
    case Loss::absolute_error:
      return use(Scaled<AbsoluteError, T>{{}, scale});
    case Loss::huber:
      return use(Scaled<Huber<T>, T>{{static_cast<T>(loss.huber_delta)}, scale});
    case Loss::binary_cross_entropy:
      return use(Scaled<BinaryCrossEntropy, T>{{}, scale});
    case Loss::cross_entropy:
      break;  // by row
  }
}

/// The same, chosen at run time for each element.
template <class T>
DEVICELOOP_HOST_DEVICE inline LossTerm<T> loss_term(const LossOfStep& loss, T prediction, T target) {
  LossTerm<T> term{};
  switch (loss.kind) {
    case Loss::squared_error:
      term = SquaredError()(prediction, target);
      break;
    case Loss::absolute_error:
      term = AbsoluteError()(prediction, target);
      break;
    case Loss::huber:
      term = Huber<T>{static_cast<T>(loss.huber_delta)}(prediction, target);
      break;
    case Loss::binary_cross_entropy:
      term = BinaryCrossEntropy()(prediction, target);
      break;
    case Loss::cross_entropy:
      break;
  }
  term.gradient *= static_cast<T>(loss.scale);
  return term;
}

/// Cross-entropy of a row of logits p whose largest is m, with s = sum exp(p_j - m): what a logit, `shifted` by m, and
/// its exponential add to the row's loss and to its derivative, for a target q that is a probability (0 or 1 with
/// classes); the probabilities of the row sum up to `total`.
template <class T>
DEVICELOOP_HOST_DEVICE inline LossTerm<T> cross_entropy_term(T shifted, T exponential, T sum, T log_sum, T target,
                                                             T total) {
  // 0 times an infinite logit is nothing, not NaN.
  return {target == T(0) ? T(0) : target * (log_sum - shifted), total * (exponential / sum) - target};
}

}  // namespace elementwise
}  // namespace deviceloop
