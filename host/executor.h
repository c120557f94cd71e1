// The interface between the trainer and what executes a training run. A call stands for many steps and never for a
// single operation, because a captured graph and a persistent kernel both combine operations.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include <deviceloop/cuda_options.h>
#include <deviceloop/error.h>
#include <deviceloop/matrix.h>
#include <deviceloop/plan.h>
#include <deviceloop/spec.h>

#include "parameters.h"
#include "preparation.h"
#include "step/step.h"

namespace deviceloop {

class GramRun;

/// Thrown by Executor::enqueue and enqueue_evaluation where a run cannot go on, but its executor can: `steps` of the
/// steps asked for are done, the parameters are those that they have led to, and their losses are dropped.
class RunEnded final : public Error {
 public:
  RunEnded(const std::string& message, std::int64_t steps) : Error(message), steps_(steps) {}
  std::int64_t steps() const { return steps_; }

 private:
  std::int64_t steps_;
};

/// Data for training; `sample_weights` is empty where samples have none.
struct TrainingData {
  ConstMatrix x{}, y{}, sample_weights{};
};

/// What an executor of a GPU shares with its application: the stream and the memory, and of the data those arrays that
/// TrainingSpec::in_place says are read where they lie; the others are not used.
struct Surroundings {
  const CudaOptions& cuda;
  TrainingData data{};
};

/// Of validation data.
struct EvaluationSums {
  double loss = 0;     ///< summed or averaged, as TrainingSpec::reduction says
  double correct = 0;  ///< how many predictions are right, see counted_predictions()
};

/// Made for one network, one number of samples and one plan. The constructor does all work that is done only once, so
/// that the first step takes as long as any other. All of its state is 0 until it is written. The trainer has checked
/// every argument: matrices in device memory are of the executor's device, and there is one only on a GPU. What is done
/// with them is enqueued on its stream, and not waited for unless a function says so. Not for use by two threads at
/// once.
class Executor {
 public:
  virtual ~Executor() = default;

  /// The times of the stages of its construction.
  const Preparation& preparation() const { return preparation_; }

  /// Takes a copy of x [samples, in_features], y [samples, outputs] and, with TrainingSpec::sample_weights,
  /// `sample_weights` [samples, 1], converted to the working precision; those of TrainingSpec::in_place it reads where
  /// they lie from now on.
  virtual void set_data(const TrainingData& data) = 0;
  /// The caller has written to what of the data is in device memory: copies of it are made anew.
  virtual void data_changed() {}

  /// Issues `steps` more steps and may return before they are done. The loss of each is kept until it is fetched. The
  /// optimizer has taken `first_step` steps before.
  virtual void enqueue(std::int64_t first_step, std::int64_t steps) = 0;
  /// Fetches the next out.size() losses in order of steps; waits for those steps. out.size() is at most the number of
  /// steps enqueued and not fetched yet.
  virtual void losses(std::span<double> out) = 0;
  /// How many losses can be fetched without waiting, or a little fewer.
  virtual std::int64_t losses_here() = 0;
  /// Enqueues what a run owes after its last step; the parameters are then those after it, for what follows on the
  /// stream.
  virtual void end_run() {}
  /// Enqueues one step and nothing else, so that a stream that is being captured takes it into its graph. Its loss goes
  /// to *loss in device memory, unless that is null.
  virtual void enqueue_step(double* loss) = 0;
  /// end_run(), and waits for all enqueued steps; the parameters are then those after the last step.
  virtual void finish() = 0;
  /// The loss of the current parameters, of the batch of a step that follows `step` others. Call it after finish().
  virtual double loss(std::int64_t step) = 0;

  /// Copies the entry state_layout()[index] out or in, converted if the types differ. Call it after finish().
  virtual void read_state(int index, Matrix out) = 0;
  virtual void write_state(int index, ConstMatrix in) = 0;

  /// Validation data: x [rows, in_features] and y [rows, outputs], or [rows, 1] of classes, in the working precision
  /// and without gaps. They stay where they are until the next call. No rows: none any more. What was kept of
  /// evaluations is forgotten.
  virtual void set_validation(ConstMatrix x, ConstMatrix y) = 0;
  /// Issues an evaluation of the validation data with the parameters after the steps issued so far, and may return
  /// before it is done. With `may_be_best` and Watch::keep_best the parameters are kept if its loss is smaller than
  /// those of all such evaluations before since forget_best().
  virtual void enqueue_evaluation(bool may_be_best) = 0;
  /// Fetches the next out.size() evaluations in order; waits for them.
  virtual void evaluations(std::span<EvaluationSums> out) = 0;
  virtual void forget_best() = 0;
  /// Copies the kept parameter state_layout()[index] out. Call it after finish().
  virtual void read_best(int index, Matrix out) = 0;

  /// How a step runs, one line each: the algorithms of its matrix products, or how a launch divides it; empty if there
  /// was no choice.
  virtual std::vector<std::string> algorithms() const { return {}; }

  /// out [rows, outputs] = network(x [rows, in_features]) with the current parameters, for any number of rows.
  virtual void predict(ConstMatrix x, Matrix out) = 0;

  // What checkpoints need beside read_state, write_state and read_best. Call them after finish().

  virtual const Step& step() const = 0;
  /// Copies rows of a tensor of step(), of data or one of gram_tensors(), from `first_row` on, out; or all of one of
  /// gram_tensors() in. Both in the working precision.
  virtual void read_tensor(TensorId id, std::int64_t first_row, Matrix out) = 0;
  virtual void write_tensor(TensorId id, ConstMatrix in) = 0;
  /// Null without Formulation::gram.
  virtual GramRun* gram_run() = 0;
  /// With Watch::keep_best and validation data: as if the smallest loss so far had been this, of these parameters.
  virtual void write_best(double loss, const Parameters& parameters) = 0;

 protected:
  Preparation preparation_;
};

}  // namespace deviceloop
