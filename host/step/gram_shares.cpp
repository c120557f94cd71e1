#include "gram_shares.h"

#include <type_traits>

#include "../elementwise.h"
#include "../matrix_ops.h"
#include "scalars.h"

namespace deviceloop {
namespace {

/// Those that linear updates read, exactly.
template <class T>
elementwise::StepScalars<double> in_double(const elementwise::StepScalars<T>& scalars) {
  elementwise::StepScalars<double> wide;
  wide.learning_rate = static_cast<double>(scalars.learning_rate);
  wide.negative_rate = static_cast<double>(scalars.negative_rate);
  wide.momentum = static_cast<double>(scalars.momentum);
  wide.weight_decay = static_cast<double>(scalars.weight_decay);
  wide.nesterov = scalars.nesterov;
  return wide;
}

}  // namespace

template <class T>
void GramShares::take(const TrainingSpec& training, std::int64_t first_step, std::int64_t count) {
  const Optimizer& optimizer = training.optimizer;
  const bool varies = scalars_vary(training);
  elementwise::StepScalars<double> scalars;
  elementwise::with_optimizer(optimizer.kind, [&](auto of) {
    if constexpr (of.is_linear) {
      static_assert(of.kStates.size() <= 1, "a share is of the parameter and of one number kept for it");
      for (std::int64_t step = 0; step < count; ++step) {
        if (step == 0 || varies) scalars = in_double(step_scalars<T>(optimizer, first_step + step));
        for (Share* const share : {&start_, &start_state_}) of.update(share->parameter, &share->momentum, 0.0, scalars);
      }
    }
  });
}

void GramShares::take_steps(const TrainingSpec& training, std::int64_t first_step, std::int64_t count) {
  if (elementwise::states_of(training.optimizer.kind).empty()) return;  // they stay what they are
  with_type(element_type(training.precision),
            [&](auto* type) { take<std::remove_pointer_t<decltype(type)>>(training, first_step, count); });
}

}  // namespace deviceloop
