// Many steps are one launch of a kernel that trains a narrow network by tensor cores: host/planning/fused_layout.h.
#include <algorithm>
#include <any>
#include <string>

#include "../../host/cuda_entry.h"
#include "../../host/planning/fused_executor_layout.h"
#include "../../host/planning/on_chip_layout.h"
#include "../kernels/fused.h"
#include "../kernels/kernels.h"
#include "launch_executor.h"

namespace deviceloop {
namespace cuda {
namespace {

class FusedExecutor final : public LaunchExecutor<float, FusedExecutorLayout> {
 public:
  FusedExecutor(const NetworkSpec& network, const TrainingSpec& training, const Decision& decision,
                const Surroundings& surroundings)
      : LaunchExecutor(network, training, decision.plan, surroundings.cuda, [&] {
          return resident(std::any_cast<const FusedExecutorLayout&>(decision.layout), network, training,
                          decision.plan.device);
        }) {
    build([&] { make(decision.plan.bytes); });
  }

  ~FusedExecutor() override { leave(); }

  void write_state(int index, ConstMatrix in) override {
    alive([&] { take_matrix(state_at(state_[static_cast<std::size_t>(index)]), in); });
  }

  std::vector<std::string> algorithms() const override {
    if (!has_steps()) return {};
    return {layout_.description() + cooperative_note()};
  }

  GramRun* gram_run() override { return nullptr; }

 protected:
  void check_run() override {
    const std::uint64_t status = this->status();
    if (status == 0) return;
    throw DeviceError("plan 'fused': the GPU's blocks waited for each other longer than " +
                          std::to_string(training_.deadline_ms) + " ms, in step " +
                          std::to_string(late_wait_step(status)) + ", for '" +
                          name(static_cast<FusedPhase>(late_wait_phase(status))) +
                          "': other work may hold a part of the GPU; use a larger deadline, or another plan",
                      "deviceloop", cudaErrorLaunchTimeout,
                      layout_.fused.clusters > 0 ? "fused_clusters_kernel" : "fused_kernel", "", 0);
  }

 private:
  /// The plan's layout. How many clusters a GPU runs at once only it can tell, the plan has an estimate: where they are
  /// too few, the run is planned anew for those that there are, or without clusters.
  static FusedExecutorLayout resident(const FusedExecutorLayout& planned, const NetworkSpec& network,
                                      const TrainingSpec& training, int device) {
    FusedExecutorLayout layout = planned;
    if (training.samples == 0) return layout;
    const CurrentDevice current(device);
    FusedLimits limits;
    while (layout.fused.clusters > 0) {
      const FusedLayout& fused = layout.fused;
      prepare_fused(fused);
      const std::int64_t resident = resident_clusters_of(fused);
      if (resident >= fused.clusters) break;
      const std::string note = "otherwise than planned: " + std::to_string(fused.clusters) +
                               (fused.clusters == 1 ? " cluster of " : " clusters of ") +
                               std::to_string(fused.cluster_blocks()) + " blocks must run at once, of which " +
                               planned.gpu.name + " runs " + std::to_string(resident);
      limits.clusters[static_cast<std::size_t>(fused.cluster_log2)] = resident;
      layout = make_fused_executor_layout(network, training, planned.gpu, planned.step, limits);
      layout.note = note;
    }
    return layout;
  }

  /// CUDA answers with an error where the GPU has no clusters of that size at all.
  static std::int64_t resident_clusters_of(const FusedLayout& layout) {
    try {
      return resident_fused_clusters(layout);
    } catch (const DeviceError& error) {
      if (error.code() != cudaErrorInvalidClusterSize) throw;
      return 0;
    }
  }

  /// Reserves what the plan promised, `bytes`, even if other clusters than the plan's need less.
  void make(std::uint64_t bytes) {
    take_arena(std::max(layout_.bytes, bytes), layout_.losses, has_steps() ? layout_.steps_per_launch : 0);
    if (has_steps()) {
      make_queues();
      prepare_fused(layout_.fused);
      if (layout_.fused.clusters > 1) try_cooperative();
    }
    preparation_.lap("memory");
    rehearse(0, [] {});
    preparation_.lap("kernels");
  }

  void data_are_here() override {
    if (!has_steps()) return;
    launch_fused_tiles(at<std::uint32_t>(layout_.tiles), tensor_at(layout_.step.data_x),
                       static_cast<int>(network_.widths.front()), layout_.fused, stream());
  }

  void launch_steps(std::int64_t first_step, std::int64_t steps, double* losses, bool forward_only) override {
    const Step& step = layout_.step;
    FusedArguments arguments;
    arguments.tiles = at<std::uint32_t>(layout_.tiles);
    arguments.y = tensor_at(step.data_y);
    arguments.row_weights = tensor(step.data_weights);
    if (layout_.fused.gathers()) {
      arguments.order = step.order;
      arguments.network = SampleNetwork::of(step.order.samples);
    }
    std::copy(network_.widths.begin(), network_.widths.end(), arguments.widths);
    for (std::size_t layer = 0; layer < step.layers.size(); ++layer) {
      arguments.weights[layer] = parameter<FusedParameter>(step.layers[layer].weight, step.layers[layer].weight_state);
      arguments.biases[layer] = parameter<FusedParameter>(step.layers[layer].bias, step.layers[layer].bias_state);
    }
    arguments.optimizer = training_.optimizer.kind;
    arguments.scalars = at<Scalars>(layout_.scalars);
    arguments.scalar_stride = scalars_->varies() ? 1 : 0;
    arguments.first_step = first_step;
    arguments.steps = steps;
    arguments.activation = {network_.activation, network_.leaky_slope};
    arguments.output_activation = {network_.output_activation, network_.leaky_slope};
    arguments.loss = layout_.loss_of_step;
    arguments.forward_only = forward_only;
    arguments.losses = losses;
    arguments.operands = at<unsigned char>(layout_.operands);
    arguments.slots = at<float>(layout_.slots);
    arguments.loss_parts = at<double>(layout_.loss_parts);
    if (layout_.fused.clusters == 0) {
      arguments.arrivals = at<unsigned>(layout_.arrivals);
      clear(layout_.arrivals, sizeof(unsigned));
    } else if (layout_.fused.clusters > 1) {
      clear(layout_.slots, static_cast<std::uint64_t>(layout_.fused.tagged_units()) * kTaggedUnitBytes);
    }
    arguments.timeout_ns = timeout_ns();
    arguments.failed = at<std::uint64_t>(layout_.failed);
    launch_fused(arguments, layout_.fused, is_cooperative_, stream());
  }
};

}  // namespace
}  // namespace cuda

std::unique_ptr<Executor> make_fused_executor(const NetworkSpec& network, const TrainingSpec& training,
                                              const Decision& decision, const Surroundings& surroundings) {
  return std::make_unique<cuda::FusedExecutor>(network, training, decision, surroundings);
}

}  // namespace deviceloop
