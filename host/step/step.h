// One step of training, described once: the tensors that it touches, and the operations on them in an order in which
// each finds what it needs. Plain data, made from the specifications alone. The planner counts arithmetic and memory by
// it, and every executor carries it out in its own way: the CPU panel by panel of rows, the graph kernel by kernel, the
// persistent executor cut into tasks of blocks.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include <deviceloop/spec.h>

#include "../activations.h"
#include "../elementwise.h"
#include "../losses.h"
#include "../parameters.h"
#include "../permutation.h"

namespace deviceloop {

/// A row of Step::tensors.
using TensorId = std::int32_t;
inline constexpr TensorId kNoTensor = -1;

/// For each number that an optimizer keeps for a parameter its tensor, as the parameter; none from the first kNoTensor
/// on.
using StateTensors = std::array<TensorId, elementwise::kMostStates>;
inline constexpr StateTensors kNoStates = {kNoTensor, kNoTensor};

/// A matrix [rows, columns] in the working precision.
struct StepTensor {
  enum class Lifetime {
    data,        ///< set by the caller, read by every step
    parameter,   ///< what is trained and saved
    state,       ///< what the optimizer keeps for a parameter, 0 at the beginning
    derived,     ///< computed from data or parameters, and kept from step to step
    activation,  ///< written and read within a step, forward
    gradient,    ///< the same, backward
  };
  std::string name{};  ///< "W0", "H0", "dZ1", ...
  Lifetime lifetime = Lifetime::data;
  std::int64_t rows = 0;
  std::int64_t columns = 0;
};

/// With product kinds [rows, inner] times [inner, columns] is multiplied. An update computes the gradient of `out` and
/// then changes `out` and `state` by it, as `optimizer` says.
struct StepOperation {
  enum class Kind {
    gather,          ///< out = the rows of the data a that the step takes, in their order
    forward,         ///< out = activation(a b + bias), without an activation where it has none; a b + bias to `kept`
    activate,        ///< out = activation(a)
    loss,            ///< the loss of predictions a and targets b, times the rows' weights where they have some, and to
                     ///< out its gradient through the activation
    input_gradient,  ///< out = (a b^T) times the activation's derivative, which follows from `kept`
    weight_update,   ///< the gradient is a^T b
    bias_update,     ///< the gradient is the column sums of a
    sum_update,      ///< the gradient is a
    kernel_matrix,   ///< out = a a^T (+ 1 in every element with `bias_in_kernel`)
    rebuild_weight,  ///< out = start + a^T b; with `start_state`, shares of both (GramShares) in place of start
    rebuild_bias,    ///< the same with the column sums of a in place of a^T b
  };
  Kind kind = Kind::forward;
  int layer = 0;
  std::int64_t rows = 0;  ///< of out; of the operations without a product, `rows` and `columns` are those of a
  std::int64_t columns = 0;
  std::int64_t inner = 0;  ///< 0: no product
  TensorId a = kNoTensor;
  TensorId b = kNoTensor;
  TensorId bias = kNoTensor;         ///< [1, columns]
  TensorId kept = kNoTensor;         ///< as out
  TensorId start = kNoTensor;        ///< as out
  TensorId start_state = kNoTensor;  ///< as out
  TensorId weights = kNoTensor;      ///< of a loss: [rows, 1]
  TensorId out = kNoTensor;
  StateTensors state = kNoStates;
  int rebuilt_state = -1;  ///< of a rebuild: which of the optimizer's numbers `out` is; -1: the parameter itself
  OptimizerKind optimizer = OptimizerKind::gradient_descent;  ///< of an update
  std::optional<ActivationOfStep> activation{};
  LossOfStep loss{};
  bool bias_in_kernel = false;

  /// Whether a row of `out` follows from the same row of the batch alone: such operations can be taken panel by panel
  /// of rows, and the others only after all rows.
  bool is_by_row() const;
};

/// What is known of all steps of a run.
struct Step {
  struct Layer {
    std::int64_t in_features = 0;
    std::int64_t out_features = 0;
    TensorId weight = kNoTensor;  ///< [in_features, out_features]
    TensorId bias = kNoTensor;    ///< [1, out_features]
    StateTensors weight_state = kNoStates;
    StateTensors bias_state = kNoStates;
    TensorId output = kNoTensor;    ///< H [batch, out_features]; of the last layer the prediction
    TensorId kept = kNoTensor;      ///< what the activation's gradient needs: Z of its own, in gram Z, or the output
    TensorId gradient = kNoTensor;  ///< dZ [batch, out_features]
  };
  /// Of the Gram formulation (see Formulation): the first layer is trained as a weight Z would be whose input is K.
  /// What the optimizer keeps for W and b, it keeps for Z and S instead (GramShares says why that is the same); the
  /// states of the parameters are rebuilt with them.
  struct Gram {
    TensorId kernel = kNoTensor;          ///< K [batch, batch]
    TensorId pre_activation = kNoTensor;  ///< Z [batch, out_features]
    TensorId sum = kNoTensor;             ///< S [batch, out_features]
    TensorId start_weight = kNoTensor;    ///< W_0 [in_features, out_features]
    TensorId start_bias = kNoTensor;      ///< b_0 [1, out_features]
    StateTensors pre_activation_state = kNoStates;
    StateTensors sum_state = kNoStates;           ///< V
    StateTensors start_weight_state = kNoStates;  ///< v_0
    StateTensors start_bias_state = kNoStates;
    /// K from X; Z from X, W and b; W and, with bias, b from W_0, b_0 and S; and the same of what the optimizer keeps:
    /// each where it is needed, in no step.
    StepOperation make_kernel{};
    std::vector<StepOperation> make_pre_activation{};
    std::vector<StepOperation> rebuild{};

    /// W_0, b_0, or what the optimizer kept for them: of an entry of state_layout() of the first layer.
    TensorId start_of(const ParameterInfo& info) const;
  };

  Precision precision = Precision::fp32;
  std::int64_t batch = 0;  ///< rows of a step; 0: a network that only predicts, which has no operations
  BatchOrder order{};      ///< which rows of the data; only of `gather`
  std::vector<StepTensor> tensors{};
  std::vector<Layer> layers{};
  TensorId x = kNoTensor;        ///< [batch, in_features]; with minibatches a copy of rows of data_x
  TensorId y = kNoTensor;        ///< [batch, outputs], or [batch, 1] of classes
  TensorId weights = kNoTensor;  ///< [batch, 1]; none where samples have no weights
  /// What the caller sets: x, y and weights themselves, or with minibatches [samples, ...].
  TensorId data_x = kNoTensor, data_y = kNoTensor, data_weights = kNoTensor;
  TensorId loss_scaling = kNoTensor;  ///< [1, 2] of LossScaling; none where the precision does not scale the loss
  std::optional<Gram> gram{};
  /// Forward, the loss, and backward: a layer's input gradient comes before the update of its weight.
  std::vector<StepOperation> operations{};
  /// The layers forward, for rows that are no part of the data: from x to the output of each layer.
  std::vector<StepOperation> inference{};

  const StepTensor& tensor(TensorId id) const { return tensors[static_cast<std::size_t>(id)]; }
  /// The tensor of an entry of state_layout().
  TensorId tensor_of(const ParameterInfo& info) const;
};

/// The tensors of gram_layout(), of a step that has them.
std::vector<TensorId> gram_tensors(const Step& step);

/// Whether a step takes some samples, not all.
inline bool has_minibatches(const TrainingSpec& training) {
  return training.batch_size != 0 && training.batch_size != training.samples;
}
/// Rows of a step; 0 without samples.
std::int64_t batch_of(const TrainingSpec& training);

/// The loss of so many rows together.
LossOfStep loss_of(const NetworkSpec& network, const TrainingSpec& training, std::int64_t rows, bool has_classes);

/// The specifications have been validated.
Step make_step(const NetworkSpec& network, const TrainingSpec& training);

/// Multiply-adds of the operation's product; 0 where it has none.
double multiply_adds(const StepOperation& operation);
double multiply_adds(const std::vector<StepOperation>& operations);

/// "H0 [128, 100] = relu(X [128, 1000] W0 [1000, 100])" and the like, a line for each operation of a step.
std::string to_string(const Step& step);

}  // namespace deviceloop
