// Losses of whole rows of predictions, by one warp.
#pragma once

#include <cmath>
#include <cstdint>

#include "../../host/losses.h"
#include "../runtime/device.cuh"

namespace deviceloop::cuda {

/// In a butterfly both lanes of a pair add the same two numbers, so that all lanes get the same bits.
template <class T>
__device__ inline T warp_sum(T value) {
#pragma unroll
  for (unsigned mask = kWarpThreads / 2; mask > 0; mask /= 2) value += warp_shuffle_xor(value, mask);
  return value;
}

/// The cross-entropy of a row of logits, in all lanes, and, unless that is null, its gradient times `scale`, which may
/// overwrite the logits. All lanes of a warp call it. The target is the row's class, or its probabilities.
template <class T>
__device__ inline T cross_entropy_row(T* gradient, const T* logits, const T* target, std::int64_t columns,
                                      bool has_classes, T scale) {
  const auto lane = static_cast<std::int64_t>(thread_index() % kWarpThreads);
  T largest = -T(INFINITY), total = 0;
  for (std::int64_t j = lane; j < columns; j += kWarpThreads) {
    if (largest < logits[j]) largest = logits[j];
    if (!has_classes) total += target[j];
  }
#pragma unroll
  for (unsigned mask = kWarpThreads / 2; mask > 0; mask /= 2) {
    const T other = warp_shuffle_xor(largest, mask);
    if (largest < other) largest = other;
  }
  total = has_classes ? T(1) : warp_sum(total);
  double exact_sum = 0;
  for (std::int64_t j = lane; j < columns; j += kWarpThreads)
    exact_sum += static_cast<double>(elementary::exp(logits[j] - largest));
  exact_sum = warp_sum(exact_sum);
  const T sum = static_cast<T>(exact_sum), log_sum = elementary::log1p(static_cast<T>(exact_sum - 1));
  const std::int64_t label = has_classes ? static_cast<std::int64_t>(target[0]) : -1;
  T loss = 0;
  for (std::int64_t j = lane; j < columns; j += kWarpThreads) {
    const T probability = has_classes ? (j == label ? T(1) : T(0)) : target[j];
    const T shifted = logits[j] - largest;
    const elementwise::LossTerm<T> term =
        elementwise::cross_entropy_term(shifted, elementary::exp(shifted), sum, log_sum, probability, total);
    loss += term.value;
    if (gradient != nullptr) gradient[j] = term.gradient * scale;
  }
  return warp_sum(loss);
}

/// By a warp, of which lane j has prediction j: the loss of a row, in all lanes, and its gradient, [columns]; `goal` is
/// target[lane], where there is one.
template <class T>
__device__ inline double row_loss(const LossOfStep& loss, bool by_element, T* gradient, T prediction, T goal,
                                  const T* target, bool has_weight, T weight, int columns) {
  const auto lane = static_cast<int>(thread_index() % kWarpThreads);
  const bool has_output = lane < columns;
  if (by_element) {
    elementwise::LossTerm<T> term{};
    if (has_output) term = elementwise::loss_term(loss, prediction, goal);
    if (has_weight) term = elementwise::weighted(term, weight);
    if (has_output) gradient[lane] = term.gradient;
    return static_cast<double>(warp_sum(has_output ? term.value : T(0)));
  }
  if (has_output) gradient[lane] = prediction;  // read by this lane alone
  const T of_row =
      cross_entropy_row(gradient, gradient, target, columns, loss.has_classes, static_cast<T>(loss.scale) * weight);
  return static_cast<double>(has_weight ? of_row * weight : of_row);
}

}  // namespace deviceloop::cuda
