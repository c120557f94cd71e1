// Optimizers, schedules and clipping in double, written from PyTorch's formulas: nothing of what they check is used.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <functional>
#include <vector>

#include <deviceloop/spec.h>

#include "support/reference.h"

namespace deviceloop::reference {

/// The learning rate of the step that follows `step` others.
inline double learning_rate(const Optimizer& of, std::int64_t step) {
  const Schedule& schedule = of.schedule;
  double rate = of.learning_rate;
  if (schedule.kind == ScheduleKind::step)
    for (std::int64_t i = schedule.period; i <= step; i += schedule.period) rate *= schedule.factor;
  if (schedule.kind == ScheduleKind::exponential)
    for (std::int64_t i = 0; i < step; ++i) rate *= schedule.factor;
  if (schedule.kind == ScheduleKind::cosine) {
    const double angle =
        std::acos(-1.0) * static_cast<double>(std::min(step, schedule.period)) / static_cast<double>(schedule.period);
    rate = schedule.end_rate + (rate - schedule.end_rate) * (1 + std::cos(angle)) / 2;
  }
  if (schedule.warmup_steps > 0)
    rate *= std::min(1.0, static_cast<double>(step + 1) / static_cast<double>(schedule.warmup_steps));
  return rate;
}

/// What an optimizer keeps for all parameters, one behind the other.
class OptimizerState {
 public:
  explicit OptimizerState(const Optimizer& of) : of_(of) {}

  void update(Network& network, Network gradient) {
    std::vector<double*> parameters, gradients;
    for (std::size_t l = 0; l < network.size(); ++l) {
      for (double& value : network[l].weight.values) parameters.push_back(&value);
      for (double& value : network[l].bias) parameters.push_back(&value);
      for (double& value : gradient[l].weight.values) gradients.push_back(&value);
      for (double& value : gradient[l].bias) gradients.push_back(&value);
    }
    first_.resize(parameters.size());
    second_.resize(parameters.size());
    double factor = 1;
    if (of_.clip_norm > 0) {
      double squares = 0;
      for (const double* value : gradients) squares += *value * *value;
      factor = std::min(1.0, of_.clip_norm / (std::sqrt(squares) + 1e-6));
    }
    const double rate = learning_rate(of_, step_++);
    for (std::size_t i = 0; i < parameters.size(); ++i) {
      double g = *gradients[i] * factor;
      if (of_.clip_value > 0) g = std::clamp(g, -of_.clip_value, of_.clip_value);
      update_one(*parameters[i], g, first_[i], second_[i], rate);
    }
  }

 private:
  void update_one(double& p, double g, double& first, double& second, double rate) const {
    const auto t = static_cast<double>(step_);
    switch (of_.kind) {
      case OptimizerKind::gradient_descent:
        p -= rate * g;
        break;
      case OptimizerKind::sgd:
        g += of_.weight_decay.value_or(0) * p;
        first = of_.momentum * first + g;
        p -= rate * (of_.nesterov ? g + of_.momentum * first : first);
        break;
      case OptimizerKind::adam:
      case OptimizerKind::adamw: {
        const double beta2 = of_.beta2.value_or(0.999);
        if (of_.kind == OptimizerKind::adam)
          g += of_.weight_decay.value_or(0) * p;
        else
          p *= 1 - rate * of_.weight_decay.value_or(0.01);
        first = of_.beta1 * first + (1 - of_.beta1) * g;
        second = beta2 * second + (1 - beta2) * g * g;
        const double m = first / (1 - std::pow(of_.beta1, t)), v = second / (1 - std::pow(beta2, t));
        p -= rate * m / (std::sqrt(v) + of_.epsilon);
        break;
      }
      case OptimizerKind::rmsprop: {
        const double alpha = of_.beta2.value_or(0.99);
        g += of_.weight_decay.value_or(0) * p;
        first = alpha * first + (1 - alpha) * g * g;
        second = of_.momentum * second + g / (std::sqrt(first) + of_.epsilon);
        p -= rate * second;
        break;
      }
    }
  }

  const Optimizer of_;
  std::vector<double> first_, second_;
  std::int64_t step_ = 0;
};

/// `steps` steps in place; returns the loss before each.
inline std::vector<double> train(Network& network, OptimizerState& state, const Table& x, const Table& y,
                                 std::int64_t steps, const std::function<LossFunction>& loss_of = squared_error,
                                 const Activation& activation = kRelu,
                                 const Activation& output_activation = kIdentity) {
  std::vector<double> losses;
  Network gradient;
  for (std::int64_t step = 0; step < steps; ++step) {
    losses.push_back(gradients(network, x, y, gradient, activation, loss_of, output_activation));
    state.update(network, gradient);
  }
  return losses;
}

}  // namespace deviceloop::reference
