// Many steps are one launch of a kernel that trains a narrow network by tensor cores: host/planning/fused_layout.h.
#include <algorithm>
#include <any>
#include <string>

#include "../../host/cuda_entry.h"
#include "../../host/planning/fused_executor_layout.h"
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
      : LaunchExecutor(network, training, decision.plan, surroundings.cuda,
                       [&] { return std::any_cast<const FusedExecutorLayout&>(decision.layout); }) {
    build([&] { make(); });
  }

  ~FusedExecutor() override { leave(); }

  void write_state(int index, ConstMatrix in) override {
    alive([&] { take_matrix(state_at(state_[static_cast<std::size_t>(index)]), in); });
  }

  std::vector<std::string> algorithms() const override {
    if (!has_steps()) return {};
    return {describe(layout_.fused) + ", at most " + std::to_string(layout_.steps_per_launch) + " steps a launch"};
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
                      "deviceloop", cudaErrorLaunchTimeout, "fused_kernel", "", 0);
  }

 private:
  void make() {
    take_arena(layout_.bytes, layout_.losses, has_steps() ? layout_.steps_per_launch : 0);
    if (has_steps()) {
      make_queues();
      prepare_fused(layout_.fused);
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
    arguments.arrivals = at<unsigned>(layout_.arrivals);
    arguments.timeout_ns = timeout_ns();
    arguments.failed = at<std::uint64_t>(layout_.failed);
    clear(layout_.arrivals, sizeof(unsigned));
    launch_fused(arguments, layout_.fused, stream());
  }
};

}  // namespace
}  // namespace cuda

std::unique_ptr<Executor> make_fused_executor(const NetworkSpec& network, const TrainingSpec& training,
                                              const Decision& decision, const Surroundings& surroundings) {
  return std::make_unique<cuda::FusedExecutor>(network, training, decision, surroundings);
}

}  // namespace deviceloop
