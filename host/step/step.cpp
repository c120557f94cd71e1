#include "step.h"

#include "../loss_scaling.h"
#include "../names.h"
#include "../precision.h"

namespace deviceloop {
namespace {

using Kind = StepOperation::Kind;
using Lifetime = StepTensor::Lifetime;

class StepBuilder {
 public:
  StepBuilder(const NetworkSpec& network, const TrainingSpec& training) : network_(network), training_(training) {}

  Step build() {
    step_.precision = training_.precision;
    step_.batch = batch_of(training_);
    step_.order = {training_.seed, training_.samples, training_.shuffle};
    add_tensors();
    for (int index = 0; index < network_.layers(); ++index) step_.inference.push_back(forward(index));
    if (step_.batch > 0) add_operations();
    return std::move(step_);
  }

 private:
  Step::Layer& layer(int index) { return step_.layers[static_cast<std::size_t>(index)]; }
  int last() const { return network_.layers() - 1; }
  /// None where pre-activations are the output.
  std::optional<ActivationOfStep> activation_of(int index) const {
    if (index < last()) return ActivationOfStep{network_.activation, network_.leaky_slope};
    if (network_.output_activation == Activation::identity) return std::nullopt;
    return ActivationOfStep{network_.output_activation, network_.leaky_slope};
  }
  bool keeps_pre_activation(int index) const {
    const std::optional<ActivationOfStep> activation = activation_of(index);
    return activation && activations::keeps_pre_activation(*activation);
  }
  std::int64_t batch() const { return step_.batch; }

  bool is_gram() const {
    switch (training_.formulation) {
      case Formulation::primal:
        return false;
      case Formulation::gram:
        break;
    }
    return batch() > 0;
  }

  TensorId add(const std::string& name, Lifetime lifetime, std::int64_t rows, std::int64_t columns) {
    step_.tensors.push_back({name, lifetime, rows, columns});
    return static_cast<TensorId>(step_.tensors.size()) - 1;
  }

  StateTensors add_states(TensorId id) {
    StateTensors states = kNoStates;
    const StepTensor parameter = step_.tensor(id);
    std::size_t count = 0;
    for (const char* const name : elementwise::states_of(training_.optimizer.kind))
      states[count++] = add(parameter.name + "." + name, Lifetime::state, parameter.rows, parameter.columns);
    return states;
  }

  void add_tensors() {
    for (int index = 0; index < network_.layers(); ++index) {
      const std::string number = std::to_string(index);
      Step::Layer made;
      made.in_features = network_.in_features(index);
      made.out_features = network_.out_features(index);
      made.weight = add("W" + number, Lifetime::parameter, made.in_features, made.out_features);
      if (network_.bias) made.bias = add("b" + number, Lifetime::parameter, 1, made.out_features);
      step_.layers.push_back(made);
    }
    for (Step::Layer& of : step_.layers) {
      of.weight_state = add_states(of.weight);
      if (network_.bias) of.bias_state = add_states(of.bias);
    }
    if (scales_loss(training_.precision))
      step_.loss_scaling = add("loss_scaling", Lifetime::state, 1, LossScaling::kStateColumns);
    const std::int64_t target_columns = training_.class_targets ? 1 : network_.widths.back();
    step_.data_x = step_.x = add("X", Lifetime::data, training_.samples, network_.widths.front());
    step_.data_y = step_.y = add("Y", Lifetime::data, training_.samples, target_columns);
    if (training_.sample_weights)
      step_.data_weights = step_.weights = add("sample_weights", Lifetime::data, training_.samples, 1);
    if (has_minibatches(training_)) {
      step_.x = add("X_batch", Lifetime::activation, batch(), network_.widths.front());
      step_.y = add("Y_batch", Lifetime::activation, batch(), target_columns);
      if (training_.sample_weights) step_.weights = add("sample_weights_batch", Lifetime::activation, batch(), 1);
    }
    for (int index = 0; index < network_.layers(); ++index) {
      const std::string number = std::to_string(index);
      const std::int64_t columns = layer(index).out_features;
      layer(index).output = add(index == last() ? "P" : "H" + number, Lifetime::activation, batch(), columns);
      layer(index).gradient = add("dZ" + number, Lifetime::gradient, batch(), columns);
      layer(index).kept = layer(index).output;
      if (keeps_pre_activation(index) && !(is_gram() && index == 0))
        layer(index).kept = add("Z" + number, Lifetime::activation, batch(), columns);
    }
    if (!is_gram()) return;
    const std::int64_t in = layer(0).in_features, out = layer(0).out_features;
    step_.gram.emplace();
    step_.gram->kernel = add("K", Lifetime::derived, batch(), batch());
    step_.gram->pre_activation = add("Z", Lifetime::derived, batch(), out);
    step_.gram->sum = add("S", Lifetime::derived, batch(), out);
    step_.gram->start_weight = add("W0_start", Lifetime::derived, in, out);
    if (network_.bias) step_.gram->start_bias = add("b0_start", Lifetime::derived, 1, out);
    step_.gram->pre_activation_state = add_states(step_.gram->pre_activation);
    step_.gram->sum_state = add_states(step_.gram->sum);
    step_.gram->start_weight_state = add_states(step_.gram->start_weight);
    if (network_.bias) step_.gram->start_bias_state = add_states(step_.gram->start_bias);
    if (keeps_pre_activation(0)) layer(0).kept = step_.gram->pre_activation;
  }

  StepOperation operation(Kind kind, int index, std::int64_t rows, std::int64_t columns, std::int64_t inner) {
    StepOperation made;
    made.kind = kind;
    made.layer = index;
    made.rows = rows;
    made.columns = columns;
    made.inner = inner;
    return made;
  }

  TensorId input(int index) { return index == 0 ? step_.x : layer(index - 1).output; }

  StepOperation forward(int index) {
    StepOperation op = operation(Kind::forward, index, batch(), layer(index).out_features, layer(index).in_features);
    op.a = input(index);
    op.b = layer(index).weight;
    op.bias = layer(index).bias;
    op.out = layer(index).output;
    op.activation = activation_of(index);
    if (layer(index).kept != layer(index).output) op.kept = layer(index).kept;
    return op;
  }

  StepOperation product_of_inputs(Kind kind, int index, TensorId inputs, std::int64_t rows, TensorId gradient,
                                  TensorId out) {
    StepOperation op = operation(kind, index, rows, layer(index).out_features, batch());
    op.a = inputs;
    op.b = gradient;
    op.out = out;
    return op;
  }

  StepOperation column_sums(Kind kind, int index, TensorId of, TensorId out) {
    StepOperation op = operation(kind, index, batch(), layer(index).out_features, 0);
    op.a = of;
    op.out = out;
    return op;
  }

  void add_operations() {
    if (step_.gram) make_gram_operations();
    std::vector<StepOperation>& operations = step_.operations;
    if (step_.x != step_.data_x) add_gathers();
    for (int index = 0; index <= last(); ++index) {
      if (index > 0 || !step_.gram) {
        operations.push_back(step_.inference[static_cast<std::size_t>(index)]);
      } else if (activation_of(index)) {
        operations.push_back(operation(Kind::activate, 0, batch(), layer(0).out_features, 0));
        operations.back().a = step_.gram->pre_activation;
        operations.back().out = layer(0).output;
        operations.back().activation = activation_of(index);
      }
    }
    StepOperation loss = operation(Kind::loss, last(), batch(), layer(last()).out_features, 0);
    loss.activation = activation_of(last());
    loss.a = step_.gram && last() == 0 && !loss.activation ? step_.gram->pre_activation : layer(last()).output;
    if (loss.activation) loss.kept = layer(last()).kept;
    loss.b = step_.y;
    loss.weights = step_.weights;
    loss.out = layer(last()).gradient;
    loss.loss = loss_of(network_, training_, batch(), training_.class_targets);
    operations.push_back(loss);
    for (int index = last(); index >= 0; --index) add_backward(index);
  }

  void add_gathers() {
    for (const auto& [data, batch] : {std::pair(step_.data_x, step_.x), std::pair(step_.data_y, step_.y),
                                      std::pair(step_.data_weights, step_.weights)}) {
      if (data == kNoTensor) continue;
      StepOperation op = operation(Kind::gather, 0, step_.batch, step_.tensor(batch).columns, 0);
      op.a = data;
      op.out = batch;
      step_.operations.push_back(op);
    }
  }

  void add_backward(int index) {
    std::vector<StepOperation>& operations = step_.operations;
    const Step::Layer& of = layer(index);
    if (index > 0) {
      StepOperation op = operation(Kind::input_gradient, index, batch(), of.in_features, of.out_features);
      op.a = of.gradient;
      op.b = of.weight;
      op.kept = layer(index - 1).kept;
      op.activation = activation_of(index - 1);
      op.out = layer(index - 1).gradient;
      operations.push_back(op);
    }
    const auto add_update = [&](const StepOperation& op, const StateTensors& state) {
      operations.push_back(op);
      operations.back().optimizer = training_.optimizer.kind;
      operations.back().state = state;
    };
    if (index == 0 && step_.gram) {
      const Step::Gram& gram = *step_.gram;
      add_update(product_of_inputs(Kind::weight_update, 0, gram.kernel, batch(), of.gradient, gram.pre_activation),
                 gram.pre_activation_state);
      add_update(column_sums(Kind::sum_update, 0, of.gradient, gram.sum), gram.sum_state);
      return;
    }
    add_update(product_of_inputs(Kind::weight_update, index, input(index), of.in_features, of.gradient, of.weight),
               of.weight_state);
    if (network_.bias) add_update(column_sums(Kind::bias_update, index, of.gradient, of.bias), of.bias_state);
  }

  void make_gram_operations() {
    Step::Gram& gram = *step_.gram;
    const Step::Layer& first = layer(0);
    gram.make_kernel = operation(Kind::kernel_matrix, 0, batch(), batch(), first.in_features);
    gram.make_kernel.a = step_.x;
    gram.make_kernel.out = gram.kernel;
    gram.make_kernel.bias_in_kernel = network_.bias;
    // The parameters themselves first, then each of the numbers that the optimizer keeps for them.
    const auto states = static_cast<int>(elementwise::states_of(training_.optimizer.kind).size());
    for (int state = -1; state < states; ++state) {
      const auto of = [state](TensorId parameter, const StateTensors& kept) {
        return state < 0 ? parameter : kept[static_cast<std::size_t>(state)];
      };
      const TensorId weight = of(first.weight, first.weight_state), bias = of(first.bias, first.bias_state);
      const TensorId sum = of(gram.sum, gram.sum_state);
      StepOperation project = step_.inference.front();
      project.b = weight;
      project.bias = bias;
      project.out = of(gram.pre_activation, gram.pre_activation_state);
      project.activation.reset();
      project.kept = kNoTensor;
      gram.make_pre_activation.push_back(project);
      const auto add_rebuild = [&](const StepOperation& op, TensorId start, const StateTensors& start_state) {
        gram.rebuild.push_back(op);
        gram.rebuild.back().start = start;
        gram.rebuild.back().start_state = start_state.front();
        gram.rebuild.back().rebuilt_state = state;
      };
      add_rebuild(product_of_inputs(Kind::rebuild_weight, 0, step_.x, first.in_features, sum, weight),
                  gram.start_weight, gram.start_weight_state);
      if (network_.bias)
        add_rebuild(column_sums(Kind::rebuild_bias, 0, sum, bias), gram.start_bias, gram.start_bias_state);
    }
  }

  const NetworkSpec& network_;
  const TrainingSpec& training_;
  Step step_;
};

std::string text_of(const Step& step, TensorId id) {
  const StepTensor& tensor = step.tensor(id);
  return tensor.name + " [" + std::to_string(tensor.rows) + ", " + std::to_string(tensor.columns) + "]";
}

/// An update by `gradient`.
std::string update_text(const Step& step, const StepOperation& op, const std::string& gradient) {
  if (elementwise::adds_gradient(op.optimizer)) return text_of(step, op.out) + " -= rate " + gradient;
  return text_of(step, op.out) + " by " + name_or_null(op.optimizer) + " along " + gradient;
}

/// What a rebuild starts from.
std::string start_text(const Step& step, const StepOperation& op) {
  if (op.start_state == kNoTensor) return text_of(step, op.start);
  return "shares of " + text_of(step, op.start) + " and " + text_of(step, op.start_state);
}

std::string text_of(const Step& step, const StepOperation& op) {
  const auto text = [&](TensorId id) { return text_of(step, id); };
  const auto plus = [&](TensorId id) { return id == kNoTensor ? std::string() : " + " + text(id); };
  switch (op.kind) {
    case Kind::gather:
      return text(op.out) + " = rows of " + text(op.a);
    case Kind::forward: {
      const std::string z = text(op.a) + " " + text(op.b) + plus(op.bias);
      return text(op.out) + (op.kept == kNoTensor ? "" : ", " + text(op.kept)) + " = " +
             (op.activation ? std::string(name_or_null(op.activation->kind)) + "(" + z + ")" : z);
    }
    case Kind::activate:
      return text(op.out) + " = " + std::string(name_or_null(op.activation->kind)) + "(" + text(op.a) + ")";
    case Kind::loss:
      return text(op.out) + " = gradient of " + std::string(name_or_null(op.loss.kind)) + "(" + text(op.a) + ", " +
             text(op.b) + ")" + (op.weights == kNoTensor ? "" : " times " + text(op.weights)) +
             (op.activation ? std::string(" through ") + name_or_null(op.activation->kind) + " to " + text(op.kept)
                            : "");
    case Kind::input_gradient:
      return text(op.out) + " = " + text(op.a) + " " + text(op.b) + "^T through " +
             std::string(name_or_null(op.activation->kind)) + " to " + text(op.kept);
    case Kind::weight_update:
      return update_text(step, op, text(op.a) + "^T " + text(op.b));
    case Kind::bias_update:
      return update_text(step, op, "column sums of " + text(op.a));
    case Kind::sum_update:
      return update_text(step, op, text(op.a));
    case Kind::kernel_matrix:
      return text(op.out) + " = " + text(op.a) + " " + text(op.a) + "^T" + (op.bias_in_kernel ? " + 1" : "");
    case Kind::rebuild_weight:
      return text(op.out) + " = " + start_text(step, op) + " + " + text(op.a) + "^T " + text(op.b);
    case Kind::rebuild_bias:
      return text(op.out) + " = " + start_text(step, op) + " + column sums of " + text(op.a);
  }
  return "";
}

}  // namespace

bool StepOperation::is_by_row() const {
  switch (kind) {
    case Kind::gather:
    case Kind::forward:
    case Kind::activate:
    case Kind::loss:
    case Kind::input_gradient:
    case Kind::sum_update:
    case Kind::kernel_matrix:
      return true;
    case Kind::weight_update:
    case Kind::bias_update:
    case Kind::rebuild_weight:
    case Kind::rebuild_bias:
      return false;
  }
  return false;
}

TensorId Step::Gram::start_of(const ParameterInfo& info) const {
  if (info.state < 0) return info.is_bias ? start_bias : start_weight;
  return (info.is_bias ? start_bias_state : start_weight_state)[static_cast<std::size_t>(info.state)];
}

TensorId Step::tensor_of(const ParameterInfo& info) const {
  if (info.state == kLossScaling) return loss_scaling;
  const Layer& layer = layers[static_cast<std::size_t>(info.layer)];
  if (info.state < 0) return info.is_bias ? layer.bias : layer.weight;
  return (info.is_bias ? layer.bias_state : layer.weight_state)[static_cast<std::size_t>(info.state)];
}

std::vector<TensorId> gram_tensors(const Step& step) {
  const Step::Gram& gram = *step.gram;
  std::vector<TensorId> tensors;
  const auto add = [&](TensorId id) {
    if (id != kNoTensor) tensors.push_back(id);
  };
  for (const TensorId id : {gram.pre_activation, gram.sum, gram.start_weight, gram.start_bias}) add(id);
  for (std::size_t state = 0; state < kNoStates.size(); ++state)
    for (const StateTensors& of :
         {gram.pre_activation_state, gram.sum_state, gram.start_weight_state, gram.start_bias_state})
      add(of[state]);
  return tensors;
}

std::int64_t batch_of(const TrainingSpec& training) {
  return training.samples > 0 && training.batch_size != 0 ? training.batch_size : training.samples;
}

namespace {

double loss_scale(const NetworkSpec& network, const TrainingSpec& training, std::int64_t rows) {
  switch (training.reduction) {
    case Reduction::sum:
      return 1;
    case Reduction::mean:
      break;
  }
  const auto terms = static_cast<double>(rows);
  return 1 / (is_by_element(training.loss) ? terms * static_cast<double>(network.widths.back()) : terms);
}

}  // namespace

LossOfStep loss_of(const NetworkSpec& network, const TrainingSpec& training, std::int64_t rows, bool has_classes) {
  return {training.loss, loss_scale(network, training, rows), training.huber_delta, has_classes};
}

Step make_step(const NetworkSpec& network, const TrainingSpec& training) {
  return StepBuilder(network, training).build();
}

double multiply_adds(const StepOperation& operation) {
  return static_cast<double>(operation.rows) * static_cast<double>(operation.columns) *
         static_cast<double>(operation.inner);
}

double multiply_adds(const std::vector<StepOperation>& operations) {
  double sum = 0;
  for (const StepOperation& operation : operations) sum += multiply_adds(operation);
  return sum;
}

std::string to_string(const Step& step) {
  std::string lines;
  for (const StepOperation& operation : step.operations) lines += text_of(step, operation) + "\n";
  return lines;
}

}  // namespace deviceloop
