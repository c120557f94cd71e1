// When a run looks at validation data, and when it ends early: the rules of TrainingSpec::watch, for every executor.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>
#include <optional>

#include <deviceloop/spec.h>
#include <deviceloop/trainer.h>

#include "step/step.h"

namespace deviceloop {

/// The number of steps at the next border of a run that has taken `steps`; see Watch::every.
inline std::int64_t next_border(const TrainingSpec& training, std::int64_t steps) {
  constexpr std::int64_t kFullBatchSteps = 100;
  std::int64_t every = training.watch.every;
  if (every == 0 && has_minibatches(training)) {
    const std::int64_t samples = training.samples, batch = batch_of(training);
    const std::int64_t epoch = steps * batch / samples + 1;  // complete after ceil(epoch samples / batch) steps
    return (epoch * samples + batch - 1) / batch;
  }
  if (every == 0) every = kFullBatchSteps;
  return (steps / every + 1) * every;
}

/// Looks at one evaluation after the other.
class Watcher {
 public:
  void forget() { *this = {}; }

  void add(const Evaluation& evaluation) {
    const bool is_better = evaluation.loss < (best_ ? best_->loss : std::numeric_limits<double>::infinity());
    if (is_better) best_ = evaluation;
    since_best_ = is_better ? 0 : since_best_ + 1;
  }

  const std::optional<Evaluation>& best() const { return best_; }
  std::int64_t since_best() const { return since_best_; }

  /// As if it had looked at the evaluations of another watcher.
  void resume(const std::optional<Evaluation>& best, std::int64_t since_best) {
    best_ = best;
    since_best_ = since_best;
  }

  /// Why a run ends at a border where the loss, of validation data or of the last step, is this.
  EndOfRun end(const Watch& watch, double loss) const {
    if (watch.target_loss && loss <= *watch.target_loss) return EndOfRun::target_loss;
    if (watch.patience > 0 && since_best_ >= watch.patience) return EndOfRun::patience;
    return EndOfRun::all_steps;
  }

 private:
  std::optional<Evaluation> best_;
  std::int64_t since_best_ = 0;
};

}  // namespace deviceloop
