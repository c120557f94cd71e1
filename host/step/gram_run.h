// What of the Gram formulation (see Formulation) is up to date, and what has to be computed when: one state machine for
// all executors.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "../parameters.h"
#include "gram_shares.h"

namespace deviceloop {

/// What the state machine asks of an executor: work on its memory, in the order in which it is asked.
class GramDriver {
 public:
  /// K from the data, Z and its momentum from the data, the parameters and theirs.
  virtual void compute_gram(bool kernel, bool pre_activation) = 0;
  /// S and its momentum V are 0.
  virtual void clear_sum() = 0;
  /// The first layer's parameters and their momentum, from `shares` of what they were, S and V.
  virtual void rebuild_parameters(const GramShares& shares) = 0;
  /// W_0, b_0 or its momentum is what the parameter, or its momentum, is.
  virtual void keep_as_start(const ParameterInfo& info) = 0;

 protected:
  ~GramDriver() = default;
};

/// How far a run is from where S was last 0.
struct GramProgress {
  std::int64_t steps = 0;
  GramShares shares{};
};

/// Begins with parameters that are what S = 0 is counted from.
class GramRun {
 public:
  GramRun(GramDriver& driver, const NetworkSpec& network, const TrainingSpec& training)
      : driver_(driver),
        training_(training),
        state_(state_layout(network, training)),
        reprojection_steps_(training.reprojection_steps) {}

  /// Before new data are there: S belongs to the old ones.
  void before_data() {
    start_from_parameters();
    kernel_is_current_ = pre_activation_is_current_ = false;
  }

  /// Before a step, and before the loss is asked for.
  void before_step() {
    if (kernel_is_current_ && pre_activation_is_current_) return;
    driver_.compute_gram(!kernel_is_current_, !pre_activation_is_current_);
    kernel_is_current_ = pre_activation_is_current_ = true;
  }

  /// How many of `steps` may follow each other now.
  std::int64_t steps_in_one_go(std::int64_t steps) const {
    return reprojection_steps_ > 0 ? std::min(steps, reprojection_steps_ - steps_in_sum_) : steps;
  }

  /// So many as steps_in_one_go() allowed were taken, `first_step` before them. Where what then has to be done fails,
  /// they were taken all the same.
  void after_steps(std::int64_t first_step, std::int64_t steps) {
    parameters_are_current_ = false;
    steps_in_sum_ += steps;
    shares_.take_steps(training_, first_step, steps);
    if (reprojection_steps_ > 0 && steps_in_sum_ >= reprojection_steps_) start_from_parameters();
  }

  /// Before parameters or their momentum are read.
  void before_reading() {
    if (parameters_are_current_) return;
    driver_.rebuild_parameters(shares_);
    parameters_are_current_ = true;
  }

  /// `write` changes a parameter, or what the optimizer keeps for it, whichever.
  template <class Write>
  void write(const ParameterInfo& info, Write write) {
    if (info.layer > 0) return write();
    start_from_parameters();
    write();
    driver_.keep_as_start(info);
    pre_activation_is_current_ = false;
  }

  /// Of the tensors of gram_tensors() as they are, once parameters have been read. Without steps they say no more than
  /// the parameters do.
  GramProgress progress() const { return {steps_in_sum_, shares_}; }

  /// After gram_tensors(), and all parameters and their momentum before, were written as they were at this progress, on
  /// the same data: the run goes on from there.
  void resume(const GramProgress& progress) {
    steps_in_sum_ = progress.steps;
    shares_ = progress.shares;
    pre_activation_is_current_ = parameters_are_current_ = true;
  }

  /// After a rehearsal on memory that is 0: all that it computed is of no worth, and nothing has changed.
  void forget() {
    kernel_is_current_ = pre_activation_is_current_ = false;
    parameters_are_current_ = true;
    steps_in_sum_ = 0;
    shares_ = {};
  }

 private:
  /// S and V begin anew at the parameters and their momentum as they are, and so do Z and its momentum: the optimizer
  /// goes on.
  void start_from_parameters() {
    if (steps_in_sum_ == 0) return;
    before_reading();
    for (const ParameterInfo& info : state_)
      if (info.layer == 0) driver_.keep_as_start(info);
    driver_.clear_sum();
    steps_in_sum_ = 0;
    shares_ = {};
    pre_activation_is_current_ = false;
  }

  GramDriver& driver_;
  const TrainingSpec training_;
  const std::vector<ParameterInfo> state_;
  const std::int64_t reprojection_steps_;
  bool kernel_is_current_ = false;
  bool pre_activation_is_current_ = false;
  bool parameters_are_current_ = true;
  std::int64_t steps_in_sum_ = 0;
  GramShares shares_;
};

}  // namespace deviceloop
