#include "persistent_layout.h"

#include <algorithm>
#include <array>
#include <limits>
#include <optional>
#include <utility>

#include "../names.h"
#include "../precision.h"
#include "../step/scalars.h"
#include "../text.h"
#include "gpu_costs.h"
#include "kernel_layout.h"

namespace deviceloop {
namespace {

constexpr std::uint64_t kAlignment = 256;
constexpr std::int64_t kMostStepsPerLaunch = 16384;

/// A form, cut for the run, or why it is none.
struct Way {
  PersistentForm form;
  std::int64_t blocks;
  std::string refusal;
  bool too_large = false;  ///< why it refuses: fewer samples or smaller layers would do
  double us = 0;           ///< a step

  void refuse(std::string why, bool is_too_large) {
    refusal = std::move(why);
    too_large = is_too_large;
  }
};

class Builder {
 public:
  Builder(const NetworkSpec& network, const TrainingSpec& training)
      : network_(network),
        training_(training),
        element_(size_of(element_type(training.precision))),
        batch_(batch_of(training)),
        arena_(network, training, kAlignment) {}

  PersistentLayout build(const GpuCaps& gpu, Step step, const ResidentLimits& limits) {
    layout_.step = std::move(step);
    layout_.gpu = gpu;
    limits_ = limits;
    place_tensors();
    choose(gpu);
    place_the_rest();
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

  /// All else of a step is on chip.
  void place_tensors() {
    layout_.tensors.assign(step().tensors.size(), kNone);
    for (const Step::Layer& layer : step().layers) take_parameters(layer);
    if (const std::optional<Step::Gram>& gram = step().gram) {
      for (const TensorId id : {gram->kernel, gram->pre_activation, gram->sum, gram->start_weight, gram->start_bias})
        take(id);
      for (const StateTensors& states :
           {gram->pre_activation_state, gram->sum_state, gram->start_weight_state, gram->start_bias_state})
        take(states);
    }
    if (batch_ == 0) return;
    for (const TensorId data : {step().data_x, step().data_y, step().data_weights}) take(data);
    for (const StepOperation& operation : step().operations)
      if (operation.kind == StepOperation::Kind::loss) layout_.loss_of_step = operation.loss;
  }

  /// The form for two layers, or why it is none. Decides the layout of the formulation.
  Way two_layer_way(const GpuCaps& gpu) {
    Way way{PersistentForm::two_layer, 1, ""};
    if (has_minibatches(training_)) {
      way.refusal = "the form 'two-layer' takes all samples in each step";
      return way;
    }
    if (network_.layers() != 2) {
      way.refusal = "the form 'two-layer' is for one hidden layer, not " + std::to_string(network_.layers() - 1);
      return way;
    }
    if (operand_parts(training_.precision) > 0) {
      way.refusal =
          "the form 'two-layer' multiplies in fp32 and fp64, not in " + std::string(name(training_.precision));
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
        way.refusal = "the form 'two-layer' is for the activation 'relu', not " + shown(network_.activation);
        return way;
    }
    if (training_.loss != Loss::squared_error || training_.reduction != Reduction::sum) {
      way.refusal = "the form 'two-layer' has the sum of squared errors alone, not the " +
                    std::string(name_or_null(training_.reduction)) + " of " + name_or_null(training_.loss);
      return way;
    }
    if (training_.sample_weights) {
      way.refusal = "the form 'two-layer' has no weights of samples";
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
      way.refuse(decision.refusal, !decision.fits());
      if (!decision.fits()) return;
      layout = decision.layout;
      layout_.tagged_bytes = layout.slots() * 2 * static_cast<std::int64_t>(element_);
      way.blocks = blocks;
      way.us = layout.estimated_us;
    };
    cuda::TwoLayerDevice device = two_layer_device(gpu);
    for (std::size_t log2 = 0; log2 < device.resident_clusters.size(); ++log2)
      device.resident_clusters[log2] = std::min(device.resident_clusters[log2], limits_.two_layer_clusters[log2]);
    if (step().gram) {
      const auto decision = cuda::decide_gram_two_layer(shape, device);
      take(decision, layout_.gram_two_layer, decision.layout.blocks);
    } else {
      const auto decision = cuda::decide_two_layer(shape, device);
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
    if (training_.optimizer.clip_norm > 0) {
      way.refusal = "the form 'on-chip' does not clip gradients by their norm";
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
    shape.tf32x3 = training_.precision == Precision::tf32x3;
    shape.states = static_cast<int>(elementwise::states_of(training_.optimizer.kind).size());
    shape.by_row = !is_by_element(training_.loss);
    shape.target_columns = step().tensor(step().y).columns;
    cuda::OnChipDevice device = on_chip_device(gpu);
    for (std::size_t log2 = 0; log2 < device.resident_clusters.size(); ++log2)
      device.resident_clusters[log2] = std::min(device.resident_clusters[log2], limits_.on_chip_clusters[log2]);
    const cuda::OnChipDecision decision = cuda::decide_on_chip(shape, device);
    way.refuse(decision.refusal, decision.is_too_large);
    if (!decision.refusal.empty()) return way;
    layout_.on_chip = decision.layout;
    way.blocks = decision.layout.all_blocks();
    way.us = decision.layout.estimated_us;
    return way;
  }

  void choose(const GpuCaps& gpu) {
    if (batch_ == 0) return;
    const Way* best = nullptr;
    std::string refusals;
    bool smaller_would_do = false, others_would_do = false;
    const std::array<Way, 2> ways = {two_layer_way(gpu), on_chip_way(gpu)};
    for (const Way& way : ways) {
      const bool is_asked_for = training_.form == PersistentForm::automatic || training_.form == way.form;
      others_would_do |= !is_asked_for && way.refusal.empty();
      if (!is_asked_for) continue;
      if (!way.refusal.empty()) {
        refusals += (refusals.empty() ? "" : ", and ") + way.refusal;
        smaller_would_do |= way.too_large;
        continue;
      }
      if (best == nullptr || way.us < best->us) best = &way;
    }
    if (best == nullptr) {
      std::string remedies;
      if (smaller_would_do)
        remedies = has_minibatches(training_) ? "smaller layers, smaller batches" : "smaller layers, fewer samples";
      if (others_would_do) remedies += remedies.empty() ? "another form" : ", another form";
      layout_.refusal = refusals + "; use " + remedies + (remedies.empty() ? "" : " or ") + "the plan 'graph'";
      return;
    }
    layout_.form = best->form;
    layout_.blocks = best->blocks;
    layout_.predicted_us_per_step = best->us;
    layout_.floor_us_per_step = floor_us();
  }

  /// The products at the peak of the blocks, and what they have to tell each other one after the other.
  double floor_us() const {
    using namespace gpu_costs;
    const double products_us =
        multiply_adds(step().operations) / (static_cast<double>(layout_.blocks) * fma_per_us(element_));
    if (layout_.form == PersistentForm::two_layer)
      return products_us + kL2HopUs + (layout_.two_layer.cluster_blocks() > 1 ? kPeerHopUs : 0);
    // Of the form on_chip; split by inputs, the parameters are exchanged behind the gradient of the first layer's.
    return products_us + (layout_.on_chip.blocks() > 1 ? 2 * kPeerHopUs : 0) +
           (layout_.on_chip.clusters > 1 ? 2 * kL2HopUs : 0);
  }

  void place_the_rest() {
    if (batch_ > 0) {
      const bool is_two_layer = layout_.form == PersistentForm::two_layer;
      if (!is_two_layer) layout_.tagged_bytes = layout_.on_chip.tagged_units() * cuda::kTaggedUnitBytes;
      if (!layout_.refusal.empty()) layout_.tagged_bytes = 0;
      if (layout_.tagged_bytes > 0) layout_.tagged = arena_.take(layout_.tagged_bytes, 1, 1);
      const double us = std::max(layout_.predicted_us_per_step, 1.0);
      layout_.steps_per_launch =
          std::clamp(static_cast<std::int64_t>(gpu_costs::kLongestLaunchUs / us), std::int64_t{1}, kMostStepsPerLaunch);
      layout_.losses = arena_.take(2 * layout_.steps_per_launch, 1, sizeof(double));
      layout_.loss = arena_.take(1, 1, sizeof(double));
      layout_.failed = arena_.take(1, 1, sizeof(std::uint64_t));
      if (!is_two_layer) layout_.loss_parts = arena_.take(layout_.steps_per_launch, layout_.blocks, sizeof(double));
      if (!is_two_layer && layout_.on_chip.clusters > 1) layout_.blocks_done = arena_.take(1, 1, sizeof(std::uint32_t));
      if (scalars_vary(training_)) layout_.scalar_sets = layout_.steps_per_launch;
      layout_.scalars = arena_.take(layout_.scalar_sets + 1, 1, scalars_bytes(training_.precision));
      if (step().gram)
        layout_.slots = arena_.take(cuda::column_sums_slots(batch_, network_.widths[1]), 1, sizeof(double));
    }
    layout_.prediction = take_prediction_space(arena_, network_, element_);
    layout_.bytes = arena_.used();
  }

  const NetworkSpec& network_;
  const TrainingSpec& training_;
  const std::uint64_t element_;
  const std::int64_t batch_;
  ArenaSpace arena_;
  PersistentLayout layout_;
  ResidentLimits limits_;
};

}  // namespace

std::string PersistentLayout::description() const {
  return (form == PersistentForm::on_chip ? cuda::describe(on_chip)
          : step.gram                     ? cuda::describe(gram_two_layer)
                                          : cuda::describe(two_layer)) +
         ", at most " + std::to_string(steps_per_launch) + " steps a launch" + (note.empty() ? "" : ", " + note);
}

std::string PersistentLayout::phase_name(std::int64_t phase) const {
  if (form == PersistentForm::on_chip) return cuda::name(static_cast<cuda::OnChipPhase>(phase + 1));
  return phase + 1 == static_cast<std::int64_t>(cuda::TwoLayerPhase::kClusterExchange) ? "exchange within a cluster"
                                                                                       : "exchange of the predictions";
}

PersistentLayout make_persistent_layout(const NetworkSpec& network, const TrainingSpec& training, const GpuCaps& gpu) {
  return make_persistent_layout(network, training, gpu, make_step(network, training));
}

PersistentLayout make_persistent_layout(const NetworkSpec& network, const TrainingSpec& training, const GpuCaps& gpu,
                                        Step step, const ResidentLimits& limits) {
  return Builder(network, training).build(gpu, std::move(step), limits);
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

cuda::OnChipDevice on_chip_device(const GpuCaps& gpu) {
  cuda::OnChipDevice device{static_cast<std::int64_t>(gpu.shared_bytes), two_layer_device(gpu).resident_clusters};
  device.resident_clusters[4] = gpu.multiprocessors / 16 * 7 / 8;
  for (std::size_t log2 = 0; log2 < device.resident_clusters.size(); ++log2)
    if (!gpu.cooperative || device.resident_clusters[log2] == 0)
      device.resident_clusters[log2] = std::min<std::int64_t>(gpu.multiprocessors >> log2, 1);
  return device;
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
