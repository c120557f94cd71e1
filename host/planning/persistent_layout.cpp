#include "persistent_layout.h"

#include <algorithm>
#include <array>
#include <limits>
#include <optional>
#include <utility>

#include "../names.h"
#include "../step/scalars.h"
#include "../text.h"
#include "arena_space.h"
#include "gpu_costs.h"
#include "kernel_layout.h"

namespace deviceloop {
namespace {

using Kind = PersistentOperation::Kind;

constexpr std::uint64_t kAlignment = 256;
constexpr std::int64_t kMostStepsPerLaunch = 16384;
constexpr std::int64_t kPredictRows = 1024;
/// Clusters larger than that need a permission, and few GPUs hold many of them.
constexpr std::int64_t kMostClusterBlocks = 8;
/// The program lies in shared memory.
constexpr std::size_t kMostProgramBytes = 24 << 10;

/// Where a block finds what it multiplies.
enum class Operands { in_shared, in_l2 };

double latency_us(Operands operands) {
  return operands == Operands::in_shared ? gpu_costs::kSharedLatencyUs : gpu_costs::kL2LatencyUs;
}

template <class Shape>
double tile_us(std::int64_t inner, std::uint64_t element_bytes, Operands operands) {
  using namespace gpu_costs;
  const std::int64_t depth = element_bytes == 4 ? Shape::template depth<float> : Shape::template depth<double>;
  const auto panels = static_cast<double>(cuda::divide_up(inner, depth * Shape::groups));
  const double products = static_cast<double>(Shape::rows * Shape::columns * Shape::groups * depth);
  const double panel_us = std::max(products / (kTileEfficiency * fma_per_us(element_bytes)), latency_us(operands));
  return panels * panel_us + (operands == Operands::in_shared ? kSharedTileUs : kTileUs);
}

/// How one operation is cut for a launch of `blocks`; returns what it takes them.
template <class Shape>
double cut(PersistentOperation& operation, Tile tile, std::int64_t blocks, std::uint64_t element_bytes,
           Operands operands) {
  operation.tile = tile;
  operation.tiles_across = cuda::divide_up(operation.columns, Shape::columns);
  operation.tasks = cuda::divide_up(operation.rows, Shape::rows) * operation.tiles_across;
  return static_cast<double>(cuda::divide_up(operation.tasks, blocks)) *
         tile_us<Shape>(operation.inner, element_bytes, operands);
}

double cut_product(PersistentOperation& operation, std::int64_t blocks, std::uint64_t element_bytes,
                   Operands operands) {
  std::array<PersistentOperation, 3> cuts = {operation, operation, operation};
  const std::array<double, 3> times = {
      cut<SmallTile>(cuts[0], Tile::small, blocks, element_bytes, operands),
      cut<MediumTile>(cuts[1], Tile::medium, blocks, element_bytes, operands),
      cut<LargeTile>(cuts[2], Tile::large, blocks, element_bytes, operands),
  };
  const auto best = static_cast<std::size_t>(std::min_element(times.begin(), times.end()) - times.begin());
  operation = cuts[best];
  return times[best];
}

/// The same for any kind.
double cut_operation(PersistentOperation& operation, std::int64_t blocks, std::uint64_t element_bytes,
                     Operands operands) {
  if (operation.kind == Kind::loss) return latency_us(operands);
  if (operation.kind == Kind::row_loss) {
    operation.tasks = cuda::divide_up(operation.rows, kRowLossRows);
    const std::int64_t passes = 3 * cuda::divide_up(operation.columns, 32);
    return static_cast<double>(cuda::divide_up(operation.tasks, blocks) * passes) * latency_us(operands);
  }
  if (operation.kind == Kind::bias_update) {
    operation.tasks = cuda::divide_up(operation.columns, kBiasColumns);
    // Every access of a thread's rows is under way before the first is added.
    return static_cast<double>(cuda::divide_up(operation.tasks, blocks)) * 2 * latency_us(operands);
  }
  return cut_product(operation, blocks, element_bytes, operands);
}

/// A way to run the program, or why it is none.
struct Way {
  PersistentForm form;
  std::int64_t blocks;
  std::string refusal;
  bool too_large = false;  ///< why it refuses: fewer samples or smaller layers would do
  double us = 0;           ///< a step, where that does not follow from the operations

  void refuse(std::string why, bool is_too_large) {
    refusal = std::move(why);
    too_large = is_too_large;
  }
};

/// The region that steps work on, and the step's operations phase by phase; how they are cut is still open.
class Builder {
 public:
  Builder(const NetworkSpec& network, const TrainingSpec& training)
      : network_(network),
        training_(training),
        element_(size_of(element_type(training.precision))),
        batch_(batch_of(training)),
        arena_(network, training, kAlignment) {}

  PersistentLayout build(const GpuCaps& gpu, Step step, int most_on_chip_blocks) {
    layout_.step = std::move(step);
    layout_.gpu = gpu;
    most_on_chip_blocks_ = most_on_chip_blocks;
    take_region();
    if (batch_ > 0) make_program();
    place_the_rest();
    choose(gpu);
    finish();
    return std::move(layout_);
  }

 private:
  const Step& step() const { return layout_.step; }

  void take(TensorId id) {
    if (id == kNoTensor) return;
    const StepTensor& tensor = step().tensor(id);
    layout_.tensors[static_cast<std::size_t>(id)] = arena_.take(tensor.rows, tensor.columns, element_);
  }

  void take(const StateTensors& states) {
    for (const TensorId state : states) take(state);
  }

  void take_parameters(const Step::Layer& layer) {
    take(layer.weight);
    take(layer.bias);
    for (const StateTensors& states : {layer.weight_state, layer.bias_state}) take(states);
  }

  /// In the Gram formulation a step does not touch the first layer's parameters.
  void take_region() {
    layout_.tensors.assign(step().tensors.size(), kNone);
    const std::optional<Step::Gram>& gram = step().gram;
    for (const Step::Layer& layer : step().layers)
      if (!gram || &layer != &step().layers.front()) take_parameters(layer);
    if (gram) {
      take(gram->pre_activation);
      take(gram->sum);
      for (const StateTensors& states : {gram->pre_activation_state, gram->sum_state}) take(states);
    }
    layout_.state_bytes = arena_.used();
    if (batch_ == 0) return;
    if (has_minibatches(training_)) {  // the one form that takes them has all else on chip
      for (const TensorId data : {step().data_x, step().data_y, step().data_weights}) take(data);
      layout_.region_bytes = arena_.used();
      return;
    }
    for (const Step::Layer& layer : step().layers) {
      // Predictions become errors at once, where those are by element.
      const bool is_kept = &layer != &step().layers.back() || !is_by_element(training_.loss);
      if (is_kept) take(layer.output);
      take(layer.gradient);
      if (is_kept && layout_.at(layer.kept) == kNone) take(layer.kept);
    }
    take(gram ? gram->kernel : step().x);
    take(step().y);
    take(step().weights);
    // One for each tile of the last layer, of which the smallest are the most, or for each task of a loss by row.
    const std::int64_t tiles =
        cuda::divide_up(batch_, SmallTile::rows) * cuda::divide_up(network_.widths.back(), SmallTile::columns);
    slots_ =
        arena_.take(is_by_element(training_.loss) ? tiles : cuda::divide_up(batch_, kRowLossRows), 1, sizeof(double));
    layout_.region_bytes = arena_.used();
    if (!gram) return;
    take(step().x);
    take_parameters(step().layers.front());
    take(gram->start_weight);
    take(gram->start_bias);
    for (const StateTensors& states : {gram->start_weight_state, gram->start_bias_state}) take(states);
  }

  void begin_phase() { layout_.phases.push_back({static_cast<std::int64_t>(layout_.operations.size()), 0}); }

  /// The predictions are not kept: their product goes on to the errors.
  void add_errors(const StepOperation& loss) {
    const bool by_element = is_by_element(loss.loss.kind);
    if (loss.a != step().layers.back().output || !by_element) {  // they are Z, or whole rows are needed
      begin_phase();
      layout_.operations.push_back(persistent_operation(layout_, loss));
    }
    layout_.loss_of_step = loss.loss;
    PersistentOperation& errors = layout_.operations.back();
    errors.kind = by_element ? Kind::errors : Kind::row_loss;
    errors.activation = loss.activation ? loss.activation->kind : Activation::identity;
    errors.keeps_pre_activation = loss.kept != step().layers.back().output ? 1 : 0;
    errors.out = layout_.at(loss.out);
    errors.extra = layout_.at(loss.b);
    errors.slots = slots_;
    if (!by_element) errors.b = layout_.at(loss.kept);
    errors_ = layout_.operations.size() - 1;
    layout_.forward_phases = static_cast<std::int64_t>(layout_.phases.size());
  }

  void add_loss() {
    PersistentOperation op;
    op.kind = Kind::loss;
    op.slots = slots_;
    layout_.operations.push_back(op);
  }

  /// A phase for each product forward and for each gradient of an input. An update waits for the phase after that of
  /// the gradient of its layer's input, which reads what it changes.
  void make_program() {
    std::vector<PersistentOperation> waiting;
    bool loss_waits = false;
    const auto end_backward_phase = [&] {
      layout_.operations.insert(layout_.operations.end(), waiting.begin(), waiting.end());
      waiting.clear();
      if (loss_waits) add_loss();
      loss_waits = false;
    };
    for (const StepOperation& op : step().operations) {
      switch (op.kind) {
        case StepOperation::Kind::forward:
        case StepOperation::Kind::activate:
          begin_phase();
          layout_.operations.push_back(persistent_operation(layout_, op));
          break;
        case StepOperation::Kind::loss:
          add_errors(op);
          loss_waits = true;
          break;
        case StepOperation::Kind::input_gradient:
          begin_phase();
          layout_.operations.push_back(persistent_operation(layout_, op));
          end_backward_phase();
          break;
        case StepOperation::Kind::weight_update:
        case StepOperation::Kind::bias_update:
          waiting.push_back(persistent_operation(layout_, op));
          break;
        case StepOperation::Kind::sum_update:  // by the tiles that update Z
          waiting.back().kind = Kind::gram_update;
          waiting.back().sum = layout_.at(op.out);
          waiting.back().extra = layout_.at(op.state.front());
          break;
        case StepOperation::Kind::gather:
        case StepOperation::Kind::kernel_matrix:
        case StepOperation::Kind::rebuild_weight:
        case StepOperation::Kind::rebuild_bias:
          break;  // refused, or in no step
      }
    }
    begin_phase();
    end_backward_phase();
    begin_phase();  // of what asks for the loss alone
    add_loss();
  }

  void place_the_rest() {
    if (batch_ > 0) {
      layout_.program = arena_.take(static_cast<std::int64_t>(layout_.program_bytes()), 1, 1);
      layout_.arrivals = arena_.take(1, 1, sizeof(unsigned));
      layout_.failed = arena_.take(1, 1, sizeof(std::uint64_t));
      layout_.loss = arena_.take(1, 1, sizeof(double));
    }
    std::int64_t widest = 0;
    for (const Step::Layer& layer : step().layers) widest = std::max(widest, layer.out_features);
    layout_.predict_rows = kPredictRows;
    layout_.predict_input = arena_.take(layout_.predict_rows, network_.widths.front(), element_);
    layout_.predict_even = arena_.take(layout_.predict_rows, widest, element_);
    layout_.predict_odd = arena_.take(layout_.predict_rows, widest, element_);
  }

  /// Cuts the operations for one way to run them; returns microseconds a step.
  double cut_for(const Way& way) {
    using namespace gpu_costs;
    const Operands operands = way.form == PersistentForm::block ? Operands::in_shared : Operands::in_l2;
    const double barrier_us = way.form == PersistentForm::block     ? kBlockBarrierUs
                              : way.form == PersistentForm::cluster ? kClusterBarrierUs
                                                                    : kGridBarrierUs;
    double us = 0;
    for (std::size_t index = 0; index < layout_.phases.size(); ++index) {
      PersistentPhase& phase = layout_.phases[index];
      const auto first = static_cast<std::size_t>(phase.first_operation);
      const std::size_t end = index + 1 < layout_.phases.size()
                                  ? static_cast<std::size_t>(layout_.phases[index + 1].first_operation)
                                  : layout_.operations.size();
      phase.tasks = 0;
      double phase_us = barrier_us;
      for (std::size_t op = first; op < end; ++op) {
        phase_us += cut_operation(layout_.operations[op], way.blocks, element_, operands);
        phase.tasks += layout_.operations[op].tasks;
      }
      if (index + 1 < layout_.phases.size()) us += phase_us;
    }
    return us;
  }

  /// The form for two layers, or why it is none. Decides the layout of the formulation.
  Way two_layer_way(const GpuCaps& gpu) {
    Way way{PersistentForm::two_layer, 1, ""};
    if (network_.layers() != 2) {
      way.refusal = "the form 'two-layer' is for one hidden layer, not " + std::to_string(network_.layers() - 1);
      return way;
    }
    // The kernels for two layers have these written into them.
    switch (network_.activation) {
      case Activation::relu:
        break;
      case Activation::identity:
      case Activation::leaky_relu:
      case Activation::elu:
      case Activation::silu:
      case Activation::gelu:
      case Activation::gelu_tanh:
      case Activation::tanh:
      case Activation::sigmoid:
      case Activation::softplus:
      case Activation::sine:
        way.refusal = "the form 'two-layer' is for the activation 'relu', not " + shown(network_.activation) +
                      ", which the other forms take";
        return way;
    }
    if (training_.loss != Loss::squared_error || training_.reduction != Reduction::sum) {
      way.refusal = "the form 'two-layer' has the sum of squared errors alone, not the " +
                    std::string(name_or_null(training_.reduction)) + " of " + name_or_null(training_.loss);
      return way;
    }
    if (training_.sample_weights) {
      way.refusal = "the form 'two-layer' has no weights of samples, which the other forms take";
      return way;
    }
    if (!elementwise::adds_gradient(training_.optimizer.kind)) {
      way.refusal = "the form 'two-layer' has no optimizer " + shown(training_.optimizer.kind);
      return way;
    }
    if (scalars_vary(training_)) {
      way.refusal = "the form 'two-layer' has one learning rate for all steps";
      return way;
    }
    if (network_.output_activation != Activation::identity) {
      way.refusal = "the form 'two-layer' has no output activation, not " + shown(network_.output_activation);
      return way;
    }
    const cuda::TwoLayerShape shape{
        batch_, network_.widths[0], network_.widths[1], network_.widths[2], static_cast<int>(element_), network_.bias};
    const auto take = [&](const auto& decision, auto& layout, std::int64_t blocks) {
      way.refuse(decision.refusal, true);
      if (!decision.fits()) return;
      layout = decision.layout;
      layout_.tagged_slots = layout.slots();
      layout_.shared_bytes = layout.shared_bytes;
      way.blocks = blocks;
      way.us = layout.estimated_us;
    };
    if (step().gram) {
      const auto decision = cuda::decide_gram_two_layer(shape, two_layer_device(gpu));
      take(decision, layout_.gram_two_layer, decision.layout.blocks);
    } else {
      const auto decision = cuda::decide_two_layer(shape, two_layer_device(gpu));
      take(decision, layout_.two_layer, decision.layout.blocks());
    }
    if (way.refusal.empty() && !gpu.cooperative)
      way.refusal = gpu.name + " does not promise that all blocks of a launch run at once";
    return way;
  }

  /// The form for small networks, or why it is none. Decides its layout.
  Way on_chip_way(const GpuCaps& gpu) {
    Way way{PersistentForm::on_chip, 1, ""};
    if (step().gram) {
      way.refusal = "the form 'on-chip' trains by the formulation 'primal' alone";
      return way;
    }
    if (gpu.compute_capability < 90) {
      way.refusal = gpu.name + " has no clusters, compute capability 9.0 has";
      return way;
    }
    cuda::OnChipShape shape;
    shape.batch = batch_;
    shape.widths = network_.widths;
    shape.bias = network_.bias;
    shape.element_bytes = static_cast<int>(element_);
    shape.states = static_cast<int>(elementwise::states_of(training_.optimizer.kind).size());
    shape.by_row = !is_by_element(training_.loss);
    shape.target_columns = step().tensor(step().y).columns;
    const cuda::OnChipDecision decision = cuda::decide_on_chip(
        shape, {static_cast<std::int64_t>(gpu.shared_bytes), gpu.multiprocessors, most_on_chip_blocks_});
    way.refuse(decision.refusal, decision.is_too_large);
    if (!decision.refusal.empty()) return way;
    layout_.on_chip = decision.layout;
    way.blocks = decision.layout.blocks();
    way.us = decision.layout.estimated_us;
    return way;
  }

  /// All ways, each possible or refused.
  std::vector<Way> ways(const GpuCaps& gpu) {
    const std::size_t tiles = kPersistentTileBytes + layout_.program_bytes();
    std::vector<Way> all = {two_layer_way(gpu), {PersistentForm::block, 1, ""}};
    if (tiles + layout_.region_bytes > gpu.shared_bytes)
      all[1].refuse("one block needs " + bytes_text(tiles + layout_.region_bytes) + " of shared memory, " + gpu.name +
                        " gives it " + bytes_text(gpu.shared_bytes),
                    true);
    for (std::int64_t blocks = 2; blocks <= std::min<std::int64_t>(kMostClusterBlocks, gpu.multiprocessors);
         blocks *= 2)
      all.push_back({PersistentForm::cluster, blocks,
                     gpu.compute_capability >= 90 ? "" : gpu.name + " has no clusters, compute capability 9.0 has"});
    all.push_back({PersistentForm::grid, std::max<std::int64_t>(gpu.multiprocessors, 1),
                   gpu.cooperative ? "" : gpu.name + " does not promise that all blocks of a launch run at once"});
    all.push_back(on_chip_way(gpu));
    for (Way& way : all) {
      if (has_minibatches(training_) && way.form != PersistentForm::on_chip)
        way.refuse(std::string("the form '") + name(way.form) + "' takes all samples in each step", false);
      if (way.form == PersistentForm::two_layer) continue;
      if (way.form == PersistentForm::on_chip) {
        if (training_.optimizer.clip_norm > 0)
          way.refuse("the plan 'persistent' does not clip gradients by their norm", false);
        continue;
      }
      if (layout_.program_bytes() > kMostProgramBytes)
        way.refuse("a network of " + std::to_string(network_.layers()) + " layers is too deep for one launch", false);
      else if (training_.optimizer.clip_norm > 0)
        way.refuse("the plan 'persistent' does not clip gradients by their norm", false);
      else if (has_minibatches(training_))
        continue;
      else if (tiles > gpu.shared_bytes)
        way.refuse("a block needs " + bytes_text(tiles) + " of shared memory, " + gpu.name + " gives it " +
                       bytes_text(gpu.shared_bytes),
                   true);
      else if (way.form != PersistentForm::block && layout_.region_bytes > gpu.l2_bytes)
        way.refuse("data, weights and activations take " + bytes_text(layout_.region_bytes) + ", the L2 cache of " +
                       gpu.name + " holds " + bytes_text(gpu.l2_bytes),
                   true);
    }
    return all;
  }

  void choose(const GpuCaps& gpu) {
    if (batch_ == 0) return;
    const Way *best = nullptr, *last = nullptr;
    const std::vector<Way> all = ways(gpu);
    for (const Way& way : all) {
      if (training_.form != PersistentForm::automatic && training_.form != way.form) continue;
      // Its times are a prototype's: until they are its own it takes no run from forms that were measured.
      if (training_.form == PersistentForm::automatic && way.form == PersistentForm::on_chip &&
          !has_minibatches(training_))
        continue;
      last = &way;
      if (!way.refusal.empty()) continue;
      const double us = way.us > 0 ? way.us : cut_for(way);
      if (best != nullptr && us >= layout_.predicted_us_per_step) continue;
      best = &way;
      layout_.predicted_us_per_step = us;
    }
    if (best == nullptr) {
      const bool other_forms = training_.form != PersistentForm::automatic &&
                               !(has_minibatches(training_) && training_.form == PersistentForm::on_chip);
      const char* const smaller =
          has_minibatches(training_) ? "smaller layers, smaller batches or " : "smaller layers, fewer samples or ";
      layout_.refusal = last->refusal + "; use " + (last->too_large ? smaller : "") +
                        (other_forms && !last->too_large ? "another form or " : "") + "the plan 'graph'";
      return;
    }
    layout_.refusal.clear();
    layout_.form = best->form;
    layout_.blocks = best->blocks;
    if (layout_.form == PersistentForm::two_layer) return;
    layout_.tagged_slots = 0;
    if (layout_.form == PersistentForm::on_chip) {
      layout_.shared_bytes = layout_.on_chip.shared_bytes;
      return;
    }
    cut_for(*best);
    std::int64_t most_tasks = 1;
    for (const PersistentPhase& phase : layout_.phases) most_tasks = std::max(most_tasks, phase.tasks);
    if (layout_.form == PersistentForm::grid) layout_.blocks = std::min(layout_.blocks, most_tasks);
    layout_.shared_bytes =
        static_cast<int>(kPersistentTileBytes + layout_.program_bytes() +
                         (layout_.form == PersistentForm::block ? static_cast<std::size_t>(layout_.region_bytes) : 0));
  }

  /// The products at the peak of the blocks, and what they have to tell each other one after the other.
  double floor_us() const {
    using namespace gpu_costs;
    const double products_us =
        multiply_adds(step().operations) / (static_cast<double>(layout_.blocks) * fma_per_us(element_));
    if (layout_.form == PersistentForm::two_layer)
      return products_us + kL2HopUs + (layout_.two_layer.cluster_blocks() > 1 ? kPeerHopUs : 0);
    if (layout_.form == PersistentForm::on_chip) return products_us + (layout_.blocks > 1 ? 2 * kPeerHopUs : 0);
    const double hop_us = layout_.form == PersistentForm::block     ? kBlockBarrierUs
                          : layout_.form == PersistentForm::cluster ? kPeerHopUs
                                                                    : kL2HopUs;
    return products_us + hop_us * static_cast<double>(layout_.phases.size() - 1);
  }

  void finish() {
    if (batch_ > 0) {
      if (layout_.tagged_slots > 0) layout_.tagged = arena_.take(layout_.tagged_slots, 1, 2 * element_);
      const std::int64_t tiles = layout_.operations[errors_].tasks;
      for (PersistentOperation& op : layout_.operations)
        if (op.kind == Kind::loss) op.inner = tiles;
      if (layout_.refusal.empty()) layout_.floor_us_per_step = floor_us();
      const double us = std::max(layout_.predicted_us_per_step, 1.0);
      layout_.steps_per_launch =
          std::clamp(static_cast<std::int64_t>(gpu_costs::kLongestLaunchUs / us), std::int64_t{1}, kMostStepsPerLaunch);
      layout_.losses = arena_.take(2 * layout_.steps_per_launch, 1, sizeof(double));
      if (layout_.form == PersistentForm::on_chip)
        layout_.loss_parts = arena_.take(layout_.steps_per_launch, layout_.blocks, sizeof(double));
      if (scalars_vary(training_)) layout_.scalar_sets = layout_.steps_per_launch;
      layout_.scalars = arena_.take(layout_.scalar_sets, 1, scalars_bytes(training_.precision));
    }
    layout_.bytes = arena_.used();
  }

  const NetworkSpec& network_;
  const TrainingSpec& training_;
  const std::uint64_t element_;
  const std::int64_t batch_;
  ArenaSpace arena_;
  PersistentLayout layout_;
  int most_on_chip_blocks_ = cuda::kOnChipBlocks;
  std::uint64_t slots_ = kNone;
  std::size_t errors_ = 0;  ///< the operation of the last layer's forward
};

}  // namespace

std::string PersistentLayout::description() const {
  const std::string launches =
      ", at most " + std::to_string(steps_per_launch) + " steps a launch" + (note.empty() ? "" : ", " + note);
  if (form == PersistentForm::two_layer)
    return (step.gram ? cuda::describe(gram_two_layer) : cuda::describe(two_layer)) + launches;
  if (form == PersistentForm::on_chip) return cuda::describe(on_chip) + launches;
  const std::string where = form == PersistentForm::block     ? "one block, data in its shared memory"
                            : form == PersistentForm::cluster ? "one cluster of " + std::to_string(blocks) + " blocks"
                                                              : "a grid of " + std::to_string(blocks) + " blocks";
  return where + ", " + std::to_string(phases.size() - 1) + " phases a step" + launches;
}

std::string PersistentLayout::phase_name(std::int64_t phase) const {
  if (form == PersistentForm::two_layer)
    return phase + 1 == static_cast<std::int64_t>(cuda::TwoLayerPhase::kClusterExchange)
               ? "exchange within a cluster"
               : "exchange of the predictions";
  if (form == PersistentForm::on_chip)
    return phase + 1 == static_cast<std::int64_t>(cuda::OnChipPhase::kWeights) ? "exchange of parameters"
                                                                               : "exchange of gradients";
  const auto depth = static_cast<std::int64_t>(step.layers.size());
  if (phase < forward_phases)
    return phase < depth ? "forward of layer " + std::to_string(phase) : std::string("loss of each row");
  const std::int64_t back = phase - forward_phases;
  if (back < depth - 1) return "gradient of the input of layer " + std::to_string(depth - 1 - back);
  return back == depth - 1 ? "update of layer 0" : "loss";
}

PersistentLayout make_persistent_layout(const NetworkSpec& network, const TrainingSpec& training, const GpuCaps& gpu) {
  return make_persistent_layout(network, training, gpu, make_step(network, training));
}

PersistentLayout make_persistent_layout(const NetworkSpec& network, const TrainingSpec& training, const GpuCaps& gpu,
                                        Step step, int most_on_chip_blocks) {
  return Builder(network, training).build(gpu, std::move(step), most_on_chip_blocks);
}

cuda::TwoLayerDevice two_layer_device(const GpuCaps& gpu) {
  const bool has_clusters = gpu.compute_capability >= 90;
  const std::int64_t all = gpu.multiprocessors;
  cuda::TwoLayerDevice device;
  device.shared_bytes = static_cast<std::int64_t>(gpu.shared_bytes);
  device.resident_clusters = {all, has_clusters ? all / 2 : 0, has_clusters ? all / 4 * 10 / 11 : 0,
                              has_clusters ? all / 8 * 15 / 16 : 0, 0};
  return device;
}

PersistentOperation persistent_operation(const PersistentLayout& layout, const StepOperation& operation) {
  PersistentOperation made;
  made.rows = operation.rows;
  made.columns = operation.columns;
  made.inner = operation.inner;
  made.a = layout.at(operation.a);
  made.b = layout.at(operation.b);
  made.bias = layout.at(operation.bias);
  made.start = layout.at(operation.start);
  made.out = layout.at(operation.out);
  // Of most products: [rows, inner] and [inner, columns] as they lie in memory.
  made.a_stride = operation.inner;
  made.b_stride = operation.columns;
  if (operation.activation) made.activation = operation.activation->kind;
  made.optimizer = operation.optimizer;
  std::transform(operation.state.begin(), operation.state.end(), std::begin(made.state),
                 [&](TensorId state) { return layout.at(state); });
  switch (operation.kind) {
    case StepOperation::Kind::forward:
      made.kind = operation.activation ? Kind::hidden : Kind::linear;
      made.extra = layout.at(operation.kept);
      break;
    case StepOperation::Kind::activate:  // no product: what it starts from, which an operand has to be, too
      made.kind = Kind::hidden;
      made.start = made.b = made.a;
      break;
    case StepOperation::Kind::loss:
      made.start = made.b = made.a;
      break;
    case StepOperation::Kind::input_gradient:
      made.kind = Kind::input_gradient;
      made.extra = layout.at(operation.kept);
      made.b_by_inner = 1;
      made.b_stride = operation.inner;
      break;
    case StepOperation::Kind::weight_update:
    case StepOperation::Kind::rebuild_weight:
      made.kind = operation.kind == StepOperation::Kind::weight_update ? Kind::weight_update : Kind::linear;
      // K is symmetric, and read faster as it lies.
      made.a_by_inner = layout.step.gram && operation.a == layout.step.gram->kernel;
      made.a_stride = operation.rows;
      break;
    case StepOperation::Kind::bias_update:
    case StepOperation::Kind::rebuild_bias:
      made.kind = Kind::bias_update;
      made.start = kNone;
      made.rows = 1;
      made.inner = operation.rows;
      break;
    case StepOperation::Kind::gather:  // in no step that it takes
    case StepOperation::Kind::sum_update:
      break;  // part of another one
    case StepOperation::Kind::kernel_matrix:
      made.b = made.a;
      made.b_by_inner = 1;
      made.b_stride = operation.inner;
      made.addend = operation.bias_in_kernel ? 1 : 0;
      break;
  }
  return made;
}

PersistentOperation cut_alone(PersistentOperation operation, std::int64_t multiprocessors,
                              std::uint64_t element_bytes) {
  cut_operation(operation, multiprocessors, element_bytes, Operands::in_l2);
  return operation;
}

void ask_persistent(const Request& request, Answer& answer) {
  const GpuCaps& gpu = gpu_of(request);
  Candidate& candidate = answer.candidate;
  candidate.reason = why_not_implemented(request);
  if (!candidate.reason.empty()) return;
  PersistentLayout layout = make_persistent_layout(request.network, request.training, gpu, request.step);
  candidate.bytes = layout.bytes;
  candidate.predicted_us_per_step = layout.predicted_us_per_step;
  candidate.floor_us_per_step = layout.floor_us_per_step;
  candidate.reason = gpu.no_code_reason;
  if (candidate.reason.empty()) candidate.reason = layout.refusal;
  if (candidate.reason.empty())
    candidate.reason = why_not_in_memory(gpu, candidate.bytes, "use smaller layers or fewer samples");
  candidate.accepted = candidate.reason.empty();
  if (candidate.accepted) candidate.reason = "one launch for many steps: " + layout.description();
  answer.layout = std::move(layout);
}

}  // namespace deviceloop
