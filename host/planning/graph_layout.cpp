#include "graph_layout.h"

#include <algorithm>
#include <initializer_list>
#include <optional>
#include <type_traits>
#include <utility>

#include <deviceloop/cuda.h>

#include "../names.h"
#include "../step/scalars.h"
#include "arena_space.h"
#include "gpu_costs.h"
#include "kernel_layout.h"

namespace deviceloop {
namespace {

// What cudaMalloc gives, what the library's fastest products take, and what makes every access of 16 bytes possible.
constexpr std::uint64_t kAlignment = 256;

/// So that what lies behind each other in fp32 is aligned in its rounded form, too.
std::uint64_t alignment_of(Precision precision) {
  return kAlignment * size_of(element_type(precision)) / operand_bytes(precision);
}
// A launch costs the host a few microseconds: with so many steps that is far below what the steps take. Of deep
// networks it takes fewer, because each node of a graph takes memory and time to make.
constexpr std::int64_t kStepsPerLaunch = 32;
constexpr std::int64_t kNodesPerLaunch = 8192;
constexpr std::int64_t kPredictRows = 1024;

using Kind = GraphOperation::Kind;

bool is_narrow(std::int64_t out_features) { return out_features <= cuda::kMaxNarrowOutputs; }

/// Whether the launch of a narrow layer also takes the gradient through the activation below: it knows the marks of
/// ReLU's output alone. Through all others a launch of its own does.
bool narrow_launch_masks(Activation activation) { return activation == Activation::relu; }

/// Whether a product is the own kernel's.
bool is_own_product(const GraphLayout& layout, std::int64_t rows, std::int64_t columns, std::int64_t inner) {
  return layout.machine.takes_own_products && layout.step.precision == Precision::fp32 &&
         cuda::is_small_product({rows, columns, inner});
}

/// Whether the products of a step with the layer's weights are. Predictions, of more rows, follow it: a run then needs
/// no library.
bool takes_own_products(const GraphLayout& layout, const Step::Layer& layer) {
  const std::int64_t rows = layout.step.batch > 0 ? layout.step.batch : kPredictRows;
  return !is_narrow(layer.out_features) && is_own_product(layout, rows, layer.out_features, layer.in_features);
}

/// Whether each launch that computes a gradient of a step can also update by it. The library's products can only add.
bool can_update_by_gradients(const GraphLayout& layout, const Optimizer& optimizer) {
  if (operand_parts(layout.step.precision) > 0) return false;
  if (elementwise::adds_gradient(optimizer.kind)) return true;
  const std::vector<StepOperation>& operations = layout.step.operations;
  return optimizer.clip_norm == 0 && std::all_of(operations.begin(), operations.end(), [&](const StepOperation& op) {
           return op.kind != StepOperation::Kind::weight_update || is_narrow(op.columns) ||
                  is_own_product(layout, op.rows, op.columns, op.inner);
         });
}

/// Whether an own product can end with the activation, or with the way of a gradient through it.
bool product_ends_with(const ActivationOfStep& activation) {
  return activation.kind == Activation::relu || activation.kind == Activation::identity;
}

/// For a network of two layers or more with a narrow last one, whose predictions are its loss's and which lies on an
/// own product that can end with the activation between them.
std::optional<cuda::SmallProductLayout> cut_product_with_loss(const GraphLayout& layout) {
  const Step& step = layout.step;
  const std::size_t count = step.layers.size();
  if (step.batch == 0 || count < 2 || (step.gram && count == 2)) return std::nullopt;
  const Step::Layer &last = step.layers[count - 1], &below = step.layers[count - 2];
  const StepOperation &top = step.inference[count - 1], &product = step.inference[count - 2];
  if (!is_narrow(last.out_features) || top.activation || !takes_own_products(layout, below) ||
      !product_ends_with(*product.activation) ||
      !is_own_product(layout, last.in_features, last.out_features, step.batch))
    return std::nullopt;
  return cuda::product_with_loss_layout({step.batch, below.out_features, below.in_features},
                                        layout.machine.has_clusters);
}

double elements(std::int64_t rows, std::int64_t columns) {
  return static_cast<double>(rows) * static_cast<double>(columns);
}

/// Doubles of partial sums that a launch needs.
std::int64_t slots_of(const GraphOperation& op, Precision precision) {
  switch (op.kind) {
    case Kind::loss:
      if (!is_by_element(op.loss.kind)) return cuda::row_loss_slots(op.rows);
      return with_type(element_type(precision), [&](auto* type) {
        return cuda::element_loss_slots<std::remove_pointer_t<decltype(type)>>(op.rows * op.columns);
      });
    case Kind::narrow_gradient:
      return cuda::narrow_linear_gradient_slots(op.inner, op.rows, op.columns);
    case Kind::column_sums:
      return cuda::column_sums_slots(op.rows, op.columns);
    case Kind::gradient_factor:
      return cuda::square_sum_slots(op.columns);
    case Kind::gather:
    case Kind::gemm:
    case Kind::product:
    case Kind::narrow_linear:
    case Kind::narrow_loss:
    case Kind::bias_activation:
    case Kind::add_bias:
    case Kind::through_activation:
    case Kind::update:
    case Kind::copy:
    case Kind::round:
    case Kind::start_rebuild:
      return 0;
  }
  return 0;
}

/// What is updated, and what the optimizer keeps for it.
struct Updated {
  TensorId tensor;
  StateTensors state;
};

/// What lies together, in this order, so that one launch can update it: the parameters, but Z in place of the first
/// layer's where it is updated by more than its product.
std::vector<Updated> updated_together(const Step& step, OptimizerKind optimizer) {
  std::vector<Updated> updated;
  for (const Step::Layer& layer : step.layers) {
    if (step.gram && &layer == &step.layers.front() && !elementwise::adds_gradient(optimizer)) {
      updated.push_back({step.gram->pre_activation, step.gram->pre_activation_state});
      continue;
    }
    updated.push_back({layer.weight, layer.weight_state});
    updated.push_back({layer.bias, layer.bias_state});
  }
  return updated;
}

bool has_gradient_factor(const Step& step, const Optimizer& optimizer) {
  return optimizer.clip_norm > 0 || step.loss_scaling != kNoTensor;
}

/// Translates operations of a step into launches.
class Lowering {
 public:
  Lowering(GraphLayout& layout, const Optimizer& optimizer)
      : layout_(layout),
        clip_norm_(optimizer.clip_norm),
        has_gradient_factor_(has_gradient_factor(layout.step, optimizer)) {}

  std::vector<GraphOperation> lower(const std::vector<StepOperation>& operations) {
    for (const StepOperation& op : operations) add(op);
    add_gradients();
    if (update_) add_update(*std::exchange(update_, {}));
    return take();
  }

  std::vector<GraphOperation> lower_kernel(const StepOperation& op) {
    add(op);
    return take();
  }

  /// The bias is added by a launch of its own.
  std::vector<GraphOperation> lower_pre_activation(const std::vector<StepOperation>& operations) {
    for (const StepOperation& op : operations) {
      const bool is_state = op.out != layout_.step.gram->pre_activation;
      add_product(op, layout_.at(op.a), kNotRounded, layout_.at(op.out), op.rows, kNoOperand,
                  is_state ? "momentum of Z from that of its weights" : "Z from its weights");
      if (op.bias != kNoTensor) add_bias(op, layout_.at(op.bias), layout_.at(op.out), op.rows);
    }
    return take();
  }

  std::vector<GraphOperation> lower_predict(const std::vector<StepOperation>& inference) {
    std::uint64_t in = kBorrowed + kPredictInput;
    const RoundedParts& rounded = layout_.predict_rounded;
    if (reads_rounded(inference.front())) {
      GraphOperation& launch =
          push(Kind::round, inference.front(), kNoOperand, layout_.predict_rows, inference.front().inner);
      launch.a = in;
      launch.rounded = rounded;
    }
    for (std::size_t index = 0; index < inference.size(); ++index) {
      const bool is_rounded = index + 1 < inference.size() && reads_rounded(inference[index + 1]);
      const std::uint64_t out = index + 1 == inference.size() ? kBorrowed + kPredictOutput
                                : index % 2 == 0              ? layout_.predict_even
                                                              : layout_.predict_odd;
      add_forward(inference[index], in, rounded, out, is_rounded ? rounded : kNotRounded, kNoOperand,
                  layout_.predict_rows);
      in = out;
    }
    return take();
  }

 private:
  std::vector<GraphOperation> take() { return std::exchange(launches_, {}); }

  GraphOperation& push(Kind kind, const StepOperation& op, std::uint64_t out, std::int64_t rows, std::int64_t columns) {
    GraphOperation launch;
    launch.kind = kind;
    launch.layer = op.layer;
    launch.out = out;
    launch.rows = rows;
    launch.columns = columns;
    launches_.push_back(launch);
    return launches_.back();
  }

  const Step::Layer& layer_of(const StepOperation& op) const {
    return layout_.step.layers[static_cast<std::size_t>(op.layer)];
  }

  /// Whether the library multiplies in the operation's layer, in a precision that rounds operands.
  bool reads_rounded(const StepOperation& op) const {
    return operand_parts(layout_.step.precision) > 0 && !is_narrow(layer_of(op).out_features);
  }

  enum class Transposed { none, a, b };
  bool has_own_product(const StepOperation& op, std::int64_t rows) const {
    return op.kind == StepOperation::Kind::forward ? takes_own_products(layout_, layer_of(op))
                                                   : is_own_product(layout_, rows, op.columns, op.inner);
  }
  /// Whether the launch of a product below takes the forward, the loss and the input gradient of the operation's layer.
  bool is_above_product(const StepOperation& op) const {
    return layout_.product_with_loss && op.layer + 1 == static_cast<int>(layout_.step.layers.size());
  }
  /// By the library or the own kernel, of tensors of a step.
  GraphOperation& push_product(const StepOperation& op, const char* purpose, Transposed transposed, std::uint64_t out) {
    return push_product(op, purpose, transposed, layout_.at(op.a), layout_.rounded_of(op.a), out, op.rows);
  }
  /// The same with a and its rounded elements elsewhere. In two parts all products of them but that of the low ones,
  /// which is lost beside the others; the small ones come first.
  GraphOperation& push_product(const StepOperation& op, const char* purpose, Transposed transposed, std::uint64_t a,
                               const RoundedParts& rounded_a, std::uint64_t out, std::int64_t rows) {
    const TensorId of_b = op.kind == StepOperation::Kind::kernel_matrix ? op.a : op.b;
    if (!reads_rounded(op)) return push_product_of(op, purpose, transposed, a, layout_.at(of_b), out, rows);
    const auto [high, low] = rounded_a;
    const auto [high_b, low_b] = layout_.rounded_of(of_b);
    if (low == kNoOperand) return push_product_of(op, purpose, transposed, high, high_b, out, rows);
    push_product_of(op, purpose, transposed, low, high_b, out, rows);
    push_product_of(op, purpose, transposed, high, low_b, out, rows).adds = true;
    GraphOperation& last = push_product_of(op, purpose, transposed, high, high_b, out, rows);
    last.adds = true;
    return last;
  }
  GraphOperation& push_product_of(const StepOperation& op, const char* purpose, Transposed transposed, std::uint64_t a,
                                  std::uint64_t b, std::uint64_t out, std::int64_t rows) {
    const bool is_own = has_own_product(op, rows);
    GraphOperation& launch = push(is_own ? Kind::product : Kind::gemm, op, out, rows, op.columns);
    launch.purpose = purpose;
    launch.inner = op.inner;
    launch.a = a;
    launch.b = b;
    launch.transpose_a = transposed == Transposed::a;
    launch.transpose_b = transposed == Transposed::b;
    if (is_own)
      launch.cut = cuda::small_product_layout(shape_of(launch), layout_.machine.has_clusters);
    else
      launch.product = layout_.products++;
    if (!is_own) layout_.has_gemm = true;
    if (!is_own && reads_rounded(op)) {
      const Precision precision = layout_.step.precision;
      launch.pitch_a = operand_pitch(precision, launch.transpose_a ? rows : op.inner);
      if (launch.transpose_a) launch.pitch_b = operand_pitch(precision, op.columns);  // else it is the weight
    }
    return launch;
  }

  void add_bias(const StepOperation& op, std::uint64_t bias, std::uint64_t out, std::int64_t rows) {
    push(Kind::add_bias, op, out, rows, op.columns).bias = bias;
  }

  /// out = in W, plus the bias that a narrow layer is given.
  void add_product(const StepOperation& op, std::uint64_t in, const RoundedParts& rounded_in, std::uint64_t out,
                   std::int64_t rows, std::uint64_t narrow_bias, const char* purpose) {
    if (!is_narrow(op.columns)) {
      push_product(op, purpose, Transposed::none, in, rounded_in, out, rows);
      return;
    }
    GraphOperation& launch = push(Kind::narrow_linear, op, out, rows, op.columns);
    launch.inner = op.inner;
    launch.a = in;
    launch.b = layout_.at(op.b);
    launch.bias = narrow_bias;
  }

  void add_forward(const StepOperation& op, std::uint64_t in, const RoundedParts& rounded_in, std::uint64_t out,
                   const RoundedParts& rounded, std::uint64_t kept, std::int64_t rows) {
    const std::uint64_t bias = layout_.at(op.bias);
    add_product(op, in, rounded_in, out, rows, op.activation ? kNoOperand : bias, "forward");
    if (GraphOperation& product = launches_.back();
        product.kind == Kind::product && (!op.activation || product_ends_with(*op.activation))) {
      product.bias = bias;
      if (op.activation && op.activation->kind == Activation::relu) product.end = cuda::ProductEnd::relu;
      return;
    }
    if (op.activation)
      add_activation(op, out, bias, out, rounded, kept, rows);
    else if (!is_narrow(op.columns) && bias != kNoOperand)
      add_bias(op, bias, out, rows);
  }

  void add_activation(const StepOperation& op, std::uint64_t in, std::uint64_t bias, std::uint64_t out,
                      const RoundedParts& rounded, std::uint64_t kept, std::int64_t rows) {
    GraphOperation& launch = push(Kind::bias_activation, op, out, rows, op.columns);
    launch.rounded = rounded;
    launch.a = in;
    launch.bias = bias;
    launch.kept = kept;
    launch.activation = op.activation;
  }

  /// Of a narrow layer together with the update of its weight, which comes next. What takes the gradient through the
  /// activation waits for an update that comes next, as it overwrites what the update reads.
  void add_input_gradient(const StepOperation& op) {
    if (is_above_product(op)) {
      launches_[layout_.forward_operations].below = layout_.at(op.out);
      return;
    }
    if (takes_own_products(layout_, layer_of(op)) && product_ends_with(*op.activation)) {
      GraphOperation& product = push_product(op, "gradient of its input", Transposed::b, layout_.at(op.out));
      product.kept = layout_.at(op.kept);
      if (op.activation->kind == Activation::relu) product.end = cuda::ProductEnd::mask;
      return;
    }
    const bool narrow = is_narrow(op.inner);
    const bool fused = narrow && narrow_launch_masks(op.activation->kind);
    below_ = fused ? layout_.at(op.out) : layout_.gradient;
    if (fused) fused_ = op.activation;
    if (fused) below_rounded_ = layout_.rounded_of(op.out);
    if (!narrow) push_product(op, "gradient of its input", Transposed::b, layout_.gradient);
    if (fused) return;
    push_through(op, layout_.gradient);
    if (takes_own_products(layout_, layer_of(op))) return;  // the update comes last, and reads what lies elsewhere
    through_ = launches_.back();
    launches_.pop_back();
  }

  /// Takes the gradient `of` the activation's value through it.
  void push_through(const StepOperation& op, std::uint64_t of) {
    GraphOperation& launch = push(Kind::through_activation, op, layout_.at(op.out), op.rows, op.columns);
    launch.rounded = layout_.rounded_of(op.out);
    launch.activation = op.activation;
    launch.a = layout_.at(op.kept);
    launch.b = of;
  }

  /// Where the gradient of an update goes: into what it changes, or to a place of its own, and one launch after all
  /// gradients updates all parameters.
  std::uint64_t gradient_of(const StepOperation& op) {
    if (layout_.updates_by_gradients) return layout_.at(op.out);
    if (!update_) {
      update_.emplace();
      update_->kind = Kind::update;
      update_->optimizer = op.optimizer;
      update_->rows = 1;
      update_->columns =
          static_cast<std::int64_t>(layout_.parameter_bytes / size_of(element_type(layout_.step.precision)));
      const Updated first = updated_together(layout_.step, op.optimizer).front();
      update_->out = layout_.at(first.tensor);
      update_->a = layout_.parameter_gradients;
      update_->state = state_of(first.state);
      update_->rounded = layout_.parameters_rounded;
    }
    return layout_.parameter_gradients + layout_.at(op.out);
  }

  GraphOperation::States state_of(const StateTensors& tensors) const {
    GraphOperation::States state{};
    std::transform(tensors.begin(), tensors.end(), state.begin(), [&](TensorId id) { return layout_.at(id); });
    return state;
  }

  /// The launch adds up the partial sums of the loss, if no other has done so.
  void end_loss(GraphOperation& launch) {
    if (!unended_loss_) return;
    launch.loss = unended_loss_->loss;
    launch.loss_blocks = unended_loss_->loss_blocks;
    unended_loss_.reset();
  }

  /// Own products that are gradients, by as few launches as possible. Nothing waits for them but the update of all
  /// parameters, and what they read is not overwritten before.
  void add_gradients() {
    for (std::size_t from = 0; from < gradients_.size(); from += cuda::kMostProducts) {
      const std::size_t end = std::min(from + cuda::kMostProducts, gradients_.size());
      std::vector<cuda::ProductShape> shapes;
      for (std::size_t index = from; index < end; ++index) shapes.push_back(shape_of(gradients_[index]));
      GraphOperation& launch = launches_.emplace_back(gradients_[from]);
      launch.beside.assign(gradients_.begin() + static_cast<std::ptrdiff_t>(from) + 1,
                           gradients_.begin() + static_cast<std::ptrdiff_t>(end));
      launch.cut = cuda::small_products_layout(shapes, layout_.machine.has_clusters);
      for (GraphOperation& beside : launch.beside) beside.cut = launch.cut;
      end_loss(launch);
    }
    gradients_.clear();
  }

  void add_update(GraphOperation update) {
    end_loss(update);
    if (has_gradient_factor_) {
      GraphOperation factor = update;
      factor.kind = Kind::gradient_factor;
      factor.clip_norm = clip_norm_;
      factor.out = update.b = layout_.gradient_factor;
      factor.rounded = kNotRounded;
      launches_.push_back(factor);
    }
    launches_.push_back(update);
  }

  void add_weight_update(const StepOperation& op, std::uint64_t out, const char* purpose) {
    if (is_narrow(op.columns) && !is_above_product(op)) {
      GraphOperation& launch = push(Kind::narrow_gradient, op, out, op.rows, op.columns);
      launch.inner = op.inner;
      launch.a = layout_.at(op.a);
      launch.b = layout_.at(op.b);
      launch.below = below_;
      launch.rounded = below_rounded_;
      launch.weight = layout_.at(op.out);
      launch.activation = fused_;
      end_loss(launch);
    } else {
      push_product(op, purpose, Transposed::a, out);
    }
    set_update(launches_.back(), op);
    if (launches_.back().kind == Kind::product) {
      gradients_.push_back(launches_.back());
      gradients_.back().end = cuda::ProductEnd::gradient;
      launches_.pop_back();
    }
    if (through_) launches_.push_back(*through_);
    through_.reset();
    fused_.reset();
    below_ = kNoOperand;
    below_rounded_ = kNotRounded;
  }

  /// Of a launch whose result is the gradient of what the operation changes.
  void set_update(GraphOperation& launch, const StepOperation& op) const {
    launch.updates = launch.out == layout_.at(op.out);
    launch.optimizer = op.optimizer;
    if (launch.updates) launch.state = state_of(op.state);
  }

  const char* purpose_of_update(const StepOperation& op) const {
    const bool is_gram = layout_.step.gram && op.layer == 0;
    if (layout_.updates_by_gradients) return is_gram ? "update of Z" : "update of its weights";
    return is_gram ? "gradient of Z" : "gradient of its weights";
  }

  /// Few rows are also summed by the launch that updates all parameters, unless it first needs a factor that follows
  /// from all gradients.
  void add_bias_update(const StepOperation& op) {
    const std::uint64_t out = gradient_of(op);
    const bool is_updated_later = out != layout_.at(op.out);
    if (add_to_gradient(gradient_of_weights(op), op, out)) return;
    if (is_updated_later && !has_gradient_factor_ && update_->summed.size() < cuda::kMostSummedGradients &&
        has_few_rows(op))
      update_->summed.push_back({layout_.at(op.a), layout_.at(op.out), op.rows, op.columns});
    else
      add_column_sums(op, out);
  }

  /// Whether a block may take the sums of columns of all rows beside other work.
  static bool has_few_rows(const StepOperation& op) {
    return cuda::row_sum_layout(op.rows, op.columns).tiles_down <= cuda::kMostSummedTiles;
  }

  /// The launch of the same layer's weights may also take the sums of columns.
  GraphOperation* gradient_of_weights(const StepOperation& op) {
    if (!gradients_.empty() && gradients_.back().layer == op.layer) return &gradients_.back();
    const auto narrow = std::find_if(launches_.begin(), launches_.end(), [&](const GraphOperation& launch) {
      return launch.kind == Kind::narrow_gradient && launch.layer == op.layer;
    });
    return narrow != launches_.end() && has_few_rows(op) ? &*narrow : nullptr;
  }

  bool add_to_gradient(GraphOperation* gradient, const StepOperation& op, std::uint64_t out) const {
    if (gradient == nullptr) return false;
    gradient->sums = out;
    if (gradient->updates) gradient->sums_state = state_of(op.state);
    return true;
  }

  void add_column_sums(const StepOperation& op, std::uint64_t out) {
    GraphOperation& launch = push(Kind::column_sums, op, out, op.rows, op.columns);
    launch.a = layout_.at(op.a);
    set_update(launch, op);
  }

  void add_start(const StepOperation& op) {
    const StepTensor& tensor = layout_.step.tensor(op.out);
    const Kind kind = op.start_state == kNoTensor ? Kind::copy : Kind::start_rebuild;
    GraphOperation& launch = push(kind, op, layout_.at(op.out), tensor.rows, tensor.columns);
    launch.a = layout_.at(op.start);
    launch.b = layout_.at(op.start_state);
    launch.rebuilt_state = op.rebuilt_state;
  }

  void add_sum_update(const StepOperation& op) {
    GraphOperation& launch = push(Kind::update, op, layout_.at(op.out), op.rows, op.columns);
    launch.optimizer = op.optimizer;
    launch.state = state_of(op.state);
    launch.a = layout_.at(op.a);
  }

  /// Of all tensors by one launch.
  void add_gather(const StepOperation& op) {
    if (launches_.empty() || launches_.back().kind != Kind::gather) push(Kind::gather, op, kNoOperand, op.rows, 0);
    launches_.back().columns += op.columns;
    launches_.back().gathered.push_back({layout_.at(op.a), layout_.at(op.out), op.columns, layout_.rounded_of(op.out)});
  }

  void add(const StepOperation& op) {
    switch (op.kind) {
      case StepOperation::Kind::gather:
        return add_gather(op);
      case StepOperation::Kind::forward:
        return add_forward(op, layout_.at(op.a), layout_.rounded_of(op.a), layout_.at(op.out),
                           layout_.rounded_of(op.out), layout_.at(op.kept), op.rows);
      case StepOperation::Kind::activate:
        return add_activation(op, layout_.at(op.a), kNoOperand, layout_.at(op.out), kNotRounded, kNoOperand, op.rows);
      case StepOperation::Kind::loss:
        return add_loss(op);
      case StepOperation::Kind::input_gradient:
        return add_input_gradient(op);
      case StepOperation::Kind::weight_update:
        return add_weight_update(op, gradient_of(op), purpose_of_update(op));
      case StepOperation::Kind::bias_update:
        return add_bias_update(op);
      case StepOperation::Kind::sum_update:
        return add_sum_update(op);
      case StepOperation::Kind::kernel_matrix:
        push_product(op, "K", Transposed::b, layout_.at(op.out));
        if (op.bias_in_kernel) add_bias(op, layout_.ones, layout_.at(op.out), op.rows);
        return;
      case StepOperation::Kind::rebuild_weight:
        add_start(op);
        return add_weight_update(
            op, layout_.at(op.out),
            op.rebuilt_state < 0 ? "its weights from S" : "momentum of its weights from that of S");
      case StepOperation::Kind::rebuild_bias:
        add_start(op);
        // What is copied first comes behind the launch of a narrow layer's weights.
        if (!add_to_gradient(gradients_.empty() ? nullptr : &gradients_.back(), op, layout_.at(op.out)))
          add_column_sums(op, layout_.at(op.out));
        return;
    }
  }

  void add_loss(const StepOperation& op) {
    layout_.forward_operations = launches_.size();
    if (!launches_.empty() && launches_.back().kind == Kind::narrow_linear &&
        launches_.back().out == layout_.at(op.a) && !op.activation && cuda::narrow_rows(op.rows) == 1)
      return add_narrow_loss(op);
    GraphOperation& launch = push(Kind::loss, op, layout_.at(op.out), op.rows, op.columns);
    launch.a = layout_.at(op.a);
    launch.b = layout_.at(op.b);
    launch.weights = layout_.at(op.weights);
    launch.loss = op.loss;
    if (!op.activation) launch.rounded = layout_.rounded_of(op.out);
    // Several blocks' sums are added up by a launch behind it, where one can.
    if (slots_of(launch, layout_.step.precision) > 0 && ends_losses()) {
      launch.loss_blocks = slots_of(launch, layout_.step.precision);
      unended_loss_ = launch;
    }
    if (op.activation) push_through(op, layout_.at(op.out));
  }

  /// Whether a launch behind the loss can end it: the library's products cannot.
  bool ends_losses() const {
    const std::vector<StepOperation>& operations = layout_.step.operations;
    return !layout_.updates_by_gradients ||
           std::any_of(operations.begin(), operations.end(), [&](const StepOperation& op) {
             return op.kind == StepOperation::Kind::weight_update &&
                    (is_narrow(op.columns) || has_own_product(op, op.rows));
           });
  }

  /// In place of the narrow layer's own launch. Its partial sums are added up by that of the layer's gradient, which
  /// comes next.
  void add_narrow_loss(const StepOperation& op) {
    GraphOperation& launch = launches_.back();
    layout_.forward_operations = launches_.size() - 1;
    launch.kind = Kind::narrow_loss;
    launch.below = launch.a;
    launch.weight = launch.b;
    launch.out = layout_.at(op.out);
    launch.a = layout_.at(op.a);
    launch.b = layout_.at(op.b);
    launch.weights = layout_.at(op.weights);
    launch.loss = op.loss;
    if (is_above_product(op)) {
      GraphOperation& product = launches_[--layout_.forward_operations];
      product.cut = *layout_.product_with_loss;
      launch.loss_blocks = cuda::product_loss_blocks(shape_of(product), product.cut);
      product.above.push_back(launch);
      launches_.pop_back();
      unended_loss_ = launches_.back().above.front();
      return;
    }
    launch.loss_blocks = cuda::narrow_loss_blocks(op.rows);
    unended_loss_ = launch;
  }

  GraphLayout& layout_;
  const double clip_norm_;
  const bool has_gradient_factor_;
  std::vector<GraphOperation> launches_;
  // From the gradient of an input until the weight above it changes: where it goes, the activation that it is taken
  // through by the same launch, and else the launch that does so.
  std::uint64_t below_ = kNoOperand;
  RoundedParts below_rounded_ = kNotRounded;
  std::optional<ActivationOfStep> fused_;
  std::optional<GraphOperation> through_;
  std::optional<GraphOperation> unended_loss_;  ///< a loss whose partial sums nothing has added up yet
  std::vector<GraphOperation> gradients_;       ///< own products, which come after all that others wait for
  std::optional<GraphOperation> update_;        ///< of all parameters, after all gradients
};

/// Multiply-adds of the library's products for each that the element type's own units take.
double library_efficiency(Precision precision) {
  using namespace gpu_costs;
  switch (precision) {
    case Precision::fp32:
      break;
    case Precision::fp64:
      return kLibraryDoubleEfficiency;
    case Precision::tf32:
    case Precision::tf32x3:
      return kLibraryTf32Efficiency;
    case Precision::bf16:
    case Precision::fp16:
      return kLibraryBf16Efficiency;
  }
  return kLibraryEfficiency;
}

/// Beside the node: what a kernel takes where memory moves `bytes_per_us`.
double work_us(const GraphNode& node, double bytes_per_us, double library_multiply_adds_per_us) {
  using namespace gpu_costs;
  switch (node.kind) {
    case GraphNode::Kind::elements:
      return kKernelUs + node.bytes / bytes_per_us;
    case GraphNode::Kind::row_sums:
      return kKernelUs + static_cast<double>(node.thread_rows) * kRowUs +
             node.bytes / (kRowSumEfficiency * bytes_per_us);
    case GraphNode::Kind::narrow_gradient:
      return kNarrowGradientUs + static_cast<double>(node.thread_rows * node.outputs) * kNarrowGradientRowUs +
             node.bytes / (kNarrowGradientEfficiency * bytes_per_us);
    case GraphNode::Kind::product:
      return kLibraryProductUs +
             std::max(node.multiply_adds / library_multiply_adds_per_us,
                      node.bytes / (kLibraryMemoryEfficiency * bytes_per_us)) +
             std::min(kLibraryInnerUs * static_cast<double>(node.inner), kLibrarySplitUs);
    case GraphNode::Kind::own_product:
      return std::max(node.own_us, kKernelUs + node.bytes / bytes_per_us);
  }
  return 0;
}

}  // namespace

namespace {

/// Of what a launch stores for products.
double rounded_bytes(const GraphOperation& op, Precision precision) {
  const auto bytes = static_cast<double>(operand_parts(precision)) * static_cast<double>(operand_bytes(precision));
  double stored = 0;  // elements
  if (op.rounded != kNotRounded)
    stored += op.kind == Kind::narrow_gradient ? elements(op.inner, op.rows) : elements(op.rows, op.columns);
  for (const GraphOperation::Gathered& of : op.gathered)
    if (of.rounded != kNotRounded) stored += elements(op.rows, of.columns);
  return bytes * stored;
}

}  // namespace

GraphNode node_of(const GraphOperation& op, Precision precision) {
  const auto element = static_cast<double>(size_of(element_type(precision)));
  GraphNode node;
  node.has_slots = slots_of(op, precision) > 0 && (op.loss_blocks == 0 || op.kind == Kind::narrow_gradient);
  // What an update by a gradient moves beside the gradient.
  const double states = static_cast<double>(elementwise::states_of(op.optimizer).size());
  const double updated = op.updates ? (1 + 2 * states) * elements(op.rows, op.columns) : 0;
  // The library's products read rounded elements.
  const double operand_share = op.kind == Kind::gemm ? static_cast<double>(operand_bytes(precision)) / element : 1;
  double moved = 0;  // elements
  switch (op.kind) {
    case Kind::gather:
    case Kind::bias_activation:
    case Kind::add_bias:
    case Kind::copy:
      moved = (op.kept == kNoOperand ? 2 : 3) * elements(op.rows, op.columns);
      break;
    case Kind::loss:
    case Kind::through_activation:
    case Kind::start_rebuild:
      moved = 3 * elements(op.rows, op.columns);
      break;
    case Kind::gradient_factor:
    case Kind::round:
      moved = elements(op.rows, op.columns);
      break;
    case Kind::update:
      moved = (3 + 2 * states) * elements(op.rows, op.columns);
      for (const GraphOperation::Summed& of : op.summed) moved += elements(of.rows, of.columns);
      break;
    case Kind::product:
    case Kind::gemm:
      node.kind = op.kind == Kind::gemm ? GraphNode::Kind::product : GraphNode::Kind::own_product;
      node.inner = op.inner;
      node.own_us = op.cut.estimated_us;
      [[fallthrough]];
    case Kind::narrow_loss:
    case Kind::narrow_linear:
      node.multiply_adds = elements(op.rows, op.columns) * static_cast<double>(op.inner);
      moved = (elements(op.rows, op.inner) + elements(op.inner, op.columns)) * operand_share +
              (op.adds ? 2 : 1) * elements(op.rows, op.columns) + updated;
      break;
    case Kind::narrow_gradient: {
      const int passes = op.below == kNoOperand ? 1 : 2;
      const cuda::ColumnGroupLayout tile =
          cuda::column_group_layout(op.inner, op.rows, static_cast<int>(16 / element));  // of most shapes
      node.kind = GraphNode::Kind::narrow_gradient;
      node.thread_rows = cuda::divide_up(std::min(op.inner, tile.rows_per_tile), cuda::kThreads / tile.groups);
      node.outputs = op.columns;
      node.multiply_adds = passes * elements(op.inner, op.rows) * static_cast<double>(op.columns);
      moved = passes * elements(op.inner, op.rows) + elements(op.inner, op.columns) +
              2 * elements(op.rows, op.columns) + updated;
      break;
    }
    case Kind::column_sums: {
      const cuda::PanelLayout panel = cuda::row_sum_layout(op.rows, op.columns);
      node.kind = GraphNode::Kind::row_sums;
      node.thread_rows = cuda::divide_up(std::min(op.rows, panel.rows_per_tile), cuda::kThreads / panel.threads_across);
      moved = elements(op.rows, op.columns);
      break;
    }
  }
  node.bytes = moved * element + rounded_bytes(op, precision);
  for (const std::vector<GraphOperation>* others : {&op.beside, &op.above})
    for (const GraphOperation& other : *others) {
      const GraphNode more = node_of(other, precision);
      node.bytes += more.bytes;
      node.multiply_adds += more.multiply_adds;
    }
  if (op.below != kNoOperand && op.kind == Kind::product) node.bytes += element * elements(op.rows, op.columns);
  return node;
}

std::int64_t GraphLayout::nodes_per_step() const {
  std::int64_t count = 0;
  for (const GraphOperation& operation : operations) count += node_of(operation, step.precision).has_slots ? 2 : 1;
  return count;
}

StepTime graph_step_time(const GraphLayout& layout, const GpuCaps& gpu) {
  using namespace gpu_costs;
  const Precision precision = layout.step.precision;
  const double peak = fma_per_us(size_of(element_type(precision))) * gpu.multiprocessors;
  const double library = peak * library_efficiency(precision);
  const bool in_cache = layout.working_bytes <= gpu.l2_bytes || gpu.memory_gb_per_s == 0;
  const double bytes_per_us = 1e3 * (in_cache ? kL2GbPerSecond : gpu.memory_gb_per_s * kMemoryEfficiency);
  const double nodes_us = kGraphNodeUs * static_cast<double>(layout.nodes_per_step());
  StepTime time;
  time.predicted_us = nodes_us;
  double bytes = 0, multiply_adds = 0;
  for (const GraphOperation& operation : layout.operations) {
    const GraphNode node = node_of(operation, precision);
    time.predicted_us += work_us(node, bytes_per_us, library) + (node.has_slots ? kSlotSumUs : 0);
    bytes += node.bytes;
    multiply_adds += node.multiply_adds;
  }
  time.floor_us = std::max(multiply_adds / std::max(peak, library),
                           bytes / (1e3 * (in_cache ? kL2GbPerSecond : gpu.memory_gb_per_s))) +
                  nodes_us;
  return time;
}

namespace {

/// Gives every tensor its place.
class Places {
 public:
  Places(GraphLayout& layout, ArenaSpace& arena, Precision precision)
      : layout_(layout), arena_(arena), element_(size_of(element_type(precision))) {
    layout_.tensors.assign(layout_.step.tensors.size(), kNoOperand);
  }

  void take(TensorId id) {
    if (id == kNoTensor) return;
    const StepTensor& tensor = layout_.step.tensor(id);
    layout_.tensors[static_cast<std::size_t>(id)] = arena_.take(tensor.rows, tensor.columns, element_);
  }

  void take_or_borrow(TensorId id, bool is_borrowed, Borrowed which) {
    if (!is_borrowed) return take(id);
    layout_.tensors[static_cast<std::size_t>(id)] = kBorrowed + which;
  }

  /// Whether the library's products of the layer read rounded elements.
  bool library_multiplies(const Step::Layer& layer) const {
    return !layout_.rounded.empty() && !is_narrow(layer.out_features);
  }
  bool has_rounded(TensorId id) const { return layout_.rounded_of(id) != kNotRounded; }

  void take_rounded(TensorId id) {
    const StepTensor& tensor = layout_.step.tensor(id);
    for (int part = 0; part < operand_parts(layout_.step.precision); ++part)
      rounded(id)[static_cast<std::size_t>(part)] = arena_.take(
          tensor.rows, operand_pitch(layout_.step.precision, tensor.columns), operand_bytes(layout_.step.precision));
  }
  void take_or_share_rounded(TensorId id, TensorId with) {
    if (has_rounded(with))
      rounded(id) = rounded(with);
    else
      take_rounded(id);
  }

  /// Of all parameters, as they lie, if the library multiplies any: one launch updates them.
  void take_rounded_parameters() {
    const Precision precision = layout_.step.precision;
    const std::vector<Step::Layer>& layers = layout_.step.layers;
    if (std::none_of(layers.begin(), layers.end(), [&](const auto& layer) { return library_multiplies(layer); }))
      return;
    for (int part = 0; part < operand_parts(precision); ++part) {
      const auto index = static_cast<std::size_t>(part);
      layout_.parameters_rounded[index] =
          arena_.take(static_cast<std::int64_t>(layout_.parameter_bytes / element_), 1, operand_bytes(precision));
      for (const Step::Layer& layer : layers)
        if (library_multiplies(layer))
          rounded(layer.weight)[index] =
              layout_.parameters_rounded[index] + layout_.at(layer.weight) / element_ * operand_bytes(precision);
    }
  }

  void share(TensorId id, TensorId with) {
    layout_.tensors[static_cast<std::size_t>(id)] = layout_.tensors[static_cast<std::size_t>(with)];
  }

 private:
  RoundedParts& rounded(TensorId id) { return layout_.rounded[static_cast<std::size_t>(id)]; }

  GraphLayout& layout_;
  ArenaSpace& arena_;
  const std::uint64_t element_;
};

void place_tensors(GraphLayout& layout, ArenaSpace& arena, const TrainingSpec& training, Activation activation) {
  const std::uint64_t element = size_of(element_type(training.precision));
  const Step& step = layout.step;
  Places places(layout, arena, training.precision);
  if (operand_parts(training.precision) > 0) layout.rounded.assign(step.tensors.size(), kNotRounded);
  std::int64_t widest_gradient = 0;
  const OptimizerKind optimizer = training.optimizer.kind;
  const std::vector<Updated> updated = updated_together(step, optimizer);
  for (const Updated& each : updated) places.take(each.tensor);
  layout.parameter_bytes = arena.used();
  places.take_rounded_parameters();
  for (const Step::Layer& layer : step.layers) {
    const bool narrow = is_narrow(layer.out_features);
    const bool has_gradient =
        &layer != &step.layers.front() && !(layout.product_with_loss && &layer == &step.layers.back());
    const bool product_ends = takes_own_products(layout, layer) && product_ends_with({activation});
    if (has_gradient && (narrow ? !narrow_launch_masks(activation) : !product_ends))
      widest_gradient = std::max(widest_gradient, layer.in_features);
  }
  for (std::size_t state = 0; state < elementwise::states_of(optimizer).size(); ++state)
    for (const Updated& each : updated) places.take(each.state[state]);
  if (!layout.updates_by_gradients)
    layout.parameter_gradients = arena.take(1, static_cast<std::int64_t>(layout.parameter_bytes), 1);
  places.take(step.loss_scaling);
  if (has_gradient_factor(step, training.optimizer)) layout.gradient_factor = arena.take(1, 1, element);
  if (step.gram) {
    const Step::Gram& gram = *step.gram;
    const Step::Layer& first = step.layers.front();
    places.take(gram.kernel);
    for (const TensorId id : {gram.pre_activation, first.weight, first.bias})
      if (layout.at(id) == kNoOperand) places.take(id);  // those that are not updated together
    for (const TensorId id : {gram.sum, gram.start_weight, gram.start_bias}) places.take(id);
    for (const StateTensors& states :
         {first.weight_state, first.bias_state, gram.sum_state, gram.start_weight_state, gram.start_bias_state})
      for (const TensorId id : states) places.take(id);
    if (gram.start_bias != kNoTensor) layout.ones = arena.take(step.batch, 1, element);
  }
  if (step.batch > 0) {
    layout.steps = arena.take(1, 1, sizeof(std::int64_t));
    layout.losses = arena.take(2 * kStepsPerLaunch, 1, sizeof(double));
    layout.loss = arena.take(1, 1, sizeof(double));
    places.take_or_borrow(step.data_x, training.in_place.x, kBorrowedX);
    places.take_or_borrow(step.data_y, training.in_place.y, kBorrowedY);
    places.take_or_borrow(step.data_weights, training.in_place.sample_weights, kBorrowedWeights);
    if (places.library_multiplies(step.layers.front())) places.take_rounded(step.x);
    for (const TensorId id : {step.x, step.y, step.weights})
      if (layout.at(id) == kNoOperand && !(id == step.x && places.has_rounded(id))) places.take(id);
    for (const Step::Layer& layer : step.layers) {
      places.take(layer.output);
      // The gradient of an output activation follows from what lies there.
      const bool is_last = &layer == &step.layers.back();
      if (is_last ? step.inference.back().activation.has_value()
                  : takes_own_products(layout, *(&layer + 1)) ||
                        (layout.product_with_loss && &layer + 1 == &step.layers.back()))
        places.take(layer.gradient);
      else
        places.share(layer.gradient, layer.output);
      if (!is_last && places.library_multiplies(*(&layer + 1))) places.take_rounded(layer.output);
      if (places.library_multiplies(layer)) places.take_or_share_rounded(layer.gradient, layer.output);
      if (layout.at(layer.kept) == kNoOperand) places.take(layer.kept);
    }
    if (widest_gradient > 0) layout.gradient = arena.take(step.batch, widest_gradient, element);
  }
}

std::uint64_t borrowed_bytes(const GraphLayout& layout, const TrainingSpec& training) {
  std::int64_t elements = 0;
  for (const TensorId id : {layout.step.data_x, layout.step.data_y, layout.step.data_weights})
    if (const std::uint64_t at = layout.at(id); at != kNoOperand && at >= kBorrowed)
      elements += layout.step.tensor(id).rows * layout.step.tensor(id).columns;
  return static_cast<std::uint64_t>(elements) * size_of(element_type(training.precision));
}

}  // namespace

GraphLayout make_graph_layout(const NetworkSpec& network, const TrainingSpec& training, const GraphMachine& machine) {
  return make_graph_layout(network, training, make_step(network, training), machine);
}

GraphLayout make_graph_layout(const NetworkSpec& network, const TrainingSpec& training, Step step,
                              const GraphMachine& machine) {
  const std::uint64_t element = size_of(element_type(training.precision));
  GraphLayout layout;
  layout.step = std::move(step);
  layout.machine = machine;
  layout.updates_by_gradients = can_update_by_gradients(layout, training.optimizer);
  layout.product_with_loss = cut_product_with_loss(layout);
  ArenaSpace arena(network, training, alignment_of(training.precision));
  place_tensors(layout, arena, training, network.activation);

  Lowering lowering(layout, training.optimizer);
  if (layout.step.gram) {
    layout.make_kernel = lowering.lower_kernel(layout.step.gram->make_kernel);
    layout.make_pre_activation = lowering.lower_pre_activation(layout.step.gram->make_pre_activation);
    layout.rebuild = lowering.lower(layout.step.gram->rebuild);
  }
  layout.operations = lowering.lower(layout.step.operations);
  if (layout.step.batch > 0) {
    std::int64_t slots = 0;
    for (const auto* list : {&layout.operations, &layout.rebuild})
      for (const GraphOperation& operation : *list) slots = std::max(slots, slots_of(operation, training.precision));
    layout.slots = arena.take(slots, 1, sizeof(double));
    const GraphOperation& loss = layout.loss_operation();
    if (loss.loss_blocks > 0) layout.loss_slots = arena.take(loss.loss_blocks, 1, sizeof(double));
    layout.working_bytes = arena.used() + borrowed_bytes(layout, training);
    layout.steps_per_launch = std::clamp(kNodesPerLaunch / layout.nodes_per_step(), std::int64_t{1}, kStepsPerLaunch);
    if (scalars_vary(training)) layout.scalar_sets = layout.steps_per_launch;
  }
  layout.scalars = arena.take(layout.scalar_sets + 1, 1, scalars_bytes(training.precision));

  std::int64_t widest = 0;
  for (const Step::Layer& layer : layout.step.layers) widest = std::max(widest, layer.out_features);
  layout.predict_rows = kPredictRows;
  layout.predict_input = arena.take(layout.predict_rows, network.widths.front(), element);
  layout.predict_even = arena.take(layout.predict_rows, widest, element);
  layout.predict_odd = arena.take(layout.predict_rows, widest, element);
  for (int part = 0; layout.parameters_rounded != kNotRounded && part < operand_parts(training.precision); ++part)
    layout.predict_rounded[static_cast<std::size_t>(part)] =
        arena.take(layout.predict_rows, operand_pitch(training.precision, std::max(widest, network.widths.front())),
                   operand_bytes(training.precision));
  const int step_products = layout.products;
  layout.predict = lowering.lower_predict(layout.step.inference);
  layout.predict_products = layout.products - step_products;
  if (layout.has_gemm) layout.gemm_workspace = arena.take(1, 1, kGemmWorkspaceBytes);
  layout.bytes = arena.used();
  return layout;
}

std::vector<GraphOperation> predict_panel(const GraphLayout& layout, std::int64_t rows, int first_product) {
  std::vector<GraphOperation> panel = layout.predict;
  for (GraphOperation& operation : panel) {
    operation.rows = rows;
    for (std::uint64_t* const operand :
         {&operation.a, &operation.out, &operation.rounded.front(), &operation.rounded.back()}) {
      if (*operand == layout.predict_even) *operand = kBorrowed + kPanelEven;
      if (*operand == layout.predict_odd) *operand = kBorrowed + kPanelOdd;
      if (*operand == kNoOperand) continue;
      if (*operand == layout.predict_rounded.front()) *operand = kBorrowed + kPanelRounded;
      if (*operand == layout.predict_rounded.back()) *operand = kBorrowed + kPanelRoundedLow;
    }
    if (operation.kind == Kind::gemm) operation.product = first_product++;
    if (operation.kind == Kind::product)
      operation.cut = cuda::small_product_layout(shape_of(operation), layout.machine.has_clusters);
  }
  return panel;
}

namespace {

/// fp16 is multiplied since compute capability 7.0, of which all that can run kernels are.
std::string why_no_tensor_cores(const GpuCaps& gpu, Precision precision) {
  const bool is_newer = operand_parts(precision) > 0 && precision != Precision::fp16;
  if (!is_newer || gpu.compute_capability >= 80) return "";
  return std::string("products in ") + name(precision) + " need compute capability 8.0, and " + gpu.name + " has " +
         std::to_string(gpu.compute_capability / 10) + "." + std::to_string(gpu.compute_capability % 10) +
         "; set the precision to fp32, fp64 or fp16";
}

}  // namespace

void ask_graph(const Request& request, Answer& answer) {
  const TrainingSpec& training = request.training;
  const GpuCaps& gpu = gpu_of(request);
  Candidate& candidate = answer.candidate;
  candidate.reason = why_not_implemented(request);
  if (candidate.reason.empty()) candidate.reason = why_no_tensor_cores(gpu, training.precision);
  if (!candidate.reason.empty()) return;
  GraphLayout layout = make_graph_layout(
      request.network, training, request.step,
      {.has_clusters = gpu.compute_capability >= 90 && gpu.multiprocessors >= cuda::kMostProductCluster});
  candidate.bytes = layout.bytes;
  answer.needs_cublaslt = layout.has_gemm;
  if (training.samples > 0) {
    const StepTime time = graph_step_time(layout, gpu);
    candidate.predicted_us_per_step = time.predicted_us;
    candidate.floor_us_per_step = time.floor_us;
  }
  answer.layout = std::move(layout);
  candidate.reason = gpu.no_code_reason;
  if (candidate.reason.empty() && answer.needs_cublaslt) candidate.reason = request.caps.no_cublaslt_reason;
  if (candidate.reason.empty()) candidate.reason = why_not_in_memory(gpu, candidate.bytes, smaller_text(training));
  candidate.accepted = candidate.reason.empty();
  if (candidate.accepted) candidate.reason = gpu.name + " replays captured steps";
}

}  // namespace deviceloop
