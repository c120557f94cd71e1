#include <deviceloop/trainer.h>

#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <deque>
#include <utility>

#include <deviceloop/error.h>
#include <deviceloop/random.h>

#include "accuracy.h"
#include "checksum.h"
#include "cuda_entry.h"
#include "executor.h"
#include "files/output_file.h"
#include "files/weights.h"
#include "floating_point.h"
#include "machine.h"
#include "matrix_ops.h"
#include "names.h"
#include "parameters.h"
#include "preparation.h"
#include "step/gram_run.h"
#include "text.h"
#include "trainer_access.h"
#include "watching.h"

namespace deviceloop {
namespace {

// How long a chunk of steps between two calls of a callback should take, by the plan's prediction.
constexpr double kChunkUs = 50000;
constexpr std::int64_t kMaxChunk = 4096;
constexpr std::int64_t kMostFloatClasses = std::int64_t{1} << 24;

std::string shape(const ConstMatrix& matrix) {
  return "[" + std::to_string(matrix.rows) + ", " + std::to_string(matrix.columns) + "]";
}

/// Of which arrays a kernel can read the elements as they lie: in a GPU's memory, in the working precision, row on row,
/// aligned as what cudaMalloc returns.
DataInPlace in_place(const TrainingData& data, Precision precision) {
  constexpr std::uintptr_t kAlignment = 256;
  const auto is_ready = [&](const ConstMatrix& matrix) {
    return matrix.space == MemorySpace::device && matrix.type == element_type(precision) &&
           matrix.row_stride == matrix.columns && reinterpret_cast<std::uintptr_t>(matrix.data) % kAlignment == 0;
  };
  return {is_ready(data.x), is_ready(data.y), is_ready(data.sample_weights)};
}

double deviation_of(Init init, const ParameterInfo& weight) {
  switch (init) {
    case Init::normal:
      return 1;
    case Init::he:
      return std::sqrt(2.0 / static_cast<double>(weight.rows));
    case Init::xavier:
      return std::sqrt(2.0 / static_cast<double>(weight.rows + weight.columns));
  }
  return 1;
}

}  // namespace

std::optional<double> TrainReport::us_per_step() const {
  if (losses.empty()) return std::nullopt;
  return total_ms * 1000 / static_cast<double>(losses.size());
}

/// A run that train_async has enqueued: what is known of it.
struct TrainRun::State {
  Trainer::Impl* trainer;  ///< null once all is collected, or the trainer does not exist any more
  TrainReport report;
  std::chrono::steady_clock::time_point begin;
  std::int64_t steps = 0;            ///< enqueued
  std::vector<EvaluationSums> sums;  ///< of the report's evaluations
  bool is_collected = false;
};

struct Trainer::Impl {
  NetworkSpec network;
  TrainingSpec training;
  CudaOptions cuda;
  std::optional<ExecutorKind> forced;
  DeviceCaps caps;
  Decision decision;
  std::vector<ParameterInfo> layout;  ///< of the state: the parameters, then what the optimizer keeps for them
  pid_t process = getpid();
  std::int64_t steps_done = 0;
  std::int64_t optimizer_steps = 0;  ///< since it began anew
  bool has_data = false;
  // Where the state is: in the executor once there is one, else in `state` once parameters were drawn or read.
  std::unique_ptr<Executor> executor;
  Parameters state;
  HostMatrix validation_x, validation_y;  ///< in the working precision; the executor has no other copy on the host
  Watcher watcher;
  Preparation preparation;           ///< since the last call of train
  std::optional<SavedState> loaded;  ///< what of it belongs to data, until parameters change; see resume()
  mutable std::optional<std::uint64_t> data_checksum, validation_checksum;  ///< once asked for
  std::deque<std::shared_ptr<TrainRun::State>> runs;  ///< of train_async, that were not collected yet, in order
  bool has_device_data = false;                       ///< some of it in a GPU's memory

  ~Impl() {
    for (const auto& run : runs) run->trainer = nullptr;
    // In a child of fork() the executor's threads do not exist and its locks may be held for ever, so it is not
    // destroyed.
    if (getpid() != process) executor.release();
  }

  void decide(NetworkSpec of, TrainingSpec spec, std::optional<ExecutorKind> wanted, DeviceCaps machine) {
    decision = decide_here(of, spec, machine, wanted);
    network = std::move(of);
    training = spec;
    forced = wanted;
    caps = std::move(machine);
    layout = state_layout(network, training);
    preparation.lap("plan");
  }

  void check_process() const {
    if (getpid() != process)
      throw Error("this Trainer was made before fork() and belongs to process " + std::to_string(process) +
                  "; make a new one in the child");
  }

  std::size_t parameter_count() const { return static_cast<std::size_t>(network.layers()) * (network.bias ? 2 : 1); }

  HostMatrix zeros_of(const ParameterInfo& info) const {
    return HostMatrix(element_type(training.precision), info.rows, info.columns);
  }

  Parameters drawn(std::uint64_t seed, Init init) const {
    Parameters drawn;
    for (const ParameterInfo& info : layout) {
      drawn.push_back(zeros_of(info));
      if (info.state < 0 && !info.is_bias)
        fill_normal(drawn.back().view(), seed, tensor_of_weight(info.layer), deviation_of(init, info));
    }
    return drawn;
  }

  // Parameters, with which the optimizer begins anew: what it keeps is 0 where `values` have nothing of it. Where it
  // fails, nothing has changed.
  void set_state(Parameters values) {
    for (std::size_t index = values.size(); index < layout.size(); ++index) values.push_back(zeros_of(layout[index]));
    if (executor)
      for (std::size_t index = 0; index < values.size(); ++index)
        executor->write_state(static_cast<int>(index), values[index].view());
    else
      state = std::move(values);
    loaded.reset();
    optimizer_steps = 0;
    forget_evaluations();
  }

  // The first `count` entries of the state on the host: copied from the executor if there is one.
  Parameters copied_state(std::size_t count) const {
    Parameters values;
    if (!executor) {
      values = state.empty() ? drawn(training.seed, Init::normal) : state;
      values.resize(count);
      return values;
    }
    for (std::size_t index = 0; index < count; ++index) {
      values.push_back(zeros_of(layout[index]));
      executor->read_state(static_cast<int>(index), values.back().view());
    }
    return values;
  }

  /// `data` as of Surroundings.
  void need_executor(const TrainingData& data = {}) {
    if (executor) return;
    if (state.empty()) state = drawn(training.seed, Init::normal);
    preparation.lap("data");
    std::unique_ptr<Executor> made = make_executor(network, training, decision, {cuda, data});
    for (const PreparationStage& stage : made->preparation().stages()) preparation.add(stage);
    preparation.restart();
    for (std::size_t index = 0; index < state.size(); ++index)
      made->write_state(static_cast<int>(index), state[index].view());
    if (has_validation()) made->set_validation(std::as_const(validation_x).view(), std::as_const(validation_y).view());
    preparation.lap("data");
    executor = std::move(made);
    state.clear();
  }

  bool has_validation() const { return validation_x.rows > 0; }

  void forget_evaluations() {
    collect_runs();
    watcher.forget();
    if (executor && has_validation()) executor->forget_best();
  }

  Evaluation evaluation_of(const EvaluationSums& sums, std::int64_t steps) const {
    Evaluation made{steps, sums.loss, {}};
    const std::int64_t counted = counted_predictions(training.loss, validation_x.rows, network.widths.back());
    if (counted > 0) made.accuracy = sums.correct / static_cast<double>(counted);
    return made;
  }

  /// Throws where a run of so many steps cannot begin; `call` names the function.
  void check_run(const char* call, std::int64_t steps) const {
    check_process();
    need_data(call);
    if (steps < 0)
      throw InvalidArgument("the number of steps is " + std::to_string(steps) + "; it must not be negative");
    const std::uint64_t memory = caps.cpu.memory_bytes != 0 ? caps.cpu.memory_bytes : std::uint64_t{1} << 40;
    if (static_cast<std::uint64_t>(steps) > memory / (2 * sizeof(double)))
      throw InvalidArgument("the losses of " + std::to_string(steps) +
                            " steps do not fit into memory; train fewer steps a call");
    const Watch& watch = training.watch;
    if (!has_validation() && (watch.patience > 0 || watch.keep_best))
      throw InvalidArgument(std::string(watch.patience > 0 ? "Watch::patience" : "Watch::keep_best") +
                            " needs validation data; call set_validation first");
  }

  TrainReport begin_report() {
    TrainReport report;
    report.plan = decision.plan;
    report.first_step = steps_done;
    report.preparation = preparation.take();
    for (const PreparationStage& stage : report.preparation) report.prepare_ms += stage.ms;
    return report;
  }

  /// Enqueues `count` steps, and evaluations at the borders among them, which it adds to the report, without their
  /// values, and to `sums`; counts in `taken`. Whether the last step is at a border. Whatever it throws, steps that
  /// were enqueued are counted; an evaluation that was not is none of `sums`, but may be one of the report.
  bool enqueue_steps(std::int64_t count, std::int64_t& taken, TrainReport& report, std::vector<EvaluationSums>& sums) {
    bool is_at_border = false;
    while (taken < count) {
      const std::int64_t border = next_border(training, optimizer_steps) - optimizer_steps;
      const std::int64_t now = has_validation() ? std::min(count - taken, border) : count - taken;
      is_at_border = now == border;
      const bool evaluates = is_at_border && has_validation();
      if (evaluates) {
        report.evaluations.push_back({steps_done + now});
        if (sums.size() == sums.capacity()) sums.reserve(2 * sums.size() + 1);
      }
      executor->enqueue(optimizer_steps, now);
      taken += now;
      steps_done += now;
      optimizer_steps += now;
      if (!evaluates) continue;
      executor->enqueue_evaluation(true);
      sums.emplace_back();
    }
    return is_at_border;
  }

  /// The values of the evaluations that the report got from `first` on.
  void collect_evaluations(TrainReport& report, std::size_t first, std::vector<EvaluationSums>& sums) {
    report.evaluations.resize(first + sums.size());  // drops one that was not issued
    executor->evaluations(sums);
    for (std::size_t i = 0; i < sums.size(); ++i) {
      Evaluation& evaluation = report.evaluations[first + i];
      evaluation = evaluation_of(sums[i], evaluation.steps);
      watcher.add(evaluation);
    }
  }

  /// Takes `count` steps and evaluates at the borders among them; adds to the report what they give. Whether the last
  /// one is at a border. Throws RunEnded with all steps of the report. Whatever it throws, steps that were taken are
  /// counted, and the executor keeps nothing of them for the next run.
  bool take_steps(std::int64_t count, TrainReport& report) {
    loaded.reset();
    const std::int64_t before = report.steps();
    const std::size_t evaluated_before = report.evaluations.size();
    std::vector<EvaluationSums> sums;  // of the evaluations from there on; both have room before one is issued
    bool is_at_border = false;
    const auto collect = [&](std::int64_t taken) {
      report.losses.resize(static_cast<std::size_t>(before + taken));  // there is room
      executor->losses(std::span(report.losses).subspan(static_cast<std::size_t>(before)));
      collect_evaluations(report, evaluated_before, sums);
    };
    std::int64_t taken = 0;
    try {
      is_at_border = enqueue_steps(count, taken, report, sums);
    } catch (const RunEnded& end) {
      collect(taken);
      steps_done += end.steps();
      optimizer_steps += end.steps();
      throw RunEnded(end.what(), before + taken + end.steps());
    } catch (...) {
      try {
        collect(taken);
      } catch (const std::exception&) {  // the executor is dead, and says so from now on
      }
      throw;
    }
    collect(taken);
    return is_at_border;
  }

  /// The losses and evaluations of runs that train_async has enqueued, of all or up to `last`; waits for them.
  void collect_runs(const TrainRun::State* last = nullptr) {
    while (!runs.empty() && !(last != nullptr && last->is_collected)) {
      TrainRun::State& run = *runs.front();
      TrainReport& report = run.report;
      collect_losses(run, run.steps);
      collect_evaluations(report, 0, run.sums);
      const auto bad =
          std::find_if(report.losses.begin(), report.losses.end(), [](double loss) { return !std::isfinite(loss); });
      if (bad != report.losses.end()) report.first_non_finite_step = report.first_step + (bad - report.losses.begin());
      report.total_ms = std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - run.begin).count();
      run.is_collected = true;
      run.trainer = nullptr;
      runs.pop_front();
    }
  }

  /// The losses of the first run, until it has so many.
  void collect_losses(TrainRun::State& run, std::int64_t count) {
    std::vector<double>& losses = run.report.losses;
    const std::size_t before = losses.size();
    losses.resize(static_cast<std::size_t>(count));
    executor->losses(std::span(losses).subspan(before));
  }

  /// What is on the host already.
  void collect_what_is_here() {
    while (!runs.empty()) {
      TrainRun::State& run = *runs.front();
      const std::int64_t missing = run.steps - run.report.steps(), here = std::min(executor->losses_here(), missing);
      collect_losses(run, run.report.steps() + here);
      if (here < missing) return;
      collect_runs(&run);
    }
  }

  bool is_on_gpu() const { return row_of(decision.plan.executor).is_on_gpu; }

  /// Throws unless the view can be a matrix, in the host's memory or in that of the plan's GPU.
  template <class View>
  void check_any_view(const View& view, const std::string& what) const {
    check_view(view, what);
    if (view.space == MemorySpace::device) check_device_view(view, decision.plan, what);
  }

  static void check_has_gpu(const Plan& plan, const std::string& what) {
    if (!row_of(plan.executor).is_on_gpu)
      throw InvalidArgument(what +
                            " lies in a GPU's memory, and the plan 'cpu' reads the host's; ask for a GPU by "
                            "TrainingSpec::device = {DeviceKind::cuda}, or copy the array to the host");
  }

  static void check_device_view(const ConstMatrix& view, const Plan& plan, const std::string& what) {
    check_has_gpu(plan, what);
    if (view.rows > 0 && view.columns > 0) check_device_range(view.data, spanned_bytes(view), plan.device, what);
  }

  /// Of a matrix in the memory of the plan's GPU; `plan` is that of the run to be.
  void check_on_device(const ConstMatrix& view, const ElementRule& rule, const std::string& what,
                       const Plan& plan) const {
    if (view.space == MemorySpace::host) return;
    if (const auto wrong = find_wrong_on_device(view, rule, plan.device, cuda)) refuse_element(rule, *wrong, what);
  }

  /// A matrix in the host's memory as it is, one in a GPU's memory copied to `copy`.
  ConstMatrix on_host(const ConstMatrix& view, HostMatrix& copy) const {
    if (view.space == MemorySpace::host) return view;
    copy = HostMatrix(view.type, view.rows, view.columns);
    download_from_device(copy.view(), view, decision.plan.device, cuda);
    return std::as_const(copy).view();
  }

  /// Throws where x and y, of data or of validation data, do not belong to the network and each other; whether y is
  /// classes.
  bool check_shapes(const ConstMatrix& x, const ConstMatrix& y) const {
    check_view(x, "x");
    check_view(y, "y");
    const std::int64_t inputs = network.widths.front(), outputs = network.widths.back();
    if (x.columns != inputs)
      throw InvalidArgument("x is " + shape(x) + ", but the network has " + std::to_string(inputs) +
                            " inputs; give it as many as x has columns");
    const bool may_be_classes = training.loss == Loss::cross_entropy;
    if (y.columns != outputs && !(may_be_classes && y.columns == 1))
      throw InvalidArgument("y is " + shape(y) + ", but the network has " + std::to_string(outputs) + " outputs; " +
                            (may_be_classes
                                 ? "y has as many columns, of probabilities, or one with the number of the class"
                                 : "give it as many as y has columns"));
    if (x.rows != y.rows)
      throw InvalidArgument("x has " + std::to_string(x.rows) + " rows, y has " + std::to_string(y.rows) +
                            "; both need one row a sample");
    return may_be_classes && y.columns == 1;
  }

  /// Of matrices in the host's memory; those in a GPU's are for check_device_elements.
  void check_elements(const ConstMatrix& x, const ConstMatrix& y, bool has_classes, const std::string& x_name,
                      const std::string& y_name) const {
    if (x.space == MemorySpace::host) check_finite(x, element_type(training.precision), x_name);
    if (y.space == MemorySpace::host) check_finite(y, element_type(training.precision), y_name);
    if (!has_classes) return;
    if (element_type(training.precision) == ElementType::float32 && network.widths.back() > kMostFloatClasses)
      throw InvalidArgument("fp32 holds the numbers of " + std::to_string(kMostFloatClasses) +
                            " classes exactly, and the network has " + std::to_string(network.widths.back()) +
                            " outputs; use fp64");
    if (y.space == MemorySpace::host) check_classes(y, network.widths.back(), y_name);
  }

  /// The same of those in a GPU's.
  void check_device_elements(const TrainingData& data, bool has_classes, const std::string& x_name,
                             const std::string& y_name, const std::string& weights_name, const Plan& plan) const {
    const ElementType type = element_type(training.precision);
    check_on_device(data.x, {ElementRule::Kind::finite, type, 0}, x_name, plan);
    check_on_device(
        data.y,
        {has_classes ? ElementRule::Kind::class_number : ElementRule::Kind::finite, type, network.widths.back()},
        y_name, plan);
    check_on_device(data.sample_weights, {ElementRule::Kind::weight, type, 0}, weights_name, plan);
  }

  int index_of(int layer, bool is_bias) const {
    if (layer < 0 || layer >= network.layers())
      throw InvalidArgument("there is no layer " + std::to_string(layer) + "; layers are from 0 to " +
                            std::to_string(network.layers() - 1));
    if (is_bias && !network.bias)
      throw InvalidArgument("the network has no biases; set NetworkSpec::bias to have them");
    return layer * (network.bias ? 2 : 1) + (is_bias ? 1 : 0);
  }

  template <class View>
  void check_parameter(int index, const View& view) const {
    const ParameterInfo& info = layout[static_cast<std::size_t>(index)];
    check_any_view(view, "parameter " + info.name);
    if (view.rows != info.rows || view.columns != info.columns)
      throw InvalidArgument("parameter " + info.name + " is [" + std::to_string(info.rows) + ", " +
                            std::to_string(info.columns) + "], the matrix is " + shape(view) +
                            "; pass one of equal shape");
  }

  void read(int index, Matrix out) const {
    const DefaultFloatingPoint floating_point;
    check_process();
    check_parameter(index, out);
    if (executor || out.space == MemorySpace::device) {
      const_cast<Impl*>(this)->need_executor();
      return executor->read_state(index, out);
    }
    convert(out, copied_state(parameter_count())[static_cast<std::size_t>(index)].view());
  }

  void write(int index, ConstMatrix in) {
    const DefaultFloatingPoint floating_point;
    check_process();
    check_parameter(index, in);
    const std::string name = "parameter " + layout[static_cast<std::size_t>(index)].name;
    const ElementType type = element_type(training.precision);
    if (in.space == MemorySpace::device) {
      check_on_device(in, {ElementRule::Kind::finite, type, 0}, name, decision.plan);
      need_executor();
    } else {
      check_finite(in, type, name);
    }
    loaded.reset();
    if (executor) {
      executor->write_state(index, in);
    } else {
      if (state.empty()) state = drawn(training.seed, Init::normal);
      convert(state[static_cast<std::size_t>(index)].view(), in);
    }
    forget_evaluations();
  }

  void need_data(const char* call) const {
    if (!has_data) throw InvalidArgument(std::string("Trainer::") + call + " needs data; call set_data first");
  }

  // ---- checkpoints

  // Of the data as the executor has them, in the working precision, so that it does not matter where they come from.
  std::uint64_t checksum_of_data() const {
    if (data_checksum) return *data_checksum;
    constexpr std::int64_t kPieceElements = std::int64_t{1} << 20;
    Checksum checksum;
    const Step& step = executor->step();
    for (const TensorId id : {step.data_x, step.data_y, step.data_weights}) {
      if (id == kNoTensor) continue;
      const StepTensor& shape = step.tensor(id);
      const std::int64_t rows = std::clamp(kPieceElements / shape.columns, std::int64_t{1}, shape.rows);
      checksum.add(&shape.columns, sizeof shape.columns);
      for (std::int64_t first = 0; first < shape.rows; first += rows) {
        HostMatrix piece(element_type(training.precision), std::min(rows, shape.rows - first), shape.columns);
        executor->read_tensor(id, first, piece.view());
        checksum.add(piece.bytes.data(), piece.bytes.size());
      }
    }
    data_checksum = checksum.value();
    return *data_checksum;
  }

  std::uint64_t checksum_of_validation() const {
    if (validation_checksum) return *validation_checksum;
    Checksum checksum;
    for (const HostMatrix* const matrix : {&validation_x, &validation_y}) {
      checksum.add(&matrix->columns, sizeof matrix->columns);
      checksum.add(matrix->bytes.data(), matrix->bytes.size());
    }
    validation_checksum = checksum.value();
    return *validation_checksum;
  }

  SavedState saved_state() const {
    SavedState saved{copied_state(layout.size()), optimizer_steps};
    CheckpointMetadata& checkpoint = saved.checkpoint.emplace();
    checkpoint.training = training;
    checkpoint.steps_done = steps_done;
    checkpoint.evaluations_since_best = watcher.since_best();
    if (has_data) checkpoint.data = checksum_of_data();
    if (has_validation()) checkpoint.validation = checksum_of_validation();
    if (watcher.best()) checkpoint.best = watcher.best();
    if (checkpoint.has_best_parameters()) saved.best = best_parameters();
    const GramRun* const run = executor ? executor->gram_run() : nullptr;
    if (run == nullptr || run->progress().steps == 0) return saved;
    GramState& gram = saved.gram.emplace();
    gram.progress = run->progress();
    checkpoint.gram_steps = gram.progress.steps;
    const std::vector<ParameterInfo> infos = gram_layout(network, training);
    const std::vector<TensorId> tensors = gram_tensors(executor->step());
    for (std::size_t index = 0; index < infos.size(); ++index) {
      gram.tensors.push_back(zeros_of(infos[index]));
      executor->read_tensor(tensors[index], 0, gram.tensors.back().view());
    }
    return saved;
  }

  Parameters best_parameters() const {
    Parameters best;
    for (std::size_t index = 0; index < parameter_count(); ++index) {
      best.push_back(zeros_of(layout[index]));
      executor->read_best(static_cast<int>(index), best.back().view());
    }
    return best;
  }

  void load(SavedState saved) {
    // All that may be refused memory comes first.
    const Resumption resumption = resumption_of(saved);
    set_state(std::move(saved.values));
    optimizer_steps = saved.steps;
    if (!saved.checkpoint) return;
    steps_done = saved.checkpoint->steps_done;
    loaded = std::move(saved);
    resume(resumption);
  }

  /// What of a state belongs to the data and validation data that are there.
  struct Resumption {
    bool watching = false;
    std::vector<TensorId> gram{};  ///< empty: nothing
  };

  Resumption resumption_of(const SavedState& saved) const {
    Resumption made;
    if (!saved.checkpoint || !executor) return made;
    const CheckpointMetadata& of = *saved.checkpoint;
    made.watching = has_validation() && of.validation == checksum_of_validation();
    if (executor->gram_run() != nullptr && saved.gram &&
        of.training.reprojection_steps == training.reprojection_steps && has_data && of.data == checksum_of_data())
      made.gram = gram_tensors(executor->step());
    return made;
  }

  void resume(const Resumption& resumption) {
    if (resumption.watching) {
      const CheckpointMetadata& of = *loaded->checkpoint;
      watcher.resume(of.best, of.evaluations_since_best);
      if (of.has_best_parameters()) executor->write_best(of.best->loss, loaded->best);
    }
    if (resumption.gram.empty()) return;
    for (std::size_t index = 0; index < resumption.gram.size(); ++index)
      executor->write_tensor(resumption.gram[index], std::as_const(loaded->gram->tensors[index]).view());
    executor->gram_run()->resume(loaded->gram->progress);
  }

  /// As soon as data or validation data are there that a loaded state belongs to.
  void resume() {
    if (loaded) resume(resumption_of(*loaded));
  }
};

Trainer::Trainer(NetworkSpec network, TrainingSpec training, std::optional<ExecutorKind> forced)
    : impl_(std::make_unique<Impl>()) {
  const DefaultFloatingPoint floating_point;
  DeviceCaps here = query_caps_for(training.device);
  impl_->preparation.lap("devices");
  impl_->decide(std::move(network), training, forced, std::move(here));
}

Trainer::Trainer(NetworkSpec network, TrainingSpec training, CudaOptions cuda, std::optional<ExecutorKind> forced)
    : Trainer(std::move(network), training, forced) {
  if (static_cast<bool>(cuda.allocate) != static_cast<bool>(cuda.free))
    throw InvalidArgument("CudaOptions has one of allocate and free; give both or none");
  impl_->cuda = std::move(cuda);
}

Trainer::Trainer(NetworkSpec network, TrainingSpec training, std::optional<ExecutorKind> forced, DeviceCaps caps)
    : impl_(std::make_unique<Impl>()) {
  const DefaultFloatingPoint floating_point;
  impl_->decide(std::move(network), training, forced, std::move(caps));
}

Trainer::~Trainer() = default;
Trainer::Trainer(Trainer&&) noexcept = default;
Trainer& Trainer::operator=(Trainer&&) noexcept = default;

void Trainer::set_data(ConstMatrix x, ConstMatrix y) { TrainerAccess::set_data(*this, x, y, "x", "y"); }

void Trainer::set_data(ConstMatrix x, ConstMatrix y, ConstMatrix sample_weights) {
  TrainerAccess::set_data(*this, x, y, "x", "y", &sample_weights, "sample_weights");
}

void TrainerAccess::set_data(Trainer& trainer, ConstMatrix x, ConstMatrix y, const std::string& x_name,
                             const std::string& y_name, const ConstMatrix* sample_weights,
                             const std::string& weights_name) {
  const DefaultFloatingPoint floating_point;
  Trainer::Impl& self = *trainer.impl_;
  self.check_process();
  const bool has_classes = self.check_shapes(x, y);
  if (x.rows == 0) throw InvalidArgument("x and y have no rows; pass at least one sample");
  const TrainingData data{x, y, sample_weights != nullptr ? *sample_weights : ConstMatrix()};
  if (sample_weights != nullptr) {
    check_view(data.sample_weights, "sample_weights");
    if (data.sample_weights.rows != x.rows || data.sample_weights.columns != 1)
      throw InvalidArgument("sample_weights is " + shape(data.sample_weights) + "; it must be [" +
                            std::to_string(x.rows) + ", 1], one weight for each row of x");
  }
  const auto is_on_gpu = [](const ConstMatrix& matrix) { return matrix.space == MemorySpace::device; };
  const bool has_device_data = is_on_gpu(x) || is_on_gpu(y) || is_on_gpu(data.sample_weights);
  self.preparation.restart();
  TrainingSpec training = self.training;
  training.samples = x.rows;
  training.class_targets = has_classes;
  training.sample_weights = sample_weights != nullptr;
  training.in_place = in_place(data, training.precision);
  if (has_device_data && !self.forced && training.device.kind == DeviceKind::automatic)
    training.device.kind = DeviceKind::cuda;
  const bool needs_executor = !self.executor || self.training.samples != training.samples ||
                              self.training.class_targets != training.class_targets ||
                              self.training.sample_weights != training.sample_weights ||
                              self.training.in_place != training.in_place ||
                              self.training.device.kind != training.device.kind;
  Decision decision;
  // Before the first element is read, because a view with more rows than the machine has memory for is a mistake.
  if (needs_executor) {
    decision = decide_here(self.network, training, self.caps, self.forced);
    self.preparation.lap("plan");
  }
  const Plan& plan = needs_executor ? decision.plan : self.decision.plan;
  for (const auto& [view, what] :
       {std::pair(&data.x, "x"), std::pair(&data.y, "y"), std::pair(&data.sample_weights, "sample_weights")})
    if (is_on_gpu(*view)) Trainer::Impl::check_device_view(*view, plan, what);
  self.check_elements(x, y, has_classes, x_name, y_name);
  if (sample_weights != nullptr && !is_on_gpu(data.sample_weights))
    check_weights(data.sample_weights, element_type(training.precision), weights_name);
  self.check_device_elements(data, has_classes, x_name, y_name, weights_name, plan);
  self.preparation.lap("data");

  if (needs_executor) {
    // From here on the state is on the host, so that it is kept if making the new executor fails. The best parameters
    // go with the executor that has them.
    self.collect_runs();
    self.state = self.copied_state(self.layout.size());
    self.watcher.forget();
    self.executor.reset();
    self.has_data = false;
    self.training = training;
    self.decision = std::move(decision);
    self.need_executor(data);
  }
  self.forget_evaluations();
  self.executor->set_data(data);
  self.data_checksum.reset();
  self.has_data = true;
  self.has_device_data = has_device_data;
  self.resume();
  self.preparation.lap("data");
}

void Trainer::data_changed() {
  const DefaultFloatingPoint floating_point;
  impl_->check_process();
  impl_->need_data("data_changed");
  if (!impl_->has_device_data)
    throw InvalidArgument(
        "Trainer::data_changed is for arrays in a GPU's memory, and set_data got those of the host, which it has "
        "copied; "
        "call set_data again");
  impl_->executor->data_changed();
  impl_->data_checksum.reset();
}

void Trainer::set_validation(ConstMatrix x, ConstMatrix y) {
  TrainerAccess::set_validation(*this, x, y, "validation x", "validation y");
}

void TrainerAccess::set_validation(Trainer& trainer, ConstMatrix x, ConstMatrix y, const std::string& x_name,
                                   const std::string& y_name) {
  const DefaultFloatingPoint floating_point;
  Trainer::Impl& self = *trainer.impl_;
  self.check_process();
  const bool has_classes = self.check_shapes(x, y);
  for (const auto& [view, what] : {std::pair(&x, "validation x"), std::pair(&y, "validation y")})
    if (view->space == MemorySpace::device) Trainer::Impl::check_device_view(*view, self.decision.plan, what);
  HostMatrix copy_of_x, copy_of_y;
  x = self.on_host(x, copy_of_x);
  y = self.on_host(y, copy_of_y);
  self.check_elements(x, y, has_classes, x_name, y_name);
  HostMatrix in_precision_x(element_type(self.training.precision), x.rows, x.columns);
  HostMatrix in_precision_y(element_type(self.training.precision), y.rows, y.columns);
  convert(in_precision_x.view(), x);
  convert(in_precision_y.view(), y);
  // The executor reads the old ones until it has the new ones.
  if (self.executor)
    self.executor->set_validation(std::as_const(in_precision_x).view(), std::as_const(in_precision_y).view());
  self.watcher.forget();
  self.validation_x = std::move(in_precision_x);
  self.validation_y = std::move(in_precision_y);
  self.validation_checksum.reset();
  self.resume();
}

void Trainer::prepare() {
  const DefaultFloatingPoint floating_point;
  impl_->check_process();
  impl_->preparation.restart();
  impl_->need_executor();
}

void Trainer::initialize(std::uint64_t seed, Init init) {
  const DefaultFloatingPoint floating_point;
  impl_->check_process();
  if (name_or_null(init) == nullptr)
    throw InvalidArgument("unknown initialization " + shown(init) + "; use one that <deviceloop/spec.h> names");
  impl_->set_state(impl_->drawn(seed, init));
}

void Trainer::read_weight(int layer, Matrix out) const { impl_->read(impl_->index_of(layer, false), out); }
void Trainer::read_bias(int layer, Matrix out) const { impl_->read(impl_->index_of(layer, true), out); }
void Trainer::write_weight(int layer, ConstMatrix in) { impl_->write(impl_->index_of(layer, false), in); }
void Trainer::write_bias(int layer, ConstMatrix in) { impl_->write(impl_->index_of(layer, true), in); }

void Trainer::load_weights(const std::string& path) {
  const DefaultFloatingPoint floating_point;
  impl_->check_process();
  const std::uint64_t memory = impl_->caps.cpu.memory_bytes;  // 0: unknown
  TrainerAccess::load_weights(*this, SafeTensorsFile(path, memory != 0 ? memory : UINT64_MAX));
}

void TrainerAccess::load_weights(Trainer& trainer, const SafeTensorsFile& file) {
  const DefaultFloatingPoint floating_point;
  Trainer::Impl& self = *trainer.impl_;
  self.set_state(read_weights(file, self.network, element_type(self.training.precision)));
}

void Trainer::save_weights(const std::string& path) const {
  const DefaultFloatingPoint floating_point;
  impl_->check_process();
  OutputFile file(path);
  write_weights(file, impl_->network, impl_->copied_state(impl_->parameter_count()));
  file.commit();
}

void Trainer::load_state(const std::string& path) {
  const DefaultFloatingPoint floating_point;
  impl_->check_process();
  const std::uint64_t memory = impl_->caps.cpu.memory_bytes;  // 0: unknown
  impl_->load(read_state(SafeTensorsFile(path, memory != 0 ? memory : UINT64_MAX), impl_->network, impl_->training));
}

void Trainer::save_state(const std::string& path) const {
  const DefaultFloatingPoint floating_point;
  impl_->check_process();
  OutputFile file(path);
  write_state(file, {impl_->network}, impl_->saved_state());
  file.commit();
}

void TrainerAccess::save_state(const Trainer& trainer, OutputFile& file, const NetworkMetadata& network,
                               const SafeTensorsMetadata& more) {
  const DefaultFloatingPoint floating_point;
  Trainer::Impl& self = *trainer.impl_;
  self.collect_runs();
  const SavedState state = self.saved_state();
  for (std::size_t index = 0; index < state.values.size(); ++index)
    if (const auto bad = find_non_finite(state.values[index].view(), state.values[index].type))
      throw Error(printable(file.path()) + " was not written: " + self.layout[index].name + " is infinite or nan (" +
                  describe(*bad, state.values[index].type) + "), and nothing could go on from there");
  write_state(file, network, state, more);
}

void TrainerAccess::resume(Trainer& trainer, const SafeTensorsFile& file, const std::string& data_name,
                           const std::string& validation_name) {
  const DefaultFloatingPoint floating_point;
  Trainer::Impl& self = *trainer.impl_;
  SavedState state = read_state(file, self.network, self.training, Settings::all);
  if (!state.checkpoint) file.refuse("is no checkpoint; resume from a file that train --checkpoint wrote");
  const auto check = [&](const std::optional<std::uint64_t>& saved, std::optional<std::uint64_t> own,
                         const std::string& what) {
    if (saved != own)
      file.refuse("is of a run on other data than " + what + " (checksum " + (saved ? checksum_text(*saved) : "none") +
                  ", these have " + (own ? checksum_text(*own) : "none") +
                  "); give it the data that it was on, or begin a new run with its weights");
  };
  check(state.checkpoint->data, self.has_data ? std::optional(self.checksum_of_data()) : std::nullopt, data_name);
  check(state.checkpoint->validation,
        self.has_validation() ? std::optional(self.checksum_of_validation()) : std::nullopt, validation_name);
  self.load(std::move(state));
}

TrainReport Trainer::train(std::int64_t steps, const TrainCallback& callback, std::int64_t steps_per_callback) {
  std::optional<DefaultFloatingPoint> floating_point(std::in_place);
  Impl& self = *impl_;
  self.check_run("train", steps);
  if (steps_per_callback < 0)
    throw InvalidArgument("steps_per_callback is " + std::to_string(steps_per_callback) +
                          "; it is 0 (automatic) or at least 1");
  const Watch& watch = self.training.watch;
  const bool may_end = watch.patience > 0 || watch.target_loss;
  self.collect_runs();

  std::int64_t chunk = steps;
  if (callback) {
    chunk = steps_per_callback;
    if (chunk == 0)
      chunk = std::clamp(static_cast<std::int64_t>(kChunkUs / std::max(self.decision.plan.predicted_us_per_step, 0.1)),
                         std::int64_t{1}, kMaxChunk);
  }

  TrainReport report = self.begin_report();
  report.losses.reserve(static_cast<std::size_t>(steps));
  const auto begin = std::chrono::steady_clock::now();
  // Of what the callback has not seen: the first loss and the first evaluation, and since when they are under way.
  std::size_t first_loss = 0, first_evaluation = 0;
  auto chunk_begin = begin;
  while (report.steps() < steps && report.end == EndOfRun::all_steps) {
    const std::int64_t done = report.steps(), seen = static_cast<std::int64_t>(first_loss);
    std::int64_t count = std::min(chunk - (done - seen), steps - done);
    // The host looks at each border where the run may end there.
    if (may_end) count = std::min(count, next_border(self.training, self.optimizer_steps) - self.optimizer_steps);
    bool is_at_border = false;
    try {
      is_at_border = self.take_steps(count, report);
    } catch (const RunEnded& end) {
      throw Error("train ended after " + std::to_string(end.steps()) + " of " + std::to_string(steps) +
                  " steps: " + end.what());
    }
    const double last_loss = report.losses.back();
    if (!report.first_non_finite_step) {
      const auto bad = std::find_if(report.losses.begin() + done, report.losses.end(),
                                    [](double loss) { return !std::isfinite(loss); });
      if (bad != report.losses.end()) report.first_non_finite_step = report.first_step + (bad - report.losses.begin());
    }
    if (may_end && is_at_border)
      report.end = self.watcher.end(watch, self.has_validation() ? report.evaluations.back().loss : last_loss);
    const std::int64_t in_chunk = report.steps() - seen;
    if (!callback || (in_chunk < chunk && report.steps() < steps && report.end == EndOfRun::all_steps)) continue;
    if (steps_per_callback == 0) {
      // A callback that stops the run takes effect at the end of a chunk: chunks are made shorter if the prediction is
      // far off.
      const double us =
          std::chrono::duration<double, std::micro>(std::chrono::steady_clock::now() - chunk_begin).count();
      if (us > 2 * kChunkUs)
        chunk = std::max<std::int64_t>(1, static_cast<std::int64_t>(static_cast<double>(in_chunk) * kChunkUs / us));
    }
    TrainProgress progress;
    progress.first_step = report.first_step + seen;
    progress.losses = std::span(report.losses).subspan(first_loss);
    progress.evaluations = std::span(report.evaluations).subspan(first_evaluation);
    progress.steps_done = report.steps();
    progress.steps_total = steps;
    floating_point.reset();  // the callback runs in the caller's environment
    const bool goes_on = callback(progress);
    floating_point.emplace();
    if (!goes_on && report.end == EndOfRun::all_steps) report.end = EndOfRun::callback;
    first_loss = report.losses.size();
    first_evaluation = report.evaluations.size();
    chunk_begin = std::chrono::steady_clock::now();
  }
  self.executor->finish();
  report.algorithms = self.executor->algorithms();
  report.total_ms = std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - begin).count();
  return report;
}

TrainRun Trainer::train_async(std::int64_t steps) {
  const DefaultFloatingPoint floating_point;
  Impl& self = *impl_;
  self.check_run("train_async", steps);
  const Watch& watch = self.training.watch;
  if (watch.patience > 0 || watch.target_loss)
    throw InvalidArgument(std::string("train_async does not wait, and ") +
                          (watch.patience > 0 ? "Watch::patience" : "Watch::target_loss") +
                          " lets the host decide at each border whether the run goes on; use train");
  self.collect_what_is_here();
  auto run = std::make_shared<TrainRun::State>();
  run->trainer = &self;
  run->report = self.begin_report();
  run->begin = std::chrono::steady_clock::now();
  self.loaded.reset();
  // Whatever is thrown, what was enqueued is collected in its turn.
  self.runs.push_back(run);
  try {
    self.enqueue_steps(steps, run->steps, run->report, run->sums);
  } catch (const RunEnded& end) {
    self.steps_done += end.steps();
    self.optimizer_steps += end.steps();
    throw Error("train_async ended after " + std::to_string(run->steps + end.steps()) + " of " + std::to_string(steps) +
                " steps: " + end.what());
  }
  self.executor->end_run();
  run->report.algorithms = self.executor->algorithms();
  TrainRun handle;
  handle.state_ = std::move(run);
  return handle;
}

bool TrainRun::done() {
  if (state_ == nullptr) throw InvalidArgument("this TrainRun is of no run; take the one that train_async returns");
  if (state_->is_collected) return true;
  if (state_->trainer == nullptr)
    throw InvalidArgument(
        "the trainer of this run does not exist any more, and with it the losses; wait for a run first");
  state_->trainer->check_process();
  state_->trainer->collect_what_is_here();
  return state_->is_collected;
}

std::vector<double> TrainRun::losses() {
  done();
  return state_->report.losses;
}

TrainReport TrainRun::wait() {
  const DefaultFloatingPoint floating_point;
  if (!done()) state_->trainer->collect_runs(state_.get());
  return state_->report;
}

void Trainer::enqueue_step(double* loss) {
  const DefaultFloatingPoint floating_point;
  impl_->check_process();
  impl_->need_data("enqueue_step");
  if (loss != nullptr && impl_->is_on_gpu())
    check_device_range(loss, sizeof *loss, impl_->decision.plan.device, "the loss of enqueue_step");
  impl_->executor->enqueue_step(loss);
  impl_->loaded.reset();
}

Evaluation Trainer::evaluate() {
  const DefaultFloatingPoint floating_point;
  impl_->check_process();
  if (!impl_->has_validation())
    throw InvalidArgument("Trainer::evaluate needs validation data; call set_validation first");
  prepare();
  impl_->executor->enqueue_evaluation(false);
  EvaluationSums sums;
  impl_->executor->evaluations({&sums, 1});
  return impl_->evaluation_of(sums, impl_->steps_done);
}

std::optional<Evaluation> Trainer::best() const {
  impl_->check_process();
  return impl_->watcher.best();
}

void Trainer::restore_best() {
  const DefaultFloatingPoint floating_point;
  Impl& self = *impl_;
  self.check_process();
  if (!self.training.watch.keep_best)
    throw InvalidArgument("no parameters were kept; set Watch::keep_best before the run");
  if (!self.watcher.best())
    throw InvalidArgument("there is no best evaluation yet; train to a border of Watch::every first");
  self.set_state(self.best_parameters());
}

double Trainer::loss() {
  const DefaultFloatingPoint floating_point;
  impl_->check_process();
  impl_->need_data("loss");
  return impl_->executor->loss(impl_->optimizer_steps);
}

std::shared_ptr<void> TrainerAccess::device_memory(const Trainer& trainer, std::size_t bytes) {
  const Trainer::Impl& self = *trainer.impl_;
  self.check_process();
  Trainer::Impl::check_has_gpu(self.decision.plan, "the tensor");
  if (bytes == 0) return {};
  return allocate_on_device(bytes, self.decision.plan.device, self.cuda);
}

void Trainer::predict(ConstMatrix x, Matrix out) { TrainerAccess::predict(*this, x, out, "x"); }

void TrainerAccess::predict(Trainer& trainer, ConstMatrix x, Matrix out, const std::string& x_name) {
  const DefaultFloatingPoint floating_point;
  Trainer::Impl& self = *trainer.impl_;
  self.check_process();
  self.check_any_view(x, "x");
  self.check_any_view(out, "out");
  const std::int64_t inputs = self.network.widths.front(), outputs = self.network.widths.back();
  if (x.columns != inputs)
    throw InvalidArgument("x is " + shape(x) + ", but the network has " + std::to_string(inputs) + " inputs");
  if (out.rows != x.rows || out.columns != outputs)
    throw InvalidArgument("out is " + shape(out) + "; it must be [" + std::to_string(x.rows) + ", " +
                          std::to_string(outputs) + "], a row for each row of x");
  if (x.space == MemorySpace::host) check_finite(x, element_type(self.training.precision), x_name);
  if (x.rows == 0) return;
  trainer.prepare();
  self.executor->predict(x, out);
}

const NetworkSpec& Trainer::network() const { return impl_->network; }
const TrainingSpec& Trainer::training() const { return impl_->training; }
const Plan& Trainer::plan() const { return impl_->decision.plan; }
std::int64_t Trainer::steps_done() const { return impl_->steps_done; }

}  // namespace deviceloop
