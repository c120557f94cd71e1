// Element-wise passes of the CPU executor over contiguous [rows, columns] panels, each one pass over memory.
#pragma once

#include <array>
#include <cstdint>

#include <deviceloop/spec.h>

#include "../activations.h"
#include "../elementwise.h"
#include "../losses.h"
#include "../precision.h"

namespace deviceloop {

/// h = activation(z + bias), and z + bias to `kept`, which may be null; bias [columns] may be null, and h may be z.
template <class T>
void bias_activation(const ActivationOfStep& activation, T* h, T* kept, const T* z, const T* bias, std::int64_t rows,
                     std::int64_t columns);

/// panel += bias, which may be null.
template <class T>
void add_bias(T* panel, const T* bias, std::int64_t rows, std::int64_t columns);

/// dh times the gradient of the activation at `kept`, its pre-activation if it keeps that, else its value; in place.
template <class T>
void through_activation(const ActivationOfStep& activation, T* dh, const T* kept, std::int64_t count);

/// What products read for `count` elements, in a precision that rounds operands; `low` is null where that has one part.
void round_operand(Precision precision, const float* values, std::int64_t count, float* high, float* low);

/// Multiplies the values by a factor; whether all of them were finite.
template <class T>
bool scale_finite(T* values, T factor, std::int64_t count);

/// sum[i] += factor * values[i], rounded twice.
template <class T>
void add_scaled(T* sum, T factor, const T* values, std::int64_t count);

/// Changes `count` parameters, and the arrays of what the optimizer keeps for them, by their gradients. What only adds
/// gradients is rounded twice, as add_scaled: fused multiply-adds without hardware for them are slow.
template <class T>
void update(OptimizerKind optimizer, T* parameters, const std::array<T*, elementwise::kMostStates>& state,
            const T* gradients, std::int64_t count, const elementwise::StepScalars<T>& scalars);

/// At most 32 squares in T, from there in double.
template <class T>
double square_sum(const T* values, std::int64_t count);

/// The sum of the losses of predictions [rows, columns], times the scale; their gradient may be null or the predictions
/// themselves. `weights` [rows], which multiply the losses of their rows, may be null.
template <class T>
double take_loss(const LossOfStep& loss, T* gradient, const T* prediction, const T* target, const T* weights,
                 std::int64_t rows, std::int64_t columns);

/// How many predictions [rows, columns] are right; see counted_predictions().
template <class T>
std::int64_t count_right(const LossOfStep& loss, const T* prediction, const T* target, std::int64_t rows,
                         std::int64_t columns);

/// sums[column] += the column's sum over the rows of a panel: 32 rows at a time in T, from there in double.
template <class T>
void add_column_sums(double* sums, const T* panel, std::int64_t rows, std::int64_t columns);

}  // namespace deviceloop
