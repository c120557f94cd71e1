// What the executors share whose launches are many steps each: the host enqueues one after the other, each of at most
// half a second by the plan, and reads their losses.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>

#include "../../host/planning/arena_space.h"
#include "../../host/step/gram_run.h"
#include "../../host/step/scalars.h"
#include "device_executor.h"
#include "scalar_queue.h"
#include "tile_predictions.h"

namespace deviceloop::cuda {

/// A layout has `step` and at(id) of its tensors, steps_per_launch, and places for the scalars of a launch (`scalars`,
/// scalar_sets), its losses, one loss, `failed` and predictions (prediction). A derived class says how steps are
/// launched, and takes its memory in its constructor: take_arena, make_queues, rehearse.
template <class T, class Layout>
class LaunchExecutor : public DeviceExecutor<T> {
  using Base = DeviceExecutor<T>;

 public:
  /// make_layout() is called on a device that has a context.
  template <class MakeLayout>
  LaunchExecutor(const NetworkSpec& network, const TrainingSpec& training, const Plan& plan, const CudaOptions& options,
                 const MakeLayout& make_layout)
      : Base(network, training, plan, options), layout_(make_layout()) {}

  void set_data(const TrainingData& data) override {
    alive([&] {
      GramRun* const gram = this->gram_run();
      if (gram != nullptr) gram->before_data();
      const auto read_there = [&](const ConstMatrix& matrix) {
        return gram == nullptr && this->is_ready_for_use(matrix) ? static_cast<const T*>(matrix.data) : nullptr;
      };
      x_ = read_there(data.x);
      y_ = read_there(data.y);
      this->take_data(data, {.x = x_ == nullptr ? tensor(layout_.step.data_x) : nullptr,
                             .y = y_ == nullptr ? tensor(layout_.step.data_y) : nullptr,
                             .sample_weights = tensor(layout_.step.data_weights)});
      data_are_here();
    });
  }

  void data_changed() override {
    alive([&] {
      if (GramRun* const gram = this->gram_run()) gram->before_data();
      this->take_device_data();
      data_are_here();
    });
  }

  void enqueue_step(double*) override {
    throw Unsupported("enqueue_step is of the plan 'graph': a launch of the plan '" + std::string(this->plan_name_) +
                      "' reports to the host; use train_async, or ask for the plan 'graph'");
  }

  void enqueue(std::int64_t first_step, std::int64_t steps) override {
    if (steps == 0) return;
    alive([&] {
      const Range range("deviceloop: launch");
      GramRun* const gram = this->gram_run();
      losses_->begin(steps);
      losses_->restart(stream());
      for (std::int64_t done = 0; done < steps;) {
        std::int64_t count = std::min(layout_.steps_per_launch, steps - done);
        if (gram != nullptr) {
          gram->before_step();
          count = gram->steps_in_one_go(count);
        }
        if (scalars_->varies()) scalars_->send(scalars_->prepare(first_step + done, count), count, stream());
        const std::int64_t half = losses_->next_half(stream());
        launch(first_step + done, count, at<double>(layout_.losses) + half * layout_.steps_per_launch, false);
        losses_->send(count, stream());
        if (gram != nullptr) gram->after_steps(first_step + done, count);
        done += count;
      }
    });
  }

  double loss(std::int64_t step) override {
    double loss = 0;
    alive([&] {
      if (GramRun* const gram = this->gram_run()) gram->before_step();
      launch(step, 1, at<double>(layout_.loss), true);
      this->download(&loss, at<double>(layout_.loss), sizeof loss);
      this->check_run();
    });
    return loss;
  }

  const Step& step() const override { return layout_.step; }

 protected:
  using Base::alive;
  using Base::losses_;
  using Base::stream;
  using Base::training_;
  using Scalars = elementwise::StepScalars<T>;

  /// `steps`, `first_step` of the run before them, are enqueued, or with `forward_only` the loss of the parameters as
  /// they are.
  virtual void launch_steps(std::int64_t first_step, std::int64_t steps, double* losses, bool forward_only) = 0;
  /// The data lie where steps read them, or the caller's do.
  virtual void data_are_here() {}

  /// launch_steps, and the way of layout_.failed to status().
  void launch(std::int64_t first_step, std::int64_t steps, double* losses, bool forward_only) {
    launch_steps(first_step, steps, losses, forward_only);
    DEVICELOOP_CHECK_CUDA(cudaMemcpyAsync(status_.data(), at<std::uint64_t>(layout_.failed), sizeof(std::uint64_t),
                                          cudaMemcpyDeviceToHost, stream()));
  }
  /// Why the launches that have ended gave up; 0 where none did.
  std::uint64_t status() const { return has_steps() ? *static_cast<const std::uint64_t*>(status_.data()) : 0; }

  T* state_at(const ParameterInfo& info) override { return tensor(layout_.step.tensor_of(info)); }
  T* tensor_at(TensorId id) override {
    if (id == layout_.step.data_x && x_ != nullptr) return const_cast<T*>(x_);  // data are read only
    if (id == layout_.step.data_y && y_ != nullptr) return const_cast<T*>(y_);
    return tensor(id);
  }

  typename Base::PredictRoom predict_room() const override {
    return {at<T>(layout_.prediction.input), layout_.prediction.rows};
  }
  const T* enqueue_predict(std::int64_t rows) const override {
    return enqueue_tile_predictions<T>(
        layout_.prediction, layout_.step, rows, [this](std::uint64_t offset) { return at<T>(offset); },
        [this](TensorId id) { return tensor(id); }, stream());
  }

  template <class Element>
  Element* at(std::uint64_t offset) const {
    return Base::template at<Element>(offset);
  }
  /// Null where there is none.
  T* tensor(TensorId id) const { return layout_.at(id) == kNone ? nullptr : at<T>(layout_.at(id)); }
  bool has_steps() const { return training_.samples > 0; }
  std::uint64_t timeout_ns() const { return static_cast<std::uint64_t>(training_.deadline_ms) * 1000000; }

  /// A parameter and what the optimizer keeps for it, as a kernel's struct has them.
  template <class Parameter>
  Parameter parameter(TensorId values, const StateTensors& states) const {
    Parameter parameter;
    parameter.values = tensor(values);
    for (std::size_t state = 0; state < states.size(); ++state) parameter.states[state] = tensor(states[state]);
    return parameter;
  }

  /// Of an executor that has steps, once its memory is there.
  void make_queues() {
    scalars_.emplace(training_, at<Scalars>(layout_.scalars), layout_.scalar_sets);
    scalars_->send(scalars_->prepare(0, 1), 1, stream());
    status_ = PinnedBuffer(sizeof(std::uint64_t));
    *static_cast<std::uint64_t*>(status_.data()) = 0;
  }

  /// CUDA loads the code of a kernel when it is first used, which takes milliseconds. So a launch of `steps`, and then
  /// what `end` does, are done once, on memory that is 0 and stays 0.
  template <class End>
  void rehearse(std::int64_t steps, const End& end) {
    const Range range("deviceloop: rehearse");
    if (!has_steps()) {
      enqueue_predict(1);
    } else {
      if (GramRun* const gram = this->gram_run()) gram->before_step();
      losses_->begin(1);
      losses_->restart(stream());
      launch(0, steps, at<double>(layout_.losses), false);
      losses_->send(1, stream());
      double loss = 0;
      losses_->fetch({&loss, 1});
      end();
    }
    DEVICELOOP_CHECK_CUDA(cudaStreamSynchronize(stream()));
    this->check_run();
  }

  /// Whether a GPU takes a cooperative launch of clusters: only trying tells; the trial runs zero steps. Of a layout
  /// that has several clusters, once its memory is there.
  void try_cooperative() {
    try {
      launch(0, 0, at<double>(layout_.loss), true);
    } catch (const DeviceError& error) {
      if (error.code() != cudaErrorNotSupported && error.code() != cudaErrorInvalidValue &&
          error.code() != cudaErrorCooperativeLaunchTooLarge && error.code() != cudaErrorInvalidClusterSize)
        throw;
      is_cooperative_ = false;
    }
  }
  /// For reports.
  const char* cooperative_note() const {
    return is_cooperative_ ? "" : ", no cooperative launch: this GPU takes none of clusters";
  }

  const Layout layout_;
  const T *x_ = nullptr, *y_ = nullptr;  ///< the caller's, where they are read there
  std::optional<ScalarQueue<T>> scalars_;
  bool is_cooperative_ = true;

 private:
  PinnedBuffer status_;  ///< layout_.failed, after the last launch that has ended
};

}  // namespace deviceloop::cuda
