// The element-wise passes of the CPU, and the public kernel layer on top of them.
#include "cpu_kernels.h"

#include <algorithm>
#include <cstdint>
#include <limits>
#include <string>

#include <deviceloop/error.h>
#include <deviceloop/kernels.h>

#include "../accuracy.h"
#include "../activations.h"
#include "../elementwise.h"
#include "../matrix_ops.h"

namespace deviceloop {

namespace {

template <class T, class Formula>
[[gnu::always_inline]] inline void take_values(Formula formula, T* h, const T* z, const T* bias, std::int64_t rows,
                                               std::int64_t columns) {
  // ivdep: h may be z, for which the compiler would otherwise emit scalar code.
  if (bias == nullptr) {
#pragma GCC ivdep
    for (std::int64_t i = 0; i < rows * columns; ++i) h[i] = formula.value(z[i]);
    return;
  }
  for (std::int64_t row = 0; row < rows; ++row, h += columns, z += columns) {
#pragma GCC ivdep
    for (std::int64_t column = 0; column < columns; ++column) h[column] = formula.value(z[column] + bias[column]);
  }
}

/// use(begin, end, whether the sine of all of values [begin, end) can be taken by parts): some at a time, so that a
/// huge one slows few others.
template <class T, class Use>
[[gnu::always_inline]] inline void for_each_angle_range(const T* values, std::int64_t count, Use use) {
  constexpr std::int64_t kRange = 256;
  for (std::int64_t begin = 0; begin < count; begin += kRange) {
    const std::int64_t end = std::min(begin + kRange, count);
    int beyond = 0;
    for (std::int64_t i = begin; i < end; ++i) beyond |= std::fabs(values[i]) <= elementary::kMostByParts<T> ? 0 : 1;
    use(begin, end, beyond == 0);
  }
}

template <class T>
[[gnu::always_inline]] inline void take_values(activations::Sine sine, T* h, const T* z, const T* bias,
                                               std::int64_t rows, std::int64_t columns) {
  if (bias != nullptr) {
    for (std::int64_t row = 0; row < rows; ++row)
#pragma GCC ivdep
      for (std::int64_t column = 0; column < columns; ++column)
        h[row * columns + column] = z[row * columns + column] + bias[column];
    z = h;
  }
  for_each_angle_range(z, rows * columns, [=](std::int64_t begin, std::int64_t end, bool by_parts) {
    if (!by_parts) {
      for (std::int64_t i = begin; i < end; ++i) h[i] = sine.value(z[i]);
      return;
    }
#pragma GCC ivdep
    for (std::int64_t i = begin; i < end; ++i) h[i] = elementary::sin_by_parts(z[i]);
  });
}

template <class T>
[[gnu::always_inline]] inline void take_gradients(activations::Sine sine, T* dh, const T* kept, std::int64_t count) {
  for_each_angle_range(kept, count, [=](std::int64_t begin, std::int64_t end, bool by_parts) {
    if (!by_parts) {
      for (std::int64_t i = begin; i < end; ++i) dh[i] = sine.gradient(kept[i], dh[i]);
      return;
    }
    for (std::int64_t i = begin; i < end; ++i) dh[i] = dh[i] * elementary::cos_by_parts(kept[i]);
  });
}

template <class T, class Formula>
[[gnu::always_inline]] inline void take_gradients(Formula formula, T* dh, const T* kept, std::int64_t count) {
  for (std::int64_t i = 0; i < count; ++i) dh[i] = formula.gradient(kept[i], dh[i]);
}

template <class T, class Optimizer>
[[gnu::always_inline]] inline void take_updates(T* parameters, const std::array<T*, elementwise::kMostStates>& state,
                                                const T* gradients, std::int64_t count,
                                                const elementwise::StepScalars<T>& scalars) {
  // Copies, which the compiler knows no store to change.
  const std::array<T*, elementwise::kMostStates> of = state;
  const elementwise::StepScalars<T> of_step = scalars;
#pragma GCC ivdep
  for (std::int64_t i = 0; i < count; ++i) {
    T kept[elementwise::kMostStates];
    for (std::size_t s = 0; s < Optimizer::kStates.size(); ++s) kept[s] = of[s][i];
    Optimizer::update(parameters[i], kept, elementwise::clipped(gradients[i], of_step), of_step);
    for (std::size_t s = 0; s < Optimizer::kStates.size(); ++s) of[s][i] = kept[s];
  }
}

template <class Rounding>
[[gnu::always_inline]] inline void take_operand(Rounding rounding, const float* values, std::int64_t count, float* high,
                                                float* low) {
#pragma GCC ivdep
  for (std::int64_t i = 0; i < count; ++i) {
    const float value = values[i], rounded = rounding.high(value);
    high[i] = rounded;
    if constexpr (Rounding::kParts == 2) low[i] = rounding.low(value, rounded);
  }
}

// The same loops, compiled for processors with fused multiply-add: by a function of the C library it takes ten times as
// long. It is exact by definition, so that the results are the same.
#if defined(__x86_64__)
template <class T, class Formula>
[[gnu::target("avx2,fma"), gnu::flatten]] void take_values_by_fma(Formula formula, T* h, const T* z, const T* bias,
                                                                  std::int64_t rows, std::int64_t columns) {
  take_values(formula, h, z, bias, rows, columns);
}
template <class T, class Formula>
[[gnu::target("avx2,fma"), gnu::flatten]] void take_gradients_by_fma(Formula formula, T* dh, const T* kept,
                                                                     std::int64_t count) {
  take_gradients(formula, dh, kept, count);
}

template <class T, class Optimizer>
[[gnu::target("avx2,fma"), gnu::flatten]] void take_updates_by_fma(
    T* parameters, const std::array<T*, elementwise::kMostStates>& state, const T* gradients, std::int64_t count,
    const elementwise::StepScalars<T>& scalars) {
  take_updates<T, Optimizer>(parameters, state, gradients, count, scalars);
}

template <class Rounding>
[[gnu::target("avx2,fma"), gnu::flatten]] void take_operand_by_fma(Rounding rounding, const float* values,
                                                                   std::int64_t count, float* high, float* low) {
  take_operand(rounding, values, count, high, low);
}

bool has_fma() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }
#endif

}  // namespace

template <class T>
void bias_activation(const ActivationOfStep& activation, T* h, T* kept, const T* z, const T* bias, std::int64_t rows,
                     std::int64_t columns) {
  if (kept != nullptr) {
    if (kept != z) std::copy_n(z, rows * columns, kept);
    add_bias(kept, bias, rows, columns);
    z = kept;
    bias = nullptr;
  }
  activations::with_activation<T>(activation, [=](auto formula) {
#if defined(__x86_64__)
    if (has_fma()) return take_values_by_fma(formula, h, z, bias, rows, columns);
#endif
    take_values(formula, h, z, bias, rows, columns);
  });
}

template <class T>
void add_bias(T* panel, const T* bias, std::int64_t rows, std::int64_t columns) {
  if (bias == nullptr) return;
  for (std::int64_t row = 0; row < rows; ++row, panel += columns)
    for (std::int64_t column = 0; column < columns; ++column) panel[column] += bias[column];
}

template <class T>
void through_activation(const ActivationOfStep& activation, T* dh, const T* kept, std::int64_t count) {
  activations::with_activation<T>(activation, [=](auto formula) {
#if defined(__x86_64__)
    if (has_fma()) return take_gradients_by_fma(formula, dh, kept, count);
#endif
    take_gradients(formula, dh, kept, count);
  });
}

void round_operand(Precision precision, const float* values, std::int64_t count, float* high, float* low) {
  with_operand_rounding(precision, [=](auto rounding) {
#if defined(__x86_64__)
    if (has_fma()) return take_operand_by_fma(rounding, values, count, high, low);
#endif
    take_operand(rounding, values, count, high, low);
  });
}

template <class T>
bool scale_finite(T* values, T factor, std::int64_t count) {
  int beyond = 0;
  for (std::int64_t i = 0; i < count; ++i) {
    beyond |= std::fabs(values[i]) <= std::numeric_limits<T>::max() ? 0 : 1;
    values[i] *= factor;
  }
  return beyond == 0;
}

template <class T>
void add_scaled(T* sum, T factor, const T* values, std::int64_t count) {
  for (std::int64_t i = 0; i < count; ++i) sum[i] += factor * values[i];
}

template <class T>
void update(OptimizerKind optimizer, T* parameters, const std::array<T*, elementwise::kMostStates>& state,
            const T* gradients, std::int64_t count, const elementwise::StepScalars<T>& scalars) {
  elementwise::with_optimizer(optimizer, [&](auto of) {
    if constexpr (of.adds_gradient) {
      add_scaled(parameters, scalars.negative_rate, gradients, count);
    } else {
      using Of = decltype(of);
#if defined(__x86_64__)
      if (has_fma()) return take_updates_by_fma<T, Of>(parameters, state, gradients, count, scalars);
#endif
      take_updates<T, Of>(parameters, state, gradients, count, scalars);
    }
  });
}

template <class T>
double square_sum(const T* values, std::int64_t count) {
  constexpr std::int64_t kLanes = 8, kBlock = 32 * kLanes;
  double sum = 0;
  for (std::int64_t begin = 0; begin < count; begin += kBlock) {
    const std::int64_t end = std::min(begin + kBlock, count);
    T lanes[kLanes] = {};
    std::int64_t i = begin;
    for (; i + kLanes <= end; i += kLanes)
      for (std::int64_t lane = 0; lane < kLanes; ++lane) lanes[lane] += values[i + lane] * values[i + lane];
    for (std::int64_t lane = 0; i < end; ++i, ++lane) lanes[lane] += values[i] * values[i];
    for (const T lane : lanes) sum += static_cast<double>(lane);
  }
  return sum;
}

namespace {

struct NoWeights {
  template <class T>
  elementwise::LossTerm<T> operator()(const elementwise::LossTerm<T>& term) const {
    return term;
  }
};

/// Called with the terms of one element after the other.
template <class T>
struct RowWeights {
  const T* weight;
  std::int64_t columns;
  std::int64_t column = 0;
  elementwise::LossTerm<T> operator()(const elementwise::LossTerm<T>& term) {
    const T of_row = *weight;
    if (++column == columns) {
      column = 0;
      ++weight;
    }
    return elementwise::weighted(term, of_row);
  }
};

template <class T, class Formula, class Weights>
[[gnu::always_inline]] inline double take_element_loss(Formula formula, Weights weigh, T* gradient, const T* prediction,
                                                       const T* target, std::int64_t count) {
  // Eight lanes of at most 32 losses each in T, so that the loop vectorises and its order is fixed for every machine.
  constexpr std::int64_t kLanes = 8;
  constexpr std::int64_t kBlock = 32 * kLanes;
  double loss = 0;
  for (std::int64_t begin = 0; begin < count; begin += kBlock) {
    const std::int64_t end = std::min(begin + kBlock, count);
    T lanes[kLanes] = {};
    std::int64_t i = begin;
    const auto element = [&](std::int64_t index) {
      const elementwise::LossTerm<T> term = weigh(formula(prediction[index], target[index]));
      if (gradient != nullptr) gradient[index] = term.gradient;
      return term.value;
    };
    for (; i + kLanes <= end; i += kLanes)
      for (std::int64_t lane = 0; lane < kLanes; ++lane) lanes[lane] += element(i + lane);
    for (std::int64_t lane = 0; i < end; ++i, ++lane) lanes[lane] += element(i);
    for (const T lane : lanes) loss += static_cast<double>(lane);
  }
  return loss;
}

template <class T>
[[gnu::always_inline]] inline T cross_entropy_row(T* gradient, const T* logits, const T* target, std::int64_t columns,
                                                  bool has_classes, T scale) {
  T largest = -std::numeric_limits<T>::infinity(), total = 0;
  for (std::int64_t j = 0; j < columns; ++j) {
    if (largest < logits[j]) largest = logits[j];
    if (!has_classes) total += target[j];
  }
  // The exponentials of a row of usual width are computed once, by a loop that vectorises.
  constexpr std::int64_t kKept = 256;
  T kept[kKept];
  const bool keeps = columns <= kKept;
  if (keeps)
    for (std::int64_t j = 0; j < columns; ++j) kept[j] = elementary::exp(logits[j] - largest);
  const auto exponential = [&](std::int64_t j) { return keeps ? kept[j] : elementary::exp(logits[j] - largest); };
  double exact_sum = 0;
  for (std::int64_t j = 0; j < columns; ++j) exact_sum += static_cast<double>(exponential(j));
  const T sum = static_cast<T>(exact_sum), log_sum = elementary::log1p(static_cast<T>(exact_sum - 1));
  const std::int64_t label = has_classes ? static_cast<std::int64_t>(target[0]) : -1;
  T loss = 0;
  for (std::int64_t j = 0; j < columns; ++j) {
    const T probability = has_classes ? (j == label ? T(1) : T(0)) : target[j];
    const elementwise::LossTerm<T> term = elementwise::cross_entropy_term(
        logits[j] - largest, exponential(j), sum, log_sum, probability, has_classes ? T(1) : total);
    loss += term.value;
    if (gradient != nullptr) gradient[j] = term.gradient * scale;
  }
  return loss;
}

template <class T>
[[gnu::always_inline]] inline double take_loss_here(const LossOfStep& loss, T* gradient, const T* prediction,
                                                    const T* target, const T* weights, std::int64_t rows,
                                                    std::int64_t columns) {
  double sum = 0;
  if (is_by_element(loss.kind)) {
    const std::int64_t count = rows * columns;
    elementwise::with_loss<T>(loss, [&](auto formula) {
      if (weights == nullptr)
        sum = take_element_loss(formula, NoWeights(), gradient, prediction, target, count);
      else
        sum = take_element_loss(formula, RowWeights<T>{weights, columns}, gradient, prediction, target, count);
    });
    return sum * loss.scale;
  }
  const std::int64_t target_columns = loss.has_classes ? 1 : columns;
  for (std::int64_t row = 0; row < rows; ++row) {
    const T weight = weights != nullptr ? weights[row] : T(1);
    const T of_row = cross_entropy_row(gradient != nullptr ? gradient + row * columns : nullptr,
                                       prediction + row * columns, target + row * target_columns, columns,
                                       loss.has_classes, static_cast<T>(loss.scale) * weight);
    sum += static_cast<double>(of_row * weight);
  }
  return sum * loss.scale;
}

#if defined(__x86_64__)
template <class T>
[[gnu::target("avx2,fma"), gnu::flatten]] double take_loss_by_fma(const LossOfStep& loss, T* gradient,
                                                                  const T* prediction, const T* target,
                                                                  const T* weights, std::int64_t rows,
                                                                  std::int64_t columns) {
  return take_loss_here(loss, gradient, prediction, target, weights, rows, columns);
}
#endif

}  // namespace

template <class T>
double take_loss(const LossOfStep& loss, T* gradient, const T* prediction, const T* target, const T* weights,
                 std::int64_t rows, std::int64_t columns) {
#if defined(__x86_64__)
  if (has_fma()) return take_loss_by_fma(loss, gradient, prediction, target, weights, rows, columns);
#endif
  return take_loss_here(loss, gradient, prediction, target, weights, rows, columns);
}

template <class T>
std::int64_t count_right(const LossOfStep& loss, const T* prediction, const T* target, std::int64_t rows,
                         std::int64_t columns) {
  std::int64_t count = 0;
  if (is_by_element(loss.kind)) {
    for (std::int64_t i = 0; i < rows * columns; ++i) count += is_right(prediction[i], target[i]) ? 1 : 0;
    return count;
  }
  for (std::int64_t row = 0; row < rows; ++row) {
    Largest<T> predicted, wanted;
    for (std::int64_t j = 0; j < columns; ++j) predicted.take(prediction[row * columns + j], j);
    if (loss.has_classes)
      wanted.index = static_cast<std::int64_t>(target[row]);
    else
      for (std::int64_t j = 0; j < columns; ++j) wanted.take(target[row * columns + j], j);
    count += predicted.index == wanted.index ? 1 : 0;
  }
  return count;
}

template <class T>
void add_column_sums(double* sums, const T* panel, std::int64_t rows, std::int64_t columns) {
  constexpr std::int64_t kTerms = 32, kColumns = 64;
  for (std::int64_t begin = 0; begin < rows; begin += kTerms) {
    const std::int64_t end = std::min(begin + kTerms, rows);
    for (std::int64_t first = 0; first < columns; first += kColumns) {
      const std::int64_t width = std::min(kColumns, columns - first);
      T partial[kColumns] = {};
      for (std::int64_t row = begin; row < end; ++row)
        for (std::int64_t column = 0; column < width; ++column)
          partial[column] += panel[row * columns + first + column];
      for (std::int64_t column = 0; column < width; ++column)
        sums[first + column] += static_cast<double>(partial[column]);
    }
  }
}

template void bias_activation(const ActivationOfStep&, float*, float*, const float*, const float*, std::int64_t,
                              std::int64_t);
template void bias_activation(const ActivationOfStep&, double*, double*, const double*, const double*, std::int64_t,
                              std::int64_t);
template void add_bias(float*, const float*, std::int64_t, std::int64_t);
template void add_bias(double*, const double*, std::int64_t, std::int64_t);
template void through_activation(const ActivationOfStep&, float*, const float*, std::int64_t);
template void through_activation(const ActivationOfStep&, double*, const double*, std::int64_t);
template bool scale_finite(float*, float, std::int64_t);
template bool scale_finite(double*, double, std::int64_t);
template void add_scaled(float*, float, const float*, std::int64_t);
template void add_scaled(double*, double, const double*, std::int64_t);
template void update(OptimizerKind, float*, const std::array<float*, elementwise::kMostStates>&, const float*,
                     std::int64_t, const elementwise::StepScalars<float>&);
template void update(OptimizerKind, double*, const std::array<double*, elementwise::kMostStates>&, const double*,
                     std::int64_t, const elementwise::StepScalars<double>&);
template double square_sum(const float*, std::int64_t);
template double square_sum(const double*, std::int64_t);
template double take_loss(const LossOfStep&, float*, const float*, const float*, const float*, std::int64_t,
                          std::int64_t);
template double take_loss(const LossOfStep&, double*, const double*, const double*, const double*, std::int64_t,
                          std::int64_t);
template std::int64_t count_right(const LossOfStep&, const float*, const float*, std::int64_t, std::int64_t);
template std::int64_t count_right(const LossOfStep&, const double*, const double*, std::int64_t, std::int64_t);
template void add_column_sums(double*, const float*, std::int64_t, std::int64_t);
template void add_column_sums(double*, const double*, std::int64_t, std::int64_t);

namespace {

/// Throws InvalidArgument for a range that no memory has room for, and for one without memory.
template <class T>
void check_range(const char* function, const char* name, std::span<T> range) {
  if (range.size() > SIZE_MAX / sizeof(T) || !is_address_range(range.data(), range.size() * sizeof(T)))
    throw InvalidArgument(std::string(function) + ": " + name + " has " + std::to_string(range.size()) +
                          " elements, more than any memory has room for; pass the size of the range");
  if (range.data() == nullptr && !range.empty())
    throw InvalidArgument(std::string(function) + ": " + name + " is null; pass " + std::to_string(range.size()) +
                          " elements");
}

template <class T>
void check(const char* function, const char* out_name, std::span<T> out, const char* in_name, std::span<const T> in) {
  if (out.size() != in.size())
    throw InvalidArgument(std::string(function) + ": " + out_name + " has " + std::to_string(out.size()) +
                          " elements, " + in_name + " has " + std::to_string(in.size()) + "; sizes must be equal");
  check_range(function, out_name, out);
  check_range(function, in_name, in);
  const auto* out_begin = static_cast<const T*>(out.data());
  if (out_begin != in.data() && std::less<>()(out_begin, in.data() + in.size()) &&
      std::less<>()(in.data(), out_begin + out.size()))
    throw InvalidArgument(std::string(function) + ": " + out_name + " overlaps " + in_name +
                          " in part; pass the same range or separate ones");
}

template <class T>
void checked_relu(std::span<T> out, std::span<const T> in) {
  check("relu", "out", out, "in", in);
  for (std::size_t i = 0; i < in.size(); ++i) out[i] = elementwise::relu(in[i]);
}

template <class T>
void checked_relu_gradient(std::span<T> dz, std::span<const T> z, std::span<const T> dh) {
  check("relu_gradient", "dz", dz, "z", z);
  check("relu_gradient", "dz", dz, "dh", dh);
  for (std::size_t i = 0; i < z.size(); ++i) dz[i] = elementwise::relu_gradient(z[i], dh[i]);
}

template <class T>
double checked_squared_error(std::span<T> gradient, std::span<const T> prediction, std::span<const T> target) {
  if (prediction.size() != target.size())
    throw InvalidArgument("squared_error: prediction has " + std::to_string(prediction.size()) +
                          " elements, target has " + std::to_string(target.size()) + "; sizes must be equal");
  check_range("squared_error", "prediction", prediction);
  check_range("squared_error", "target", target);
  if (!gradient.empty()) {
    check("squared_error", "gradient", gradient, "prediction", prediction);
    check("squared_error", "gradient", gradient, "target", target);
  }
  return take_loss(LossOfStep(), gradient.empty() ? nullptr : gradient.data(), prediction.data(), target.data(),
                   static_cast<const T*>(nullptr), static_cast<std::int64_t>(prediction.size()), 1);
}

}  // namespace

void relu(std::span<float> out, std::span<const float> in) { checked_relu(out, in); }
void relu(std::span<double> out, std::span<const double> in) { checked_relu(out, in); }

void relu_gradient(std::span<float> dz, std::span<const float> z, std::span<const float> dh) {
  checked_relu_gradient(dz, z, dh);
}
void relu_gradient(std::span<double> dz, std::span<const double> z, std::span<const double> dh) {
  checked_relu_gradient(dz, z, dh);
}

double squared_error(std::span<float> gradient, std::span<const float> prediction, std::span<const float> target) {
  return checked_squared_error(gradient, prediction, target);
}
double squared_error(std::span<double> gradient, std::span<const double> prediction, std::span<const double> target) {
  return checked_squared_error(gradient, prediction, target);
}

}  // namespace deviceloop
