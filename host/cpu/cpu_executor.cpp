// A step has two phases with one barrier between them: what follows row by row, forward and backward, then the updates,
// which need all rows. All gradients of a step are taken before any weight changes. See cpu_layout.h for how each phase
// is cut into tasks.
#include "cpu_executor.h"

#include <algorithm>
#include <any>
#include <atomic>
#include <cstddef>
#include <limits>
#include <new>
#include <optional>
#include <type_traits>
#include <utility>
#include <vector>

#include "../accuracy.h"
#include "../loss_scaling.h"
#include "../matrix_ops.h"
#include "../parameters.h"
#include "../planning/cpu_layout.h"
#include "../precision.h"
#include "../step/gram_run.h"
#include "../step/scalars.h"
#include "cpu_kernels.h"
#include "gemm.h"
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
class CpuExecutor final : public Executor, private GramDriver {
 public:
  CpuExecutor(const NetworkSpec& network, const TrainingSpec& training, const Decision& decision)
      : network_(network),
        training_(training),
        state_(state_layout(network, training)),
        layout_(std::any_cast<const CpuLayout&>(decision.layout)),
        arena_(layout_.bytes),
        pool_(decision.plan.threads) {
    for (const ParameterInfo& info : state_) std::fill_n(tensor(info), info.rows * info.columns, T(0));
    if (layout_.keeps_gradients)
      std::fill_n(arena_.at<std::byte>(layout_.gradients), layout_.parameter_bytes, std::byte{});
    if (layout_.step.gram) {
      clear_sum();
      for (const StateTensors& states : {gram().start_weight_state, gram().start_bias_state})
        for (const TensorId id : states) clear(id);
      gram_.emplace(static_cast<GramDriver&>(*this), network, training);
    }
    preparation_.lap("memory");
  }

  void set_data(const TrainingData& data) override {
    if (gram_) gram_->before_data();
    convert(Matrix(tensor(layout_.step.data_x), data.x.rows, data.x.columns), data.x);
    convert(Matrix(tensor(layout_.step.data_y), data.y.rows, data.y.columns), data.y);
    round_tensor(layout_.step.data_x);
    if (layout_.step.data_weights != kNoTensor)
      convert(Matrix(tensor(layout_.step.data_weights), data.sample_weights.rows, 1), data.sample_weights);
  }

  void enqueue(std::int64_t first_step, std::int64_t steps) override {
    // What the steps and the evaluation behind them take is taken here: the loop allocates nothing, and where memory is
    // refused, no step was taken.
    if (evaluations_.size() == evaluations_.capacity()) evaluations_.reserve(2 * evaluations_.size() + 1);
    const SingleThreadedBlas single_threaded;
    losses_.erase(losses_.begin(), losses_.begin() + static_cast<std::ptrdiff_t>(fetched_));
    fetched_ = 0;
    const std::size_t first = losses_.size();
    losses_.resize(first + static_cast<std::size_t>(steps));
    std::int64_t done = 0;
    try {
      while (done < steps) {
        scalars_ = step_scalars<T>(training_.optimizer, first_step + done);
        losses_[first + static_cast<std::size_t>(done)] = take_step();
        ++done;
        if (gram_) gram_->after_steps(first_step + done - 1, 1);
        single_threaded.check();
      }
    } catch (const Error& error) {
      losses_.resize(first);
      throw RunEnded(error.what(), done);
    }
  }

  void losses(std::span<double> out) override {
    std::copy_n(losses_.begin() + static_cast<std::ptrdiff_t>(fetched_), out.size(), out.begin());
    fetched_ += out.size();
  }

  std::int64_t losses_here() override { return static_cast<std::int64_t>(losses_.size() - fetched_); }

  void end_run() override {
    if (gram_) gram_->before_reading();
  }

  void finish() override { end_run(); }

  void enqueue_step(double*) override {
    throw Unsupported("enqueue_step is of the plan 'graph'; the plan 'cpu' has no stream: use train");
  }

  double loss(std::int64_t step) override {
    scalars_.step = step;
    const SingleThreadedBlas single_threaded;
    if (gram_) gram_->before_step();
    round_weights();
    pool_.run(layout_.blocks, [this](std::int64_t block, int worker) { run_block(block, worker, false); });
    single_threaded.check();
    return summed_loss();
  }

  void read_state(int index, Matrix out) override {
    finish();  // which a run that a callback ended by an exception has not done
    const ParameterInfo& info = state_[static_cast<std::size_t>(index)];
    convert(out, ConstMatrix(tensor(info), info.rows, info.columns));
  }

  void write_state(int index, ConstMatrix in) override {
    const ParameterInfo& info = state_[static_cast<std::size_t>(index)];
    const auto write = [&] { convert(Matrix(tensor(info), info.rows, info.columns), in); };
    if (gram_)
      gram_->write(info, write);
    else
      write();
    weights_are_rounded_ = false;
  }

  void predict(ConstMatrix x, Matrix out) override {
    finish();
    for_each_prediction(x, [&](std::int64_t first, std::int64_t rows, const T* prediction) {
      convert(rows_of(out, first, rows), ConstMatrix(prediction, rows, out.columns));
    });
  }

  void set_validation(ConstMatrix x, ConstMatrix y) override {
    std::vector<EvaluationSums> panels(
        static_cast<std::size_t>((x.rows + CpuLayout::kPredictRows - 1) / CpuLayout::kPredictRows));
    Parameters best;
    if (training_.watch.keep_best && x.rows > 0)
      for (const ParameterInfo& info : parameter_layout(network_))
        best.emplace_back(element_type_of<T>(), info.rows, info.columns);
    // Nothing below throws: where these cannot be had, the old ones stay, which the trainer then keeps.
    panels_ = std::move(panels);
    best_parameters_ = std::move(best);
    validation_x_ = x;
    validation_y_ = y;
    validation_loss_ = loss_of(network_, training_, x.rows, y.columns != network_.widths.back());
    forget_best();
  }

  void enqueue_evaluation(bool may_be_best) override {
    const std::int64_t columns = network_.widths.back();
    const auto* const targets = static_cast<const T*>(validation_y_.data);
    try {
      finish();
      for_each_prediction(validation_x_, [&](std::int64_t first, std::int64_t rows, const T* prediction) {
        const T* const target = targets + first * validation_y_.columns;
        EvaluationSums& sums = panels_[static_cast<std::size_t>(first / CpuLayout::kPredictRows)];
        sums.loss = take_loss<T>(validation_loss_, nullptr, prediction, target, nullptr, rows, columns);
        sums.correct = counted_predictions(validation_loss_.kind, rows, columns) == 0
                           ? 0
                           : static_cast<double>(count_right(validation_loss_, prediction, target, rows, columns));
      });
    } catch (const Error& error) {
      throw RunEnded(error.what(), 0);
    }
    EvaluationSums sums;
    for (const EvaluationSums& panel : panels_) {
      sums.loss += panel.loss;
      sums.correct += panel.correct;
    }
    evaluations_.push_back(sums);
    if (!may_be_best || best_parameters_.empty() || !(sums.loss < best_loss_)) return;
    best_loss_ = sums.loss;
    for (std::size_t index = 0; index < best_parameters_.size(); ++index)
      read_state(static_cast<int>(index), best_parameters_[index].view());
  }

  void evaluations(std::span<EvaluationSums> out) override {
    std::copy_n(evaluations_.begin(), out.size(), out.begin());
    evaluations_.erase(evaluations_.begin(), evaluations_.begin() + static_cast<std::ptrdiff_t>(out.size()));
  }

  void forget_best() override { best_loss_ = std::numeric_limits<double>::infinity(); }

  void read_best(int index, Matrix out) override {
    convert(out, std::as_const(best_parameters_[static_cast<std::size_t>(index)]).view());
  }

  const Step& step() const override { return layout_.step; }
  void read_tensor(TensorId id, std::int64_t first_row, Matrix out) override {
    convert(out, ConstMatrix(tensor(id) + first_row * out.columns, out.rows, out.columns));
  }
  void write_tensor(TensorId id, ConstMatrix in) override { convert(Matrix(tensor(id), in.rows, in.columns), in); }
  GramRun* gram_run() override { return gram_ ? &*gram_ : nullptr; }
  void write_best(double loss, const Parameters& parameters) override {
    best_parameters_ = parameters;
    best_loss_ = loss;
  }

 private:
  using Update = CpuLayout::Update;
  using Scalars = elementwise::StepScalars<T>;

  /// What products read of a matrix: its elements, or the parts that they are rounded to.
  struct Operand {
    const T* high = nullptr;
    const T* low = nullptr;  ///< null where there is one part
    Operand operator+(std::int64_t offset) const { return {high + offset, low == nullptr ? nullptr : low + offset}; }
  };

  /// Of a tensor that is there for the whole run.
  T* tensor(TensorId id) const { return id == kNoTensor ? nullptr : arena_.at<T>(layout_.at(id)); }
  T* tensor(const ParameterInfo& info) const { return tensor(layout_.step.tensor_of(info)); }

  /// Nothing where there is no such tensor.
  void clear(TensorId id) const {
    if (id == kNoTensor) return;
    const StepTensor& shape = layout_.step.tensor(id);
    std::fill_n(tensor(id), shape.rows * shape.columns, T(0));
  }

  /// Rows of a tensor from `row` on, which a panel begins with.
  T* at_row(TensorId id, std::int64_t row, int worker) const { return rows_at(layout_.at(id), id, row, worker); }
  /// The same of what lies at `offset` as the tensor does.
  T* rows_at(std::uint64_t offset, TensorId id, std::int64_t row, int worker) const {
    const StepTensor& shape = layout_.step.tensor(id);
    switch (shape.lifetime) {
      case StepTensor::Lifetime::activation:
      case StepTensor::Lifetime::gradient:
        if (layout_.chunked) return scratch<T>(offset, worker);
        break;
      case StepTensor::Lifetime::data:
      case StepTensor::Lifetime::parameter:
      case StepTensor::Lifetime::state:
      case StepTensor::Lifetime::derived:
        break;
    }
    return arena_.at<T>(offset) + row * shape.columns;
  }

  // ---- operands of products

  /// part [0, kMostOperandParts) of the rounded elements, from `row` on; null where the precision has it not.
  T* part_at(int part, TensorId id, std::int64_t row, int worker) const {
    const std::uint64_t offset = layout_.operands[static_cast<std::size_t>(id)][static_cast<std::size_t>(part)];
    return offset == CpuLayout::kNone ? nullptr : rows_at(offset, id, row, worker);
  }

  /// What a product reads of a tensor, from `row` on.
  Operand operand_at(TensorId id, std::int64_t row, int worker) const {
    if (!layout_.is_operand(id)) return {at_row(id, row, worker)};
    return {part_at(0, id, row, worker), part_at(1, id, row, worker)};
  }
  /// The same of a tensor that is there for the whole run, or of all rows where steps are folded.
  Operand operand(TensorId id) const { return operand_at(id, 0, 0); }

  void round(const T* values, std::int64_t count, T* high, T* low) const {
    if constexpr (std::is_same_v<T, float>) round_operand(training_.precision, values, count, high, low);
  }

  /// Rows of a tensor that were written, if products read them.
  void round_rows(TensorId id, std::int64_t row, std::int64_t count, int worker) const {
    if (!layout_.is_operand(id)) return;
    round(at_row(id, row, worker), count * layout_.step.tensor(id).columns, part_at(0, id, row, worker),
          part_at(1, id, row, worker));
  }

  /// All rows of one that is there for the whole run.
  void round_tensor(TensorId id) {
    if (!layout_.is_operand(id)) return;
    const StepTensor& shape = layout_.step.tensor(id);
    const std::int64_t rows = std::max<std::int64_t>(1, CpuLayout::kSlotRange / shape.columns);
    pool_.run((shape.rows + rows - 1) / rows, [&](std::int64_t task, int worker) {
      round_rows(id, task * rows, std::min(rows, shape.rows - task * rows), worker);
    });
  }

  /// Before products, where the weights have changed since.
  void round_weights() {
    if (weights_are_rounded_) return;
    for (const Step::Layer& layer : layout_.step.layers) round_tensor(layer.weight);
    weights_are_rounded_ = true;
  }

  // c = alpha op(a) op(b) + beta c; of operands in two parts without the product of the low ones, which is lost beside
  // the others.
  static void product(Transpose transpose_a, Transpose transpose_b, std::int64_t m, std::int64_t n, std::int64_t k,
                      T alpha, Operand a, std::int64_t lda, Operand b, std::int64_t ldb, T beta, T* c,
                      std::int64_t ldc) {
    const auto add = [&](const T* of_a, const T* of_b) {
      gemm<T>(transpose_a, transpose_b, m, n, k, alpha, of_a, lda, of_b, ldb, beta, c, ldc);
      beta = T(1);
    };
    if (a.low != nullptr) {  // the small ones first
      add(a.low, b.high);
      add(a.high, b.low);
    }
    add(a.high, b.high);
  }

  template <class Element>
  Element* scratch(std::uint64_t offset, int worker) const {
    return arena_.at<Element>(layout_.thread_scratch + static_cast<std::uint64_t>(worker) * layout_.thread_stride +
                              offset);
  }

  // ---- prediction

  // take(first, rows, their predictions) for all rows of x, panel by panel.
  template <class Take>
  void for_each_prediction(ConstMatrix x, const Take& take) {
    const SingleThreadedBlas single_threaded;
    round_weights();
    constexpr std::int64_t kRows = CpuLayout::kPredictRows;
    pool_.run((x.rows + kRows - 1) / kRows, [&](std::int64_t panel, int worker) {
      const std::int64_t first = panel * kRows, rows = std::min(kRows, x.rows - first);
      T* const input = scratch<T>(layout_.predict_input, worker);
      convert(Matrix(input, rows, x.columns), rows_of(x, first, rows));
      T* const buffers[2] = {scratch<T>(layout_.predict_even, worker), scratch<T>(layout_.predict_odd, worker)};
      const T* in = input;
      for (const StepOperation& layer : layout_.step.inference) {
        T* const layer_out = buffers[layer.layer % 2];
        forward(layer, predict_operand(in, rows * layer.inner, worker), layer_out, nullptr, rows);
        in = layer_out;
      }
      take(first, rows, in);
    });
    single_threaded.check();
  }

  Operand predict_operand(const T* in, std::int64_t count, int worker) const {
    const auto [high, low] = layout_.predict_operand;
    if (high == CpuLayout::kNone) return {in};
    T* const of_high = scratch<T>(high, worker);
    T* const of_low = low == CpuLayout::kNone ? nullptr : scratch<T>(low, worker);
    round(in, count, of_high, of_low);
    return {of_high, of_low};
  }

  // ---- operations by row

  // out [rows, columns] = in b.
  void multiply(const StepOperation& op, Transpose transpose_b, Operand in, T* out, std::int64_t rows) const {
    product(Transpose::no, transpose_b, rows, op.columns, op.inner, T(1), in, op.inner, operand(op.b),
            transpose_b == Transpose::no ? op.columns : op.inner, T(0), out, op.columns);
  }

  // out [rows, columns] = activation(in b + bias), and the pre-activation to `kept`, which may be null.
  void forward(const StepOperation& op, Operand in, T* out, T* kept, std::int64_t rows) const {
    multiply(op, Transpose::no, in, out, rows);
    if (op.activation)
      bias_activation(*op.activation, out, kept, out, tensor(op.bias), rows, op.columns);
    else
      add_bias(out, tensor(op.bias), rows, op.columns);
  }

  // The operations by row, for the rows [first, first + count); without `backward` up to the loss, which is returned.
  double run_panel(std::int64_t first, std::int64_t count, int worker, bool backward) const {
    double loss = 0;
    std::int64_t samples[CpuLayout::kMostPanelRows];  // of the data, which the rows are
    if (layout_.step.x != layout_.step.data_x)
      layout_.step.order.take(scalars_.step * layout_.step.batch + first, count, samples);
    for (const StepOperation& op : layout_.step.operations) {
      if (!op.is_by_row()) continue;
      const T* const a = op.kind == StepOperation::Kind::gather ? nullptr : at_row(op.a, first, worker);
      T* const out = at_row(op.out, first, worker);
      switch (op.kind) {
        case StepOperation::Kind::gather:
          for (std::int64_t row = 0; row < count; ++row)
            std::copy_n(tensor(op.a) + samples[row] * op.columns, op.columns, out + row * op.columns);
          break;
        case StepOperation::Kind::forward:
          forward(op, operand_at(op.a, first, worker), out,
                  op.kept == kNoTensor ? nullptr : at_row(op.kept, first, worker), count);
          break;
        case StepOperation::Kind::activate:
          bias_activation<T>(*op.activation, out, nullptr, a, nullptr, count, op.columns);
          break;
        case StepOperation::Kind::loss:
          loss = take_loss<T>(op.loss, backward ? out : nullptr, a, at_row(op.b, first, worker),
                              op.weights == kNoTensor ? nullptr : at_row(op.weights, first, worker), count, op.columns);
          if (!backward) return loss;
          if (op.activation)
            through_activation(*op.activation, out, at_row(op.kept, first, worker), count * op.columns);
          if (loss_scale_ != T(1))
            for (std::int64_t i = 0; i < count * op.columns; ++i) out[i] *= loss_scale_;
          break;
        case StepOperation::Kind::input_gradient:
          multiply(op, Transpose::yes, operand_at(op.a, first, worker), out, count);
          through_activation(*op.activation, out, at_row(op.kept, first, worker), count * op.columns);
          break;
        case StepOperation::Kind::sum_update:
          update(op.optimizer, out, state_from(op, first * op.columns), a, count * op.columns, scalars_);
          break;
        case StepOperation::Kind::weight_update:
        case StepOperation::Kind::bias_update:
        case StepOperation::Kind::kernel_matrix:
        case StepOperation::Kind::rebuild_weight:
        case StepOperation::Kind::rebuild_bias:
          break;  // not by row, or in no step
      }
      round_rows(op.out, first, count, worker);
    }
    return loss;
  }

  // One task of the first phase.
  void run_block(std::int64_t block, int worker, bool backward) const {
    const std::int64_t begin = block * layout_.block_rows;
    const std::int64_t end = std::min(begin + layout_.block_rows, layout_.step.batch);
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
    if (gram_) gram_->before_step();
    round_weights();
    if (layout_.step.loss_scaling != kNoTensor) loss_scale_ = LossScaling::scale(tensor(layout_.step.loss_scaling));
    pool_.run(layout_.blocks, [this](std::int64_t block, int worker) { run_block(block, worker, true); });
    const double loss = summed_loss();
    if (layout_.chunked)
      update_from_slots();
    else
      run_folded(layout_.updates, scalars_);
    if (layout_.keeps_gradients) update_from_kept();
    weights_are_rounded_ = false;
    return loss;
  }

  // ---- folded

  void run_folded(const std::vector<Update>& updates, const Scalars& scalars, const GramShares& shares = {}) {
    std::int64_t tasks = 0;
    for (const Update& update : updates) tasks += update.tasks;
    pool_.run(tasks, [&, this](std::int64_t task, int worker) {
      for (const Update& update : updates) {
        if (task < update.tasks) return run_update(update, scalars, shares, task * update.task_rows, worker);
        task -= update.tasks;
      }
    });
  }

  // The rows of `out` from `first` on that are one task.
  void run_update(const Update& update, const Scalars& scalars, const GramShares& shares, std::int64_t first,
                  int worker) const {
    const StepOperation& op = update.operation;
    const std::int64_t count = std::min(update.task_rows, layout_.step.tensor(op.out).rows - first);
    if (op.start != kNoTensor) start_rebuild(op, shares, first * op.columns, count * op.columns);
    if (op.inner == 0)
      update_bias(op, scalars, worker);
    else
      update_weight(op, scalars, first, count, worker);
  }

  // The rows [first, first + rows) of `out`, by a^T b over all samples.
  void update_weight(const StepOperation& op, const Scalars& scalars, std::int64_t first, std::int64_t rows,
                     int worker) const {
    const Operand a = operand(op.a) + first;
    const Operand b = operand(op.b);
    if (layout_.adds_products) {
      product(Transpose::yes, Transpose::no, rows, op.columns, op.inner, scalars.negative_rate, a, op.rows, b,
              op.columns, T(1), tensor(op.out) + first * op.columns, op.columns);
      return;
    }
    // The whole sum first: added to `out` block by block it would be rounded to the size of `out` each time.
    T* const gradient = scratch<T>(layout_.update, worker);
    constexpr std::int64_t kMaxK = std::int64_t{1} << 30;
    for (std::int64_t k = 0; k < op.inner; k += kMaxK)
      product(Transpose::yes, Transpose::no, rows, op.columns, std::min(kMaxK, op.inner - k), T(1), a + k * op.rows,
              op.rows, b + k * op.columns, op.columns, T(k == 0 ? 0 : 1), gradient, op.columns);
    update_range(op, scalars, first * op.columns, gradient, rows * op.columns);
  }

  void update_bias(const StepOperation& op, const Scalars& scalars, int worker) const {
    double* const sums = scratch<double>(layout_.column_sums, worker);
    std::fill_n(sums, op.columns, 0.0);
    add_column_sums(sums, tensor(op.a), op.rows, op.columns);
    update_by_sums(op, scalars, 0, sums, op.columns);
  }

  // The elements of `out` from `first` on; where all gradients are needed first, they are only kept.
  void update_range(const StepOperation& op, const Scalars& scalars, std::int64_t first, const T* gradients,
                    std::int64_t count) const {
    if (layout_.keeps_gradients) {
      std::copy_n(gradients, count, arena_.at<T>(layout_.gradients + layout_.at(op.out)) + first);
      return;
    }
    update(op.optimizer, tensor(op.out) + first, state_from(op, first), gradients, count, scalars);
  }

  /// What the optimizer keeps for the elements of `out` from `first` on.
  std::array<T*, elementwise::kMostStates> state_from(const StepOperation& op, std::int64_t first) const {
    std::array<T*, elementwise::kMostStates> state{};
    for (std::size_t s = 0; s < state.size(); ++s)
      if (op.state[s] != kNoTensor) state[s] = tensor(op.state[s]) + first;
    return state;
  }

  // All parameters at once, which lie behind each other, as do their gradients and what the optimizer keeps.
  void update_from_kept() {
    const bool clips_norm = training_.optimizer.clip_norm > 0;
    T* const loss_scaling = tensor(layout_.step.loss_scaling);
    std::atomic<bool> are_finite = true;
    constexpr std::int64_t kRange = CpuLayout::kSlotRange;
    T* const gradients = arena_.at<T>(layout_.gradients);
    double* const square_sums = arena_.at<double>(layout_.square_sums);
    const auto count = static_cast<std::int64_t>(layout_.parameter_bytes / sizeof(T));
    const std::int64_t tasks = (count + kRange - 1) / kRange;
    pool_.run(tasks, [&](std::int64_t task, int) {
      T* const range = gradients + task * kRange;
      const std::int64_t width = std::min(kRange, count - task * kRange);
      if (loss_scaling != nullptr && !scale_finite(range, 1 / loss_scale_, width)) are_finite = false;
      if (clips_norm) square_sums[task] = square_sum(range, width);
    });
    if (loss_scaling != nullptr) {
      LossScaling::adapt(loss_scaling, are_finite);
      if (!are_finite) return;
    }
    double squares = 0;
    for (std::int64_t task = 0; clips_norm && task < tasks; ++task) squares += square_sums[task];
    const T factor = clips_norm ? elementwise::clip_factor<T>(squares, training_.optimizer.clip_norm) : T(1);
    const Step::Layer& layer = layout_.step.layers.front();
    pool_.run(tasks, [&](std::int64_t task, int) {
      const std::int64_t first = task * kRange, width = std::min(kRange, count - first);
      std::array<T*, elementwise::kMostStates> state{};
      for (std::size_t s = 0; s < state.size(); ++s)
        if (layer.weight_state[s] != kNoTensor) state[s] = tensor(layer.weight_state[s]) + first;
      if (clips_norm)
        for (std::int64_t i = first; i < first + width; ++i) gradients[i] *= factor;
      update(training_.optimizer.kind, arena_.at<T>(0) + first, state, gradients + first, width, scalars_);
    });
  }

  void update_by_sums(const StepOperation& op, const Scalars& scalars, std::int64_t first, const double* sums,
                      std::int64_t count) const {
    T gradients[kSums];
    for (std::int64_t begin = 0; begin < count; begin += kSums) {
      const std::int64_t width = std::min(kSums, count - begin);
      for (std::int64_t i = 0; i < width; ++i) gradients[i] = static_cast<T>(sums[begin + i]);
      update_range(op, scalars, first + begin, gradients, width);
    }
  }

  // ---- Gram

  const Step::Gram& gram() const { return *layout_.step.gram; }

  // K, Z and what the optimizer keeps for Z, in the panels of the first phase.
  void compute_gram(bool kernel, bool pre_activation) override {
    const SingleThreadedBlas single_threaded;
    const auto products = static_cast<std::int64_t>(1 + gram().make_pre_activation.size());
    pool_.run(products * layout_.blocks, [&, this](std::int64_t task, int) {
      const bool is_kernel = task < layout_.blocks;
      if (is_kernel ? !kernel : !pre_activation) return;
      const std::int64_t first = task % layout_.blocks * layout_.panel_rows;
      const std::int64_t count = std::min(layout_.panel_rows, layout_.step.batch - first);
      const auto product = static_cast<std::size_t>(task / layout_.blocks);
      const StepOperation& op = is_kernel ? gram().make_kernel : gram().make_pre_activation[product - 1];
      const T* const panel = tensor(op.a) + first * op.inner;
      T* const out = tensor(op.out) + first * op.columns;
      if (!is_kernel) return forward(op, {panel}, out, nullptr, count);
      if (op.bias_in_kernel) std::fill_n(out, count * op.columns, T(1));
      gemm<T>(Transpose::no, Transpose::yes, count, op.columns, op.inner, T(1), panel, op.inner, tensor(op.a), op.inner,
              T(op.bias_in_kernel ? 1 : 0), out, op.columns);
    });
    single_threaded.check();
  }

  void clear_sum() override {
    clear(gram().sum);
    for (const TensorId id : gram().sum_state) clear(id);
  }

  void rebuild_parameters(const GramShares& shares) override {
    const SingleThreadedBlas single_threaded;
    run_folded(layout_.rebuild, adding_scalars<T>(), shares);
    single_threaded.check();
  }

  // `count` elements of `out` from `first` on, to which a product or column sums are added next.
  void start_rebuild(const StepOperation& op, const GramShares& shares, std::int64_t first, std::int64_t count) const {
    T* const out = tensor(op.out) + first;
    const T* const start = tensor(op.start) + first;
    if (op.start_state == kNoTensor) {
      std::copy_n(start, count, out);
      return;
    }
    const T* const start_state = tensor(op.start_state) + first;
    const auto of_start = static_cast<T>(shares.of_start(op.rebuilt_state));
    const auto of_state = static_cast<T>(shares.of_start_state(op.rebuilt_state));
    for (std::int64_t i = 0; i < count; ++i)
      out[i] = elementwise::weighted_sum(of_start, start[i], of_state, start_state[i]);
  }

  void keep_as_start(const ParameterInfo& info) override {
    std::copy_n(tensor(info), info.rows * info.columns, tensor(gram().start_of(info)));
  }

  // ---- chunked

  void add_panel_gradients(std::int64_t block, std::int64_t first, std::int64_t count, int worker) const {
    T* const slots = arena_.at<T>(layout_.slots) + block * layout_.slot_elements;
    const bool begins = first == block * layout_.block_rows;
    for (const Update& update : layout_.updates) {
      const StepOperation& op = update.operation;
      T* const slot = slots + update.slot;
      if (op.inner > 0) {
        product(Transpose::yes, Transpose::no, op.rows, op.columns, count, T(1), operand_at(op.a, first, worker),
                op.rows, operand_at(op.b, first, worker), op.columns, T(begins ? 0 : 1), slot, op.columns);
        continue;
      }
      double* const sums = scratch<double>(layout_.column_sums, worker);
      std::fill_n(sums, op.columns, 0.0);
      add_column_sums(sums, at_row(op.a, first, worker), count, op.columns);
      for (std::int64_t i = 0; i < op.columns; ++i) slot[i] = (begins ? T(0) : slot[i]) + static_cast<T>(sums[i]);
    }
  }

  void update_from_slots() {
    const auto ranges = [](std::int64_t count) { return (count + CpuLayout::kSlotRange - 1) / CpuLayout::kSlotRange; };
    std::int64_t tasks = 0;
    for (const Update& update : layout_.updates) tasks += ranges(update.elements);
    pool_.run(tasks, [this, ranges](std::int64_t task, int) {
      for (const Update& update : layout_.updates) {
        if (task < ranges(update.elements)) return add_slots(update, task);
        task -= ranges(update.elements);
      }
    });
  }

  // By the sums of each element over all slots, in order, for one range of elements.
  void add_slots(const Update& update, std::int64_t range) const {
    const T* const slots = arena_.at<T>(layout_.slots) + update.slot;
    const std::int64_t end = std::min(update.elements, (range + 1) * CpuLayout::kSlotRange);
    for (std::int64_t first = range * CpuLayout::kSlotRange; first < end; first += kSums) {
      const std::int64_t width = std::min(kSums, end - first);
      double sums[kSums] = {};
      for (std::int64_t block = 0; block < layout_.blocks; ++block) {
        const T* const slot = slots + block * layout_.slot_elements + first;
        for (std::int64_t i = 0; i < width; ++i) sums[i] += static_cast<double>(slot[i]);
      }
      update_by_sums(update.operation, scalars_, first, sums, width);
    }
  }

  static constexpr std::int64_t kSums = 64;  ///< rounded to gradients at a time

  const NetworkSpec network_;
  const TrainingSpec training_;
  const std::vector<ParameterInfo> state_;
  const CpuLayout layout_;
  Scalars scalars_;  ///< of the step that is taken
  T loss_scale_ = T(1);
  bool weights_are_rounded_ = false;
  const Arena arena_;
  ThreadPool pool_;

  std::optional<GramRun> gram_;

  ConstMatrix validation_x_, validation_y_;
  LossOfStep validation_loss_{};
  std::vector<EvaluationSums> panels_;       // of one evaluation
  std::vector<EvaluationSums> evaluations_;  // not fetched
  Parameters best_parameters_;
  double best_loss_ = std::numeric_limits<double>::infinity();

  std::vector<double> losses_;  // of the steps done and not fetched, from fetched_ on
  std::size_t fetched_ = 0;
};

}  // namespace

std::unique_ptr<Executor> make_cpu_executor(const NetworkSpec& network, const TrainingSpec& training,
                                            const Decision& decision, const Surroundings&) {
  return with_type(element_type(training.precision), [&](auto* type) -> std::unique_ptr<Executor> {
    return std::make_unique<CpuExecutor<std::remove_pointer_t<decltype(type)>>>(network, training, decision);
  });
}

}  // namespace deviceloop
