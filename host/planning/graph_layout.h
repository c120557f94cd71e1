// What the graph executor launches for a step, and how it uses its memory: plain functions of the step, so that the
// planner counts the bytes that the executor takes and predicts its time, without a device.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <vector>

#include <deviceloop/plan.h>
#include <deviceloop/spec.h>

#include "../precision.h"
#include "../step/step.h"
#include "decision.h"
#include "small_product.h"

namespace deviceloop {

/// Where there is no operand.
constexpr std::uint64_t kNoOperand = ~std::uint64_t{0};

/// In place of offsets: what lies where the caller has it, kBorrowed + one of these.
constexpr std::uint64_t kBorrowed = std::uint64_t{1} << 63;
enum Borrowed : std::uint64_t {
  kBorrowedX,
  kBorrowedY,
  kBorrowedWeights,
  kPredictInput,
  kPredictOutput,
  kPanelEven,  ///< hidden layers of predict_panel()
  kPanelOdd,
  kPanelRounded,     ///< the rounded input of a layer of it,
  kPanelRoundedLow,  ///< and in a precision of two parts the other one
  kBorrowedCount
};

/// Where the rounded elements of an operand of the library's products lie, as each part of them; none in fp32 and fp64,
/// and none of a matrix that only own kernels multiply, which round what they read.
using RoundedParts = std::array<std::uint64_t, kMostOperandParts>;
constexpr RoundedParts kNotRounded = {kNoOperand, kNoOperand};

/// A launch: a product of cuBLASLt, or one of the functions of cuda/kernels/kernels.h, of which some have a second
/// kernel that adds slots. Operands are offsets in bytes. Products: [rows, inner] times [inner, columns].
struct GraphOperation {
  enum class Kind {
    gather,              ///< of each of `gathered`, to `out` the rows of `data` that the step takes
    gemm,                ///< op(a) op(b), by the library
    product,             ///< the same by the own kernel, with `end`: (+ bias) relu, masked by `kept`, or as a gradient;
                         ///< of a^T b together with others, `beside`; or with the narrow layer and the loss `above`
    narrow_linear,       ///< out = a b (+ bias)
    narrow_gradient,     ///< a^T b; before that, with `below`, below = b weight^T, through `activation` if it has one,
                         ///< whose output a is
    bias_activation,     ///< out = activation(a (+ bias)), and the pre-activation to `kept`, if there is one
    add_bias,            ///< out += bias
    loss,                ///< out = the gradient of the loss of predictions a and targets b, and the loss
    narrow_loss,         ///< the same of the predictions of a narrow layer, which it computes by itself: of
                         ///< inputs `below` by `weight` (+ bias); with loss_blocks
    through_activation,  ///< out = b times the activation's derivative, which follows from a
    column_sums,         ///< the column sums of a
    gradient_factor,     ///< out = what all gradients a are multiplied by: 1 over the scale of the loss, which adapts;
                         ///< and so that their norm is at most clip_norm, unless that is 0
    update,              ///< by the optimizer: out and `state` by the gradient a, times b if there is one; `summed`
                         ///< are gradients that the launch computes by itself
    copy,                ///< out = a
    round,               ///< `rounded` = a
    start_rebuild,       ///< out = shares of a and b (GramShares)
  };

  Kind kind = Kind::copy;
  int layer = 0;
  const char* purpose = "";  ///< of a gemm or a product, for reports
  std::int64_t rows = 0;     ///< of out
  std::int64_t columns = 0;
  std::int64_t inner = 0;
  std::uint64_t a = kNoOperand;
  std::uint64_t b = kNoOperand;
  std::uint64_t bias = kNoOperand;
  std::uint64_t below = kNoOperand;
  std::uint64_t kept = kNoOperand;
  std::uint64_t weights = kNoOperand;  ///< of a loss: of its rows
  std::optional<ActivationOfStep> activation{};
  std::uint64_t out = kNoOperand;
  RoundedParts rounded = kNotRounded;  ///< where out, of narrow_gradient `below`, goes too, for products
  bool adds = false;                   ///< of gemm: the result is added to out
  std::uint64_t weight = kNoOperand;   ///< of narrow_gradient with `below`
  using States = std::array<std::uint64_t, elementwise::kMostStates>;
  States state = {kNoOperand, kNoOperand};
  OptimizerKind optimizer = OptimizerKind::gradient_descent;  ///< of `update`, and of what `updates`
  /// Of gemm, product, narrow_gradient and column_sums: out, and its `state`, change by the result as the optimizer
  /// says (of gemm only by a multiple of it), else out = it.
  bool updates = false;
  /// Of narrow_gradient and of a product that is a gradient: where the column sums of b go, in the same way.
  std::uint64_t sums = kNoOperand;
  States sums_state = {kNoOperand, kNoOperand};
  std::vector<GraphOperation> beside{};
  /// Of a product, none or one: the narrow_loss of what it computes, which the launch ends with. It then also takes the
  /// gradient of that through the activation, to `below`.
  std::vector<GraphOperation> above{};
  LossOfStep loss{};
  /// Of `gather`.
  struct Gathered {
    std::uint64_t data = kNoOperand, out = kNoOperand;
    std::int64_t columns = 0;
    RoundedParts rounded = kNotRounded;
  };
  std::vector<Gathered> gathered{};
  /// Of `update`: a matrix whose column sums are the gradient of the parameter at `out`.
  struct Summed {
    std::uint64_t matrix = kNoOperand, out = kNoOperand;
    std::int64_t rows = 0, columns = 0;
  };
  std::vector<Summed> summed{};
  /// Of `loss` and `narrow_loss`, unless 0: so many partial sums of it are left at loss_slots, which an update, a
  /// narrow_gradient or products that are gradients add up behind it; of those: how many.
  std::int64_t loss_blocks = 0;
  int rebuilt_state = -1;                          ///< of `start_rebuild`, as in StepOperation
  double clip_norm = 0;                            ///< of `gradient_factor`
  bool transpose_a = false;                        ///< of a gemm or a product: a is [inner, rows]
  bool transpose_b = false;                        ///< of a gemm or a product: b is [columns, inner]
  std::int64_t pitch_a = 0, pitch_b = 0;           ///< of a gemm: elements from row to row of a and b; 0: no gaps
  int product = -1;                                ///< of a gemm: its number among all of the layout
  cuda::SmallProductLayout cut{};                  ///< of a product, and of those beside it
  cuda::ProductEnd end = cuda::ProductEnd::store;  ///< of a product
};

/// Of a gemm or a product.
inline cuda::ProductShape shape_of(const GraphOperation& operation) {
  return {operation.rows, operation.columns, operation.inner, operation.transpose_a, operation.transpose_b};
}

/// What predicts the time of a launch.
struct GraphNode {
  enum class Kind {
    elements,  ///< bound by bytes
    product,   ///< of cuBLASLt
    own_product,
    row_sums,         ///< sums over rows, some of them by each thread after each other
    narrow_gradient,  ///< the same with the arithmetic of a narrow layer
  };
  Kind kind = Kind::elements;
  double bytes = 0;              ///< that it reads and writes
  double multiply_adds = 0;      ///< of a product, the library's or an own one
  std::int64_t inner = 0;        ///< of a product
  double own_us = 0;             ///< of an own product, where its operands lie in L2
  std::int64_t thread_rows = 0;  ///< of row_sums and narrow_gradient
  std::int64_t outputs = 1;      ///< of narrow_gradient
  bool has_slots = false;
};

/// What of a GPU decides what is launched there.
struct GraphMachine {
  bool has_clusters = true;
  bool takes_own_products = true;  ///< where they are faster than the library's; else the library's alone
};

/// What is launched, and where it works: offsets in bytes from the start of one arena in device memory, each a multiple
/// of 256.
struct GraphLayout {
  Step step;
  GraphMachine machine;
  /// Where each tensor of the step lies. dZ lies where the output of its layer does, which nothing needs any more when
  /// it is written; but where the own products above read that output, which come after all of them, it has a place of
  /// its own.
  std::vector<std::uint64_t> tensors;
  std::uint64_t at(TensorId id) const { return id == kNoTensor ? kNoOperand : tensors[static_cast<std::size_t>(id)]; }
  /// The rounded elements of each tensor that the library's products read, but for weights with rows operand_pitch()
  /// apart; those of dZ lie where those of the output of its layer do, as above. Empty where products read the tensors
  /// themselves.
  std::vector<RoundedParts> rounded{};
  const RoundedParts& rounded_of(TensorId id) const {
    return rounded.empty() || id == kNoTensor ? kNotRounded : rounded[static_cast<std::size_t>(id)];
  }

  /// Of a step; of these the first `forward_operations` lead to the predictions, and the next is the loss or ends with
  /// it.
  std::vector<GraphOperation> operations;
  std::size_t forward_operations = 0;
  /// The loss, or what the launch with it ends with.
  const GraphOperation& loss_operation() const {
    const GraphOperation& operation = operations[forward_operations];
    return operation.above.empty() ? operation : operation.above.front();
  }
  /// As in Step::Gram, each empty without.
  std::vector<GraphOperation> make_kernel, make_pre_activation, rebuild;
  /// From kPredictInput, predict_rows rows at a time, to kPredictOutput.
  std::vector<GraphOperation> predict;
  int products = 0;          ///< gemms of all lists; those of `predict` come last,
  int predict_products = 0;  ///< and are so many

  /// Each launch that computes the gradient of a parameter also updates it. Otherwise, where one of them cannot, the
  /// norm of all gradients is clipped or weights have rounded elements, one launch updates all.
  bool updates_by_gradients = true;
  /// How the last product before a narrow layer ends with that layer and its loss, where it does.
  std::optional<cuda::SmallProductLayout> product_with_loss;
  /// The parameters come first in the arena, up to here; in the Gram formulation Z in place of the first layer's, which
  /// lie elsewhere. Each number that the optimizer keeps and, for the launch that updates all, the gradients take as
  /// much, in the same order.
  std::uint64_t parameter_bytes = 0;
  std::uint64_t parameter_gradients = 0;
  RoundedParts parameters_rounded = kNotRounded;  ///< of all of these elements
  std::uint64_t gradient_factor = 0;              ///< T, with clip_norm or a scale of the loss
  std::uint64_t ones = 0;                         ///< with gram and bias: T [batch], each 1
  std::uint64_t gradient = 0;    ///< dH of one layer at a time, [batch, widest layer below one that is not narrow]
  std::uint64_t scalars = 0;     ///< StepScalars<T> [scalar_sets + 1]: of the steps of a launch, and of `rebuild`
  std::int64_t scalar_sets = 1;  ///< 1 where all steps have the same, else steps_per_launch
  std::uint64_t steps = 0;       ///< int64: the steps since losses were last numbered from 0
  std::uint64_t losses = 0;      ///< double [at least 2 * steps_per_launch]
  std::uint64_t loss = 0;        ///< double: of loss() alone
  std::uint64_t slots = 0;       ///< double: partial sums of one reduction at a time
  std::uint64_t loss_slots = 0;  ///< double: those of the loss, where the update adds them up

  bool has_gemm = false;
  std::uint64_t gemm_workspace = 0;  ///< where has_gemm

  std::int64_t predict_rows = 0;
  std::uint64_t predict_input = 0;  ///< [predict_rows, in_features]
  std::uint64_t predict_even = 0;   ///< [predict_rows, widest layer], twice
  std::uint64_t predict_odd = 0;
  RoundedParts predict_rounded = kNotRounded;  ///< [predict_rows, operand_pitch(widest input of a layer)]
  /// The one that the last layer may write to.
  std::uint64_t predict_output() const { return step.inference.size() % 2 == 1 ? predict_even : predict_odd; }

  std::int64_t steps_per_launch = 1;
  std::uint64_t working_bytes = 0;  ///< data, parameters and activations: what a step touches
  std::uint64_t bytes = 0;

  /// Kernels of a step, taking a product for one.
  std::int64_t nodes_per_step() const;
};

/// `training.samples` may be 0: a network that only predicts. Throws InvalidArgument where sizes overflow. The
/// specifications have been validated.
/// @{
GraphLayout make_graph_layout(const NetworkSpec& network, const TrainingSpec& training,
                              const GraphMachine& machine = {});
/// The same, of a step that is made already.
GraphLayout make_graph_layout(const NetworkSpec& network, const TrainingSpec& training, Step step,
                              const GraphMachine& machine);
/// @}

/// The predictions of `rows` rows in place of predict_rows, with hidden layers at kPanelEven and kPanelOdd; products
/// are numbered from `first_product` on.
std::vector<GraphOperation> predict_panel(const GraphLayout& layout, std::int64_t rows, int first_product);

/// The graph executor's answer, with a GraphLayout.
void ask_graph(const Request& request, Answer& answer);

/// What predicts the time of an operation.
GraphNode node_of(const GraphOperation& operation, Precision precision);

/// What a step takes, and what it takes at the least (Plan::floor_us_per_step), in microseconds.
struct StepTime {
  double predicted_us = 0;
  double floor_us = 0;
};
StepTime graph_step_time(const GraphLayout& layout, const GpuCaps& gpu);

}  // namespace deviceloop
