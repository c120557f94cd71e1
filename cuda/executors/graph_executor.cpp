// A step is a handful of kernels: products by cuBLASLt or, for narrow layers, own kernels, and own kernels around them.
// Steps are captured when the executor is made, a chunk to a graph, and replayed; between chunks the host only
// enqueues. Each step numbers its loss by a counter on the device; the losses of a chunk are copied out on a second
// stream while the next one runs.
//
// Memory (host/graph_layout.h): the activations H of a layer are overwritten by its dZ, once the layer above has used
// them; only dH below a GEMM has a place of its own. A layer's dH is enqueued before its weights change.
//
// In the Gram formulation (see Formulation) the first layer's pre-activations Z are kept from step to step and updated
// in place of its weight. What of it is up to date is known by three flags; each value is enqueued when it is needed.
#include "graph_executor.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <optional>
#include <string>
#include <type_traits>
#include <vector>

#include <deviceloop/random.h>

#include "../../host/graph_layout.h"
#include "../kernels/kernels.h"
#include "../runtime/gemm.h"
#include "../runtime/graph.h"
#include "device_executor.h"

namespace deviceloop::cuda {
namespace {

template <class T>
constexpr cudaDataType_t kDataType = std::is_same_v<T, float> ? CUDA_R_32F : CUDA_R_64F;

template <class T>
class GraphExecutor final : public DeviceExecutor<T> {
  using Base = DeviceExecutor<T>;
  using Base::alive;
  using Base::clear;
  using Base::losses_;
  using Base::network_;
  using Base::parameters_;
  using Base::preparation_;
  using Base::stream;
  using Base::training_;

 public:
  GraphExecutor(const NetworkSpec& network, const TrainingSpec& training, const Plan& plan)
      : Base(network, training, plan), layout_(make_graph_layout(network, training)) {
    this->build([&] { make(); });
  }

  ~GraphExecutor() override { this->leave(); }

  void set_data(ConstMatrix x, ConstMatrix y) override {
    alive([&] {
      if (layout_.gram) start_from_parameters();  // S belongs to the data there were
      kernel_is_current_ = pre_activation_is_current_ = false;
      this->upload_matrix(at<T>(layout_.x), x);
      this->upload_matrix(at<T>(layout_.y), y);
    });
  }

  void enqueue(std::int64_t steps) override {
    if (steps == 0) return;
    alive([&] { enqueue_steps(steps); });
  }

  double loss() override {
    double loss = 0;
    alive([&] {
      if (layout_.gram) prepare_gram();
      enqueue_forward();
      launch_squared_error(at<double>(layout_.loss), static_cast<T*>(nullptr), prediction(), at<T>(layout_.y), errors(),
                           at<double>(layout_.slots), stream());
      this->download(&loss, at<double>(layout_.loss), sizeof loss);
    });
    return loss;
  }

  void write_state(int index, ConstMatrix in) override {
    alive([&] {
      const ParameterInfo& info = parameters_[static_cast<std::size_t>(index)];
      const bool is_start = layout_.gram && info.layer == 0;
      if (is_start) start_from_parameters();
      this->upload_matrix(parameter(info), in);
      if (!is_start) return;
      copy(start_parameter(info), parameter(info), info.rows * info.columns);
      pre_activation_is_current_ = false;
    });
  }

  std::vector<std::string> algorithms() const override {
    std::vector<std::string> lines;
    if (!step_gemms_) return lines;
    for (std::size_t index = 0; index < step_gemms_->size(); ++index) {
      const auto add = [&](const char* what, const std::optional<Gemm>& gemm) {
        if (gemm) lines.push_back("layer " + std::to_string(index) + ", " + what + ": " + gemm->description());
      };
      const LayerGemms& gemms = (*step_gemms_)[index];
      const bool is_gram = index == 0 && layout_.gram;
      if (is_gram) {
        add("K", gram_gemms_.kernel);
        add("update of Z", gram_gemms_.update);
      }
      add(is_gram ? "Z from its weights" : "forward", gemms.forward);
      add("gradient of its input", gemms.input_gradient);
      add(is_gram ? "its weights from S" : "update of its weights", gemms.weight_update);
    }
    return lines;
  }

  void predict(ConstMatrix x, Matrix out) override {
    alive([&] {
      end_run();
      if (!predict_gemms_) predict_gemms_ = make_gemms(layout_.predict_rows, false);
      for (std::int64_t first = 0; first < x.rows; first += layout_.predict_rows) {
        const std::int64_t rows = std::min(layout_.predict_rows, x.rows - first);
        this->upload_matrix(at<T>(layout_.predict_input), rows_of(x, first, rows));
        this->download_matrix(rows_of(out, first, rows), enqueue_predict(), rows, out.columns);
      }
    });
  }

 protected:
  T* parameter(const ParameterInfo& info) override {
    const Layer& layer = layout_.layers[static_cast<std::size_t>(info.layer)];
    return at<T>(info.is_bias ? layer.bias : layer.weight);
  }

  void end_run() override {
    if (layout_.gram) rebuild_parameters();
  }

 private:
  using Layer = GraphLayout::Layer;

  /// The products of a layer; empty for a narrow one.
  struct LayerGemms {
    std::optional<Gemm> forward, input_gradient, weight_update;
  };
  using Gemms = std::vector<LayerGemms>;

  /// Those of the Gram formulation beside them: K = X X^T, and unless the first layer is narrow Z -= lr K dZ.
  struct GramGemms {
    std::optional<Gemm> kernel, update;
  };

  template <class Element>
  Element* at(std::uint64_t offset) const {
    return Base::template at<Element>(offset);
  }
  std::int64_t samples() const { return training_.samples; }
  const T* one() const { return at<T>(layout_.scalars); }
  const T* zero() const { return one() + 1; }
  const T* minus_one() const { return one() + 2; }
  const T* negative_rate() const { return one() + 3; }
  const T* rate() const { return one() + 4; }

  bool is_last(std::size_t index) const { return index + 1 == layout_.layers.size(); }
  T* weight(const Layer& layer) const { return at<T>(layer.weight); }
  T* bias(const Layer& layer) const { return network_.bias ? at<T>(layer.bias) : nullptr; }
  /// The prediction, unless the Gram formulation has it in Z; then its gradient.
  T* output() const { return at<T>(layout_.layers.back().hidden); }
  const T* prediction() const { return layout_.gram && is_last(0) ? pre_activation() : output(); }
  std::int64_t errors() const { return samples() * network_.widths.back(); }

  T* kernel() const { return at<T>(layout_.gram->kernel); }
  T* pre_activation() const { return at<T>(layout_.gram->pre_activation); }
  T* sum() const { return at<T>(layout_.gram->sum); }
  /// Elements of Z, and of S.
  std::int64_t pre_activations() const { return samples() * layout_.layers.front().out_features; }
  /// What a parameter of the first layer was before the steps in S.
  T* start_parameter(const ParameterInfo& info) const {
    return at<T>(info.is_bias ? layout_.gram->start_bias : layout_.gram->start_weight);
  }

  void make() {
    this->take_arena(layout_.bytes, layout_.losses, samples() > 0 ? layout_.steps_per_launch : 0);
    if (layout_.has_gemm) library_.emplace(at<std::byte>(layout_.gemm_workspace));
    if (samples() > 0)
      step_gemms_ = make_gemms(samples(), true);
    else
      predict_gemms_ = make_gemms(layout_.predict_rows, false);
    if (layout_.gram) make_gram_gemms();
    preparation_.lap("library");
    upload_constants();
    if (samples() > 0 && !training_.deterministic) tune_gemms();
    rehearse();
    preparation_.lap("kernels");
    if (samples() == 0) return;
    chunk_ = captured(layout_.steps_per_launch);
    if (layout_.steps_per_launch > 1) single_ = captured(1);
    DEVICELOOP_CHECK_CUDA(cudaStreamSynchronize(stream()));
    preparation_.lap("capture");
  }

  void upload_constants() {
    const T rate = static_cast<T>(training_.optimizer.learning_rate);
    const std::array<T, 5> scalars = {T(1), T(0), T(-1), -rate, rate};
    this->upload(at<T>(layout_.scalars), scalars.data(), sizeof scalars);
    if (!layout_.gram || !network_.bias) return;
    const std::vector<T> ones(static_cast<std::size_t>(samples()), T(1));
    this->upload(at<T>(layout_.ones), ones.data(), ones.size() * sizeof(T));
  }

  // ---- a step

  Gemms make_gemms(std::int64_t rows, bool backward) const {
    Gemms gemms(layout_.layers.size());
    for (std::size_t index = 0; index < layout_.layers.size(); ++index) {
      const Layer& layer = layout_.layers[index];
      if (layer.narrow) continue;
      const auto make = [&](const GemmShape& shape) { return Gemm(*library_, shape, kDataType<T>); };
      gemms[index].forward = make({rows, layer.out_features, layer.in_features, false, false});
      if (!backward) continue;
      if (index > 0) gemms[index].input_gradient = make({rows, layer.in_features, layer.out_features, false, true});
      gemms[index].weight_update = make({layer.in_features, layer.out_features, rows, true, false});
    }
    return gemms;
  }

  /// out [rows, out_features] = in W (+ bias, for a narrow layer that is given one)
  void enqueue_product(const Gemms& gemms, std::size_t index, const T* in, const T* narrow_bias, T* out,
                       std::int64_t rows) const {
    const Layer& layer = layout_.layers[index];
    if (layer.narrow)
      launch_narrow_linear(out, in, weight(layer), narrow_bias, rows, layer.in_features,
                           static_cast<int>(layer.out_features), stream());
    else
      gemms[index].forward->run(one(), in, weight(layer), zero(), out, stream());
  }

  /// out [rows, out_features] = activation(in W + b)
  void enqueue_layer(const Gemms& gemms, std::size_t index, const T* in, T* out, std::int64_t rows) const {
    const Layer& layer = layout_.layers[index];
    enqueue_product(gemms, index, in, is_last(index) ? bias(layer) : nullptr, out, rows);
    if (!is_last(index))
      launch_bias_relu(out, out, bias(layer), rows, layer.out_features, stream());
    else if (!layer.narrow && network_.bias)
      launch_add_bias(out, bias(layer), rows, layer.out_features, stream());
  }

  /// What layer `index` gets in a step, from the data or from below.
  const T* input(std::size_t index) const {
    return index > 0 ? at<T>(layout_.layers[index - 1].hidden) : at<T>(layout_.x);
  }

  void enqueue_forward(std::size_t index) const {
    const Layer& layer = layout_.layers[index];
    T* const out = at<T>(layer.hidden);
    if (index > 0 || !layout_.gram)
      enqueue_layer(*step_gemms_, index, input(index), out, samples());
    else if (!is_last(0))
      launch_bias_relu<T>(out, pre_activation(), nullptr, samples(), layer.out_features, stream());
  }

  void enqueue_forward() const {
    for (std::size_t index = 0; index < layout_.layers.size(); ++index) enqueue_forward(index);
  }

  /// The gradient of layer `index`, which lies in place of its output, to its parameters, and to the layer below.
  void enqueue_backward(std::size_t index) const {
    if (index == 0 && layout_.gram) return enqueue_gram_update();
    const Layer& layer = layout_.layers[index];
    const T* const dz = at<T>(layer.hidden);
    double* const slots = at<double>(layout_.slots);
    T* const below = index > 0 ? at<T>(layout_.layers[index - 1].hidden) : nullptr;
    const T* const in = input(index);
    if (layer.narrow) {
      launch_narrow_linear_update(below, weight(layer), rate(), in, dz, samples(), layer.in_features,
                                  static_cast<int>(layer.out_features), slots, stream());
    } else {
      const LayerGemms& gemms = (*step_gemms_)[index];
      T* const dh = at<T>(layout_.gradient);
      if (index > 0) gemms.input_gradient->run(one(), dz, weight(layer), zero(), dh, stream());
      gemms.weight_update->run(negative_rate(), in, dz, one(), weight(layer), stream());
      if (index > 0) launch_mask_gradient<T>(below, below, dh, samples() * layer.in_features, stream());
    }
    if (network_.bias) launch_bias_update(bias(layer), dz, rate(), samples(), layer.out_features, slots, stream());
  }

  void enqueue_step() const {
    enqueue_forward();
    const LossRing ring{at<double>(layout_.losses), at<std::int64_t>(layout_.steps), 2 * layout_.steps_per_launch};
    launch_squared_error(ring, output(), prediction(), at<T>(layout_.y), errors(), at<double>(layout_.slots), stream());
    for (std::size_t index = layout_.layers.size(); index-- > 0;) enqueue_backward(index);
  }

  // ---- the Gram formulation

  void make_gram_gemms() {
    const Layer& layer = layout_.layers.front();
    const auto make = [&](const GemmShape& shape) { return Gemm(*library_, shape, kDataType<T>); };
    gram_gemms_.kernel = make({samples(), samples(), layer.in_features, false, true});
    if (!layer.narrow) gram_gemms_.update = make({samples(), layer.out_features, samples(), true, false});
  }

  void copy(T* to, const T* from, std::int64_t count) const {
    DEVICELOOP_CHECK_CUDA(
        cudaMemcpyAsync(to, from, static_cast<std::size_t>(count) * sizeof(T), cudaMemcpyDeviceToDevice, stream()));
  }

  void clear_sum() {
    clear(layout_.gram->sum, static_cast<std::uint64_t>(pre_activations()) * sizeof(T));
    steps_in_sum_ = 0;
  }

  /// K of the data, Z of the parameters.
  void prepare_gram() {
    const Layer& layer = layout_.layers.front();
    const T* const x = at<T>(layout_.x);
    if (!kernel_is_current_) {
      gram_gemms_.kernel->run(one(), x, x, zero(), kernel(), stream());
      if (network_.bias) launch_add_bias<T>(kernel(), at<T>(layout_.ones), samples(), samples(), stream());
    }
    if (!pre_activation_is_current_) {
      enqueue_product(*step_gemms_, 0, x, nullptr, pre_activation(), samples());
      if (network_.bias) launch_add_bias<T>(pre_activation(), bias(layer), samples(), layer.out_features, stream());
    }
    kernel_is_current_ = pre_activation_is_current_ = true;
  }

  /// Z -= lr K dZ, with K^T for K, which is symmetric; S -= lr dZ.
  void enqueue_gram_update() const {
    const Layer& layer = layout_.layers.front();
    const T* const dz = at<T>(layer.hidden);
    if (layer.narrow)
      launch_narrow_linear_update<T>(nullptr, pre_activation(), rate(), kernel(), dz, samples(), samples(),
                                     static_cast<int>(layer.out_features), at<double>(layout_.slots), stream());
    else
      gram_gemms_.update->run(negative_rate(), kernel(), dz, one(), pre_activation(), stream());
    launch_sgd_update<T>(sum(), dz, rate(), pre_activations(), stream());
  }

  /// W = W_0 + X^T S, b = b_0 + column sums of S.
  void rebuild_parameters() {
    if (parameters_are_current_) return;
    const Layer& layer = layout_.layers.front();
    const T* const x = at<T>(layout_.x);
    double* const slots = at<double>(layout_.slots);
    for (const ParameterInfo& info : parameters_)
      if (info.layer == 0) copy(parameter(info), start_parameter(info), info.rows * info.columns);
    if (layer.narrow)
      launch_narrow_linear_update<T>(nullptr, weight(layer), minus_one(), x, sum(), samples(), layer.in_features,
                                     static_cast<int>(layer.out_features), slots, stream());
    else
      (*step_gemms_)[0].weight_update->run(one(), x, sum(), one(), weight(layer), stream());
    if (network_.bias)
      launch_bias_update<T>(bias(layer), sum(), minus_one(), samples(), layer.out_features, slots, stream());
    parameters_are_current_ = true;
  }

  /// S begins anew at the parameters as they are, and so does Z.
  void start_from_parameters() {
    if (steps_in_sum_ == 0) return;
    rebuild_parameters();
    for (const ParameterInfo& info : parameters_)
      if (info.layer == 0) copy(start_parameter(info), parameter(info), info.rows * info.columns);
    clear_sum();
    pre_activation_is_current_ = false;
  }

  // ---- a run

  /// CUDA loads the code of a kernel when it is first used, which takes milliseconds and may be forbidden while a
  /// stream is captured. So everything of a run is done once, on memory that is 0 and stays 0.
  void rehearse() {
    const Range range("deviceloop: rehearse");
    if (samples() == 0) {
      enqueue_predict();
    } else {
      if (layout_.gram) prepare_gram();
      losses_->begin(1, stream());
      enqueue_step();
      losses_->send(1, stream());
      double loss = 0;
      losses_->fetch({&loss, 1});
      if (layout_.gram) {
        parameters_are_current_ = false;
        rebuild_parameters();
        kernel_is_current_ = pre_activation_is_current_ = false;
      }
    }
    DEVICELOOP_CHECK_CUDA(cudaStreamSynchronize(stream()));
  }

  /// `count` normal random numbers, a block of them over and over.
  void fill(T* to, std::int64_t count, double deviation) {
    std::int64_t filled = std::min(count, std::int64_t{1} << 16);
    std::vector<T> values(static_cast<std::size_t>(filled));
    fill_normal(Matrix(values.data(), 1, filled), training_.seed, kTensorX, deviation);
    this->upload(to, values.data(), values.size() * sizeof(T));
    while (filled < count) {
      const std::int64_t more = std::min(filled, count - filled);
      copy(to + filled, to, more);
      filled += more;
    }
  }

  /// Each product tries its algorithms on random numbers, since one that multiplies zeros draws less power; afterwards
  /// memory is as it was.
  void tune_gemms() {
    const Range range("deviceloop: tune");
    fill(at<T>(layout_.x), samples() * network_.widths.front(), 1);
    fill(at<T>(layout_.y), errors(), 1);
    for (const Layer& layer : layout_.layers)
      fill(weight(layer), layer.in_features * layer.out_features,
           std::sqrt(2.0 / static_cast<double>(layer.in_features)));
    if (layout_.gram) prepare_gram();
    const auto is_in_z = [&](std::size_t index) { return index == 0 && layout_.gram; };
    for (std::size_t index = 0; index < layout_.layers.size(); ++index) {
      const Layer& layer = layout_.layers[index];
      if (!layer.narrow && !is_in_z(index))
        (*step_gemms_)[index].forward->tune(one(), input(index), weight(layer), zero(), at<T>(layer.hidden), stream());
      enqueue_forward(index);
    }
    launch_squared_error(at<double>(layout_.loss), output(), prediction(), at<T>(layout_.y), errors(),
                         at<double>(layout_.slots), stream());
    for (std::size_t index = layout_.layers.size(); index-- > 0;) {
      const Layer& layer = layout_.layers[index];
      const T* const dz = at<T>(layer.hidden);
      if (!layer.narrow && is_in_z(index)) {
        gram_gemms_.update->tune(negative_rate(), kernel(), dz, one(), pre_activation(), stream());
      } else if (!layer.narrow) {
        LayerGemms& gemms = (*step_gemms_)[index];
        if (index > 0) gemms.input_gradient->tune(one(), dz, weight(layer), zero(), at<T>(layout_.gradient), stream());
        gemms.weight_update->tune(negative_rate(), input(index), dz, one(), weight(layer), stream());
      }
      enqueue_backward(index);
    }
    kernel_is_current_ = pre_activation_is_current_ = false;
    clear(0, layout_.bytes);
    upload_constants();
  }

  void enqueue_steps(std::int64_t steps) {
    losses_->make_room(steps);
    if (!layout_.gram) return launch_steps(steps);
    const std::int64_t interval = training_.reprojection_steps;
    while (steps > 0) {
      const std::int64_t count = interval > 0 ? std::min(steps, interval - steps_in_sum_) : steps;
      prepare_gram();
      launch_steps(count);
      parameters_are_current_ = false;
      steps_in_sum_ += count;
      steps -= count;
      if (steps_in_sum_ == interval) start_from_parameters();
    }
  }

  /// The host has room for their losses.
  void launch_steps(std::int64_t steps) {
    const std::int64_t per_launch = layout_.steps_per_launch;
    losses_->restart(stream());
    DEVICELOOP_CHECK_CUDA(cudaMemsetAsync(at<std::int64_t>(layout_.steps), 0, sizeof(std::int64_t), stream()));
    const Range range("deviceloop: launch");
    for (std::int64_t done = 0; done < steps;) {
      const std::int64_t count = std::min(per_launch, steps - done);
      losses_->next_half(stream());
      if (count == per_launch)
        chunk_.launch(stream());
      else
        for (std::int64_t step = 0; step < count; ++step) single_.launch(stream());
      losses_->send(count, stream());
      done += count;
    }
  }

  Graph captured(std::int64_t steps) const {
    const Range range("deviceloop: capture");
    return Graph::capture(stream(), [&](cudaStream_t) {
      for (std::int64_t step = 0; step < steps; ++step) enqueue_step();
    });
  }

  // ---- prediction

  const T* enqueue_predict() const {
    const T* in = at<T>(layout_.predict_input);
    T* const buffers[2] = {at<T>(layout_.predict_even), at<T>(layout_.predict_odd)};
    for (std::size_t index = 0; index < layout_.layers.size(); ++index) {
      T* const out = buffers[index % 2];
      enqueue_layer(*predict_gemms_, index, in, out, layout_.predict_rows);
      in = out;
    }
    return in;
  }

  const GraphLayout layout_;
  std::optional<GemmLibrary> library_;
  std::optional<Gemms> step_gemms_, predict_gemms_;
  GramGemms gram_gemms_;
  /// Of the Gram formulation: whether K is that of the data, Z that of the parameters, and the first layer's parameters
  /// those that the steps have led to; as far as the stream has come.
  bool kernel_is_current_ = false, pre_activation_is_current_ = false, parameters_are_current_ = true;
  std::int64_t steps_in_sum_ = 0;
  Graph chunk_, single_;  ///< steps_per_launch steps and, where these are several, one
};

}  // namespace

std::unique_ptr<Executor> make_graph_executor(const NetworkSpec& network, const TrainingSpec& training,
                                              const Plan& plan) {
  if (training.precision == Precision::fp32) return std::make_unique<GraphExecutor<float>>(network, training, plan);
  return std::make_unique<GraphExecutor<double>>(network, training, plan);
}

}  // namespace deviceloop::cuda
