// A step is a handful of launches: products by cuBLASLt or, of small and narrow layers, own kernels, and own ones
// around them (host/planning/graph_layout.h lists them). Steps are captured when the executor is made, a chunk to a
// graph, and replayed; between chunks the host only enqueues. Each step numbers its loss by a counter on the device;
// the losses of a chunk are copied out on a second stream while the next one runs.
#include <algorithm>
#include <any>
#include <array>
#include <cmath>
#include <cstddef>
#include <optional>
#include <string>
#include <type_traits>
#include <vector>

#include <deviceloop/random.h>

#include "../../host/cuda_entry.h"
#include "../../host/planning/graph_layout.h"
#include "../../host/step/gram_run.h"
#include "../../host/step/scalars.h"
#include "../kernels/kernels.h"
#include "../kernels/loss_end.h"
#include "../runtime/gemm.h"
#include "../runtime/graph.h"
#include "../runtime/launch.h"
#include "device_executor.h"
#include "scalar_queue.h"

namespace deviceloop {
namespace cuda {
namespace {

template <class T>
class GraphExecutor final : public DeviceExecutor<T>, private GramDriver {
  using Base = DeviceExecutor<T>;
  using Base::alive;
  using Base::clear;
  using Base::losses_;
  using Base::network_;
  using Base::preparation_;
  using Base::state_;
  using Base::stream;
  using Base::training_;

 public:
  GraphExecutor(const NetworkSpec& network, const TrainingSpec& training, const Decision& decision,
                const Surroundings& surroundings)
      : Base(network, training, decision.plan, surroundings.cuda),
        layout_(std::any_cast<const GraphLayout&>(decision.layout)) {
    if (layout_.step.gram) gram_.emplace(static_cast<GramDriver&>(*this), network, training);
    borrow(surroundings.data);
    this->build([&] { make(); });
  }

  ~GraphExecutor() override { this->leave(); }

  void set_data(const TrainingData& data) override {
    alive([&] {
      if (gram_) gram_->before_data();
      if (borrow(data)) capture_steps();
      this->take_data(data, {.x = copy_of(layout_.step.data_x),
                             .y = copy_of(layout_.step.data_y),
                             .sample_weights = copy_of(layout_.step.data_weights)});
      round_tensor(layout_.step.data_x);
    });
  }

  void data_changed() override {
    alive([&] {
      if (gram_) gram_->before_data();
      this->take_device_data();
      round_tensor(layout_.step.data_x);
    });
  }

  void enqueue(std::int64_t first_step, std::int64_t steps) override {
    if (steps == 0) return;
    alive([&] { enqueue_steps(first_step, steps); });
  }

  void enqueue_step(double* loss) override {
    const auto refuse = [](const char* what) {
      throw Unsupported(std::string("enqueue_step: ") + what +
                        ", and a step that is captured is the same each time; use train or train_async");
    };
    if (gram_) refuse("with the Gram formulation parameters follow from a sum over steps");
    if (scalars_->varies()) refuse("steps have a learning rate, a batch or a correction of their own");
    this->capturable([&] {
      if (borrowed_[kBorrowedX] != nullptr) round_tensor(layout_.step.data_x);  // replayed with what lies there then
      enqueue_all(layout_.operations, scalars_at(0), {}, {loss != nullptr ? loss : at<double>(layout_.loss)});
    });
  }

  double loss(std::int64_t step) override {
    double loss = 0;
    alive([&] {
      if (gram_) gram_->before_step();
      if (scalars_->varies()) scalars_->send(scalars_->prepare(step, 1), 1, stream());
      enqueue_loss();
      this->download(&loss, at<double>(layout_.loss), sizeof loss);
    });
    return loss;
  }

  void write_state(int index, ConstMatrix in) override {
    alive([&] {
      const ParameterInfo& info = state_[static_cast<std::size_t>(index)];
      const auto write = [&] {
        this->take_matrix(state_at(info), in);
        round_weight(layout_.step.tensor_of(info));
      };
      if (gram_)
        gram_->write(info, write);
      else
        write();
    });
  }

  std::vector<std::string> algorithms() const override {
    std::vector<const GraphOperation*> products;
    for (const List* list : {&layout_.make_kernel, &layout_.operations, &layout_.make_pre_activation, &layout_.rebuild})
      for (const GraphOperation& op : *list) {
        if (op.kind == Kind::gemm || op.kind == Kind::product) products.push_back(&op);
        for (const GraphOperation& beside : op.beside) products.push_back(&beside);
      }
    std::stable_sort(products.begin(), products.end(),
                     [](const GraphOperation* one, const GraphOperation* other) { return one->layer < other->layer; });
    std::vector<std::string> lines;
    for (const GraphOperation* op : products)
      lines.push_back("layer " + std::to_string(op->layer) + ", " + op->purpose + ": " +
                      (op->kind == Kind::gemm ? gemm(*op).description() : to_string(shape_of(*op), op->cut)));
    return lines;
  }

  const Step& step() const override { return layout_.step; }
  GramRun* gram_run() override { return gram_ ? &*gram_ : nullptr; }

 protected:
  T* state_at(const ParameterInfo& info) override { return tensor(layout_.step.tensor_of(info)); }
  T* tensor_at(TensorId id) override { return tensor(id); }

  void enqueue_end() override {
    if (gram_) gram_->before_reading();
  }

  typename Base::PredictRoom predict_room() const override {
    return {at<T>(layout_.predict_input), layout_.predict_rows};
  }
  void prepare_predict() override { make_gemms(layout_.predict); }
  const T* enqueue_predict(std::int64_t) const override {
    enqueue_all(layout_.predict);
    return operand(kBorrowed + kPredictOutput);
  }
  /// Arrays of the caller are read and written where they lie, many rows at a time: a launch takes longer than the
  /// arithmetic of a thousand.
  std::int64_t predict_in_place(ConstMatrix x, Matrix out) override {
    if (!this->is_ready_for_use(x) || !this->is_ready_for_use(out)) return 0;
    const auto panel =
        std::find_if(panels_.begin(), panels_.end(), [&](const Panel& each) { return each.rows <= x.rows; });
    if (panel == panels_.end()) return 0;
    const std::array<T*, kBorrowedCount> before = borrowed_;
    borrowed_[kPredictInput] = const_cast<T*>(static_cast<const T*>(x.data));  // read only
    borrowed_[kPredictOutput] = static_cast<T*>(out.data);
    enqueue_all(panel->operations);
    borrowed_ = before;
    return panel->rows;
  }

  void prepare_panels() override {
    if (!panels_.empty()) return;
    std::int64_t widest = 1;
    for (const std::int64_t width : network_.widths) widest = std::max(widest, width);
    const std::int64_t rounded_bytes =
        operand_pitch(training_.precision, widest) * static_cast<std::int64_t>(operand_bytes(training_.precision));
    const std::int64_t row_bytes =
        2 * widest * static_cast<std::int64_t>(sizeof(T)) + operand_parts(training_.precision) * rounded_bytes;
    std::int64_t rows = layout_.predict_rows;
    while (kPanelFactor * rows * row_bytes <= kPanelBytes) rows *= kPanelFactor;
    panel_memory_.emplace(static_cast<std::size_t>(rows * row_bytes), this->options_);
    borrowed_[kPanelEven] = static_cast<T*>(panel_memory_->data());
    borrowed_[kPanelOdd] = borrowed_[kPanelEven] + rows * widest;
    borrowed_[kPanelRounded] = borrowed_[kPanelOdd] + rows * widest;
    borrowed_[kPanelRoundedLow] =
        borrowed_[kPanelRounded] + rows * rounded_bytes / static_cast<std::int64_t>(sizeof(T));
    std::vector<Panel> made;
    for (; rows >= layout_.predict_rows; rows /= kPanelFactor) {
      made.push_back({rows, predict_panel(layout_, rows, static_cast<int>(gemms_.size()))});
      for (const GraphOperation& operation : made.back().operations)
        if (operation.kind == Kind::gemm) gemms_.emplace_back();
      make_gemms(made.back().operations);
    }
    panels_ = std::move(made);
  }

 private:
  using Kind = GraphOperation::Kind;
  using List = std::vector<GraphOperation>;
  using Scalars = elementwise::StepScalars<T>;

  template <class Element>
  Element* at(std::uint64_t offset) const {
    return Base::template at<Element>(offset);
  }
  /// Null where there is none.
  T* operand(std::uint64_t offset) const {
    if (offset == kNoOperand) return nullptr;
    return offset >= kBorrowed ? borrowed_[offset - kBorrowed] : at<T>(offset);
  }
  T* tensor(TensorId id) const { return operand(layout_.at(id)); }
  /// Null where there is none.
  void* place(std::uint64_t offset) const {
    if (offset == kNoOperand || offset >= kBorrowed) return operand(offset);
    return at<std::byte>(offset);
  }
  RoundedCopy rounded(const RoundedParts& parts, std::int64_t columns) const {
    RoundedCopy copy = rounded_parameters(parts);
    if (const std::int64_t pitch = operand_pitch(training_.precision, columns); pitch != columns) {
      copy.columns = columns;
      copy.pitch = pitch;
    }
    return copy;
  }
  /// Of all parameters, one behind the other.
  RoundedCopy rounded_parameters(const RoundedParts& parts) const {
    return {place(parts[0]), place(parts[1]), training_.precision};
  }
  /// Of one that products read in rounded form, what has changed; of others nothing.
  /// @{
  void round_tensor(TensorId id) const {
    round_tensor(id, rounded(layout_.rounded_of(id), layout_.step.tensor(id).columns));
  }
  void round_weight(TensorId id) const { round_tensor(id, rounded_parameters(layout_.rounded_of(id))); }
  /// @}
  void round_tensor(TensorId id, const RoundedCopy& to) const {
    const StepTensor& shape = layout_.step.tensor(id);
    if (to.high != nullptr) round(to, tensor(id), shape.rows * shape.columns);
  }
  void round(const RoundedCopy& to, const T* values, std::int64_t count) const {
    if constexpr (std::is_same_v<T, float>) launch_round(to, values, count, stream());
  }
  T* loss_scaling() const { return tensor(layout_.step.loss_scaling); }
  const T* weights_of(const GraphOperation& op) const { return operand(op.weights); }
  /// Of a step of a launch.
  const Scalars* scalars_at(std::int64_t step) const {
    return at<Scalars>(layout_.scalars) + std::min(step, layout_.scalar_sets - 1);
  }
  double* slots() const { return at<double>(layout_.slots); }
  bool has_steps() const { return training_.samples > 0; }

  /// Takes note of where the caller has what is read there; whether that is somewhere else than before.
  bool borrow(const TrainingData& data) {
    const std::array<T*, kBorrowedCount> before = borrowed_;
    const auto note = [&](bool is_borrowed, Borrowed which, const ConstMatrix& matrix) {
      if (is_borrowed) borrowed_[which] = const_cast<T*>(static_cast<const T*>(matrix.data));  // read only
    };
    note(training_.in_place.x, kBorrowedX, data.x);
    note(training_.in_place.y, kBorrowedY, data.y);
    note(training_.in_place.sample_weights, kBorrowedWeights, data.sample_weights);
    return borrowed_ != before;
  }

  /// Where data are copied to; null where they are not.
  T* copy_of(TensorId data) const {
    const std::uint64_t offset = layout_.at(data);
    return offset >= kBorrowed ? nullptr : at<T>(offset);
  }

  void make() {
    this->take_arena(layout_.bytes, layout_.losses, has_steps() ? layout_.steps_per_launch : 0);
    borrowed_[kPredictInput] = at<T>(layout_.predict_input);
    borrowed_[kPredictOutput] = at<T>(layout_.predict_output());
    if (layout_.has_gemm) library_.emplace(at<std::byte>(layout_.gemm_workspace));
    gemms_.resize(static_cast<std::size_t>(layout_.products));
    for (const List* list : {&layout_.operations, &layout_.make_kernel, &layout_.make_pre_activation, &layout_.rebuild})
      make_gemms(*list);
    if (!has_steps()) make_gemms(layout_.predict);
    preparation_.lap("library");
    scalars_.emplace(training_, at<Scalars>(layout_.scalars), layout_.scalar_sets);
    upload_constants();
    if (has_steps() && !training_.deterministic) tune_gemms();
    rehearse();
    preparation_.lap("kernels");
    if (!has_steps()) return;
    capture_steps();
    preparation_.lap("capture");
  }

  void capture_steps() {
    chunk_ = steps_captured(layout_.steps_per_launch);
    if (layout_.steps_per_launch > 1) single_ = steps_captured(1);
  }

  void upload_constants() {
    scalars_->send(scalars_->prepare(0, 1), 1, stream());
    const Scalars adding = adding_scalars<T>();
    this->upload(at<Scalars>(layout_.scalars) + layout_.scalar_sets, &adding, sizeof adding);
    if (layout_.ones == 0) return;
    const std::vector<T> ones(static_cast<std::size_t>(layout_.step.batch), T(1));
    this->upload(at<T>(layout_.ones), ones.data(), ones.size() * sizeof(T));
  }

  // ---- products

  void make_gemms(const List& list) {
    for (const GraphOperation& op : list) {
      if (op.kind != Kind::gemm) continue;
      std::optional<Gemm>& made = gemms_[static_cast<std::size_t>(op.product)];
      if (!made)
        made.emplace(*library_,
                     GemmShape{op.rows, op.columns, op.inner, op.transpose_a, op.transpose_b, op.pitch_a, op.pitch_b},
                     training_.precision);
    }
  }

  const Gemm& gemm(const GraphOperation& op) const { return *gemms_[static_cast<std::size_t>(op.product)]; }

  // ---- launches

  /// out = alpha (the product) + beta out
  /// @{
  static const T* alpha(const GraphOperation& op, const Scalars* scalars) {
    return op.updates ? &scalars->negative_rate : &scalars->one;
  }
  static const T* beta(const GraphOperation& op, const Scalars* scalars) {
    return op.updates || op.adds ? &scalars->one : &scalars->zero;
  }
  /// @}

  OptimizerState<T> optimizer_state(const GraphOperation::States& offsets) const {
    OptimizerState<T> state{};
    for (std::size_t i = 0; i < offsets.size(); ++i) state.values[i] = operand(offsets[i]);
    return state;
  }
  /// Of what the launch computes.
  GradientEnd<T> gradient_end(const GraphOperation& op, const Scalars* scalars) const {
    return {operand(op.out), op.updates ? scalars : nullptr, op.optimizer, optimizer_state(op.state)};
  }
  /// Of the column sums that it takes beside that.
  GradientEnd<T> sums_end(const GraphOperation& op, const Scalars* scalars) const {
    return {operand(op.sums), op.updates ? scalars : nullptr, op.optimizer, optimizer_state(op.sums_state)};
  }

  void product(const GraphOperation& op, const Scalars* scalars, const LossRing& ring) const {
    if constexpr (std::is_same_v<T, float>) {
      const auto made = [&](const GraphOperation& of) -> SmallProduct {
        return {shape_of(of), operand(of.a),    operand(of.b),    gradient_end(of, scalars),
                of.end,       operand(of.bias), operand(of.kept), sums_end(of, scalars)};
      };
      for (const GraphOperation& loss : op.above) {
        const NarrowLossEnd end{loss.loss,
                                static_cast<int>(loss.columns),
                                operand(loss.weight),
                                operand(loss.bias),
                                operand(loss.b),
                                weights_of(loss),
                                operand(loss.out),
                                operand(op.below),
                                at<double>(layout_.loss_slots)};
        return launch_product_with_loss(made(op), end, op.cut, stream());
      }
      std::vector<SmallProduct> products = {made(op)};
      for (const GraphOperation& beside : op.beside) products.push_back(made(beside));
      launch_small_products(products, op.cut, stream(), op.loss_blocks > 0 ? loss_sum(op, ring) : LossSum{});
    }
  }

  LossSum loss_sum(const GraphOperation& op, const LossRing& ring) const {
    return {ring, op.loss.scale, at<double>(layout_.loss_slots), op.loss_blocks};
  }

  void narrow_gradient(const GraphOperation& op, const Scalars* scalars, const LossRing& ring) const {
    const bool masked = op.activation.has_value();
    launch_narrow_linear_gradient<T>(
        masked, operand(op.below), gradient_end(op, scalars), sums_end(op, scalars), operand(op.a), operand(op.b),
        operand(op.weight), op.inner, op.rows, static_cast<int>(op.columns), slots(), stream(),
        op.loss_blocks > 0 ? loss_sum(op, ring) : LossSum{}, training_.precision, rounded(op.rounded, op.rows));
  }

  void take_loss(const GraphOperation& op, const LossRing& ring) const {
    const LossGradient<T> gradient(operand(op.out), loss_scaling(), rounded(op.rounded, op.columns));
    const T *const predictions = operand(op.a), *const targets = operand(op.b);
    if (op.loss_blocks > 0)
      return launch_loss_blocks(op.loss, at<double>(layout_.loss_slots), gradient, predictions, targets, weights_of(op),
                                op.rows, op.columns, stream());
    launch_loss(op.loss, ring, gradient, predictions, targets, weights_of(op), op.rows, op.columns, slots(), stream());
  }

  void gather(const GraphOperation& op, const Scalars* scalars) const {
    std::vector<GatheredRows<T>> matrices;
    for (const GraphOperation::Gathered& of : op.gathered)
      matrices.push_back({operand(of.out), operand(of.data), of.columns, rounded(of.rounded, of.columns)});
    launch_gather_rows<T>(matrices, layout_.step.order, &scalars->step, op.rows, stream());
  }

  LossRing loss_ring() const {
    return {at<double>(layout_.losses), at<std::int64_t>(layout_.steps), 2 * layout_.steps_per_launch};
  }

  void update(const GraphOperation& op, const Scalars* scalars, const LossRing& ring) const {
    std::vector<SummedGradient<T>> summed;
    for (const GraphOperation::Summed& of : op.summed)
      summed.push_back({operand(of.matrix), operand(of.out) - operand(op.out), of.rows, of.columns});
    UpdateSums<T> sums{summed};
    if (op.loss_blocks > 0) sums.loss = loss_sum(op, ring);
    const GradientFactor<T> factor{operand(op.b), loss_scaling() != nullptr};
    launch_update<T>(op.optimizer, operand(op.out), optimizer_state(op.state), operand(op.a), factor, sums, scalars,
                     op.rows * op.columns, stream(), rounded_parameters(op.rounded));
  }

  void enqueue_launch(const GraphOperation& op, const Scalars* scalars, const GramShares& shares,
                      const LossRing& ring) const {
    T* const out = operand(op.out);
    const T* const a = operand(op.a);
    const T* const b = operand(op.b);
    const T* const bias = operand(op.bias);
    switch (op.kind) {
      case Kind::gemm:
        return gemm(op).run(alpha(op, scalars), place(op.a), place(op.b), beta(op, scalars), out, stream());
      case Kind::product:
        return product(op, scalars, ring);
      case Kind::gather:
        return gather(op, scalars);
      case Kind::narrow_linear:
        return launch_narrow_linear(out, a, b, bias, op.rows, op.inner, static_cast<int>(op.columns), stream(),
                                    training_.precision);
      case Kind::narrow_gradient:
        return narrow_gradient(op, scalars, ring);
      case Kind::narrow_loss:
        return launch_narrow_loss(op.loss, at<double>(layout_.loss_slots), out, operand(op.below), operand(op.weight),
                                  bias, b, weights_of(op), op.rows, op.inner, static_cast<int>(op.columns), stream(),
                                  loss_scaling(), training_.precision);
      case Kind::bias_activation:
        return launch_bias_activation(*op.activation, out, operand(op.kept), a, bias, op.rows, op.columns, stream(),
                                      rounded(op.rounded, op.columns));
      case Kind::add_bias:
        return launch_add_bias(out, bias, op.rows, op.columns, stream());
      case Kind::loss:
        return take_loss(op, ring);
      case Kind::through_activation:
        return launch_activation_gradient(*op.activation, out, a, b, op.rows * op.columns, stream(),
                                          rounded(op.rounded, op.columns));
      case Kind::column_sums:
        return launch_column_sums<T>(gradient_end(op, scalars), a, op.rows, op.columns, slots(), stream());
      case Kind::gradient_factor:
        return launch_gradient_factor(out, loss_scaling(), a, op.clip_norm, op.columns, slots(), stream());
      case Kind::update:
        return update(op, scalars, ring);
      case Kind::copy:
        return copy(out, a, op.rows * op.columns);
      case Kind::round:
        return round(rounded(op.rounded, op.columns), a, op.rows * op.columns);
      case Kind::start_rebuild:
        return launch_weighted_sum(out, static_cast<T>(shares.of_start(op.rebuilt_state)), a,
                                   static_cast<T>(shares.of_start_state(op.rebuilt_state)), b, op.rows * op.columns,
                                   stream());
    }
  }

  void enqueue_all(const List& list, const Scalars* scalars, const GramShares& shares, const LossRing& ring) const {
    for (const GraphOperation& op : list) enqueue_launch(op, scalars, shares, ring);
  }
  void enqueue_all(const List& list, const Scalars* scalars, const GramShares& shares = {}) const {
    enqueue_all(list, scalars, shares, loss_ring());
  }
  void enqueue_all(const List& list) const { enqueue_all(list, scalars_at(0)); }

  /// The loss of the parameters as they are, to layout_.loss; no gradient.
  void enqueue_loss() const {
    for (std::size_t index = 0; index < layout_.forward_operations; ++index)
      enqueue_launch(layout_.operations[index], scalars_at(0), {}, loss_ring());
    const GraphOperation& op = layout_.loss_operation();
    if (op.loss_blocks > 0) {  // as a step adds it
      enqueue_launch(layout_.operations[layout_.forward_operations], scalars_at(0), {}, loss_ring());
      return launch_end_loss(loss_sum(op, {at<double>(layout_.loss)}), stream());
    }
    launch_loss(op.loss, {at<double>(layout_.loss)}, nullptr, operand(op.a), operand(op.b), weights_of(op), op.rows,
                op.columns, slots(), stream());
  }

  void copy(T* to, const T* from, std::int64_t count) const {
    DEVICELOOP_CHECK_CUDA(
        cudaMemcpyAsync(to, from, static_cast<std::size_t>(count) * sizeof(T), cudaMemcpyDeviceToDevice, stream()));
  }

  // ---- the Gram formulation

  void compute_gram(bool kernel, bool pre_activation) override {
    if (kernel) enqueue_all(layout_.make_kernel);
    if (pre_activation) enqueue_all(layout_.make_pre_activation);
  }

  void clear_sum() override {
    const Step::Gram& gram = *layout_.step.gram;
    const StepTensor& shape = layout_.step.tensor(gram.sum);
    const std::uint64_t bytes = static_cast<std::uint64_t>(shape.rows * shape.columns) * sizeof(T);
    clear(layout_.at(gram.sum), bytes);
    for (const TensorId state : gram.sum_state)
      if (state != kNoTensor) clear(layout_.at(state), bytes);
  }

  void rebuild_parameters(const GramShares& shares) override {
    enqueue_all(layout_.rebuild, at<Scalars>(layout_.scalars) + layout_.scalar_sets, shares);
  }

  void keep_as_start(const ParameterInfo& info) override {
    copy(tensor(layout_.step.gram->start_of(info)), state_at(info), info.rows * info.columns);
  }

  // ---- a run

  /// CUDA loads the code of a kernel when it is first used, which takes milliseconds and may be forbidden while a
  /// stream is captured. So everything of a run is done once, on memory that is 0 and stays 0.
  void rehearse() {
    const Range range("deviceloop: rehearse");
    round_operands();
    if (!has_steps()) {
      enqueue_all(layout_.predict);
    } else {
      if (gram_) gram_->before_step();
      losses_->begin(1);
      losses_->restart(stream());
      enqueue_all(layout_.operations);
      losses_->send(1, stream());
      double loss = 0;
      losses_->fetch({&loss, 1});
      if (gram_) {
        rebuild_parameters({});
        gram_->forget();
      }
    }
    // What is borrowed is not 0, and has trained.
    if (borrowed_[kBorrowedX] != nullptr || borrowed_[kBorrowedY] != nullptr || borrowed_[kBorrowedWeights] != nullptr)
      clear_all();
    DEVICELOOP_CHECK_CUDA(cudaStreamSynchronize(stream()));
  }

  /// Of what is there before a step.
  void round_operands() const {
    round_tensor(layout_.step.data_x);
    for (const Step::Layer& layer : layout_.step.layers) round_weight(layer.weight);
  }

  void clear_all() {
    clear(0, layout_.bytes);
    upload_constants();
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

  /// Each product of a step tries its algorithms on random numbers, since one that multiplies zeros draws less power;
  /// afterwards memory is as it was.
  void tune_gemms() {
    const Range range("deviceloop: tune");
    const Step& step = layout_.step;
    const auto fill_tensor = [&](TensorId id, double deviation) {
      if (layout_.at(id) >= kBorrowed) return;  // the caller's
      fill(tensor(id), step.tensor(id).rows * step.tensor(id).columns, deviation);
    };
    fill_tensor(step.data_x, 1);
    fill_tensor(step.data_y, 1);
    if (training_.sample_weights) fill_tensor(step.data_weights, 1);
    for (const Step::Layer& layer : step.layers)
      fill_tensor(layer.weight, std::sqrt(2.0 / static_cast<double>(layer.in_features)));
    round_operands();
    if (gram_) gram_->before_step();
    for (const GraphOperation& op : layout_.operations) {
      if (op.kind == Kind::gemm)
        gemms_[static_cast<std::size_t>(op.product)]->tune(alpha(op, scalars_at(0)), place(op.a), place(op.b),
                                                           beta(op, scalars_at(0)), operand(op.out), stream());
      enqueue_launch(op, scalars_at(0), {}, loss_ring());
    }
    if (gram_) gram_->forget();
    clear_all();
  }

  void enqueue_steps(std::int64_t first_step, std::int64_t steps) {
    losses_->begin(steps);
    while (gram_ && steps > 0) {
      const std::int64_t count = gram_->steps_in_one_go(steps);
      gram_->before_step();
      launch_steps(first_step, count);
      gram_->after_steps(first_step, count);
      first_step += count;
      steps -= count;
    }
    if (steps > 0) launch_steps(first_step, steps);
  }

  /// The host has room for their losses.
  void launch_steps(std::int64_t first_step, std::int64_t steps) {
    const std::int64_t per_launch = layout_.steps_per_launch;
    losses_->restart(stream());
    DEVICELOOP_CHECK_CUDA(cudaMemsetAsync(at<std::int64_t>(layout_.steps), 0, sizeof(std::int64_t), stream()));
    const Range range("deviceloop: launch");
    for (std::int64_t done = 0; done < steps;) {
      const std::int64_t count = std::min(per_launch, steps - done);
      losses_->next_half(stream());
      const Scalars* const scalars = scalars_->varies() ? scalars_->prepare(first_step + done, count) : nullptr;
      if (count == per_launch) {
        if (scalars != nullptr) scalars_->send(scalars, count, stream());
        chunk_.launch(stream());
      } else {
        for (std::int64_t step = 0; step < count; ++step) {
          if (scalars != nullptr) scalars_->send(scalars + step, 1, stream());
          single_.launch(stream());
        }
      }
      losses_->send(count, stream());
      done += count;
    }
  }

  Graph steps_captured(std::int64_t steps) {
    const Range range("deviceloop: capture");
    const OverlappedLaunches overlapped(layout_.machine.has_clusters);  // of the same compute capability
    return this->captured([&] {
      for (std::int64_t step = 0; step < steps; ++step) enqueue_all(layout_.operations, scalars_at(step));
    });
  }

  const GraphLayout layout_;
  std::optional<GramRun> gram_;
  std::optional<GemmLibrary> library_;
  std::vector<std::optional<Gemm>> gemms_;  ///< by GraphOperation::product
  std::array<T*, kBorrowedCount> borrowed_{};
  /// Predictions of so many rows of the caller's arrays, the most first.
  struct Panel {
    std::int64_t rows;
    List operations;
  };
  static constexpr std::int64_t kPanelBytes = std::int64_t{64} << 20, kPanelFactor = 2;
  std::vector<Panel> panels_;
  std::optional<DeviceMemory> panel_memory_;  ///< of their hidden layers
  std::optional<ScalarQueue<T>> scalars_;
  Graph chunk_, single_;  ///< steps_per_launch steps and, where these are several, one
};

}  // namespace

}  // namespace cuda

std::unique_ptr<Executor> make_graph_executor(const NetworkSpec& network, const TrainingSpec& training,
                                              const Decision& decision, const Surroundings& surroundings) {
  return with_type(element_type(training.precision), [&](auto* type) -> std::unique_ptr<Executor> {
    return std::make_unique<cuda::GraphExecutor<std::remove_pointer_t<decltype(type)>>>(network, training, decision,
                                                                                        surroundings);
  });
}

}  // namespace deviceloop
