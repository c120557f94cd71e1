// The scalars of a step's updates, computed by the host for every executor.
#pragma once

#include <cstdint>
#include <type_traits>

#include <deviceloop/spec.h>

#include "../elementwise.h"
#include "../matrix_ops.h"

namespace deviceloop {

/// Of a step, in T, computed in double and rounded once.
template <class T>
elementwise::StepScalars<T> step_scalars(const Optimizer& optimizer) {
  elementwise::StepScalars<T> scalars;
  scalars.learning_rate = static_cast<T>(optimizer.learning_rate);
  scalars.negative_rate = -scalars.learning_rate;
  scalars.momentum = static_cast<T>(optimizer.momentum);
  scalars.weight_decay = static_cast<T>(optimizer.weight_decay);
  scalars.nesterov = optimizer.nesterov;
  return scalars;
}

/// Of an update that adds its gradient: what parameters are rebuilt by.
template <class T>
elementwise::StepScalars<T> adding_scalars() {
  Optimizer optimizer;
  optimizer.learning_rate = -1;
  return step_scalars<T>(optimizer);
}

/// Bytes of StepScalars of that precision.
inline std::uint64_t scalars_bytes(Precision precision) {
  return with_type(element_type(precision), [](auto* type) -> std::uint64_t {
    return sizeof(elementwise::StepScalars<std::remove_pointer_t<decltype(type)>>);
  });
}

}  // namespace deviceloop
