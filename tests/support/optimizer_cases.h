// Optimizers, schedules and clipping that tests train by; tests/reference/record_optimizers.py has the same list.
#pragma once

#include <vector>

#include <deviceloop/spec.h>

namespace deviceloop {

struct OptimizerCase {
  const char* name;
  Optimizer optimizer;
};

inline Optimizer scheduled(Optimizer optimizer, const Schedule& schedule) {
  optimizer.schedule = schedule;
  return optimizer;
}

inline const std::vector<OptimizerCase>& optimizer_cases() {
  using Kind = OptimizerKind;
  static const Optimizer adam{.kind = Kind::adam, .learning_rate = 0.02};
  static const Optimizer descent{.learning_rate = 1e-3};
  static const std::vector<OptimizerCase> all = {
      {"sgd without momentum", {.kind = Kind::sgd, .learning_rate = 1e-3}},
      {"momentum", {.kind = Kind::sgd, .learning_rate = 1e-3, .momentum = 0.9}},
      {"nesterov and decay",
       {.kind = Kind::sgd, .learning_rate = 1e-3, .momentum = 0.8, .nesterov = true, .weight_decay = 0.1}},
      {"adam", adam},
      {"adam with decay",
       {.kind = Kind::adam, .learning_rate = 0.02, .weight_decay = 0.3, .beta1 = 0.7, .beta2 = 0.9, .epsilon = 1e-3}},
      {"adamw", {.kind = Kind::adamw, .learning_rate = 0.02}},
      {"adamw with decay", {.kind = Kind::adamw, .learning_rate = 0.02, .weight_decay = 0.5}},
      {"rmsprop", {.kind = Kind::rmsprop, .learning_rate = 0.003}},
      {"rmsprop with momentum and decay",
       {.kind = Kind::rmsprop, .learning_rate = 0.003, .momentum = 0.5, .weight_decay = 0.2, .beta2 = 0.9}},
      {"clipped by norm", {.kind = Kind::sgd, .learning_rate = 0.01, .momentum = 0.5, .clip_norm = 3}},
      {"a norm that is never reached", {.kind = Kind::adam, .learning_rate = 0.02, .clip_norm = 1e9}},
      {"clipped by value", {.kind = Kind::sgd, .learning_rate = 0.01, .momentum = 0.5, .clip_value = 0.7}},
      {"step schedule", scheduled(descent, {.kind = ScheduleKind::step, .period = 7, .factor = 0.5})},
      {"exponential schedule", scheduled(descent, {.kind = ScheduleKind::exponential, .factor = 0.93})},
      {"cosine schedule that ends before the run", scheduled(adam, {.kind = ScheduleKind::cosine, .period = 33})},
      {"cosine schedule to an end with warm-up",
       scheduled(adam, {.kind = ScheduleKind::cosine, .period = 100, .end_rate = 0.01, .warmup_steps = 20})},
      {"warm-up alone", scheduled(descent, {.warmup_steps = 9})},
  };
  return all;
}

}  // namespace deviceloop
