// The scalars of a step's updates, computed by the host for every executor.
#pragma once

#include <cstdint>
#include <type_traits>

#include <deviceloop/spec.h>

#include "../elementwise.h"
#include "../matrix_ops.h"

namespace deviceloop {

/// Which members of Optimizer an optimizer uses; all use the learning rate and the schedule.
struct OptimizerMembers {
  bool momentum = false;
  bool nesterov = false;
  bool weight_decay = false;
  bool beta1 = false;
  bool beta2 = false;
  bool epsilon = false;
  bool clipping = false;  ///< clip_norm and clip_value
};
OptimizerMembers members_of(OptimizerKind kind);

/// The value, or the optimizer's default.
/// @{
double weight_decay_of(const Optimizer& optimizer);
double beta2_of(const Optimizer& optimizer);
/// @}

/// The learning rate of a step; `step` steps were taken before it.
double rate_of_step(const Optimizer& optimizer, std::int64_t step);

/// Whether steps differ in their scalars.
bool scalars_vary(const TrainingSpec& training);

/// Of a step, before which `step` steps were taken: in T, computed in double and rounded once.
template <class T>
elementwise::StepScalars<T> step_scalars(const Optimizer& optimizer, std::int64_t step);

/// Of an update that adds its gradient: what parameters are rebuilt by.
template <class T>
elementwise::StepScalars<T> adding_scalars() {
  Optimizer optimizer;
  optimizer.learning_rate = -1;
  return step_scalars<T>(optimizer, 0);
}

/// Bytes of StepScalars of that precision.
inline std::uint64_t scalars_bytes(Precision precision) {
  return with_type(element_type(precision), [](auto* type) -> std::uint64_t {
    return sizeof(elementwise::StepScalars<std::remove_pointer_t<decltype(type)>>);
  });
}

}  // namespace deviceloop
