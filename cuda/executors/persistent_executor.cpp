// Many steps are one launch, whose blocks keep at it until its last step: host/persistent_layout.h says how they share
// the work, cuda/kernels/persistent.cu does it. The host enqueues a launch after the other, each of at most half a
// second by the plan, and reads their losses.
#include "persistent_executor.h"

#include <algorithm>
#include <string>
#include <utility>

#include "../../host/persistent_layout.h"
#include "../kernels/persistent.h"
#include "../kernels/two_layer.h"
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
  using Base::preparation_;
  using Base::stream;
  using Base::training_;

 public:
  PersistentExecutor(const NetworkSpec& network, const TrainingSpec& training, const Plan& plan)
      : Base(network, training, plan), gpu_(query_gpu(plan.device)), layout_(make_layout(network, training, gpu_)) {
    preparation_.lap("kernels");
    this->build([&] { make(plan.bytes); });
  }

  ~PersistentExecutor() override { this->leave(); }

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
    return {layout_.description() +
            (is_cooperative_ ? "" : ", no cooperative launch: this GPU takes none of clusters")};
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
  /// The plan's layout. How many clusters a GPU runs at once only it can tell, the plan has an estimate: where they are
  /// too few and no form was asked for, the grid takes the run.
  static PersistentLayout make_layout(const NetworkSpec& network, const TrainingSpec& training, const GpuCaps& gpu) {
    PersistentLayout layout = make_persistent_layout(network, training, gpu);
    if (!layout.refusal.empty()) throw Unsupported("plan 'persistent': " + layout.refusal);
    if (training.samples == 0) return layout;
    const CurrentDevice current(gpu.index);
    const std::string reason = why_not_resident(layout, gpu);
    if (reason.empty()) return layout;
    if (training.form == PersistentForm::automatic && layout.form == PersistentForm::two_layer) {
      TrainingSpec on_grid = training;
      on_grid.form = PersistentForm::grid;
      layout = make_persistent_layout(network, on_grid, gpu);
      layout.note = "not 'two-layer': " + reason;
      if (layout.refusal.empty() && why_not_resident(layout, gpu).empty()) return layout;
    }
    throw Unsupported("plan 'persistent': " + reason + "; use another form or the plan 'graph'");
  }

  /// The kernel gets its memory. Empty where all blocks of a launch then run at once; else they would wait for each
  /// other in vain.
  static std::string why_not_resident(const PersistentLayout& layout, const GpuCaps& gpu) {
    std::int64_t needed = layout.form == PersistentForm::grid ? layout.blocks : 1, resident = 0;
    if (layout.form != PersistentForm::two_layer) {
      prepare_persistent<T>(layout);
      resident = resident_persistent<T>(layout);
    } else if (layout.gram) {
      prepare_gram_two_layer<T>(layout.gram_two_layer, true);
      needed = layout.gram_two_layer.blocks;
      resident = resident_gram_two_layer<T>(layout.gram_two_layer);
    } else {
      prepare_two_layer<T>(layout.two_layer, true);
      needed = layout.two_layer.clusters;
      resident = resident_two_layer<T>(layout.two_layer);
    }
    if (resident >= needed) return "";
    return std::to_string(needed) + (layout.blocks > needed ? " clusters" : " blocks") +
           " must run at once, of which " + gpu.name + " runs " + std::to_string(resident);
  }

  template <class Element>
  Element* at(std::uint64_t offset) const {
    return Base::template at<Element>(offset);
  }
  bool has_steps() const { return training_.samples > 0; }

  /// Takes what the plan has promised to take, `bytes`, where another form than the plan's needs less.
  void make(std::uint64_t bytes) {
    this->take_arena(std::max(layout_.bytes, bytes), layout_.losses, has_steps() ? layout_.steps_per_launch : 0);
    if (has_steps()) {
      upload_program();
      status_ = PinnedBuffer(sizeof(std::uint64_t));
      *static_cast<std::uint64_t*>(status_.data()) = 0;
      if (is_two_layer()) try_cooperative();
    }
    preparation_.lap("memory");
    rehearse();
    preparation_.lap("kernels");
  }

  /// CUDA loads the code of a kernel when it is first used, which takes milliseconds. So everything of a run is done
  /// once, on memory that is 0 and stays 0.
  void rehearse() {
    const Range range("deviceloop: rehearse");
    if (!has_steps()) {
      enqueue_predict(1);
    } else {
      if (layout_.gram) prepare_gram();
      losses_->begin(1, stream());
      launch_steps(1, at<double>(layout_.losses), false);
      losses_->send(1, stream());
      double loss = 0;
      losses_->fetch({&loss, 1});
      if (layout_.gram) {
        parameters_are_current_ = false;
        rebuild_parameters();
        kernel_is_current_ = z_is_current_ = false;
      }
    }
    DEVICELOOP_CHECK_CUDA(cudaStreamSynchronize(stream()));
    check_run();
  }

  bool is_two_layer() const { return layout_.form == PersistentForm::two_layer; }

  /// Whether a GPU takes a cooperative launch of clusters, only such a launch tells: it has no steps and keeps nothing.
  void try_cooperative() {
    if (layout_.gram || layout_.two_layer.cluster_blocks() == 1) return;
    try {
      launch_steps(0, at<double>(layout_.loss), true);
    } catch (const DeviceError& error) {
      if (error.code() != cudaErrorNotSupported && error.code() != cudaErrorInvalidValue &&
          error.code() != cudaErrorCooperativeLaunchTooLarge && error.code() != cudaErrorInvalidClusterSize)
        throw;
      is_cooperative_ = false;
    }
  }

  void upload_program() {
    auto* const program = at<unsigned char>(layout_.program);
    const std::size_t operations = layout_.operations.size() * sizeof(PersistentOperation);
    this->upload(program, layout_.operations.data(), operations);
    this->upload(program + operations, layout_.phases.data(), layout_.phases.size() * sizeof(PersistentPhase));
  }

  /// `steps` are enqueued, or with `forward_only` the loss of the parameters as they are.
  void launch_steps(std::int64_t steps, double* losses, bool forward_only) {
    if (is_two_layer())
      launch_two_layer_steps(steps, losses, !forward_only);
    else
      launch_phases(steps, losses, forward_only);
    DEVICELOOP_CHECK_CUDA(cudaMemcpyAsync(status_.data(), at<std::uint64_t>(layout_.failed), sizeof(std::uint64_t),
                                          cudaMemcpyDeviceToHost, stream()));
  }

  /// Tags are not 0, and none comes twice.
  void clear_tags() {
    DEVICELOOP_CHECK_CUDA(cudaMemsetAsync(at<unsigned char>(layout_.tagged), 0,
                                          static_cast<std::size_t>(layout_.tagged_slots) * 2 * sizeof(T), stream()));
    next_tag_ = 1;
  }

  std::uint64_t timeout_ns() const { return static_cast<std::uint64_t>(training_.deadline_ms) * 1000000; }

  void launch_two_layer_steps(std::int64_t steps, double* losses, bool keep) {
    if (steps > static_cast<std::int64_t>(~next_tag_)) clear_tags();
    const auto fill = [&](auto arguments) {
      arguments.y = at<T>(layout_.y);
      arguments.w2 = at<T>(layout_.layers[1].weight);
      arguments.b2 = network_.bias ? at<T>(layout_.layers[1].bias) : nullptr;
      arguments.losses = losses;
      arguments.slots = at<Tagged<T>>(layout_.tagged);
      arguments.learning_rate = static_cast<T>(training_.optimizer.learning_rate);
      arguments.steps = steps;
      arguments.keep = keep;
      arguments.first_tag = next_tag_;
      arguments.timeout_ns = timeout_ns();
      arguments.failed = at<std::uint64_t>(layout_.failed);
      return arguments;
    };
    if (layout_.gram) {
      GramTwoLayerArguments<T> arguments = fill(GramTwoLayerArguments<T>{});
      arguments.k = at<T>(layout_.kernel);
      arguments.z = at<T>(layout_.z);
      arguments.sum = at<T>(layout_.sum);
      launch_gram_two_layer(arguments, layout_.gram_two_layer, true, stream());
    } else {
      TwoLayerArguments<T> arguments = fill(TwoLayerArguments<T>{});
      arguments.x = at<T>(layout_.x);
      arguments.w1 = at<T>(layout_.layers[0].weight);
      arguments.b1 = network_.bias ? at<T>(layout_.layers[0].bias) : nullptr;
      launch_two_layer(arguments, layout_.two_layer, is_cooperative_, stream());
    }
    next_tag_ += static_cast<unsigned>(steps);
  }

  void launch_phases(std::int64_t steps, double* losses, bool forward_only) {
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
    arguments.timeout_ns = timeout_ns();
    arguments.failed = at<std::uint64_t>(layout_.failed);
    launch_persistent(arguments, layout_, stream());
    arrived_ += static_cast<unsigned>(arrivals_of(layout_, steps, forward_only));
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
  PinnedBuffer status_;    ///< layout_.failed, after the last launch that has ended
  unsigned arrived_ = 0;   ///< of blocks, in all launches so far
  unsigned next_tag_ = 1;  ///< of the form for two layers
  bool is_cooperative_ = true;

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
