// What the first layer's parameters and momentum keep, in the Gram formulation, of what they were when its sums began.
#pragma once

#include <array>
#include <cstdint>

#include <deviceloop/spec.h>

namespace deviceloop {

/// In the Gram formulation a run has the first layer's weight W and its momentum v as
///   W = c W_0 + f v_0 + X^T S,  v = e W_0 + h v_0 + X^T V
/// where W_0 and v_0 are what they were when S and V were last 0; the bias and its momentum likewise, with the column
/// sums of S and V in place of the products. That holds because an update by sgd is linear: with numbers A [2, 2] and
/// B [2] that follow from the scalars of the step alone, it is (p, v) <- A (p, v) + B g. The gradient of W is X^T dZ.
/// Where the equations hold before a step, they hold after it if (S, V) are updated by the gradient dZ, (c, e) and
/// (f, h) by the gradient 0, all of them by the same optimizer; and they hold in the beginning with (c, e) = (1, 0),
/// (f, h) = (0, 1), S = V = 0. Multiplied by X from the left, the update of W is that of Z = X W with the gradient
/// X X^T dZ = K dZ and the momentum X v; the bias adds 1 to K in every element, its momentum is added to each row of
/// X v.
///
/// By gradient_descent, which keeps no momentum, c is 1, and nothing else is there.
class GramShares {
 public:
  /// Takes in `count` steps, before which the optimizer had taken `first_step`: computed in double from the scalars in
  /// the working precision, by which S and V are updated.
  void take_steps(const TrainingSpec& training, std::int64_t first_step, std::int64_t count);

  /// Of W_0, and of v_0, in the number `state` that the optimizer keeps for W; -1: in W itself.
  /// @{
  double of_start(int state) const { return state < 0 ? start_.parameter : start_.momentum; }
  double of_start_state(int state) const { return state < 0 ? start_state_.parameter : start_state_.momentum; }
  /// @}

  /// (c, e, f, h), for a checkpoint.
  /// @{
  std::array<double, 4> values() const {
    return {start_.parameter, start_.momentum, start_state_.parameter, start_state_.momentum};
  }
  void set_values(const std::array<double, 4>& values) {
    start_ = {values[0], values[1]};
    start_state_ = {values[2], values[3]};
  }
  /// @}

 private:
  struct Share {
    double parameter, momentum;
  };
  template <class T>
  void take(const TrainingSpec& training, std::int64_t first_step, std::int64_t count);

  Share start_{1, 0};        ///< (c, e)
  Share start_state_{0, 1};  ///< (f, h)
};

}  // namespace deviceloop
