// A step has two phases with one barrier between them: rows of the batch forward and backward, then weights. All
// gradients of a step are taken before any weight changes. See cpu_layout.h for how each phase is cut into tasks.
//
// In the Gram formulation (see Formulation) the first layer's pre-activations Z are kept from step to step and updated
// in place of its weight. What of it is up to date is known by three flags; each value is computed when it is needed.
#include "cpu_executor.h"

#include <algorithm>
#include <cstddef>
#include <new>
#include <vector>

#include "cpu_kernels.h"
#include "cpu_layout.h"
#include "gemm.h"
#include "matrix_ops.h"
#include "parameters.h"
#include "thread_pool.h"

namespace deviceloop {
namespace {

class Arena {
 public:
  explicit Arena(std::uint64_t bytes)
      : data_(static_cast<std::byte*>(::operator new(static_cast<std::size_t>(bytes), std::align_val_t(64)))) {}
  ~Arena() { ::operator delete(data_, std::align_val_t(64)); }
  Arena(const Arena&) = delete;
  Arena& operator=(const Arena&) = delete;

  template <class T>
  T* at(std::uint64_t offset) const {
    return reinterpret_cast<T*>(data_ + offset);
  }

 private:
  std::byte* data_;
};

template <class T>
class CpuExecutor final : public Executor {
 public:
  CpuExecutor(const NetworkSpec& network, const TrainingSpec& training, const Plan& plan)
      : network_(network),
        training_(training),
        parameters_(parameter_layout(network)),
        layout_(make_cpu_layout(network, training, plan.threads)),
        negative_rate_(static_cast<T>(-training.optimizer.learning_rate)),
        arena_(layout_.bytes),
        pool_(plan.threads) {
    if (layout_.gram) clear_sum();
    preparation_.lap("memory");
  }

  void set_data(ConstMatrix x, ConstMatrix y) override {
    if (layout_.gram) start_from_parameters();  // S belongs to the data there were
    kernel_is_current_ = pre_activation_is_current_ = false;
    convert(Matrix(arena_.at<T>(layout_.x), x.rows, x.columns), x);
    convert(Matrix(arena_.at<T>(layout_.y), y.rows, y.columns), y);
  }

  void enqueue(std::int64_t steps) override {
    // Losses are appended here, before the loop, so that the loop allocates nothing.
    losses_.erase(losses_.begin(), losses_.begin() + static_cast<std::ptrdiff_t>(fetched_));
    fetched_ = 0;
    const std::size_t first = losses_.size();
    losses_.resize(first + static_cast<std::size_t>(steps));
    const SingleThreadedBlas single_threaded;
    for (std::int64_t step = 0; step < steps; ++step) losses_[first + static_cast<std::size_t>(step)] = take_step();
  }

  void losses(std::span<double> out) override {
    std::copy_n(losses_.begin() + static_cast<std::ptrdiff_t>(fetched_), out.size(), out.begin());
    fetched_ += out.size();
  }

  void finish() override {
    if (layout_.gram) rebuild_parameters();
  }

  double loss() override {
    const SingleThreadedBlas single_threaded;
    if (layout_.gram) prepare_gram();
    pool_.run(layout_.blocks, [this](std::int64_t block, int worker) { run_block(block, worker, false); });
    return summed_loss();
  }

  void read_state(int index, Matrix out) override {
    finish();  // which a run that a callback ended by an exception has not done
    convert(out, parameter(index));
  }

  void write_state(int index, ConstMatrix in) override {
    const ParameterInfo& info = parameters_[static_cast<std::size_t>(index)];
    if (!layout_.gram || info.layer > 0) return convert(parameter(index), in);
    start_from_parameters();
    convert(parameter(index), in);
    convert(start_parameter(info), parameter(index));
    pre_activation_is_current_ = false;
  }

  void predict(ConstMatrix x, Matrix out) override {
    finish();
    const SingleThreadedBlas single_threaded;
    constexpr std::int64_t kRows = CpuLayout::kPredictRows;
    pool_.run((x.rows + kRows - 1) / kRows, [&](std::int64_t panel, int worker) {
      const std::int64_t first = panel * kRows, rows = std::min(kRows, x.rows - first);
      T* const input = scratch<T>(layout_.predict_input, worker);
      convert(Matrix(input, rows, x.columns), rows_of(x, first, rows));
      T* const buffers[2] = {scratch<T>(layout_.predict_even, worker), scratch<T>(layout_.predict_odd, worker)};
      const T* in = input;
      for (std::size_t layer = 0; layer < layout_.layers.size(); ++layer) {
        T* const layer_out = buffers[layer % 2];
        forward(static_cast<int>(layer), in, layer_out, rows);
        in = layer_out;
      }
      convert(rows_of(out, first, rows), ConstMatrix(in, rows, out.columns));
    });
  }

 private:
  using Layer = CpuLayout::Layer;

  Matrix parameter(int index) const { return parameter(parameters_[static_cast<std::size_t>(index)]); }
  Matrix parameter(const ParameterInfo& info) const {
    const Layer& layer = layout_.layers[static_cast<std::size_t>(info.layer)];
    return Matrix(arena_.at<T>(info.is_bias ? layer.bias : layer.weight), info.rows, info.columns);
  }

  // Where the Gram formulation keeps what a parameter of the first layer was before the steps in S.
  Matrix start_parameter(const ParameterInfo& info) const {
    return Matrix(arena_.at<T>(info.is_bias ? layout_.gram->start_bias : layout_.gram->start_weight), info.rows,
                  info.columns);
  }

  template <class Element>
  Element* scratch(std::uint64_t offset, int worker) const {
    return arena_.at<Element>(layout_.thread_scratch + static_cast<std::uint64_t>(worker) * layout_.thread_stride +
                              offset);
  }

  T* weight(const Layer& layer) const { return arena_.at<T>(layer.weight); }
  T* bias(const Layer& layer) const { return network_.bias ? arena_.at<T>(layer.bias) : nullptr; }

  // Where a panel that begins at `row` has its H or dZ.
  T* activations(std::uint64_t offset, const Layer& layer, std::int64_t row, int worker) const {
    return layout_.chunked ? scratch<T>(offset, worker) : arena_.at<T>(offset) + row * layer.out_features;
  }

  bool is_last(int index) const { return index == network_.layers() - 1; }

  // out [rows, out_features] = in W.
  void multiply(const Layer& layer, const T* in, T* out, std::int64_t rows) const {
    gemm<T>(Transpose::no, Transpose::no, rows, layer.out_features, layer.in_features, T(1), in, layer.in_features,
            weight(layer), layer.out_features, T(0), out, layer.out_features);
  }

  // out [rows, out_features] = activation(in W + b).
  void forward(int index, const T* in, T* out, std::int64_t rows) const {
    const Layer& layer = layout_.layers[static_cast<std::size_t>(index)];
    multiply(layer, in, out, rows);
    if (is_last(index))
      add_bias(out, bias(layer), rows, layer.out_features);
    else
      bias_relu(out, out, bias(layer), rows, layer.out_features);
  }

  // The first layer in the Gram formulation: out = activation(Z) for the rows [first, first + rows).
  void forward_from_pre_activation(std::int64_t first, std::int64_t rows, T* out) const {
    const std::int64_t columns = layout_.layers.front().out_features;
    const T* const z = pre_activation() + first * columns;
    if (is_last(0))
      std::copy_n(z, rows * columns, out);
    else
      bias_relu<T>(out, z, nullptr, rows, columns);
  }

  // Rows [first, first + rows) forward; the last layer's dZ takes the prediction and then, with `backward`, its
  // gradient and those of all layers. Returns the panel's loss.
  double run_panel(std::int64_t first, std::int64_t rows, int worker, bool backward) const {
    const int last = network_.layers() - 1;
    const T* in = arena_.at<T>(layout_.x) + first * network_.widths.front();
    for (int index = 0; index <= last; ++index) {
      const Layer& layer = layout_.layers[static_cast<std::size_t>(index)];
      T* const out = activations(index == last ? layer.gradient : layer.hidden, layer, first, worker);
      if (index == 0 && layout_.gram)
        forward_from_pre_activation(first, rows, out);
      else
        forward(index, in, out, rows);
      in = out;
    }
    const std::int64_t outputs = network_.widths.back();
    const Layer& top = layout_.layers.back();
    T* const prediction = activations(top.gradient, top, first, worker);
    const T* const target = arena_.at<T>(layout_.y) + first * outputs;
    const double loss = squared_error(backward ? prediction : nullptr, prediction, target, rows * outputs);
    if (!backward) return loss;
    for (int index = last; index > 0; --index) {
      const Layer& layer = layout_.layers[static_cast<std::size_t>(index)];
      const Layer& below = layout_.layers[static_cast<std::size_t>(index) - 1];
      T* const dz = activations(layer.gradient, layer, first, worker);
      T* const dh = activations(below.gradient, below, first, worker);
      gemm<T>(Transpose::no, Transpose::yes, rows, layer.in_features, layer.out_features, T(1), dz, layer.out_features,
              weight(layer), layer.out_features, T(0), dh, layer.in_features);
      mask_gradient(dh, activations(below.hidden, below, first, worker), rows * layer.in_features);
    }
    if (layout_.gram) {
      const std::int64_t columns = layout_.layers.front().out_features;
      add_scaled(sum() + first * columns, negative_rate_,
                 arena_.at<T>(layout_.layers.front().gradient) + first * columns, rows * columns);
    }
    return loss;
  }

  // One task of the first phase.
  void run_block(std::int64_t block, int worker, bool backward) const {
    const std::int64_t begin = block * layout_.block_rows;
    const std::int64_t end = std::min(begin + layout_.block_rows, training_.samples);
    double loss = 0;
    for (std::int64_t first = begin; first < end; first += layout_.panel_rows) {
      const std::int64_t rows = std::min(layout_.panel_rows, end - first);
      loss += run_panel(first, rows, worker, backward);
      if (backward && layout_.chunked) add_panel_gradients(block, first, rows, worker);
    }
    arena_.at<double>(layout_.losses)[block] = loss;
  }

  double summed_loss() const {
    const double* const losses = arena_.at<double>(layout_.losses);
    double sum = 0;
    for (std::int64_t block = 0; block < layout_.blocks; ++block) sum += losses[block];
    return sum;
  }

  double take_step() {
    if (layout_.gram) prepare_gram();
    pool_.run(layout_.blocks, [this](std::int64_t block, int worker) { run_block(block, worker, true); });
    const double loss = summed_loss();
    if (layout_.chunked)
      update_from_slots();
    else
      update_folded();
    if (layout_.gram) {
      parameters_are_current_ = false;
      if (++steps_in_sum_ == training_.reprojection_steps) start_from_parameters();
    }
    return loss;
  }

  // What layer `index` got as input in a panel that begins at `row`.
  const T* layer_input(int index, std::int64_t row, int worker) const {
    if (index == 0) return arena_.at<T>(layout_.x) + row * network_.widths.front();
    const Layer& below = layout_.layers[static_cast<std::size_t>(index) - 1];
    return activations(below.hidden, below, row, worker);
  }

  // ---- folded

  void update_folded() {
    const std::size_t first = layout_.gram ? 1 : 0;
    std::int64_t tasks = layout_.gram ? layout_.blocks : 0;
    for (std::size_t index = first; index < layout_.layers.size(); ++index)
      tasks += layout_.layers[index].update_tasks + (network_.bias ? 1 : 0);
    pool_.run(tasks, [this, first](std::int64_t task, int worker) {
      if (layout_.gram) {
        if (task < layout_.blocks) return update_pre_activation(task, worker);
        task -= layout_.blocks;
      }
      for (std::size_t index = first; index < layout_.layers.size(); ++index) {
        const Layer& layer = layout_.layers[index];
        if (task < layer.update_tasks) return update_weight(static_cast<int>(index), task * layer.update_rows, worker);
        task -= layer.update_tasks;
        if (!network_.bias) continue;
        if (task == 0) return add_to_bias(layer, negative_rate_, arena_.at<T>(layer.gradient), worker);
        --task;
      }
    });
  }

  void update_weight(int index, std::int64_t first, int worker) const {
    const Layer& layer = layout_.layers[static_cast<std::size_t>(index)];
    const std::int64_t rows = std::min(layer.update_rows, layer.in_features - first);
    add_product(weight(layer) + first * layer.out_features, negative_rate_, layer_input(index, 0, worker) + first,
                layer.in_features, arena_.at<T>(layer.gradient), rows, layer.out_features, worker);
  }

  // w [rows, columns] += factor a^T b over all samples: the first `rows` columns of a, whose rows are `stride` apart,
  // and b [samples, columns].
  void add_product(T* w, T factor, const T* a, std::int64_t stride, const T* b, std::int64_t rows, std::int64_t columns,
                   int worker) const {
    if (layout_.one_k_block) {
      gemm<T>(Transpose::yes, Transpose::no, rows, columns, training_.samples, factor, a, stride, b, columns, T(1), w,
              columns);
      return;
    }
    // The whole sum first: added to w block by block it would be rounded to w's size each time.
    T* const product = scratch<T>(layout_.update, worker);
    constexpr std::int64_t kMaxK = std::int64_t{1} << 30;
    for (std::int64_t k = 0; k < training_.samples; k += kMaxK)
      gemm<T>(Transpose::yes, Transpose::no, rows, columns, std::min(kMaxK, training_.samples - k), T(1),
              a + k * stride, stride, b + k * columns, columns, T(k == 0 ? 0 : 1), product, columns);
    add_scaled(w, factor, product, rows * columns);
  }

  // b += factor times the column sums of `values` [samples, out_features]
  void add_to_bias(const Layer& layer, T factor, const T* values, int worker) const {
    double* const sums = scratch<double>(layout_.column_sums, worker);
    std::fill_n(sums, layer.out_features, 0.0);
    add_column_sums(sums, values, training_.samples, layer.out_features);
    T* const b = bias(layer);
    for (std::int64_t i = 0; i < layer.out_features; ++i) b[i] += factor * static_cast<T>(sums[i]);
  }

  // ---- Gram

  T* kernel() const { return arena_.at<T>(layout_.gram->kernel); }
  T* pre_activation() const { return arena_.at<T>(layout_.gram->pre_activation); }
  T* sum() const { return arena_.at<T>(layout_.gram->sum); }

  void clear_sum() {
    std::fill_n(sum(), training_.samples * layout_.layers.front().out_features, T(0));
    steps_in_sum_ = 0;
  }

  // K and Z, in the panels of the first phase.
  void prepare_gram() {
    if (kernel_is_current_ && pre_activation_is_current_) return;
    pool_.run(2 * layout_.blocks, [this](std::int64_t task, int) {
      const bool is_kernel = task < layout_.blocks;
      if (is_kernel ? kernel_is_current_ : pre_activation_is_current_) return;
      const Layer& layer = layout_.layers.front();
      const std::int64_t first = task % layout_.blocks * layout_.panel_rows;
      const std::int64_t rows = std::min(layout_.panel_rows, training_.samples - first);
      const T* const x = arena_.at<T>(layout_.x);
      const T* const panel = x + first * layer.in_features;
      if (is_kernel) {
        T* const k = kernel() + first * training_.samples;
        if (network_.bias) std::fill_n(k, rows * training_.samples, T(1));
        gemm<T>(Transpose::no, Transpose::yes, rows, training_.samples, layer.in_features, T(1), panel,
                layer.in_features, x, layer.in_features, T(network_.bias ? 1 : 0), k, training_.samples);
      } else {
        T* const z = pre_activation() + first * layer.out_features;
        multiply(layer, panel, z, rows);
        add_bias(z, bias(layer), rows, layer.out_features);
      }
    });
    kernel_is_current_ = pre_activation_is_current_ = true;
  }

  // Rows of Z -= lr K dZ, with K^T for K, which is symmetric.
  void update_pre_activation(std::int64_t block, int worker) const {
    const Layer& layer = layout_.layers.front();
    const std::int64_t first = block * layout_.panel_rows;
    add_product(pre_activation() + first * layer.out_features, negative_rate_, kernel() + first, training_.samples,
                arena_.at<T>(layer.gradient), std::min(layout_.panel_rows, training_.samples - first),
                layer.out_features, worker);
  }

  // W = W_0 + X^T S, b = b_0 + column sums of S.
  void rebuild_parameters() {
    if (parameters_are_current_) return;
    const SingleThreadedBlas single_threaded;
    const Layer& layer = layout_.layers.front();
    pool_.run(layer.update_tasks + (network_.bias ? 1 : 0), [this, &layer](std::int64_t task, int worker) {
      if (task == layer.update_tasks) {
        std::copy_n(arena_.at<T>(layout_.gram->start_bias), layer.out_features, bias(layer));
        return add_to_bias(layer, T(1), sum(), worker);
      }
      const std::int64_t first = task * layer.update_rows;
      const std::int64_t rows = std::min(layer.update_rows, layer.in_features - first);
      T* const w = weight(layer) + first * layer.out_features;
      std::copy_n(arena_.at<T>(layout_.gram->start_weight) + first * layer.out_features, rows * layer.out_features, w);
      add_product(w, T(1), arena_.at<T>(layout_.x) + first, layer.in_features, sum(), rows, layer.out_features, worker);
    });
    parameters_are_current_ = true;
  }

  // S begins anew at the parameters as they are, and so does Z.
  void start_from_parameters() {
    if (steps_in_sum_ == 0) return;
    rebuild_parameters();
    for (const ParameterInfo& info : parameters_)
      if (info.layer == 0) convert(start_parameter(info), parameter(info));
    clear_sum();
    pre_activation_is_current_ = false;
  }

  // ---- chunked

  void add_panel_gradients(std::int64_t block, std::int64_t first, std::int64_t rows, int worker) const {
    T* const slot = arena_.at<T>(layout_.slots) + block * layout_.slot_elements;
    const bool begins = first == block * layout_.block_rows;
    for (int index = 0; index < network_.layers(); ++index) {
      const Layer& layer = layout_.layers[static_cast<std::size_t>(index)];
      const T* const dz = activations(layer.gradient, layer, first, worker);
      gemm<T>(Transpose::yes, Transpose::no, layer.in_features, layer.out_features, rows, T(1),
              layer_input(index, first, worker), layer.in_features, dz, layer.out_features, T(begins ? 0 : 1),
              slot + layer.slot_weight, layer.out_features);
      if (!network_.bias) continue;
      double* const sums = scratch<double>(layout_.column_sums, worker);
      std::fill_n(sums, layer.out_features, 0.0);
      add_column_sums(sums, dz, rows, layer.out_features);
      T* const slot_bias = slot + layer.slot_bias;
      for (std::int64_t i = 0; i < layer.out_features; ++i)
        slot_bias[i] = (begins ? T(0) : slot_bias[i]) + static_cast<T>(sums[i]);
    }
  }

  void update_from_slots() {
    std::int64_t tasks = 0;
    const auto ranges = [](std::int64_t count) { return (count + CpuLayout::kSlotRange - 1) / CpuLayout::kSlotRange; };
    for (const Layer& layer : layout_.layers)
      tasks += ranges(layer.in_features * layer.out_features) + (network_.bias ? ranges(layer.out_features) : 0);
    pool_.run(tasks, [this, ranges](std::int64_t task, int) {
      for (const Layer& layer : layout_.layers) {
        const std::int64_t weights = layer.in_features * layer.out_features;
        if (task < ranges(weights)) return add_slots(weight(layer), layer.slot_weight, weights, task);
        task -= ranges(weights);
        if (!network_.bias) continue;
        if (task < ranges(layer.out_features)) return add_slots(bias(layer), layer.slot_bias, layer.out_features, task);
        task -= ranges(layer.out_features);
      }
    });
  }

  // values[i] -= lr * the sum of element i over all slots, in order, for one range of i.
  void add_slots(T* values, std::int64_t slot_offset, std::int64_t count, std::int64_t range) const {
    constexpr std::int64_t kWidth = 64;
    const T* const slots = arena_.at<T>(layout_.slots) + slot_offset;
    const std::int64_t end = std::min(count, (range + 1) * CpuLayout::kSlotRange);
    for (std::int64_t first = range * CpuLayout::kSlotRange; first < end; first += kWidth) {
      const std::int64_t width = std::min(kWidth, end - first);
      double sums[kWidth] = {};
      for (std::int64_t block = 0; block < layout_.blocks; ++block) {
        const T* const slot = slots + block * layout_.slot_elements + first;
        for (std::int64_t i = 0; i < width; ++i) sums[i] += static_cast<double>(slot[i]);
      }
      for (std::int64_t i = 0; i < width; ++i) values[first + i] += negative_rate_ * static_cast<T>(sums[i]);
    }
  }

  const NetworkSpec network_;
  const TrainingSpec training_;
  const std::vector<ParameterInfo> parameters_;
  const CpuLayout layout_;
  const T negative_rate_;
  const Arena arena_;
  ThreadPool pool_;

  // Of the Gram formulation: whether K is that of the data, Z that of the parameters, and the first layer's parameters
  // those that the steps have led to.
  bool kernel_is_current_ = false, pre_activation_is_current_ = false, parameters_are_current_ = true;
  std::int64_t steps_in_sum_ = 0;

  std::vector<double> losses_;  // of the steps done and not fetched, from fetched_ on
  std::size_t fetched_ = 0;
};

}  // namespace

std::unique_ptr<Executor> make_cpu_executor(const NetworkSpec& network, const TrainingSpec& training,
                                            const Plan& plan) {
  if (training.precision == Precision::fp32) return std::make_unique<CpuExecutor<float>>(network, training, plan);
  return std::make_unique<CpuExecutor<double>>(network, training, plan);
}

}  // namespace deviceloop
