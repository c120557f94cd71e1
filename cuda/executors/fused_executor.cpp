// Many steps are one launch of a kernel that trains a narrow network by tensor cores: host/planning/fused_layout.h. The
// host enqueues a launch after the other, each of at most half a second by the plan, and reads their losses.
#include <algorithm>
#include <any>
#include <optional>
#include <string>

#include "../../host/cuda_entry.h"
#include "../../host/planning/fused_executor_layout.h"
#include "../../host/step/scalars.h"
#include "../kernels/fused.h"
#include "../kernels/kernels.h"
#include "device_executor.h"
#include "scalar_queue.h"
#include "tile_predictions.h"

namespace deviceloop {
namespace cuda {
namespace {

class FusedExecutor final : public DeviceExecutor<float> {
  using Base = DeviceExecutor<float>;
  using Scalars = elementwise::StepScalars<float>;

 public:
  FusedExecutor(const NetworkSpec& network, const TrainingSpec& training, const Decision& decision,
                const Surroundings& surroundings)
      : Base(network, training, decision.plan, surroundings.cuda),
        layout_(std::any_cast<const FusedExecutorLayout&>(decision.layout)) {
    build([&] { make(); });
  }

  ~FusedExecutor() override { leave(); }

  void set_data(const TrainingData& data) override {
    alive([&] {
      const auto read_there = [&](const ConstMatrix& matrix) {
        return is_ready_for_use(matrix) ? static_cast<const float*>(matrix.data) : nullptr;
      };
      x_ = read_there(data.x);
      y_ = read_there(data.y);
      take_data(data, {.x = x_ == nullptr ? tensor(layout_.step.data_x) : nullptr,
                       .y = y_ == nullptr ? tensor(layout_.step.data_y) : nullptr,
                       .sample_weights = tensor(layout_.step.data_weights)});
      make_tiles();
    });
  }

  void data_changed() override {
    alive([&] {
      take_device_data();
      make_tiles();
    });
  }

  void enqueue_step(double*) override {
    throw Unsupported(
        "enqueue_step is of the plan 'graph': a launch of the plan 'fused' reports to the host; use train_async, or "
        "ask for the plan 'graph'");
  }

  void enqueue(std::int64_t first_step, std::int64_t steps) override {
    if (steps == 0) return;
    alive([&] {
      const Range range("deviceloop: launch");
      losses_->begin(steps);
      losses_->restart(stream());
      for (std::int64_t done = 0; done < steps;) {
        const std::int64_t count = std::min(layout_.steps_per_launch, steps - done);
        if (scalars_->varies()) scalars_->send(scalars_->prepare(first_step + done, count), count, stream());
        const std::int64_t half = losses_->next_half(stream());
        launch_steps(first_step + done, count, at<double>(layout_.losses) + half * layout_.steps_per_launch, false);
        losses_->send(count, stream());
        done += count;
      }
    });
  }

  double loss(std::int64_t step) override {
    double loss = 0;
    alive([&] {
      launch_steps(step, 1, at<double>(layout_.one_loss), true);
      download(&loss, at<double>(layout_.one_loss), sizeof loss);
      check_run();
    });
    return loss;
  }

  void write_state(int index, ConstMatrix in) override {
    alive([&] { take_matrix(state_at(state_[static_cast<std::size_t>(index)]), in); });
  }

  std::vector<std::string> algorithms() const override {
    if (!has_steps()) return {};
    return {describe(layout_.fused) + ", at most " + std::to_string(layout_.steps_per_launch) + " steps a launch"};
  }

  const Step& step() const override { return layout_.step; }
  GramRun* gram_run() override { return nullptr; }

 protected:
  float* state_at(const ParameterInfo& info) override { return tensor(layout_.step.tensor_of(info)); }
  float* tensor_at(TensorId id) override {
    if (id == layout_.step.data_x && x_ != nullptr) return const_cast<float*>(x_);  // data are read only
    if (id == layout_.step.data_y && y_ != nullptr) return const_cast<float*>(y_);
    return tensor(id);
  }

  PredictRoom predict_room() const override { return {at<float>(layout_.prediction.input), layout_.prediction.rows}; }
  const float* enqueue_predict(std::int64_t rows) const override {
    return enqueue_tile_predictions<float>(
        layout_.prediction, layout_.step, rows, [this](std::uint64_t offset) { return at<float>(offset); },
        [this](TensorId id) { return tensor(id); }, stream());
  }

  void check_run() override {
    const std::uint64_t status = has_steps() ? *static_cast<const std::uint64_t*>(status_.data()) : 0;
    if (status == 0) return;
    throw DeviceError("plan 'fused': the GPU's blocks waited for each other longer than " +
                          std::to_string(training_.deadline_ms) + " ms, in step " +
                          std::to_string(late_wait_step(status)) + ", for '" +
                          name(static_cast<FusedPhase>(late_wait_phase(status))) +
                          "': other work may hold a part of the GPU; use a larger deadline, or another plan",
                      "deviceloop", cudaErrorLaunchTimeout, "fused_kernel", "", 0);
  }

 private:
  /// Null where there is none.
  float* tensor(TensorId id) const { return layout_.at(id) == kNone ? nullptr : at<float>(layout_.at(id)); }
  bool has_steps() const { return training_.samples > 0; }

  void make() {
    take_arena(layout_.bytes, layout_.losses, has_steps() ? layout_.steps_per_launch : 0);
    if (has_steps()) {
      scalars_.emplace(training_, at<Scalars>(layout_.scalars), layout_.scalar_sets);
      scalars_->send(scalars_->prepare(0, 1), 1, stream());
      status_ = PinnedBuffer(sizeof(std::uint64_t));
      *static_cast<std::uint64_t*>(status_.data()) = 0;
      prepare_fused(layout_.fused);
    }
    preparation_.lap("memory");
    rehearse();
    preparation_.lap("kernels");
  }

  /// CUDA loads the code of a kernel when it is first used, which takes milliseconds: a launch of no steps does.
  void rehearse() {
    const Range range("deviceloop: rehearse");
    if (!has_steps()) {
      enqueue_predict(1);
    } else {
      losses_->begin(1);
      losses_->restart(stream());
      launch_steps(0, 0, at<double>(layout_.losses), false);
      losses_->send(1, stream());
      double loss = 0;
      losses_->fetch({&loss, 1});
    }
    DEVICELOOP_CHECK_CUDA(cudaStreamSynchronize(stream()));
    check_run();
  }

  void make_tiles() {
    if (!has_steps()) return;
    launch_fused_tiles(at<std::uint32_t>(layout_.tiles), tensor_at(layout_.step.data_x),
                       static_cast<int>(network_.widths.front()), layout_.fused, stream());
  }

  FusedParameter parameter(TensorId values, const StateTensors& states) const {
    FusedParameter parameter;
    parameter.values = tensor(values);
    for (std::size_t state = 0; state < states.size(); ++state) parameter.states[state] = tensor(states[state]);
    return parameter;
  }

  /// `steps`, `first_step` of the run before them, are enqueued, or with `forward_only` the loss of the parameters as
  /// they are.
  void launch_steps(std::int64_t first_step, std::int64_t steps, double* losses, bool forward_only) {
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
      arguments.weights[layer] = parameter(step.layers[layer].weight, step.layers[layer].weight_state);
      arguments.biases[layer] = parameter(step.layers[layer].bias, step.layers[layer].bias_state);
    }
    arguments.optimizer = training_.optimizer.kind;
    arguments.scalars = at<Scalars>(layout_.scalars);
    arguments.scalar_stride = scalars_->varies() ? 1 : 0;
    arguments.first_step = first_step;
    arguments.steps = steps;
    arguments.activation = {network_.activation, network_.leaky_slope};
    arguments.output_activation = {network_.output_activation, network_.leaky_slope};
    arguments.loss = layout_.loss;
    arguments.forward_only = forward_only;
    arguments.losses = losses;
    arguments.operands = at<unsigned char>(layout_.operands);
    arguments.slots = at<float>(layout_.slots);
    arguments.loss_parts = at<double>(layout_.loss_parts);
    arguments.arrivals = at<unsigned>(layout_.arrivals);
    arguments.timeout_ns = static_cast<std::uint64_t>(training_.deadline_ms) * 1000000;
    arguments.failed = at<std::uint64_t>(layout_.failed);
    clear(layout_.arrivals, sizeof(unsigned));
    launch_fused(arguments, layout_.fused, stream());
    DEVICELOOP_CHECK_CUDA(
        cudaMemcpyAsync(status_.data(), arguments.failed, sizeof(std::uint64_t), cudaMemcpyDeviceToHost, stream()));
  }

  const FusedExecutorLayout layout_;
  const float *x_ = nullptr, *y_ = nullptr;  ///< the caller's, where they are read there
  std::optional<ScalarQueue<float>> scalars_;
  PinnedBuffer status_;  ///< layout_.failed, after the last launch that has ended
};

}  // namespace
}  // namespace cuda

std::unique_ptr<Executor> make_fused_executor(const NetworkSpec& network, const TrainingSpec& training,
                                              const Decision& decision, const Surroundings& surroundings) {
  return std::make_unique<cuda::FusedExecutor>(network, training, decision, surroundings);
}

}  // namespace deviceloop
