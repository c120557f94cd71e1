/// \file
/// The front door: specification -> plan -> executor -> report.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include <deviceloop/export.h>
#include <deviceloop/matrix.h>
#include <deviceloop/plan.h>
#include <deviceloop/spec.h>

namespace deviceloop {

/// A part of what comes before the first step.
struct PreparationStage {
  /// "plan", "devices" (the driver and its GPUs), "data" and, of an executor, "memory"; of one on a GPU also "context",
  /// "library" (cuBLASLt and its algorithms), "kernels" (their code, which CUDA loads when it is first used) and
  /// "capture".
  std::string name{};
  double ms = 0;
};

/// What one call of Trainer::train did.
struct TrainReport {
  Plan plan{};                   ///< what ran it
  std::int64_t first_step = 0;   ///< number of the first step of this call; steps number on across calls
  std::vector<double> losses{};  ///< losses[i] is the loss before update first_step + i: one entry for each step done
  /// From the first enqueue to the last loss on the host; with Formulation::gram, what it computes before the first
  /// step and after the last one included.
  double total_ms = 0;
  /// What the trainer has done since its last call of train that is done once and not in a step: see Trainer::prepare.
  /// Milliseconds, not part of total_ms, and its stages in order.
  /// @{
  double prepare_ms = 0;
  std::vector<PreparationStage> preparation{};
  /// @}
  /// Number of the first step whose loss is NaN or infinite. Divergence is data, not an error.
  std::optional<std::int64_t> first_non_finite_step{};
  bool stopped = false;  ///< the callback ended the run early
  /// On a GPU, by the plan `graph`: the algorithms that cuBLASLt took for the matrix products of a step, a line each;
  /// by the plan `persistent`: a line on how a launch shares a step.
  std::vector<std::string> algorithms{};

  /// Steps done by this call.
  std::int64_t steps() const { return static_cast<std::int64_t>(losses.size()); }
  /// total_ms divided by the steps, in microseconds; empty without a step.
  std::optional<double> us_per_step() const;
};

/// What the callback of Trainer::train sees.
struct TrainProgress {
  std::int64_t first_step = 0;       ///< number of the step that losses[0] belongs to
  std::span<const double> losses{};  ///< of the steps since the last call
  std::int64_t steps_done = 0;       ///< of this call of train
  std::int64_t steps_total = 0;      ///< asked of this call of train
};

/// Return false to stop the run.
using TrainCallback = std::function<bool(const TrainProgress&)>;

/// Trains one network. Not for use by two threads at once; several trainers on several threads run side by side. After
/// fork() the child may only destroy it: every other call throws Error there. Every call computes in the default
/// floating-point environment (rounding to nearest, subnormal numbers kept, no traps), whatever the caller's is, and
/// leaves the caller's as it was, the flags of exceptions included; callbacks run in the caller's.
class DEVICELOOP_EXPORT Trainer {
 public:
  /// Throws InvalidArgument where the specifications are wrong, and Unsupported where this version cannot serve them.
  /// `forced` picks an executor. With `caps` the machine is taken to be that one instead of asked.
  /// @{
  explicit Trainer(NetworkSpec network, TrainingSpec training = {}, std::optional<ExecutorKind> forced = std::nullopt);
  Trainer(NetworkSpec network, TrainingSpec training, std::optional<ExecutorKind> forced, DeviceCaps caps);
  /// @}
  /// Never throws.
  ~Trainer();
  /// A trainer that was moved from may only be destroyed or assigned to.
  /// @{
  Trainer(Trainer&&) noexcept;
  Trainer& operator=(Trainer&&) noexcept;
  /// @}

  /// Copies x [samples, in_features] and y [samples, out_features], host views of float or double, into the executor,
  /// converted once to the working precision. Parameters and the step number stay as they are. Throws InvalidArgument
  /// for shapes that do not match the network or each other, and for a value that is not finite in the working
  /// precision (with its row and column); Unsupported where the machine lacks what the plan needs.
  void set_data(ConstMatrix x, ConstMatrix y);

  /// Does what happens once, so that steps cost what they cost from the first one on: makes the executor of the plan,
  /// with its memory and threads; on a GPU creates the context, loads libraries and kernels, chooses the algorithms of
  /// matrix products, captures graphs. set_data does it where it was not done for as many samples. Called before, with
  /// TrainingSpec::samples set, it does so while there are no data yet; with samples 0, for a network that only
  /// predicts. Throws as set_data does for what the machine lacks; nothing is changed then.
  void prepare();

  /// Draws the weights, sets the biases to 0. Without this call a trainer starts as by initialize(training.seed).
  void initialize(std::uint64_t seed, Init init = Init::normal);

  /// Copies the weight [in_features, out_features] or bias [1, out_features] of a layer (counted from 0) out or in.
  /// Elements are converted to or from the working precision. Throws InvalidArgument for a layer or bias that does not
  /// exist, a shape that does not match, and, writing, a value that is not finite in the working precision.
  /// @{
  void read_weight(int layer, Matrix out) const;
  void read_bias(int layer, Matrix out) const;
  void write_weight(int layer, ConstMatrix in);
  void write_bias(int layer, ConstMatrix in);
  /// @}

  /// Weights from and to a safetensors file with the names and shapes of PyTorch's nn.Sequential(Linear, ReLU, ...):
  /// "0.weight" [out_features, in_features], "0.bias" [out_features], "2.weight", ... Loading takes F16, BF16, F32 and
  /// F64, also through a pipe; saving writes the working precision, atomically. Throws InvalidArgument, naming the
  /// file, and changes nothing then; Error where the file cannot be written.
  /// @{
  void load_weights(const std::string& path);
  void save_weights(const std::string& path) const;
  /// @}

  /// Runs `steps` steps of gradient descent and returns their losses. Needs set_data. `callback` is called after every
  /// `steps_per_callback` steps (0: as many as take about 50 ms, at most 4096) and may stop the run; without one,
  /// nothing waits between steps. Throws InvalidArgument for a negative number, without data, and where the losses do
  /// not fit into memory. A loss that is not finite does not end the run: see TrainReport::first_non_finite_step.
  ///
  /// On the CPU, the number of OpenBLAS' threads is one for the whole process where OpenBLAS was built with pthreads,
  /// and in 0.3.22 and 0.3.23 built with OpenMP. It is 1 while steps run, and as the application had it while
  /// `callback` runs and when the call returns. Set by the application or a library that it uses at any other time of
  /// the run, it may change last digits: the run then ends by an Error after the step that finds it, and so do the runs
  /// of other trainers at that time. The steps done count in steps_done(), and the parameters are those after them; the
  /// losses since the last call of `callback` are lost, the number is as it was set last, and the trainer can go on.
  /// loss(), predict(), and what reads parameters of Formulation::gram end so too, and change nothing. Not found is a
  /// number that is set and taken back within one matrix product, and 1, which is in force already. Other OpenMP builds
  /// keep the number by thread, where others cannot change it; do not call train from a parallel region of OpenMP after
  /// openblas_set_num_threads_local with more than 1.
  TrainReport train(std::int64_t steps, const TrainCallback& callback = {}, std::int64_t steps_per_callback = 0);

  /// The loss of the parameters as they are: what the next step would report. Needs set_data.
  double loss();

  /// out [rows, outputs] = network(x [rows, in_features]), for any number of rows, with or without data set. Throws
  /// InvalidArgument for shapes that do not match and for values that are not finite in the working precision.
  void predict(ConstMatrix x, Matrix out);

  /// As given.
  const NetworkSpec& network() const;
  /// As given, with `samples` as set by the data.
  const TrainingSpec& training() const;
  /// The plan in force. Before set_data, that of a network which only predicts.
  const Plan& plan() const;
  /// Steps over all calls of train.
  std::int64_t steps_done() const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace deviceloop
