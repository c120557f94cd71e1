// Many steps are one launch, whose blocks keep at it until its last step, by one of the kernels for small networks:
// host/planning/persistent_layout.h.
#include <algorithm>
#include <any>
#include <bit>
#include <optional>
#include <string>
#include <type_traits>
#include <utility>

#include "../../host/cuda_entry.h"
#include "../../host/planning/persistent_layout.h"
#include "../kernels/kernels.h"
#include "../kernels/on_chip.h"
#include "../kernels/two_layer.h"
#include "launch_executor.h"

namespace deviceloop {
namespace cuda {
namespace {

template <class T>
class PersistentExecutor final : public LaunchExecutor<T, PersistentLayout>, private GramDriver {
  using Base = LaunchExecutor<T, PersistentLayout>;
  using Base::alive;
  using Base::has_steps;
  using Base::is_cooperative_;
  using Base::layout_;
  using Base::preparation_;
  using Base::scalars_;
  using Base::stream;
  using Base::tensor;
  using Base::timeout_ns;
  using Base::training_;
  using Base::x_;
  using Base::y_;
  using typename Base::Scalars;

 public:
  PersistentExecutor(const NetworkSpec& network, const TrainingSpec& training, const Decision& decision,
                     const Surroundings& surroundings)
      : Base(network, training, decision.plan, surroundings.cuda, [&] {
          return resident(std::any_cast<const PersistentLayout&>(decision.layout), network, training,
                          decision.plan.device);
        }) {
    if (layout_.step.gram) gram_.emplace(static_cast<GramDriver&>(*this), network, training);
    preparation_.lap("kernels");
    this->build([&] { make(decision.plan.bytes); });
  }

  ~PersistentExecutor() override { this->leave(); }

  void write_state(int index, ConstMatrix in) override {
    alive([&] {
      const ParameterInfo& info = this->state_[static_cast<std::size_t>(index)];
      const auto write = [&] { this->take_matrix(this->state_at(info), in); };
      if (gram_)
        gram_->write(info, write);
      else
        write();
    });
  }

  std::vector<std::string> algorithms() const override {
    if (!has_steps()) return {};
    return {layout_.description() + this->cooperative_note()};
  }

  GramRun* gram_run() override { return gram_ ? &*gram_ : nullptr; }

 protected:
  void enqueue_end() override {
    if (gram_) gram_->before_reading();
  }

  void check_run() override {
    const std::uint64_t status = this->status();
    if (status == 0) return;
    const std::int64_t phase = late_wait_phase(status) - 1;
    throw DeviceError("plan 'persistent': the GPU's blocks waited for each other longer than " +
                          std::to_string(training_.deadline_ms) + " ms, in step " +
                          std::to_string(late_wait_step(status)) + " of a launch, phase '" + layout_.phase_name(phase) +
                          "': other work may hold a part of the GPU; use the plan 'graph', or a larger deadline",
                      "deviceloop", cudaErrorLaunchTimeout, is_on_chip() ? "on_chip_kernel" : "two_layer_kernel", "",
                      0);
  }

 private:
  /// The plan's layout. How many clusters a GPU runs at once only it can tell, the plan has an estimate: where they are
  /// too few, the run is planned anew for those that there are.
  static PersistentLayout resident(const PersistentLayout& planned, const NetworkSpec& network,
                                   const TrainingSpec& training, int device) {
    if (training.samples == 0) return planned;
    const CurrentDevice current(device);
    const std::string reason = why_not_resident(planned);
    if (reason.empty()) return planned;
    ResidentLimits limits;
    PersistentLayout layout = planned;
    while (lower(limits, layout)) {
      layout = make_persistent_layout(network, training, planned.gpu, planned.step, limits);
      layout.note = "otherwise than planned: " + reason;
      if (!layout.refusal.empty()) break;
      if (why_not_resident(layout).empty()) return layout;
    }
    throw Unsupported("plan 'persistent': " + reason + "; use the plan 'graph'");
  }

  /// Excludes what is not resident; false where nothing is left to exclude.
  static bool lower(ResidentLimits& limits, const PersistentLayout& layout) {
    auto& of_form = layout.form == PersistentForm::on_chip ? limits.on_chip_clusters : limits.two_layer_clusters;
    const auto blocks = static_cast<unsigned>(cluster_blocks(layout));
    std::int64_t& most = of_form[static_cast<std::size_t>(std::countr_zero(blocks))];
    const std::int64_t resident = resident_form(layout);
    // More clusters than planned would take more memory than the plan promised.
    if (layout.form == PersistentForm::on_chip)
      for (std::int64_t& each : of_form) each = std::min<std::int64_t>(each, layout.on_chip.clusters);
    if (resident >= most) return false;
    most = resident;
    return true;
  }

  static int cluster_blocks(const PersistentLayout& layout) {
    if (layout.form == PersistentForm::on_chip) return layout.on_chip.blocks();
    return layout.step.gram ? layout.gram_two_layer.cluster_blocks() : layout.two_layer.cluster_blocks();
  }

  /// Clusters of a launch that run at once.
  static std::int64_t resident_form(const PersistentLayout& layout) {
    if (layout.form == PersistentForm::on_chip) return resident_clusters_on_chip(layout.on_chip);
    return layout.step.gram ? resident_gram_two_layer<T>(layout.gram_two_layer)
                            : resident_two_layer<T>(layout.two_layer);
  }

  /// The kernel gets its memory. Empty where all blocks of a launch then run at once; else they would wait for each
  /// other until the deadline.
  static std::string why_not_resident(const PersistentLayout& layout) {
    if (layout.form == PersistentForm::on_chip)
      prepare_on_chip<T>(layout.on_chip);
    else if (layout.step.gram)
      prepare_gram_two_layer<T>(layout.gram_two_layer, true);
    else
      prepare_two_layer<T>(layout.two_layer, true);
    const std::int64_t needed = layout.blocks / cluster_blocks(layout), resident = resident_form(layout);
    if (resident >= needed) return "";
    if (layout.form == PersistentForm::on_chip && resident == 0)
      return layout.gpu.name + " runs no cluster of " + std::to_string(layout.on_chip.blocks()) + " blocks with " +
             bytes_text(static_cast<std::uint64_t>(layout.on_chip.shared_bytes)) + " of shared memory each";
    return std::to_string(needed) + (layout.blocks > needed ? " clusters" : " blocks") +
           " must run at once, of which " + layout.gpu.name + " runs " + std::to_string(resident);
  }

  /// CUDA answers with an error where the GPU has no clusters of that size at all.
  static std::int64_t resident_clusters_on_chip(const OnChipLayout& layout) {
    try {
      return resident_on_chip<T>(layout);
    } catch (const DeviceError& error) {
      if (error.code() != cudaErrorInvalidClusterSize) throw;
      return 0;
    }
  }

  template <class Element>
  Element* at(std::uint64_t offset) const {
    return Base::template at<Element>(offset);
  }
  /// Reserves what the plan promised, `bytes`, even if another form than the plan's needs less.
  void make(std::uint64_t bytes) {
    this->take_arena(std::max(layout_.bytes, bytes), layout_.losses, has_steps() ? layout_.steps_per_launch : 0);
    if (has_steps()) {
      this->make_queues();
      const Scalars adding = adding_scalars<T>();
      this->upload(at<Scalars>(layout_.scalars) + layout_.scalar_sets, &adding, sizeof adding);
      if (cluster_blocks(layout_) > 1 && !(is_on_chip() && layout_.on_chip.clusters == 1)) this->try_cooperative();
    }
    preparation_.lap("memory");
    // A launch of no steps loads all code of the form on-chip, which is one function.
    this->rehearse(is_on_chip() ? 0 : 1, [&] {
      if (!gram_) return;
      rebuild_parameters({});
      gram_->forget();
    });
    preparation_.lap("kernels");
  }

  bool is_on_chip() const { return layout_.form == PersistentForm::on_chip; }

  void launch_steps(std::int64_t first_step, std::int64_t steps, double* losses, bool forward_only) override {
    if (is_on_chip())
      launch_on_chip_steps(first_step, steps, losses, forward_only);
    else
      launch_two_layer_steps(steps, losses, !forward_only);
  }

  /// Tags are nonzero and unique.
  void clear_tags() {
    DEVICELOOP_CHECK_CUDA(cudaMemsetAsync(at<unsigned char>(layout_.tagged), 0,
                                          static_cast<std::size_t>(layout_.tagged_bytes), stream()));
    next_tag_ = 1;
  }

  /// The first of as many tags as steps, which no launch has used before.
  unsigned take_tags(std::int64_t steps) {
    if (steps > static_cast<std::int64_t>(~next_tag_)) clear_tags();
    return std::exchange(next_tag_, next_tag_ + static_cast<unsigned>(steps));
  }

  T leaky_slope() const { return static_cast<T>(this->network_.leaky_slope); }

  void launch_two_layer_steps(std::int64_t steps, double* losses, bool keep) {
    const unsigned first_tag = take_tags(steps);
    const Step& step = layout_.step;
    const auto fill = [&](auto arguments) {
      arguments.y = y_ != nullptr ? y_ : tensor(step.y);
      arguments.w2 = tensor(step.layers[1].weight);
      arguments.b2 = tensor(step.layers[1].bias);
      arguments.losses = losses;
      arguments.slots = at<Tagged<T>>(layout_.tagged);
      arguments.learning_rate = static_cast<T>(training_.optimizer.learning_rate);
      arguments.steps = steps;
      arguments.keep = keep;
      arguments.first_tag = first_tag;
      arguments.timeout_ns = timeout_ns();
      arguments.failed = at<std::uint64_t>(layout_.failed);
      return arguments;
    };
    if (step.gram) {
      GramTwoLayerArguments<T> arguments = fill(GramTwoLayerArguments<T>{});
      arguments.k = tensor(step.gram->kernel);
      arguments.z = tensor(step.gram->pre_activation);
      arguments.sum = tensor(step.gram->sum);
      launch_gram_two_layer(arguments, layout_.gram_two_layer, is_cooperative_, stream());
    } else {
      TwoLayerArguments<T> arguments = fill(TwoLayerArguments<T>{});
      arguments.x = x_ != nullptr ? x_ : tensor(step.x);
      arguments.w1 = tensor(step.layers[0].weight);
      arguments.b1 = tensor(step.layers[0].bias);
      launch_two_layer(arguments, layout_.two_layer, is_cooperative_, stream());
    }
  }

  void launch_on_chip_steps(std::int64_t first_step, std::int64_t steps, double* losses, bool forward_only) {
    const Step& step = layout_.step;
    const auto kept = [&](Activation activation) {
      return activations::keeps_pre_activation({activation, this->network_.leaky_slope});
    };
    OnChipArguments<T> arguments;
    arguments.x = x_ != nullptr ? x_ : tensor(step.data_x);
    arguments.y = y_ != nullptr ? y_ : tensor(step.data_y);
    arguments.row_weights = tensor(step.data_weights);
    if (has_minibatches(training_))
      arguments.order = step.order;
    else
      arguments.order.samples = training_.samples;
    arguments.network = SampleNetwork::of(arguments.order.samples);
    for (std::size_t layer = 0; layer < step.layers.size(); ++layer) {
      arguments.weights[layer] =
          this->template parameter<OnChipParameter<T>>(step.layers[layer].weight, step.layers[layer].weight_state);
      arguments.biases[layer] =
          this->template parameter<OnChipParameter<T>>(step.layers[layer].bias, step.layers[layer].bias_state);
    }
    arguments.optimizer = training_.optimizer.kind;
    arguments.scalars = at<Scalars>(layout_.scalars);
    arguments.scalar_stride = scalars_->varies() ? 1 : 0;
    arguments.loss = layout_.loss_of_step;
    arguments.activation = this->network_.activation;
    arguments.output_activation = this->network_.output_activation;
    arguments.leaky_slope = leaky_slope();
    arguments.keeps_pre_activation = kept(this->network_.activation);
    arguments.keeps_last_pre_activation = kept(this->network_.output_activation);
    arguments.first_step = first_step;
    arguments.steps = steps;
    arguments.forward_only = forward_only;
    arguments.losses = losses;
    arguments.loss_parts = at<double>(layout_.loss_parts);
    arguments.timeout_ns = timeout_ns();
    arguments.failed = at<std::uint64_t>(layout_.failed);
    const bool has_clusters = layout_.on_chip.clusters > 1;
    if (has_clusters) {
      arguments.tagged = at<TaggedUnit>(layout_.tagged);
      arguments.first_tag = take_tags(steps);
      arguments.blocks_done = at<unsigned>(layout_.blocks_done);
      arguments.done_before = blocks_done_;
    }
    launch_on_chip(arguments, layout_.on_chip, is_cooperative_, stream());
    if (has_clusters) blocks_done_ += static_cast<unsigned>(layout_.blocks);
  }

  void copy(TensorId to, TensorId from) const {
    const StepTensor& shape = layout_.step.tensor(to);
    DEVICELOOP_CHECK_CUDA(cudaMemcpyAsync(tensor(to), tensor(from),
                                          static_cast<std::size_t>(shape.rows * shape.columns) * sizeof(T),
                                          cudaMemcpyDeviceToDevice, stream()));
  }

  // ---- the Gram formulation, all of it on the stream, nothing waits

  /// Where the product lies, of which `a` and `out` are as given.
  TileProduct<T> product_of(const StepOperation& operation) const {
    TileProduct<T> product;
    product.shape = {operation.rows, operation.columns, operation.inner};
    product.out = tensor(operation.out);
    product.a = tensor(operation.a);
    product.b = tensor(operation.b);
    product.bias = tensor(operation.bias);
    return product;
  }

  void compute_gram(bool kernel, bool pre_activation) override {
    const Step::Gram& gram = *layout_.step.gram;
    if (kernel) {
      TileProduct<T> product = product_of(gram.make_kernel);
      product.b = product.a;
      product.shape.transpose_b = true;
      product.addend = static_cast<T>(gram.make_kernel.bias_in_kernel ? 1 : 0);
      launch_tile_product(product, stream());
    }
    if (!pre_activation) return;
    for (const StepOperation& operation : gram.make_pre_activation)
      launch_tile_product(product_of(operation), stream());
  }

  void clear_sum() override {
    const Step::Gram& gram = *layout_.step.gram;
    const StepTensor& shape = layout_.step.tensor(gram.sum);
    const std::uint64_t bytes = static_cast<std::uint64_t>(shape.rows * shape.columns) * sizeof(T);
    this->clear(layout_.at(gram.sum), bytes);
    for (const TensorId state : gram.sum_state)
      if (state != kNoTensor) this->clear(layout_.at(state), bytes);
  }

  void rebuild_parameters(const GramShares& shares) override {
    for (const StepOperation& operation : layout_.step.gram->rebuild) {
      T* const out = tensor(operation.out);
      const bool is_weight = operation.kind == StepOperation::Kind::rebuild_weight;
      const T* start = tensor(operation.start);
      if (operation.start_state != kNoTensor) {
        const StepTensor& shape = layout_.step.tensor(operation.out);
        launch_weighted_sum(out, static_cast<T>(shares.of_start(operation.rebuilt_state)), start,
                            static_cast<T>(shares.of_start_state(operation.rebuilt_state)),
                            tensor(operation.start_state), shape.rows * shape.columns, stream());
        start = out;
      } else if (!is_weight) {
        copy(operation.out, operation.start);
      }
      if (is_weight) {
        TileProduct<T> product = product_of(operation);
        product.shape.transpose_a = true;
        product.start = start;
        launch_tile_product(product, stream());
      } else {
        launch_column_sums<T>({out, at<Scalars>(layout_.scalars) + layout_.scalar_sets}, tensor(operation.a),
                              operation.rows, operation.columns, at<double>(layout_.slots), stream());
      }
    }
  }

  void keep_as_start(const ParameterInfo& info) override {
    copy(layout_.step.gram->start_of(info), layout_.step.tensor_of(info));
  }

  unsigned next_tag_ = 1;     ///< of blocks that exchange words through global memory
  unsigned blocks_done_ = 0;  ///< in all launches, of the form on-chip in several clusters
  std::optional<GramRun> gram_;
};

}  // namespace

}  // namespace cuda

std::unique_ptr<Executor> make_persistent_executor(const NetworkSpec& network, const TrainingSpec& training,
                                                   const Decision& decision, const Surroundings& surroundings) {
  return with_type(element_type(training.precision), [&](auto* type) -> std::unique_ptr<Executor> {
    return std::make_unique<cuda::PersistentExecutor<std::remove_pointer_t<decltype(type)>>>(network, training,
                                                                                             decision, surroundings);
  });
}

}  // namespace deviceloop
