#include "fused_executor_layout.h"

#include <algorithm>
#include <utility>

#include "../names.h"
#include "../precision.h"
#include "../step/scalars.h"
#include "gpu_costs.h"
#include "persistent_layout.h"

namespace deviceloop {
namespace {

constexpr std::uint64_t kAlignment = 256;
constexpr std::int64_t kMostStepsPerLaunch = 16384;

std::string why_not_activation(const NetworkSpec& network) {
  const bool has_hidden = cuda::fused_has(network.activation);
  if (has_hidden && cuda::fused_has(network.output_activation)) return "";
  return std::string("it has no ") + (has_hidden ? "output " : "") + "activation " +
         shown(has_hidden ? network.output_activation : network.activation) +
         "; choose another activation or another plan";
}

/// What of the specifications its kernel has not.
std::string why_not_specified(const NetworkSpec& network, const TrainingSpec& training) {
  if (std::string reason = why_not_activation(network); !reason.empty()) return reason;
  if (training.optimizer.clip_norm > 0)
    return "it does not clip gradients by their norm; clip them by their value (clip_value) or choose another plan";
  return "";
}

std::string why_not_on(const GpuCaps& gpu) {
  if (!gpu.no_hopper_code_reason.empty()) return gpu.no_hopper_code_reason;
  if (!gpu.cooperative) return gpu.name + " does not promise that all blocks of a launch run at once";
  return "";
}

class Builder {
 public:
  Builder(const NetworkSpec& network, const TrainingSpec& training)
      : network_(network), training_(training), batch_(batch_of(training)), arena_(network, training, kAlignment) {}

  FusedExecutorLayout build(const GpuCaps& gpu, Step step, const FusedLimits& limits) {
    layout_.step = std::move(step);
    layout_.gpu = gpu;
    choose(gpu, limits);
    if (layout_.refusal.empty()) place();
    return std::move(layout_);
  }

 private:
  void choose(const GpuCaps& gpu, const FusedLimits& limits) {
    cuda::FusedShape shape;
    shape.rows = std::max<std::int64_t>(batch_, 1);
    shape.widths = network_.widths;
    shape.samples = has_minibatches(training_) ? training_.samples : 0;
    shape.precision = training_.precision;
    cuda::FusedDevice device{gpu.compute_capability, gpu.multiprocessors, static_cast<int>(gpu.shared_bytes),
                             on_chip_device(gpu).resident_clusters};
    for (std::size_t log2 = 0; log2 < device.resident_clusters.size(); ++log2)
      device.resident_clusters[log2] = std::min(device.resident_clusters[log2], limits.clusters[log2]);
    cuda::FusedDecision decision = decide_fused(shape, device);
    layout_.refusal = std::move(decision.refusal);
    if (layout_.refusal.empty()) layout_.refusal = why_not_specified(network_, training_);
    if (layout_.refusal.empty()) layout_.refusal = why_not_on(gpu);
    layout_.fused = decision.layout;
    if (batch_ == 0) {
      layout_.fused.estimated_us = 0;
    } else if (layout_.refusal.empty()) {
      layout_.floor_us_per_step = floor_us(gpu);
    }
  }

  /// The products at the peak of the tensor cores, or the data from memory or, where they fit there, the L2; and what
  /// blocks have to tell each other one after the other: two barriers of the grid, or in clusters sums and operands.
  double floor_us(const GpuCaps& gpu) const {
    using namespace gpu_costs;
    // TF32 has half as many lanes, and takes three passes of them for tf32x3.
    const bool is_bf16 = layout_.fused.is_bf16();
    const double lanes = kTensorBf16Lanes / (is_bf16 ? 1 : training_.precision == Precision::tf32 ? 2 : 6);
    const double products_us =
        multiply_adds(layout_.step.operations) / (layout_.fused.blocks * lanes * kClockGhz * 1e3);
    const double bytes = static_cast<double>(batch_) *
                         static_cast<double>((is_bf16 ? 2 : 4) * network_.widths.front() + 4 * network_.widths.back());
    const bool in_l2 = bytes <= static_cast<double>(gpu.l2_bytes) || gpu.memory_gb_per_s == 0;
    const double bytes_us = bytes / (1e3 * (in_l2 ? kL2GbPerSecond : gpu.memory_gb_per_s));
    const cuda::FusedLayout& fused = layout_.fused;
    const double exchange_us =
        fused.clusters == 0 ? 2 * kL2HopUs
                            : (fused.cluster_blocks() > 1 ? 2 * kPeerHopUs : 0) + (fused.clusters > 1 ? kL2HopUs : 0);
    return std::max(products_us, bytes_us) + exchange_us;
  }

  void take(TensorId id) {
    if (id == kNoTensor) return;
    const StepTensor& tensor = layout_.step.tensor(id);
    layout_.tensors[static_cast<std::size_t>(id)] = arena_.take(tensor.rows, tensor.columns, sizeof(float));
  }

  void place() {
    const Step& step = layout_.step;
    layout_.tensors.assign(step.tensors.size(), kNone);
    for (const Step::Layer& layer : step.layers) {
      take(layer.weight);
      take(layer.bias);
      for (const StateTensors& states : {layer.weight_state, layer.bias_state})
        for (const TensorId state : states) take(state);
    }
    if (batch_ > 0) place_steps();
    layout_.prediction = take_prediction_space(arena_, network_, sizeof(float));
    layout_.bytes = arena_.used();
  }

  void place_steps() {
    const Step& step = layout_.step;
    const cuda::FusedLayout& fused = layout_.fused;
    for (const StepOperation& operation : step.operations)
      if (operation.kind == StepOperation::Kind::loss) layout_.loss_of_step = operation.loss;
    take(step.data_x);
    take(step.data_y);
    take(step.data_weights);
    layout_.tiles = arena_.take(fused.data_tiles(), fused.tile_bytes(), 1);
    if (fused.is_bf16()) layout_.operands = arena_.take(fused.operand_bytes(), 1, 1);  // in tf32 of shared memory alone
    // Enough for whatever an executor plans anew where clusters are too few: slots, or words of up to a cluster for
    // each four tiles.
    const std::int64_t blocks = std::min<std::int64_t>(fused.tiles, layout_.gpu.multiprocessors);
    std::int64_t slot_fours = blocks * fused.slots().count();
    if (fused.clusters > 0) slot_fours = std::max(slot_fours, 2 * fused.most_tagged_units(blocks));
    layout_.slots = arena_.take(slot_fours, 4, sizeof(float));
    layout_.loss_parts = arena_.take(blocks, 1, sizeof(double));
    layout_.arrivals = arena_.take(1, 1, sizeof(unsigned));
    layout_.failed = arena_.take(1, 1, sizeof(std::uint64_t));
    layout_.steps_per_launch =
        std::clamp(static_cast<std::int64_t>(gpu_costs::kLongestLaunchUs / std::max(fused.estimated_us, 1.0)),
                   std::int64_t{1}, kMostStepsPerLaunch);
    if (scalars_vary(training_)) layout_.scalar_sets = layout_.steps_per_launch;
    layout_.scalars = arena_.take(layout_.scalar_sets, 1, scalars_bytes(training_.precision));
    layout_.losses = arena_.take(2 * layout_.steps_per_launch, 1, sizeof(double));
    layout_.loss = arena_.take(1, 1, sizeof(double));
  }

  const NetworkSpec& network_;
  const TrainingSpec& training_;
  const std::int64_t batch_;
  ArenaSpace arena_;
  FusedExecutorLayout layout_;
};

}  // namespace

FusedExecutorLayout make_fused_executor_layout(const NetworkSpec& network, const TrainingSpec& training,
                                               const GpuCaps& gpu, Step step, const FusedLimits& limits) {
  return Builder(network, training).build(gpu, std::move(step), limits);
}

std::string FusedExecutorLayout::description() const {
  return describe(fused) + ", at most " + std::to_string(steps_per_launch) + " steps a launch" +
         (note.empty() ? "" : "; " + note);
}

void ask_fused(const Request& request, Answer& answer) {
  const GpuCaps& gpu = gpu_of(request);
  Candidate& candidate = answer.candidate;
  candidate.reason = why_not_implemented(request);
  if (candidate.reason.empty()) candidate.reason = gpu.no_code_reason;
  if (!candidate.reason.empty()) return;
  FusedExecutorLayout layout = make_fused_executor_layout(request.network, request.training, gpu, request.step);
  candidate.reason = layout.refusal;
  if (!candidate.reason.empty()) return;
  candidate.bytes = layout.bytes;
  candidate.predicted_us_per_step = layout.fused.estimated_us;
  candidate.floor_us_per_step = layout.floor_us_per_step;
  candidate.reason = why_not_in_memory(gpu, candidate.bytes, "use fewer samples");
  candidate.accepted = candidate.reason.empty();
  if (candidate.accepted) candidate.reason = "one launch for many steps: " + layout.description();
  answer.layout = std::move(layout);
}

}  // namespace deviceloop
