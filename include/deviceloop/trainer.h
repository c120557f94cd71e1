/// \file
/// The main entry point: specification -> plan -> executor -> report.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include <deviceloop/cuda_options.h>
#include <deviceloop/export.h>
#include <deviceloop/matrix.h>
#include <deviceloop/plan.h>
#include <deviceloop/spec.h>

namespace deviceloop {

/// A stage of the work before the first step.
struct PreparationStage {
  /// "plan", "devices" (the driver and its GPUs), "data" and, by the executor, "memory"; by an executor on a GPU also
  /// "context", "library" (cuBLASLt and its algorithms), "kernels" (their code, which CUDA loads when it is first used)
  /// and "capture".
  std::string name{};
  double ms = 0;
};

/// The loss of all validation data together, with the run's loss and reduction.
struct Evaluation {
  std::int64_t steps = 0;  ///< that were done before it, over all calls of Trainer::train
  double loss = 0;
  /// With Loss::cross_entropy the share of the rows whose largest prediction is the right class's (of rows of
  /// probabilities, the largest one's; the first of equal ones), with Loss::binary_cross_entropy the share of the
  /// predictions that are above 0 where the target is at least 1/2 and only there. Empty with other losses.
  std::optional<double> accuracy{};
};

/// Why a call of Trainer::train ended.
enum class EndOfRun {
  all_steps,    ///< they were done
  callback,     ///< the callback returned false
  patience,     ///< see Watch::patience
  target_loss,  ///< see Watch::target_loss
};

/// What one call of Trainer::train did.
struct TrainReport {
  Plan plan{};                  ///< what ran it
  std::int64_t first_step = 0;  ///< number of the first step of this call; numbers go on across calls
  /// losses[i] is that of step first_step + i, before its update and of the samples that it took: one entry for each
  /// step done.
  std::vector<double> losses{};
  /// The time from the first enqueue until the last loss is on the host. With Formulation::gram it includes what is
  /// computed before the first step and after the last one.
  double total_ms = 0;
  /// The work since the last call of train that is done once and not in every step, see Trainer::prepare: its time in
  /// milliseconds, which is not part of total_ms, and its stages in order.
  /// @{
  double prepare_ms = 0;
  std::vector<PreparationStage> preparation{};
  /// @}
  /// Number of the first step whose loss is NaN or infinite. Divergence is reported here; it is not an error.
  std::optional<std::int64_t> first_non_finite_step{};
  EndOfRun end = EndOfRun::all_steps;
  std::vector<Evaluation> evaluations{};  ///< at the borders that the run came to, in order
  /// On a GPU, with the plan `graph`: the cuBLASLt algorithm of each matrix product of a step, or how the library's own
  /// cuts it, one line each; with the plans `persistent` and `fused`: one line that says how a launch divides a step
  /// among its blocks.
  std::vector<std::string> algorithms{};

  /// Steps done by this call.
  std::int64_t steps() const { return static_cast<std::int64_t>(losses.size()); }
  /// total_ms divided by the steps, in microseconds; empty if no step was done.
  std::optional<double> us_per_step() const;
};

/// What the callback of Trainer::train sees.
struct TrainProgress {
  std::int64_t first_step = 0;                ///< number of the step that losses[0] belongs to
  std::span<const double> losses{};           ///< of the steps since the last call
  std::span<const Evaluation> evaluations{};  ///< since the last call
  std::int64_t steps_done = 0;                ///< of this call of train
  std::int64_t steps_total = 0;               ///< requested of this call of train
};

/// Return false to stop the run.
using TrainCallback = std::function<bool(const TrainProgress&)>;

/// A run that Trainer::train_async has begun. Belongs to its trainer: it is used by one thread at a time with it. It
/// may be dropped; the steps are done all the same.
class DEVICELOOP_EXPORT TrainRun {
 public:
  /// Of no run.
  TrainRun() = default;
  /// Whether all steps are done and their losses are on the host; never waits. Throws as wait() does.
  bool done();
  /// The losses of the first steps, as many as are on the host now, in order; never waits. Throws as wait() does.
  std::vector<double> losses();
  /// Waits for the last step. The report's total_ms ends where it, or done(), found the run at its end. Throws
  /// DeviceError where a step failed; the trainer cannot be used any more then. Throws InvalidArgument of no run, and
  /// where the trainer does not exist any more and the losses had not come before.
  TrainReport wait();

 private:
  friend class Trainer;
  struct State;
  std::shared_ptr<State> state_;
};

/// Trains one network. Two threads must not use one trainer at the same time; several trainers may run on several
/// threads. After fork() the child may only destroy it and call network(), training(), plan() and steps_done(): every
/// other call throws Error there. Every call computes in the default floating-point environment (rounding to nearest,
/// subnormal numbers kept, no traps), whatever the caller's environment is, and then restores the caller's, exception
/// flags included. Callbacks run in the caller's environment.
///
/// Where the host refuses memory, a call throws std::bad_alloc, or where it is a thread's, Error, and has changed
/// nothing, with two exceptions. train() counts in steps_done() the steps that were done, the parameters are those
/// after them, and their losses are lost. Where set_data() needs another executor and cannot have it, the parameters
/// stay, and there are no data and no best() any more. The same call may be made again. On a GPU a DeviceError, and
/// std::bad_alloc in a call that changes what is on the GPU, are the end of the executor: every later call that needs
/// it throws a DeviceError that says so, the parameters are lost, and a new trainer has to be made.
class DEVICELOOP_EXPORT Trainer {
 public:
  /// Throws InvalidArgument if the specifications are wrong, and Unsupported if this version cannot run them. `forced`
  /// selects an executor. `caps` describes the machine; without it, this machine is queried. `cuda` is for a trainer
  /// that shares a GPU with its application.
  /// @{
  explicit Trainer(NetworkSpec network, TrainingSpec training = {}, std::optional<ExecutorKind> forced = std::nullopt);
  Trainer(NetworkSpec network, TrainingSpec training, CudaOptions cuda,
          std::optional<ExecutorKind> forced = std::nullopt);
  Trainer(NetworkSpec network, TrainingSpec training, std::optional<ExecutorKind> forced, DeviceCaps caps);
  /// @}
  /// Never throws.
  ~Trainer();
  /// A trainer that was moved from may only be destroyed or assigned to.
  /// @{
  Trainer(Trainer&&) noexcept;
  Trainer& operator=(Trainer&&) noexcept;
  /// @}

  /// Takes x [samples, inputs] and y [samples, outputs], views of float or double. Arrays of the host are copied into
  /// the executor, converted once to the working precision. With Loss::cross_entropy y may be [samples, 1]: the number
  /// of each row's class, from 0 to outputs - 1. The parameters, what the optimizer keeps for them and the number of
  /// the next step do not change. Throws InvalidArgument for shapes that do not match the network or each other, for
  /// fewer samples than TrainingSpec::batch_size, for a value that is not finite in the working precision (with its row
  /// and column) and for one that is no class (with its row); Unsupported if the machine lacks what the plan needs.
  /// With `sample_weights` [samples, 1], a view of float or double: the losses of row r, and with them their
  /// gradients, are multiplied by weight r, see Reduction. Weights are finite and not negative; 0 leaves a row out of
  /// the sum. Throws as above, and InvalidArgument for a weight that is negative (with its row).
  ///
  /// Arrays in the memory of the plan's GPU stay the caller's, who keeps them alive until the next set_data or the
  /// trainer's end, and may write new samples to them, see data_changed. The plan `graph` reads such an array where it
  /// lies, without a copy, if its elements have the working precision, its rows are contiguous and it is aligned to 256
  /// bytes, as what cudaMalloc returns is; so do the plans `persistent`, x and y in the primal formulation, and
  /// `fused`, y. Otherwise a kernel converts it into the executor's memory. Without CudaOptions::stream the arrays are
  /// complete when the call is made. DeviceKind::automatic then means a GPU. The call waits once, as its elements are
  /// looked at on the GPU. Throws as above, and InvalidArgument for a pointer that is not to memory of the plan's GPU
  /// or whose memory ends before the array does, before anything runs.
  /// @{
  void set_data(ConstMatrix x, ConstMatrix y);
  void set_data(ConstMatrix x, ConstMatrix y, ConstMatrix sample_weights);
  /// @}

  /// The caller has written new samples to the arrays in the memory of a GPU that set_data got last, or will have when
  /// what the stream holds is done: steps from now on take them. Enqueued on the stream, without waiting and without
  /// looking at the elements: a sample that is not finite shows in the losses (TrainReport::first_non_finite_step).
  /// Arrays that were converted are converted again, those of the host are not read again. What watching has found so
  /// far stays. Throws InvalidArgument where none of the arrays is in the memory of a GPU.
  void data_changed();

  /// Takes a copy of validation data, from the host or a GPU, as set_data takes x and y; with Loss::cross_entropy y may
  /// be classes or probabilities, whichever set_data gets. From then on train() evaluates them at the borders that
  /// TrainingSpec::watch sets, in the executor's memory; the steps do not wait for it. Evaluations so far are
  /// forgotten. No rows: none any more. Throws as set_data does.
  void set_validation(ConstMatrix x, ConstMatrix y);

  /// Does the work that is done only once, so that the first step takes as long as any other: makes the executor of the
  /// plan, with its memory and threads; on a GPU also creates the context, loads libraries and kernels, chooses the
  /// algorithms of matrix products and captures graphs. set_data does this work if it was not done for the same number
  /// of samples, kind of targets and weights or none. A call before set_data prepares for TrainingSpec::samples; with
  /// samples 0, for a network that only predicts. Throws as set_data does if the machine lacks something, and then
  /// changes nothing.
  void prepare();

  /// Draws the weights and sets the biases to 0. The optimizer begins anew: what it keeps is 0, and the steps of
  /// schedules and batches are counted from 0 again; steps_done() goes on. Without this call a trainer starts as after
  /// initialize(training.seed). Throws InvalidArgument for an Init that does not exist.
  void initialize(std::uint64_t seed, Init init = Init::normal);

  /// Copies the weight [in_features, out_features] or bias [1, out_features] of a layer (counted from 0) out or in.
  /// Elements are converted to or from the working precision; what the optimizer keeps does not change. Throws
  /// InvalidArgument for a layer or bias that does not exist, a shape that does not match, and, writing, a value that
  /// is not finite in the working precision. A matrix in the memory of the plan's GPU is read or written there, on the
  /// stream; only writing, which looks at the elements, waits.
  /// @{
  void read_weight(int layer, Matrix out) const;
  void read_bias(int layer, Matrix out) const;
  void write_weight(int layer, ConstMatrix in);
  void write_bias(int layer, ConstMatrix in);
  /// @}

  /// Weights from and to a safetensors file with the names and shapes of PyTorch's nn.Sequential(Linear, ReLU, ...):
  /// "0.weight" [out_features, in_features], "0.bias" [out_features], "2.weight", ... Loading accepts F16, BF16, F32
  /// and F64, also from a pipe, and the optimizer then begins anew, as after initialize; saving writes the working
  /// precision, atomically, and the network's widths, bias and activations as metadata. A file with such metadata is
  /// refused if the activations are not the trainer's. Metadata may also name a scaling of the inputs, which the
  /// command applies; the trainer does not: predict and set_data take inputs that are scaled already. The same holds
  /// for a scaling of the targets, which the command undoes: set_data takes scaled targets, and predict gives such.
  /// Throws InvalidArgument, naming the file, and then changes nothing; Error if writing the file fails.
  /// @{
  void load_weights(const std::string& path);
  void save_weights(const std::string& path) const;
  /// @}

  /// A checkpoint: all that a run goes on from, bit for bit, in one safetensors file. N steps, save_state, load_state
  /// in another trainer with the same specifications and data, and M steps more give the losses, evaluations and
  /// parameters that N + M steps give, on the same executor, in both formulations; and save_state changes nothing in
  /// the trainer. The file has the tensors of save_weights and, beside them, "0.weight.momentum" and the like, which
  /// the optimizer keeps, its number of steps, with Precision::fp16 the scale of the loss, the parameters of best(),
  /// and with Formulation::gram Z, S and what they are counted from; in its metadata the specifications, steps_done()
  /// and what Watch counts. It is written atomically: a file of that name is the old one or the new one, complete, at
  /// every moment. A checksum of all its bytes shows any damage when it is loaded.
  ///
  /// What the numbers of a state mean must be equal in the trainer that loads it: the network, loss and reduction, the
  /// optimizer with all but its rate, batch_size, Watch::keep_best, the precision; with minibatches also `samples`,
  /// `shuffle` and, if shuffled, `seed`. The machine (device, plan and form, threads, deadline_ms, deterministic) may
  /// differ, and so may the learning rate and its schedule, the formulation and the other members of Watch: the run
  /// then goes on by those of the trainer. The data are not in the file, only checksums of them: on other data a run
  /// goes on from the parameters, with Z computed anew and, of other validation data, no evaluations so far. set_data
  /// and set_validation may be called before or after load_state. A file that save_state of deviceloop 0.1.0 wrote is
  /// loaded as there: parameters, what the optimizer keeps, and its number of steps.
  ///
  /// Throws InvalidArgument, naming the file, where it is damaged or is the state of another run, with the setting and
  /// its two values, and then changes nothing; Error if writing the file fails, and then the old file is as it was.
  /// @{
  void load_state(const std::string& path);
  void save_state(const std::string& path) const;
  /// @}

  /// Runs `steps` steps, each with TrainingSpec::batch_size samples, and returns their losses. Needs set_data.
  /// `callback` is called after every `steps_per_callback` steps (0: as many as take about 50 ms, at most 4096) and may
  /// stop the run; without a callback, the host does not wait between steps, but for the rules of TrainingSpec::watch,
  /// which it looks at after each border. Throws InvalidArgument for a negative number, without data, if the losses do
  /// not fit into memory, and if those rules need validation data and there are none. A loss that is not finite does
  /// not end the run: see TrainReport::first_non_finite_step.
  ///
  /// On the CPU, OpenBLAS built with pthreads (and versions 0.3.22 and 0.3.23 built with OpenMP) has one number of
  /// threads for the whole process. A run sets it to 1 while steps run, and back to the application's number while
  /// `callback` runs and when the call returns. If the application, or a library that it uses, sets it while steps run,
  /// last digits may change: the run then ends with an Error after the step that detects it, and so do the runs of
  /// other trainers at that time. steps_done() counts the steps done, and the parameters are those after them; the
  /// losses since the last call of `callback` are lost, the number stays as it was set last, and the trainer can go on.
  /// loss(), predict(), and reading parameters with Formulation::gram end in the same way, and change nothing. Two
  /// cases are not detected: a number that is set and set back within one matrix product, and a number that is set
  /// to 1. Other OpenMP builds have a number for each thread, which other threads cannot change; do not call train from
  /// a parallel region of OpenMP after openblas_set_num_threads_local with more than 1.
  TrainReport train(std::int64_t steps, const TrainCallback& callback = {}, std::int64_t steps_per_callback = 0);

  /// Runs `steps` steps as train does, and returns at once where the plan is of a GPU: all is enqueued on the trainer's
  /// stream, and nothing waits, unless more than 32 launches of one trainer whose steps differ in their scalars (Adam,
  /// a schedule, minibatches) are under way. Runs follow each other in the order of the calls; other calls of the
  /// trainer may come before they are done. best() knows the evaluations of a run once its losses were asked for. With
  /// the plan `cpu` the steps are done when the call returns. Throws as train does, and InvalidArgument with
  /// Watch::patience or target_loss, by which the host would have to decide.
  TrainRun train_async(std::int64_t steps);

  /// Enqueues one step on the trainer's stream: into the graph that is captured there, if one is. Every launch of that
  /// graph then trains one step; the trainer does not count them. `loss`, in device memory, or null, gets the step's
  /// loss each time. Such launches must be in order with the trainer's other work. Needs set_data and the plan `graph`,
  /// and steps that are all alike: plain gradient descent or sgd at a constant rate, all samples in each step, no Gram
  /// formulation; throws Unsupported otherwise.
  void enqueue_step(double* loss = nullptr);

  /// The loss of the current parameters, of the samples that the next step would take: what it would report. Needs
  /// set_data.
  double loss();

  /// The validation data with the current parameters. It does not count for Watch. Needs set_validation.
  Evaluation evaluate();

  /// The evaluation with the smallest loss (the first of equal ones) of all at borders since the parameters were drawn,
  /// loaded or written, or set_data or set_validation was called; empty if there is none with a finite loss. A
  /// checkpoint has it, see save_state.
  std::optional<Evaluation> best() const;

  /// The parameters of best() again, with which the optimizer begins anew, as after load_weights. Needs
  /// Watch::keep_best. Throws InvalidArgument where there is no best().
  void restore_best();

  /// out [rows, outputs] = network(x [rows, in_features]), for any number of rows, with or without data set. Throws
  /// InvalidArgument for shapes that do not match and for values that are not finite in the working precision, and as
  /// prepare() does where nothing was prepared yet. Either may be in the memory of the plan's GPU. If both are, the
  /// predictions are enqueued on the stream and nothing waits; the values are not looked at; and where predict was
  /// called before with as many rows, a stream that is being captured takes them into its graph (with Formulation::gram
  /// only if no step was taken since parameters were last read).
  void predict(ConstMatrix x, Matrix out);

  /// As given.
  const NetworkSpec& network() const;
  /// As given, with `samples`, `class_targets` and `sample_weights` as set by the data.
  const TrainingSpec& training() const;
  /// The current plan. Before set_data it is made for TrainingSpec::samples (0: a network that only predicts).
  const Plan& plan() const;
  /// Steps over all calls of train, those before load_state of a checkpoint among them.
  std::int64_t steps_done() const;

 private:
  friend class TrainRun;
  friend struct TrainerAccess;  // the library's own
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace deviceloop
