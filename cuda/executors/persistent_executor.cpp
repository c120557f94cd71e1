// Many steps are one launch, whose blocks keep at it until its last step: host/persistent_layout.h says how they share
// the work, cuda/kernels/persistent.cu does it. The host enqueues a launch after the other, each of at most half a
// second by the plan, and reads their losses.
#include "persistent_executor.h"

#include <algorithm>
#include <string>
#include <utility>

#include "../../host/persistent_layout.h"
#include "../kernels/persistent.h"
#include "../runtime/gpu.h"
#include "device_executor.h"

namespace deviceloop::cuda {
namespace {

template <class T>
class PersistentExecutor final : public DeviceExecutor<T> {
  using Base = DeviceExecutor<T>;
  using Base::alive;
  using Base::losses_;
  using Base::network_;
  using Base::stream;
  using Base::training_;

 public:
  PersistentExecutor(const NetworkSpec& network, const TrainingSpec& training, const Plan& plan)
      : Base(network, training, plan), gpu_(query_gpu(plan.device)), layout_(make_layout(network, training, gpu_)) {
    const Range range("deviceloop: make executor");
    const CurrentDevice current(plan.device);
    this->take_arena(layout_.bytes, 0, layout_.losses, has_steps() ? layout_.steps_per_launch : 0);
    if (!has_steps()) return;
    prepare_persistent<T>(layout_);
    check_residence();
    upload_program();
    DEVICELOOP_CHECK_CUDA(cudaMemsetAsync(at<unsigned>(layout_.arrivals), 0, sizeof(unsigned), stream()));
    DEVICELOOP_CHECK_CUDA(cudaMemsetAsync(at<std::uint64_t>(layout_.failed), 0, sizeof(std::uint64_t), stream()));
    status_ = PinnedBuffer(sizeof(std::uint64_t));
    *static_cast<std::uint64_t*>(status_.data()) = 0;
  }

  void set_data(ConstMatrix x, ConstMatrix y) override {
    alive([&] {
      if (layout_.gram) start_from_parameters();  // S belongs to the data there were
      kernel_is_current_ = z_is_current_ = false;
      this->upload_matrix(at<T>(layout_.x), x);
      this->upload_matrix(at<T>(layout_.y), y);
    });
  }

  void enqueue(std::int64_t steps) override {
    if (steps == 0) return;
    alive([&] {
      const Range range("deviceloop: launch");
      losses_->begin(steps, stream());
      for (std::int64_t done = 0; done < steps;) {
        std::int64_t count = std::min(layout_.steps_per_launch, steps - done);
        if (layout_.gram) {
          prepare_gram();
          if (training_.reprojection_steps > 0) count = std::min(count, training_.reprojection_steps - steps_in_sum_);
        }
        const std::int64_t half = losses_->next_half(stream());
        launch_steps(count, at<double>(layout_.losses) + half * layout_.steps_per_launch, false);
        losses_->send(count, stream());
        done += count;
        if (!layout_.gram) continue;
        parameters_are_current_ = false;
        steps_in_sum_ += count;
        if (steps_in_sum_ == training_.reprojection_steps) start_from_parameters();
      }
    });
  }

  double loss() override {
    double loss = 0;
    alive([&] {
      if (layout_.gram) prepare_gram();
      launch_steps(1, at<double>(layout_.loss), true);
      this->download(&loss, at<double>(layout_.loss), sizeof loss);
      check_run();
    });
    return loss;
  }

  void read_state(int index, Matrix out) override {
    alive([&] { end_run(); });  // where an exception ended the run before
    Base::read_state(index, out);
  }

  void write_state(int index, ConstMatrix in) override {
    const ParameterInfo& info = this->parameters_[static_cast<std::size_t>(index)];
    const bool in_sum = layout_.gram && info.layer == 0;
    if (in_sum) alive([&] { start_from_parameters(); });
    Base::write_state(index, in);
    if (in_sum) alive([&] { keep_as_start(info); });
  }

  void predict(ConstMatrix x, Matrix out) override {
    alive([&] {
      end_run();
      for (std::int64_t first = 0; first < x.rows; first += layout_.predict_rows) {
        const std::int64_t rows = std::min(layout_.predict_rows, x.rows - first);
        this->upload_matrix(at<T>(layout_.predict_input), rows_of(x, first, rows));
        this->download_matrix(rows_of(out, first, rows), enqueue_predict(rows), rows, out.columns);
      }
    });
  }

  std::vector<std::string> algorithms() const override {
    if (!has_steps()) return {};
    return {layout_.description()};
  }

 protected:
  T* parameter(const ParameterInfo& info) override {
    const PersistentLayout::Layer& layer = layout_.layers[static_cast<std::size_t>(info.layer)];
    return at<T>(info.is_bias ? layer.bias : layer.weight);
  }

  void end_run() override {
    if (layout_.gram) rebuild_parameters();
  }

  void check_run() override {
    const std::uint64_t status = has_steps() ? *static_cast<const std::uint64_t*>(status_.data()) : 0;
    if (status == 0) return;
    const auto phase = static_cast<std::int64_t>(status >> 48) - 1;
    throw DeviceError("plan 'persistent': the GPU's blocks waited for each other longer than " +
                          std::to_string(training_.deadline_ms) + " ms, in step " +
                          std::to_string(status & 0xffffffffffff) + " of a launch, phase '" +
                          layout_.phase_name(phase) +
                          "': other work may hold a part of the GPU; use the plan 'graph', or a larger deadline",
                      "deviceloop", cudaErrorLaunchTimeout, "persistent_kernel", "", 0);
  }

 private:
  static PersistentLayout make_layout(const NetworkSpec& network, const TrainingSpec& training, const GpuCaps& gpu) {
    PersistentLayout layout = make_persistent_layout(network, training, gpu);
    if (!layout.refusal.empty()) throw Unsupported("plan 'persistent': " + layout.refusal);
    return layout;
  }

  template <class Element>
  Element* at(std::uint64_t offset) const {
    return Base::template at<Element>(offset);
  }
  bool has_steps() const { return training_.samples > 0; }

  /// Whether all blocks of a launch can run at once; otherwise they would wait for each other in vain.
  void check_residence() const {
    const std::int64_t needed = layout_.form == PersistentForm::grid ? layout_.blocks : 1;
    const std::int64_t resident = resident_persistent<T>(layout_);
    if (resident < needed)
      throw Unsupported("plan 'persistent': " + std::to_string(layout_.blocks) + " blocks must run at once, of which " +
                        gpu_.name + " can run " + std::to_string(resident) + "; use the plan 'graph'");
  }

  void upload_program() {
    auto* const program = at<unsigned char>(layout_.program);
    const std::size_t operations = layout_.operations.size() * sizeof(PersistentOperation);
    this->upload(program, layout_.operations.data(), operations);
    this->upload(program + operations, layout_.phases.data(), layout_.phases.size() * sizeof(PersistentPhase));
  }

  void launch_steps(std::int64_t steps, double* losses, bool forward_only) {
    PersistentArguments<T> arguments{};
    arguments.region = at<unsigned char>(0);
    arguments.region_bytes = layout_.region_bytes;
    arguments.state_bytes = layout_.state_bytes;
    arguments.operations = at<PersistentOperation>(layout_.program);
    arguments.operation_count = static_cast<std::int32_t>(layout_.operations.size());
    arguments.phase_count = static_cast<std::int32_t>(layout_.phases.size()) - 1;
    arguments.forward_phases = static_cast<std::int32_t>(layout_.forward_phases);
    arguments.form = layout_.form;
    arguments.forward_only = forward_only;
    arguments.learning_rate = static_cast<T>(training_.optimizer.learning_rate);
    arguments.steps = steps;
    arguments.losses = losses;
    arguments.arrivals = at<unsigned>(layout_.arrivals);
    arguments.arrived = arrived_;
    arguments.timeout_ns = static_cast<std::uint64_t>(training_.deadline_ms) * 1000000;
    arguments.failed = at<std::uint64_t>(layout_.failed);
    launch_persistent(arguments, layout_, stream());
    arrived_ += static_cast<unsigned>(arrivals_of(layout_, steps, forward_only));
    DEVICELOOP_CHECK_CUDA(
        cudaMemcpyAsync(status_.data(), arguments.failed, sizeof(std::uint64_t), cudaMemcpyDeviceToHost, stream()));
  }

  // ---- products by launches of their own

  void enqueue_operation(const PersistentOperation& operation, T rate = T(0)) const {
    launch_operation(at<unsigned char>(0), cut_alone(operation, gpu_.multiprocessors, sizeof(T)), rate, stream());
  }

  // ---- the Gram formulation, see Formulation; all of it on the stream, nothing waits

  std::int64_t samples() const { return training_.samples; }
  const PersistentLayout::Layer& first_layer() const { return layout_.layers.front(); }

  void copy(std::uint64_t to, std::uint64_t from, std::int64_t elements) const {
    DEVICELOOP_CHECK_CUDA(cudaMemcpyAsync(at<T>(to), at<T>(from), static_cast<std::size_t>(elements) * sizeof(T),
                                          cudaMemcpyDeviceToDevice, stream()));
  }

  /// K = X X^T (+ 1 1^T with bias), Z = X W (+ b), S = 0.
  void prepare_gram() {
    const PersistentLayout::Layer& layer = first_layer();
    PersistentOperation product;
    product.a = layout_.x;
    product.rows = samples();
    product.inner = product.a_stride = layer.in_features;
    if (!kernel_is_current_) {
      product.b = layout_.x;
      product.b_by_inner = 1;
      product.b_stride = layer.in_features;
      product.columns = samples();
      product.addend = network_.bias ? 1 : 0;
      product.out = layout_.kernel;
      enqueue_operation(product);
    }
    if (!z_is_current_) {
      product.b = layer.weight;
      product.b_by_inner = 0;
      product.b_stride = product.columns = layer.out_features;
      product.addend = 0;
      product.bias = layer.bias;
      product.out = layout_.z;
      enqueue_operation(product);
      DEVICELOOP_CHECK_CUDA(cudaMemsetAsync(
          at<T>(layout_.sum), 0, static_cast<std::size_t>(samples() * layer.out_features) * sizeof(T), stream()));
    }
    kernel_is_current_ = z_is_current_ = true;
  }

  /// W = W_0 + X^T S, b = b_0 + column sums of S.
  void rebuild_parameters() {
    if (parameters_are_current_) return;
    const PersistentLayout::Layer& layer = first_layer();
    PersistentOperation product;
    product.rows = product.a_stride = layer.in_features;
    product.columns = product.b_stride = layer.out_features;
    product.inner = samples();
    product.a = layout_.x;
    product.a_by_inner = 0;
    product.b = layout_.sum;
    product.start = layout_.start_weight;
    product.out = layer.weight;
    enqueue_operation(product);
    if (network_.bias) {
      copy(layer.bias, layout_.start_bias, layer.out_features);
      PersistentOperation sums;
      sums.kind = PersistentOperation::Kind::bias_update;
      sums.columns = layer.out_features;
      sums.inner = samples();
      sums.a = layout_.sum;
      sums.out = layer.bias;
      enqueue_operation(sums, T(-1));
    }
    parameters_are_current_ = true;
  }

  /// The parameters as they are become W_0 and b_0; S and Z begin anew.
  void start_from_parameters() {
    if (steps_in_sum_ == 0) return;
    rebuild_parameters();
    for (const ParameterInfo& info : this->parameters_)
      if (info.layer == 0) keep_as_start(info);
  }
  void keep_as_start(const ParameterInfo& info) {
    const PersistentLayout::Layer& layer = first_layer();
    copy(info.is_bias ? layout_.start_bias : layout_.start_weight, info.is_bias ? layer.bias : layer.weight,
         info.rows * info.columns);
    steps_in_sum_ = 0;
    z_is_current_ = false;
  }

  // ---- prediction

  const T* enqueue_predict(std::int64_t rows) const {
    std::uint64_t in = layout_.predict_input;
    for (std::size_t index = 0; index < layout_.layers.size(); ++index) {
      const PersistentLayout::Layer& layer = layout_.layers[index];
      PersistentOperation product;
      if (index + 1 < layout_.layers.size()) product.kind = PersistentOperation::Kind::hidden;
      product.rows = rows;
      product.columns = product.b_stride = layer.out_features;
      product.inner = product.a_stride = layer.in_features;
      product.a = in;
      product.b = layer.weight;
      product.bias = layer.bias;
      product.out = index % 2 == 0 ? layout_.predict_even : layout_.predict_odd;
      enqueue_operation(product);
      in = product.out;
    }
    return at<T>(in);
  }

  const GpuCaps gpu_;
  const PersistentLayout layout_;
  PinnedBuffer status_;  ///< layout_.failed, after the last launch that has ended
  unsigned arrived_ = 0;

  // Of the Gram formulation: whether K is that of the data, Z that of the parameters, and the first layer's parameters
  // those that the steps have led to.
  bool kernel_is_current_ = false, z_is_current_ = false, parameters_are_current_ = true;
  std::int64_t steps_in_sum_ = 0;
};

}  // namespace

std::unique_ptr<Executor> make_persistent_executor(const NetworkSpec& network, const TrainingSpec& training,
                                                   const Plan& plan) {
  if (training.precision == Precision::fp32)
    return std::make_unique<PersistentExecutor<float>>(network, training, plan);
  return std::make_unique<PersistentExecutor<double>>(network, training, plan);
}

}  // namespace deviceloop::cuda
