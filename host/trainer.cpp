#include <deviceloop/trainer.h>

#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cmath>

#include <deviceloop/error.h>
#include <deviceloop/random.h>

#include "accuracy.h"
#include "executor.h"
#include "files/output_file.h"
#include "files/weights.h"
#include "floating_point.h"
#include "machine.h"
#include "matrix_ops.h"
#include "names.h"
#include "parameters.h"
#include "preparation.h"
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

struct Trainer::Impl {
  NetworkSpec network;
  TrainingSpec training;
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
  Preparation preparation;  ///< since the last call of train

  ~Impl() {
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

  // Parameters, with which the optimizer begins anew: what it keeps is 0 where `values` have nothing of it.
  void set_state(Parameters values) {
    optimizer_steps = 0;
    forget_evaluations();
    for (std::size_t index = values.size(); index < layout.size(); ++index) values.push_back(zeros_of(layout[index]));
    if (!executor) {
      state = std::move(values);
      return;
    }
    for (std::size_t index = 0; index < values.size(); ++index)
      executor->write_state(static_cast<int>(index), values[index].view());
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

  void need_executor() {
    if (executor) return;
    if (state.empty()) state = drawn(training.seed, Init::normal);
    preparation.lap("data");
    std::unique_ptr<Executor> made = make_executor(network, training, decision);
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
    watcher.forget();
    if (executor && has_validation()) executor->forget_best();
  }

  Evaluation evaluation_of(const EvaluationSums& sums, std::int64_t steps) const {
    Evaluation made{steps, sums.loss, {}};
    const std::int64_t counted = counted_predictions(training.loss, validation_x.rows, network.widths.back());
    if (counted > 0) made.accuracy = sums.correct / static_cast<double>(counted);
    return made;
  }

  /// Takes `count` steps and evaluates at the borders among them; adds to the report what they give. Whether the last
  /// one is at a border. Throws RunEnded with all steps of the report.
  bool take_steps(std::int64_t count, TrainReport& report) {
    const std::int64_t before = report.steps();
    std::vector<std::int64_t> evaluated;  // after how many steps
    bool is_at_border = false;
    const auto collect = [&](std::int64_t taken) {
      report.losses.resize(static_cast<std::size_t>(before + taken));
      executor->losses(std::span(report.losses).subspan(static_cast<std::size_t>(before)));
      std::vector<EvaluationSums> sums(evaluated.size());
      executor->evaluations(sums);
      for (std::size_t i = 0; i < sums.size(); ++i) {
        report.evaluations.push_back(evaluation_of(sums[i], evaluated[i]));
        watcher.add(report.evaluations.back());
      }
    };
    std::int64_t taken = 0;
    try {
      while (taken < count) {
        const std::int64_t border = next_border(training, optimizer_steps) - optimizer_steps;
        const std::int64_t now = has_validation() ? std::min(count - taken, border) : count - taken;
        executor->enqueue(optimizer_steps, now);
        taken += now;
        steps_done += now;
        optimizer_steps += now;
        is_at_border = now == border;
        if (!is_at_border || !has_validation()) continue;
        executor->enqueue_evaluation(true);
        evaluated.push_back(steps_done);
      }
    } catch (const RunEnded& end) {
      collect(taken);
      steps_done += end.steps();
      optimizer_steps += end.steps();
      throw RunEnded(end.what(), before + taken + end.steps());
    }
    collect(taken);
    return is_at_border;
  }

  /// Throws where x and y, of data or of validation data, do not belong to the network and each other; whether y is
  /// classes.
  bool check_shapes(const ConstMatrix& x, const ConstMatrix& y) const {
    check_host_view(x, "x");
    check_host_view(y, "y");
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

  void check_elements(const ConstMatrix& x, const ConstMatrix& y, bool has_classes, const std::string& x_name,
                      const std::string& y_name) const {
    check_finite(x, element_type(training.precision), x_name);
    check_finite(y, element_type(training.precision), y_name);
    if (!has_classes) return;
    if (training.precision == Precision::fp32 && network.widths.back() > kMostFloatClasses)
      throw InvalidArgument("fp32 holds the numbers of " + std::to_string(kMostFloatClasses) +
                            " classes exactly, and the network has " + std::to_string(network.widths.back()) +
                            " outputs; use fp64");
    check_classes(y, network.widths.back(), y_name);
  }

  int index_of(int layer, bool is_bias) const {
    if (layer < 0 || layer >= network.layers())
      throw InvalidArgument("there is no layer " + std::to_string(layer) + "; layers are from 0 to " +
                            std::to_string(network.layers() - 1));
    if (is_bias && !network.bias)
      throw InvalidArgument("the network has no biases; set NetworkSpec::bias to have them");
    return layer * (network.bias ? 2 : 1) + (is_bias ? 1 : 0);
  }

  void check_parameter(int index, const ConstMatrix& view) const {
    const ParameterInfo& info = layout[static_cast<std::size_t>(index)];
    check_host_view(view, "parameter " + info.name);
    if (view.rows != info.rows || view.columns != info.columns)
      throw InvalidArgument("parameter " + info.name + " is [" + std::to_string(info.rows) + ", " +
                            std::to_string(info.columns) + "], the matrix is " + shape(view) +
                            "; pass one of equal shape");
  }

  void read(int index, Matrix out) const {
    const DefaultFloatingPoint floating_point;
    check_process();
    check_parameter(index, out);
    if (executor) return executor->read_state(index, out);
    convert(out, copied_state(parameter_count())[static_cast<std::size_t>(index)].view());
  }

  void write(int index, ConstMatrix in) {
    const DefaultFloatingPoint floating_point;
    check_process();
    check_parameter(index, in);
    check_finite(in, element_type(training.precision), "parameter " + layout[static_cast<std::size_t>(index)].name);
    forget_evaluations();
    if (executor) return executor->write_state(index, in);
    if (state.empty()) state = drawn(training.seed, Init::normal);
    convert(state[static_cast<std::size_t>(index)].view(), in);
  }

  void need_data(const char* call) const {
    if (!has_data) throw InvalidArgument(std::string("Trainer::") + call + " needs data; call set_data first");
  }
};

Trainer::Trainer(NetworkSpec network, TrainingSpec training, std::optional<ExecutorKind> forced)
    : impl_(std::make_unique<Impl>()) {
  const DefaultFloatingPoint floating_point;
  DeviceCaps here = query_caps_for(training.device);
  impl_->preparation.lap("devices");
  impl_->decide(std::move(network), training, forced, std::move(here));
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
  if (sample_weights != nullptr) {
    check_host_view(*sample_weights, "sample_weights");
    if (sample_weights->rows != x.rows || sample_weights->columns != 1)
      throw InvalidArgument("sample_weights is " + shape(*sample_weights) + "; it must be [" + std::to_string(x.rows) +
                            ", 1], one weight for each row of x");
  }
  self.preparation.restart();
  TrainingSpec training = self.training;
  training.samples = x.rows;
  training.class_targets = has_classes;
  training.sample_weights = sample_weights != nullptr;
  const bool needs_executor = !self.executor || self.training.samples != training.samples ||
                              self.training.class_targets != training.class_targets ||
                              self.training.sample_weights != training.sample_weights;
  Decision decision;
  // Before the first element is read, because a view with more rows than the machine has memory for is a mistake.
  if (needs_executor) {
    decision = decide_here(self.network, training, self.caps, self.forced);
    self.preparation.lap("plan");
  }
  self.check_elements(x, y, has_classes, x_name, y_name);
  if (sample_weights != nullptr) check_weights(*sample_weights, element_type(training.precision), weights_name);
  self.preparation.lap("data");

  if (needs_executor) {
    // From here on the state is on the host, so that it is kept if making the new executor fails.
    self.state = self.copied_state(self.layout.size());
    self.executor.reset();
    self.has_data = false;
    self.training = training;
    self.decision = std::move(decision);
    self.need_executor();
  }
  self.forget_evaluations();
  self.executor->set_data(x, y, sample_weights != nullptr ? *sample_weights : ConstMatrix());
  self.has_data = true;
  self.preparation.lap("data");
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
  self.check_elements(x, y, has_classes, x_name, y_name);
  HostMatrix in_precision_x(element_type(self.training.precision), x.rows, x.columns);
  HostMatrix in_precision_y(element_type(self.training.precision), y.rows, y.columns);
  convert(in_precision_x.view(), x);
  convert(in_precision_y.view(), y);
  self.watcher.forget();
  // The executor reads the old ones until it has the new ones.
  if (self.executor)
    self.executor->set_validation(std::as_const(in_precision_x).view(), std::as_const(in_precision_y).view());
  self.validation_x = std::move(in_precision_x);
  self.validation_y = std::move(in_precision_y);
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
  SavedState state =
      read_state(SafeTensorsFile(path, memory != 0 ? memory : UINT64_MAX), impl_->network, impl_->training);
  impl_->set_state(std::move(state.values));
  impl_->optimizer_steps = state.steps;
}

void Trainer::save_state(const std::string& path) const {
  const DefaultFloatingPoint floating_point;
  impl_->check_process();
  OutputFile file(path);
  write_state(file, impl_->network, impl_->training,
              {impl_->copied_state(impl_->layout.size()), impl_->optimizer_steps});
  file.commit();
}

TrainReport Trainer::train(std::int64_t steps, const TrainCallback& callback, std::int64_t steps_per_callback) {
  std::optional<DefaultFloatingPoint> floating_point(std::in_place);
  Impl& self = *impl_;
  self.check_process();
  self.need_data("train");
  if (steps < 0) throw InvalidArgument("the number of steps is " + std::to_string(steps) + "; it must not be negative");
  if (steps_per_callback < 0)
    throw InvalidArgument("steps_per_callback is " + std::to_string(steps_per_callback) +
                          "; it is 0 (automatic) or at least 1");
  const std::uint64_t memory = self.caps.cpu.memory_bytes != 0 ? self.caps.cpu.memory_bytes : std::uint64_t{1} << 40;
  if (static_cast<std::uint64_t>(steps) > memory / (2 * sizeof(double)))
    throw InvalidArgument("the losses of " + std::to_string(steps) +
                          " steps do not fit into memory; train fewer steps a call");

  const Watch& watch = self.training.watch;
  if (!self.has_validation() && (watch.patience > 0 || watch.keep_best))
    throw InvalidArgument(std::string(watch.patience > 0 ? "Watch::patience" : "Watch::keep_best") +
                          " needs validation data; call set_validation first");
  const bool may_end = watch.patience > 0 || watch.target_loss;

  std::int64_t chunk = steps;
  if (callback) {
    chunk = steps_per_callback;
    if (chunk == 0)
      chunk = std::clamp(static_cast<std::int64_t>(kChunkUs / std::max(self.decision.plan.predicted_us_per_step, 0.1)),
                         std::int64_t{1}, kMaxChunk);
  }

  TrainReport report;
  report.plan = self.decision.plan;
  report.first_step = self.steps_done;
  report.preparation = self.preparation.take();
  for (const PreparationStage& stage : report.preparation) report.prepare_ms += stage.ms;
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
  Parameters best;
  for (std::size_t index = 0; index < self.parameter_count(); ++index) {
    best.push_back(self.zeros_of(self.layout[index]));
    self.executor->read_best(static_cast<int>(index), best.back().view());
  }
  self.set_state(std::move(best));
}

double Trainer::loss() {
  const DefaultFloatingPoint floating_point;
  impl_->check_process();
  impl_->need_data("loss");
  return impl_->executor->loss(impl_->optimizer_steps);
}

void Trainer::predict(ConstMatrix x, Matrix out) { TrainerAccess::predict(*this, x, out, "x"); }

void TrainerAccess::predict(Trainer& trainer, ConstMatrix x, Matrix out, const std::string& x_name) {
  const DefaultFloatingPoint floating_point;
  Trainer::Impl& self = *trainer.impl_;
  self.check_process();
  check_host_view(x, "x");
  check_host_view(out, "out");
  const std::int64_t inputs = self.network.widths.front(), outputs = self.network.widths.back();
  if (x.columns != inputs)
    throw InvalidArgument("x is " + shape(x) + ", but the network has " + std::to_string(inputs) + " inputs");
  if (out.rows != x.rows || out.columns != outputs)
    throw InvalidArgument("out is " + shape(out) + "; it must be [" + std::to_string(x.rows) + ", " +
                          std::to_string(outputs) + "], a row for each row of x");
  check_finite(x, element_type(self.training.precision), x_name);
  if (x.rows == 0) return;
  trainer.prepare();
  self.executor->predict(x, out);
}

const NetworkSpec& Trainer::network() const { return impl_->network; }
const TrainingSpec& Trainer::training() const { return impl_->training; }
const Plan& Trainer::plan() const { return impl_->decision.plan; }
std::int64_t Trainer::steps_done() const { return impl_->steps_done; }

}  // namespace deviceloop
