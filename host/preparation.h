// The times of the stages before the first step.
#pragma once

#include <algorithm>
#include <chrono>
#include <string>
#include <utility>
#include <vector>

#include <deviceloop/trainer.h>

namespace deviceloop {

/// A stopwatch whose laps add up by their names.
class Preparation {
 public:
  /// The time since the last lap is counted for no stage.
  void restart() { last_ = Clock::now(); }

  /// Adds the time since the last lap, or restart, to `stage`.
  void lap(const std::string& stage) {
    const Clock::time_point now = Clock::now();
    add({stage, std::chrono::duration<double, std::milli>(now - last_).count()});
    last_ = now;
  }

  void add(const PreparationStage& stage) {
    const auto same = std::find_if(stages_.begin(), stages_.end(),
                                   [&](const PreparationStage& each) { return each.name == stage.name; });
    if (same != stages_.end())
      same->ms += stage.ms;
    else
      stages_.push_back(stage);
  }

  const std::vector<PreparationStage>& stages() const { return stages_; }
  /// Returns the stages so far and clears them.
  std::vector<PreparationStage> take() { return std::exchange(stages_, {}); }

 private:
  using Clock = std::chrono::steady_clock;
  Clock::time_point last_ = Clock::now();
  std::vector<PreparationStage> stages_;
};

}  // namespace deviceloop
