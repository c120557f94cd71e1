// A training run as a case names it: what train/ and plan/ share, and how its results are checked.
#pragma once

#include <deviceloop/trainer.h>

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "../host/parameters.h"
#include "../host/planning/decision.h"
#include "cases.h"
#include "reference.h"

namespace deviceloop::bench {

/// A run that values of training axes name. Its rate is such that the loss falls steadily on random data.
struct Training {
  std::string name;  ///< cpu/1000-100-1/n=128/fp32, for behind train/
  ExecutorKind plan = ExecutorKind::cpu;
  NetworkSpec network;
  TrainingSpec spec;
  Init init = Init::he;
  std::int64_t steps = 0;          ///< of a timed run
  std::int64_t checked_steps = 0;  ///< of which the reference repeats so many
  std::int64_t distinct = 0;       ///< the data are a block of so many rows over and over: divides spec.samples
  std::string refused;             ///< why make_plan refuses it

  /// Rows of a step.
  std::int64_t rows() const { return spec.batch_size == 0 ? spec.samples : spec.batch_size; }
  Device device() const { return row_of(plan).is_on_gpu ? Device::cuda : Device::cpu; }
};

/// The axes plan, layers, n, precision, bias, loss, optimizer, batch (all, or the rows of a step), formulation, tuned
/// and steps (auto, or a number), where not given with one value each: all plans, primal, full-batch gradient descent
/// on the sum of squared errors, no biases, not tuned.
std::vector<Axis> training_axes(std::vector<std::string> layers, std::vector<std::string> samples,
                                std::vector<std::string> precisions, std::vector<Axis> others = {});

/// None for a plan on a device that `options` does not have.
std::optional<Training> training_of(const Values& values, const CaseOptions& options);

/// "primal" and all others; all plans; and "persistent:two-layer" and all other forms of that plan.
/// @{
std::vector<std::string> formulation_names();
std::vector<std::string> plan_names();
std::vector<std::string> persistent_plan_names();
/// @}

/// Of the products of a step.
double step_flops(const Training& training);
/// Inputs, targets and parameters read once, parameters written once.
double step_bytes(const Training& training);

/// The trainer of a run with its data and initial parameters.
class TrainingRun {
 public:
  /// Throws NotHere where memory is short.
  explicit TrainingRun(const Training& training);

  Trainer& trainer() { return *trainer_; }
  /// Gives the trainer its data.
  void set_data(Trainer& trainer) const;
  /// Gives a trainer the initial parameters. Its optimizer and its minibatches begin anew.
  void set_parameters(Trainer& trainer) const;
  const Training& training() const { return training_; }
  std::size_t data_bytes() const { return x_.bytes.size() + y_.bytes.size(); }

  /// The losses and the parameters after training.checked_steps steps by the reference; computed once, also for runs of
  /// the same arithmetic by other plans and formulations.
  const std::vector<double>& expected_losses();
  const Parameters& expected_parameters();

  Parameters read(const Trainer& trainer) const;
  const Parameters& initial() const { return initial_; }

 private:
  struct Reference {
    std::string key;  ///< all that it follows from but the initial parameters
    Parameters initial, expected;
    std::vector<double> losses;
  };
  const Reference& reference();
  std::shared_ptr<Reference> compute_reference(const std::string& key) const;

  Training training_;
  HostMatrix x_, y_;
  std::unique_ptr<Trainer> trainer_;
  Parameters initial_;
  std::shared_ptr<const Reference> reference_;
};

/// The losses of a run: finite, falling, `steps` of them. Throws WrongResult.
void check_falling(const std::vector<double>& losses, std::int64_t steps);

/// The first losses against those expected: the bounds of the whole runs of the tests, and narrower ones for the first.
/// Returns the largest error. Throws WrongResult.
double check_losses(const Training& training, const std::vector<double>& losses, const std::vector<double>& expected);

/// How far the parameters have gone from the initial ones, against how far they should have. Returns the largest error,
/// relative to that way. Throws WrongResult.
double check_parameters(const Training& training, const Parameters& initial, const Parameters& got,
                        const Parameters& expected);

}  // namespace deviceloop::bench
