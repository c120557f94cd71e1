#include "scalars.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numbers>

#include "step.h"

namespace deviceloop {

OptimizerMembers members_of(OptimizerKind kind) {
  switch (kind) {
    case OptimizerKind::gradient_descent:
      break;
    case OptimizerKind::sgd:
      return {.momentum = true, .nesterov = true, .weight_decay = true, .clipping = true};
    case OptimizerKind::adam:
    case OptimizerKind::adamw:
      return {.weight_decay = true, .beta1 = true, .beta2 = true, .epsilon = true, .clipping = true};
    case OptimizerKind::rmsprop:
      return {.momentum = true, .weight_decay = true, .beta2 = true, .epsilon = true, .clipping = true};
  }
  return {};
}

double weight_decay_of(const Optimizer& optimizer) {
  return optimizer.weight_decay.value_or(optimizer.kind == OptimizerKind::adamw ? 0.01 : 0);
}
double beta2_of(const Optimizer& optimizer) {
  return optimizer.beta2.value_or(optimizer.kind == OptimizerKind::rmsprop ? 0.99 : 0.999);
}

namespace {

bool has_bias_correction(OptimizerKind kind) {
  switch (kind) {
    case OptimizerKind::adam:
    case OptimizerKind::adamw:
      return true;
    case OptimizerKind::gradient_descent:
    case OptimizerKind::sgd:
    case OptimizerKind::rmsprop:
      break;
  }
  return false;
}

}  // namespace

double rate_of_step(const Optimizer& optimizer, std::int64_t step) {
  const Schedule& schedule = optimizer.schedule;
  const auto s = static_cast<double>(step), period = static_cast<double>(schedule.period);
  double rate = optimizer.learning_rate;
  switch (schedule.kind) {
    case ScheduleKind::constant:
      break;
    case ScheduleKind::step:
      rate *= std::pow(schedule.factor, static_cast<double>(step / schedule.period));
      break;
    case ScheduleKind::exponential:
      rate *= std::pow(schedule.factor, s);
      break;
    case ScheduleKind::cosine:
      rate = schedule.end_rate +
             (rate - schedule.end_rate) * (1 + std::cos(std::numbers::pi * std::min(s, period) / period)) / 2;
      break;
  }
  if (step < schedule.warmup_steps) rate *= (s + 1) / static_cast<double>(schedule.warmup_steps);
  return rate;
}

bool scalars_vary(const TrainingSpec& training) {
  const Optimizer& optimizer = training.optimizer;
  return has_minibatches(training) || optimizer.schedule.kind != ScheduleKind::constant ||
         optimizer.schedule.warmup_steps > 0 || has_bias_correction(optimizer.kind);
}

template <class T>
elementwise::StepScalars<T> step_scalars(const Optimizer& optimizer, std::int64_t step) {
  const double rate = rate_of_step(optimizer, step), decay = weight_decay_of(optimizer), beta2 = beta2_of(optimizer);
  elementwise::StepScalars<T> scalars;
  scalars.step = step;
  scalars.learning_rate = static_cast<T>(rate);
  scalars.negative_rate = -scalars.learning_rate;
  scalars.momentum = static_cast<T>(optimizer.momentum);
  scalars.weight_decay = static_cast<T>(decay);
  scalars.one_minus_beta1 = static_cast<T>(1 - optimizer.beta1);
  scalars.beta2 = static_cast<T>(beta2);
  scalars.one_minus_beta2 = static_cast<T>(1 - beta2);
  scalars.epsilon = static_cast<T>(optimizer.epsilon);
  scalars.clip_value =
      optimizer.clip_value > 0 ? static_cast<T>(optimizer.clip_value) : std::numeric_limits<T>::infinity();
  scalars.nesterov = optimizer.nesterov ? 1 : 0;
  if (optimizer.kind == OptimizerKind::adamw) scalars.kept_weight = static_cast<T>(1 - rate * decay);
  if (has_bias_correction(optimizer.kind)) {
    const auto t = static_cast<double>(step) + 1;
    scalars.adam_rate = static_cast<T>(rate / (1 - std::pow(optimizer.beta1, t)));
    scalars.root_correction = static_cast<T>(std::sqrt(1 - std::pow(beta2, t)));
  }
  return scalars;
}

template elementwise::StepScalars<float> step_scalars(const Optimizer&, std::int64_t);
template elementwise::StepScalars<double> step_scalars(const Optimizer&, std::int64_t);

}  // namespace deviceloop
