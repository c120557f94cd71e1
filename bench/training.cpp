#include "training.h"

#include <deviceloop/error.h>
#include <deviceloop/random.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <deque>

#include "../host/matrix_ops.h"
#include "../host/permutation.h"
#include "../host/precision.h"
#include "../host/step/step.h"
#include "objective.h"

namespace deviceloop::bench {
namespace {

// FLOPs of a timed run, which takes it tens of milliseconds, and of what the reference repeats of it.
constexpr double kCpuRunFlops = 2e9, kGpuRunFlops = 2e12, kCheckFlops = 30e9;
constexpr std::int64_t kFewestSteps = 5, kMostSteps = 500, kMostChecked = 50, kFewestChecked = 2, kFewestRows = 16;
// Inputs that are drawn for minibatches, of which a run takes few: more would only take time.
constexpr std::int64_t kDrawnOfBatches = 1 << 22;

std::string shown(double value) {
  char text[40];
  std::snprintf(text, sizeof text, "%.9g", value);
  return text;
}

template <class Enum>
std::vector<std::pair<std::string, Enum>> all_of() {
  // Enumerators count from 0; the first name that comes again, or is none, is that of no enumerator.
  std::vector<std::pair<std::string, Enum>> found;
  for (int i = 0;; ++i) {
    const std::string text = name(static_cast<Enum>(i));
    const bool is_known = std::any_of(found.begin(), found.end(), [&](const auto& each) { return each.first == text; });
    if (is_known || text == "unknown") return found;
    found.emplace_back(text, static_cast<Enum>(i));
  }
}

template <class Enum>
Enum value_of(const Values& values, const std::string& axis) {
  std::string names;
  for (const auto& [text, value] : all_of<Enum>()) {
    if (text == values.at(axis)) return value;
    names += (names.empty() ? "" : ", ") + text;
  }
  throw UsageError("--axis " + axis + "=" + values.at(axis) + ": it takes " + names);
}

/// The entry of `table` that the axis names.
template <class Table>
const auto& named(const Table& table, const Values& values, const std::string& axis) {
  if (const auto* const found = find_in(table, values.at(axis))) return *found;
  std::string names;
  for (const std::string& name : names_in(table)) names += (names.empty() ? "" : ", ") + name;
  throw UsageError("--axis " + axis + "=" + values.at(axis) + ": it takes " + names);
}

template <class Enum>
std::vector<std::string> names_of() {
  std::vector<std::string> names;
  for (const auto& each : all_of<Enum>()) names.push_back(each.first);
  return names;
}

/// NAME, or persistent:FORM, as the command spells it.
ExecutorKind read_plan(Values values, PersistentForm& form) {
  std::string& text = values.at("plan");
  const std::size_t colon = text.find(':');
  if (colon != std::string::npos) {
    form = value_of<PersistentForm>({{"plan", text.substr(colon + 1)}}, "plan");
    text.resize(colon);
  }
  const auto plan = value_of<ExecutorKind>(values, "plan");
  if (colon != std::string::npos && plan != ExecutorKind::persistent)
    throw UsageError("--axis plan=" + text + ":...: only persistent has forms");
  return plan;
}

std::int64_t clamped(double value, std::int64_t least, std::int64_t most) {
  return static_cast<std::int64_t>(std::clamp(value, static_cast<double>(least), static_cast<double>(most)));
}

/// Rows of random numbers, `distinct` of them over and over.
HostMatrix repeated(const Training& training, std::int64_t columns, std::uint32_t tensor) {
  HostMatrix matrix(element_type(training.spec.precision), training.spec.samples, columns);
  fill_normal(rows_of(matrix.view(), 0, training.distinct), training.spec.seed, tensor);
  const std::size_t block = static_cast<std::size_t>(training.distinct * columns) * size_of(matrix.type);
  for (std::size_t at = block; at < matrix.bytes.size(); at += block)
    std::memcpy(matrix.bytes.data() + at, matrix.bytes.data(), block);
  return matrix;
}

/// Of each row of x the number of the largest of its first `classes` elements: classes that can be learned.
HostMatrix classes_of(const HostMatrix& x, std::int64_t classes) {
  HostMatrix numbers(x.type, x.rows, 1);
  with_type(x.type, [&]<class T>(T*) {
    for (std::int64_t row = 0; row < x.rows; ++row) {
      const T* const begin = reinterpret_cast<const T*>(x.bytes.data()) + row * x.columns;
      const T* const largest = std::max_element(begin, begin + std::min(classes, x.columns));
      reinterpret_cast<T*>(numbers.bytes.data())[row] = static_cast<T>(largest - begin);
    }
  });
  return numbers;
}

HostMatrix targets_of(const Training& training, const HostMatrix& x) {
  const std::int64_t outputs = training.network.widths.back();
  return training.spec.class_targets ? classes_of(x, outputs) : repeated(training, outputs, kTensorY);
}

Table first_rows(const HostMatrix& matrix, std::int64_t rows) {
  Table table(rows, matrix.columns);
  convert(Matrix(table.values.data(), rows, matrix.columns), rows_of(matrix.view(), 0, rows));
  return table;
}

/// Columns of the matrix that the first layer multiplies in each step.
std::int64_t first_inputs(const Training& training) {
  switch (training.spec.formulation) {
    case Formulation::primal:
      break;
    case Formulation::gram:
      return training.spec.samples;
  }
  return training.network.widths.front();
}

/// What the loss of a row counts in a step of `rows` rows.
double loss_weight(const Training& training, std::int64_t rows) {
  if (training.spec.reduction == Reduction::sum) return 1;
  const std::int64_t of_a_row = training.spec.loss == Loss::cross_entropy ? 1 : training.network.widths.back();
  return 1 / static_cast<double>(rows * of_a_row);
}

/// How far a run may be from the reference: relative errors, and the rounding of one step.
struct Bounds {
  double losses, first_loss, parameters, rounding;
};

Bounds bounds_of(const Training& training) {
  // Each product is off by what its operands are rounded by, and so is each gradient.
  switch (training.spec.precision) {
    case Precision::fp32:
    case Precision::fp64:
    case Precision::tf32x3:
      break;
    case Precision::tf32:
    case Precision::fp16:
      return {1e-2, 1e-2, 5e-2, 0x1p-23};
    case Precision::bf16:
      return {1e-1, 5e-2, 2e-1, 0x1p-23};
  }
  if (element_type(training.spec.precision) == ElementType::float32)
    return {1e-4, training.init == Init::normal ? 1e-6 : 1e-5, 1e-2, 0x1p-23};
  return {1e-10, 1e-10, 1e-8, 0x1p-52};
}

}  // namespace

std::vector<std::string> formulation_names() { return names_of<Formulation>(); }
std::vector<std::string> plan_names() { return names_of<ExecutorKind>(); }
std::vector<std::string> persistent_plan_names() {
  std::vector<std::string> names;
  for (const auto& [text, form] : all_of<PersistentForm>())
    if (form != PersistentForm::automatic) names.push_back(name(ExecutorKind::persistent) + (":" + text));
  return names;
}

std::vector<Axis> training_axes(std::vector<std::string> layers, std::vector<std::string> samples,
                                std::vector<std::string> precisions, std::vector<Axis> others) {
  std::vector<Axis> axes = {{"plan", plan_names()},
                            {"layers", std::move(layers)},
                            {"n", std::move(samples)},
                            {"precision", std::move(precisions)},
                            {"bias", {"no"}},
                            {"loss", {kLosses[0].name}},
                            {"optimizer", {"gd"}},
                            {"batch", {"all"}},
                            {"tuned", {"no"}},
                            {"steps", {"auto"}},
                            {"formulation", {name(Formulation::primal)}}};
  for (Axis& other : others)
    std::find_if(axes.begin(), axes.end(), [&](const Axis& axis) { return axis.name == other.name; })->values =
        std::move(other.values);
  return axes;
}

std::optional<Training> training_of(const Values& values, const CaseOptions& options) {
  Training training;
  training.plan = read_plan(values, training.spec.form);
  const bool on_cpu = training.device() == Device::cpu;
  if (!on_cpu && options.caps.gpus.empty()) return std::nullopt;
  NetworkSpec& network = training.network;
  TrainingSpec& spec = training.spec;
  network.widths = widths_of(values);
  network.bias = flag_of(values, "bias");
  spec.samples = count_of(values, "n");
  spec.precision = value_of<Precision>(values, "precision");
  if (scales_loss(spec.precision))
    throw UsageError("--axis precision=" + values.at("precision") +
                     ": a run in it skips steps until the scale of its loss fits, which the reference does not");
  if (training.plan == ExecutorKind::fused && operand_parts(spec.precision) == 0) return std::nullopt;
  const NamedLoss& loss = named(kLosses, values, "loss");
  spec.loss = loss.loss;
  spec.reduction = loss.reduction;
  spec.class_targets = loss.loss == Loss::cross_entropy;
  spec.optimizer.kind = named(kOptimizers, values, "optimizer").kind;
  if (values.at("batch") != "all") spec.batch_size = count_of(values, "batch");
  spec.formulation = value_of<Formulation>(values, "formulation");
  spec.deterministic = !flag_of(values, "tuned");
  spec.device.kind = on_cpu ? DeviceKind::cpu : DeviceKind::cuda;
  spec.threads = on_cpu ? options.threads : 0;
  spec.seed = options.seed;
  // On a CPU there is nothing to tune, and one launch for all steps chooses no algorithm.
  if (!spec.deterministic && training.plan != ExecutorKind::graph) return std::nullopt;

  const std::string& layers = values.at("layers");
  training.name =
      values.at("plan") + "/" + layers + "/n=" + std::to_string(spec.samples) + "/" + deviceloop::name(spec.precision);
  if (network.bias) training.name += "/bias";
  if (values.at("loss") != kLosses[0].name) training.name += "/" + values.at("loss");
  if (values.at("optimizer") != kOptimizers[0].name) training.name += "/" + values.at("optimizer");
  if (spec.batch_size != 0) training.name += "/batch=" + std::to_string(spec.batch_size);
  if (spec.formulation != Formulation::primal) training.name += std::string("/") + deviceloop::name(spec.formulation);
  if (!spec.deterministic) training.name += "/tuned";

  if (spec.optimizer.kind == OptimizerKind::adam) {
    spec.optimizer.learning_rate = 1e-3;
  } else if (layers == "1000-100-1" && spec.samples == 128 && !network.bias && training.rows() == spec.samples &&
             values.at("loss") == kLosses[0].name) {
    spec.optimizer.learning_rate = 1e-6;
    training.init = Init::normal;
  } else {
    // By the largest curvature of random data, of the sum of squared errors.
    const std::int64_t widest = *std::max_element(network.widths.begin(), network.widths.end());
    const double root = std::sqrt(static_cast<double>(training.rows())) + std::sqrt(static_cast<double>(widest));
    spec.optimizer.learning_rate = 0.002 / (root * root) / loss_weight(training, training.rows());
  }
  const double flops = step_flops(training);
  training.steps = clamped((on_cpu ? kCpuRunFlops : kGpuRunFlops) / flops, kFewestSteps, kMostSteps);
  if (values.at("steps") != "auto") {
    training.steps = count_of(values, "steps");
    training.name += "/steps=" + std::to_string(training.steps);
  }
  training.distinct = spec.samples;
  // The reference takes all of the arithmetic of the primal formulation.
  Training checked = training;
  checked.spec.formulation = Formulation::primal;
  double check_flops = step_flops(checked);
  const auto is_too_much = [&] {
    return spec.batch_size == 0 ? check_flops * kFewestChecked > kCheckFlops
                                : training.distinct * network.widths.front() > kDrawnOfBatches;
  };
  while (is_too_much() && training.distinct % 2 == 0 && training.distinct > kFewestRows) {
    training.distinct /= 2;
    if (spec.batch_size == 0) check_flops /= 2;
  }
  training.checked_steps = std::min(training.steps, clamped(kCheckFlops / check_flops, kFewestChecked, kMostChecked));
  try {
    make_plan(network, spec, options.caps, training.plan);
  } catch (const Error& error) {
    training.refused = error.what();
  }
  return training;
}

double step_flops(const Training& training) {
  return 2 * multiply_adds(make_step(training.network, training.spec).operations);
}

double step_bytes(const Training& training) {
  double parameters = 0;
  for (int layer = 0; layer < training.network.layers(); ++layer)
    parameters += static_cast<double>(training.network.out_features(layer)) *
                  static_cast<double>(training.network.in_features(layer) + (training.network.bias ? 1 : 0));
  const auto rows = static_cast<double>(training.rows());
  const double inputs = rows * static_cast<double>(first_inputs(training)),
               targets = rows * static_cast<double>(training.network.widths.back());
  return inputs * static_cast<double>(operand_bytes(training.spec.precision)) +
         (targets + 2 * parameters) * static_cast<double>(size_of(element_type(training.spec.precision)));
}

TrainingRun::TrainingRun(const Training& training)
    : training_(training),
      x_(repeated(training, training.network.widths.front(), kTensorX)),
      y_(targets_of(training, x_)) {
  trainer_ = std::make_unique<Trainer>(training.network, training.spec, training.plan);
  trainer_->initialize(training.spec.seed, training.init);
  try {
    set_data(*trainer_);
    initial_ = read(*trainer_);
  } catch (const Unsupported& error) {
    throw NotHere(error.what());
  }
}

void TrainingRun::set_data(Trainer& trainer) const { trainer.set_data(x_.view(), y_.view()); }

void TrainingRun::set_parameters(Trainer& trainer) const {
  // Parameters that are written leave the optimizer and the minibatches where they are; to draw them takes longer.
  if (training_.spec.optimizer.kind != OptimizerKind::gradient_descent || training_.spec.batch_size != 0)
    return trainer.initialize(training_.spec.seed, training_.init);
  for (int layer = 0; layer < training_.network.layers(); ++layer) {
    const Table& weight = initial_.weights[static_cast<std::size_t>(layer)];
    trainer.write_weight(layer, ConstMatrix(weight.values.data(), weight.rows, weight.columns));
    if (!training_.network.bias) continue;
    const Table& bias = initial_.biases[static_cast<std::size_t>(layer)];
    trainer.write_bias(layer, ConstMatrix(bias.values.data(), bias.rows, bias.columns));
  }
}

Parameters TrainingRun::read(const Trainer& trainer) const {
  Parameters parameters;
  for (int layer = 0; layer < training_.network.layers(); ++layer) {
    const std::int64_t in = training_.network.in_features(layer), out = training_.network.out_features(layer);
    Table& weight = parameters.weights.emplace_back(in, out);
    trainer.read_weight(layer, Matrix(weight.values.data(), in, out));
    if (!training_.network.bias) continue;
    Table& bias = parameters.biases.emplace_back(1, out);
    trainer.read_bias(layer, Matrix(bias.values.data(), 1, out));
  }
  return parameters;
}

std::shared_ptr<TrainingRun::Reference> TrainingRun::compute_reference(const std::string& key) const {
  const Table x = first_rows(x_, training_.distinct), y = first_rows(y_, training_.distinct);
  const TrainingSpec& spec = training_.spec;
  ReferenceStep step;
  step.cross_entropy = spec.loss == Loss::cross_entropy;
  step.adam = spec.optimizer.kind == OptimizerKind::adam;
  step.learning_rate = with_type(element_type(spec.precision), [&]<class T>(T*) {
    return static_cast<double>(static_cast<T>(spec.optimizer.learning_rate));
  });
  step.weight = loss_weight(training_, training_.rows());
  if (spec.batch_size == 0) {
    // With copies of a block of rows, losses and gradients are so many times those of the block.
    step.weight *= static_cast<double>(spec.samples / training_.distinct);
  } else {
    const BatchOrder order{spec.seed, spec.samples, spec.shuffle};
    step.batch = spec.batch_size;
    for (std::int64_t position = 0; position < step.batch * training_.checked_steps; ++position)
      step.order.push_back(order.sample(position) % training_.distinct);
  }
  auto reference = std::make_shared<Reference>();
  reference->key = key;
  reference->expected = initial_;
  reference->losses = train_reference(reference->expected, x, y, step, training_.checked_steps);
  return reference;
}

const TrainingRun::Reference& TrainingRun::reference() {
  if (reference_) return *reference_;
  std::string key = name(training_.spec.precision);
  for (const std::int64_t width : training_.network.widths) key += " " + std::to_string(width);
  const TrainingSpec& spec = training_.spec;
  for (const std::int64_t number :
       {spec.samples, training_.distinct, training_.checked_steps, static_cast<std::int64_t>(spec.seed),
        spec.batch_size, static_cast<std::int64_t>(spec.loss), static_cast<std::int64_t>(spec.reduction),
        static_cast<std::int64_t>(spec.optimizer.kind)})
    key += "/" + std::to_string(number);
  char rate[40];
  std::snprintf(rate, sizeof rate, "/%.17g", training_.spec.optimizer.learning_rate);
  key += rate;
  const auto same = [](const std::vector<Table>& one, const std::vector<Table>& other) {
    return std::equal(one.begin(), one.end(), other.begin(), other.end(),
                      [](const Table& a, const Table& b) { return a.values == b.values; });
  };

  // The latest ones; of a network of hundreds of megabytes none is kept.
  static std::deque<std::shared_ptr<const Reference>> known;
  constexpr std::size_t kMostKnown = 8, kMostParameters = 4 << 20;
  for (const auto& each : known)
    if (each->key == key && same(each->initial.weights, initial_.weights) &&
        same(each->initial.biases, initial_.biases))
      return *(reference_ = each);
  const std::shared_ptr<Reference> made = compute_reference(key);
  reference_ = made;
  std::size_t parameters = 0;
  for (const Table& weight : initial_.weights) parameters += weight.values.size();
  if (parameters > kMostParameters) return *made;
  made->initial = initial_;
  known.push_back(made);
  if (known.size() > kMostKnown) known.pop_front();
  return *made;
}

const std::vector<double>& TrainingRun::expected_losses() { return reference().losses; }

const Parameters& TrainingRun::expected_parameters() { return reference().expected; }

void check_falling(const std::vector<double>& losses, std::int64_t steps) {
  if (static_cast<std::int64_t>(losses.size()) != steps)
    throw WrongResult("there are " + std::to_string(losses.size()) + " losses, not " + std::to_string(steps));
  for (std::size_t step = 0; step < losses.size(); ++step)
    if (!std::isfinite(losses[step])) throw WrongResult("the loss of step " + std::to_string(step) + " is not finite");
  if (losses.size() > 1 && !(losses.back() < losses.front()))
    throw WrongResult("the loss does not fall: " + shown(losses.front()) + ", at the end " + shown(losses.back()));
}

double check_losses(const Training& training, const std::vector<double>& losses, const std::vector<double>& expected) {
  const Bounds bounds = bounds_of(training);
  if (losses.size() < expected.size()) throw WrongResult("losses are missing");
  double largest = 0;
  for (std::size_t step = 0; step < expected.size(); ++step) {
    const double error = std::abs(losses[step] - expected[step]) / std::max(expected[step], 1e-3 * expected.front());
    if (!(error <= (step == 0 ? bounds.first_loss : bounds.losses)))
      throw WrongResult("the loss of step " + std::to_string(step) + " is " + shown(losses[step]) + ", not " +
                        shown(expected[step]));
    largest = std::max(largest, error);
  }
  return largest;
}

double check_parameters(const Training& training, const Parameters& initial, const Parameters& got,
                        const Parameters& expected) {
  // A unit whose pre-activation is 0 but for rounding passes its gradient in one and not in the other: the way may
  // differ by a little more than rounding, and by far less than any mistake.
  const Bounds bounds = bounds_of(training);
  double largest = 0;
  const auto check = [&](const std::string& what, const Table& before, const Table& is, const Table& should) {
    const double way = distance(should, before), error = distance(is, should);
    // Each step rounds each parameter once.
    const double allowed =
        bounds.parameters * way + bounds.rounding * static_cast<double>(training.checked_steps) * norm(should);
    if (!(error <= allowed))
      throw WrongResult(what + " after " + std::to_string(training.checked_steps) + " steps is off by " +
                        shown(error / way) + " of how far it moved");
    largest = std::max(largest, error / way);
  };
  for (std::size_t layer = 0; layer < expected.weights.size(); ++layer) {
    const std::string number = std::to_string(layer);
    check("the weight of layer " + number, initial.weights[layer], got.weights[layer], expected.weights[layer]);
    if (!expected.biases.empty())
      check("the bias of layer " + number, initial.biases[layer], got.biases[layer], expected.biases[layer]);
  }
  return largest;
}

}  // namespace deviceloop::bench
