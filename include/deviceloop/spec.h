/// \file
/// What to train and how: two values that every executor understands in the same way. Every member has a default, so
/// that designated initializers need to name only the members that differ: TrainingSpec{.seed = 3}.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include <deviceloop/export.h>
#include <deviceloop/matrix.h>

namespace deviceloop {

/// Activation of a layer, as PyTorch defines it by default. Elements are computed in the working precision, with the
/// same bits on the CPU and on every GPU.
enum class Activation {
  relu,        ///< z < 0 ? 0 : z; its gradient passes at 0 and at NaN
  identity,    ///< z
  leaky_relu,  ///< z > 0 ? z : slope z, with NetworkSpec::leaky_slope
  elu,         ///< z > 0 ? z : e^z - 1
  silu,        ///< z / (1 + e^-z), also called swish
  gelu,        ///< z (1 + erf(z / sqrt(2))) / 2
  gelu_tanh,   ///< z (1 + tanh(sqrt(2 / pi) (z + 0.044715 z^3))) / 2
  tanh,        ///< (e^z - e^-z) / (e^z + e^-z)
  sigmoid,     ///< 1 / (1 + e^-z)
  softplus,    ///< log(1 + e^z)
  sine,        ///< sin(z)
};

/// A multilayer perceptron. Layer l has a weight W_l [in_features, out_features] and, with `bias`, a bias b_l:
///   Z_l = H_{l-1} W_l (+ b_l),  H_0 = X,  H_l = activation(Z_l) on hidden layers,
///   prediction = output_activation(Z of the last layer).
struct NetworkSpec {
  /// Input features, hidden widths, outputs: at least two, each from 1 to kMaxWidth. {1000, 100, 1} is one hidden layer
  /// of 100; {D, O} is linear regression.
  std::vector<std::int64_t> widths{};
  Activation activation = Activation::relu;             ///< of the hidden layers
  bool bias = false;                                    ///< whether every layer has one
  Activation output_activation = Activation::identity;  ///< of the output layer
  /// The slope of leaky_relu, wherever it is used; PyTorch's negative_slope. Any number that is finite in the working
  /// precision.
  double leaky_slope = 0.01;

  /// Layers with weights: one fewer than widths.
  int layers() const { return static_cast<int>(widths.size()) - 1; }
  /// Rows and columns of the weight of a layer, counted from 0. `layer` is not checked.
  /// @{
  std::int64_t in_features(int layer) const { return widths[static_cast<std::size_t>(layer)]; }
  std::int64_t out_features(int layer) const { return widths[static_cast<std::size_t>(layer) + 1]; }
  /// @}
};

/// Of a prediction p and its target y, with PyTorch's formulas; those of all rows of a step and all outputs are summed.
enum class Loss {
  squared_error,   ///< (p - y)^2
  absolute_error,  ///< |p - y|, with the gradient 0 where they are equal
  huber,           ///< (p - y)^2 / 2 up to |p - y| = delta, from there delta (|p - y| - delta / 2)
  /// log(1 + e^p) - y p: the network predicts log-odds p of the probability y.
  binary_cross_entropy,
  /// Of a row of predictions, log-probabilities of classes up to a constant: - sum_j y_j log(e^p_j / sum_k e^p_k).
  /// Targets are rows of probabilities y, or one column with the number of each row's class, counted from 0.
  cross_entropy,
};

/// What becomes of the sum of all losses: sum leaves it, mean divides it by the number of predictions, with
/// cross_entropy by the number of rows. Where samples have weights, each loss of a row is multiplied by the row's
/// weight, and mean divides by the same number: PyTorch's (weight * loss).mean() with reduction='none'. The gradient is
/// that of the result.
enum class Reduction { sum, mean };

/// How a gradient g changes a parameter p, with PyTorch's formulas and defaults. All gradients of a step are computed
/// before any parameter changes; t is the number of steps so far, this one included.
enum class OptimizerKind {
  gradient_descent,  ///< p -= learning_rate g, and nothing else: no momentum, no decay, no clipping
  /// g += weight_decay p; v = momentum v + g; p -= learning_rate v, or with `nesterov` p -= learning_rate (g + momentum
  /// v). v begins with 0.
  sgd,
  /// g += weight_decay p; m = beta1 m + (1 - beta1) g; v = beta2 v + (1 - beta2) g^2; p -= learning_rate m' / (sqrt(v')
  /// + epsilon) with m' = m / (1 - beta1^t) and v' = v / (1 - beta2^t). Kingma and Ba 2015.
  adam,
  adamw,  ///< as adam, but p -= learning_rate weight_decay p first instead of g += ... Loshchilov and Hutter 2019.
  /// g += weight_decay p; v = beta2 v + (1 - beta2) g^2; w = momentum w + g / (sqrt(v) + epsilon); p -= learning_rate
  /// w.
  rmsprop,
};

/// How the learning rate changes from step to step; s counts the steps before this one.
enum class ScheduleKind {
  constant,
  step,         ///< learning_rate factor^(s / period), the quotient rounded down
  exponential,  ///< learning_rate factor^s
  cosine,       ///< end_rate + (learning_rate - end_rate) (1 + cos(pi s / period)) / 2; from s = period on end_rate
};

/// Steps are counted over all calls of train, from 0 again after Trainer::initialize and Trainer::load_weights. A
/// schedule may come with every optimizer.
struct Schedule {
  ScheduleKind kind = ScheduleKind::constant;
  std::int64_t period = 0;        ///< steps; of step and cosine at least 1
  double factor = 0.1;            ///< of step and exponential, above 0
  double end_rate = 0;            ///< of cosine, not negative
  std::int64_t warmup_steps = 0;  ///< the rate is multiplied by min(1, (s + 1) / warmup_steps); 0: none
};

/// How gradients change the parameters.
struct Optimizer {
  OptimizerKind kind = OptimizerKind::gradient_descent;
  double learning_rate = 1e-6;           ///< in the working precision 0 or a finite normal number
  double momentum = 0;                   ///< of sgd and rmsprop, in [0, 1)
  bool nesterov = false;                 ///< of sgd
  std::optional<double> weight_decay{};  ///< not negative; by default 0, with adamw 0.01
  double beta1 = 0.9;                    ///< of adam and adamw, in [0, 1)
  std::optional<double> beta2{};         ///< in [0, 1); by default 0.999, with rmsprop 0.99
  double epsilon = 1e-8;                 ///< of adam, adamw and rmsprop, above 0
  /// Gradients are clipped before they are used, by at most one of: all of them times min(1, clip_norm / (their norm +
  /// 1e-6)), with the Euclidean norm of all gradients together; each to [-clip_value, clip_value]. 0: no clipping.
  /// @{
  double clip_norm = 0;
  double clip_value = 0;
  /// @}
  Schedule schedule{};
};

/// The working precision: of parameters, activations and gradients. Losses are double in every precision.
///
/// fp32 and fp64 are used for everything. With the others only the matrix products of a step, and those of predictions,
/// have a lower precision: their operands are rounded to it, to nearest and ties to even, and what is multiplied is
/// summed up in fp32. Everything else is that of fp32: parameters, what the optimizer keeps, data, activations, losses
/// and updates. Bits are those of the mantissa, beside the leading one, and of the exponent.
enum class Precision {
  fp32,
  fp64,
  tf32,    ///< operands of 10 and 8 bits
  tf32x3,  ///< each operand x is split, h = tf32(x) and l = tf32(x - h): three products, h h + h l + l h, as exact as
           ///< fp32
  bf16,    ///< operands of 7 and 8 bits
  /// Operands of 10 and 5 bits, of numbers up to 65504. Since small gradients would become 0 there, that of the loss is
  /// multiplied by a power of two, by which gradients are divided before the update. It begins with 2^16. In a step in
  /// which a gradient is infinite or NaN, parameters do not change, and the power is halved; after 2000 steps in a row
  /// without one it is doubled: PyTorch's GradScaler. A step that changes nothing counts as a step.
  fp16,
};

/// The type of the elements of that precision: float of all but fp64.
constexpr ElementType element_type(Precision precision) {
  switch (precision) {
    case Precision::fp32:
    case Precision::tf32:
    case Precision::tf32x3:
    case Precision::bf16:
    case Precision::fp16:
      return ElementType::float32;
    case Precision::fp64:
      break;
  }
  return ElementType::float64;
}

/// Two ways to compute the same full-batch training; their results are equal except for rounding.
///
/// `primal`: the equations as they are written.
///
/// `gram`: the first layer's pre-activations Z = X W (+ b) are trained instead of its weight W [in_features,
/// out_features]. Since dW = X^T dZ and db = column sums of dZ, a step changes them by
///   Z <- Z - learning_rate K dZ,  K = X X^T (+ 1 with bias, in every element)
/// where K [samples, samples] is computed once for the data, and Z once for the parameters. The change that the steps
/// make to the parameters is kept as a sum S [samples, out_features], which begins with 0,
///   S <- S - learning_rate dZ,  W = W_0 + X^T S,  b = b_0 + column sums of S
/// from which W and b are computed when a run ends, or earlier if they are read. A step of the first layer takes 2
/// samples^2 out_features floating-point operations instead of 4 samples in_features out_features: fewer where samples
/// < 2 in_features. The other layers are trained as in `primal`.
///
/// That is exact for every update that is linear in the parameter, its momentum and the gradient, so `gram` takes
/// gradient_descent and sgd, the latter with momentum, Nesterov's too, and weight decay; any schedule and warm-up. Z
/// and S are then updated as parameters are, with a momentum each (of Z X v, of S V, which begins with 0), by the
/// gradients K dZ and dZ; and W and its momentum v are
///   W = c W_0 + f v_0 + X^T S,  v = e W_0 + h v_0 + X^T V
/// with W_0 and v_0 what they were when S and V were last 0. (c, e) and (f, h) follow from the learning rates, the
/// momentum and the decay: they obey the same update with the gradient 0, from (1, 0) and (0, 1) on. The bias likewise.
/// Trainer::save_state writes W and v, as in `primal`, and beside them Z, S, their momentum, W_0, v_0 and these four
/// numbers, so that a run goes on from there with the same bits.
///
/// Refused with InvalidArgument: adam, adamw and rmsprop, which divide by the root of squared gradients; clip_norm and
/// clip_value, since the gradient of W is never computed; steps that do not take all samples; and precisions that round
/// the operands of products, since the errors of K would add up in Z over the whole run.
enum class Formulation { primal, gram };

/// How initial weights are drawn; biases start at 0. Standard deviations: normal 1, he sqrt(2 / in_features) (He et
/// al. 2015), xavier sqrt(2 / (in_features + out_features)) (Glorot and Bengio 2010).
enum class Init { normal, he, xavier };

/// automatic: a GPU if one can run the training, else the CPU. cuda: a GPU, or the call throws Unsupported.
enum class DeviceKind { automatic, cpu, cuda };

/// Where to train.
struct DeviceChoice {
  DeviceKind kind = DeviceKind::automatic;
  int index = 0;  ///< which CUDA device
};

/// The kernel by which the plan `persistent` trains, many steps a launch.
enum class PersistentForm {
  automatic,  ///< of the forms that fit, the one predicted to be the fastest
  /// For one hidden layer of ReLU, at most 128 samples and 16 outputs. Each cluster of blocks owns some hidden units
  /// and keeps the samples in registers; in the Gram formulation each block owns some, and keeps K in registers. Runs
  /// on any GPU if the registers of one block can hold all inputs; otherwise it needs compute capability 9.0 or newer.
  two_layer,
  /// The blocks of one cluster, of at most 16, each with all parameters in its shared memory: for small networks of up
  /// to 8 layers, with or without minibatches. Its blocks share the rows of a step, and the optimizer's work. Needs
  /// compute capability 9.0 or newer.
  on_chip,
};

/// The largest width of a layer, and the largest number of CPU threads, that a specification may have.
/// @{
constexpr std::int64_t kMaxWidth = 2147483647;
constexpr int kMaxThreads = 256;
/// @}

/// What a run does with validation data (Trainer::set_validation), and what may end it before its last step. Both
/// happen at its borders: after every `every` steps, counted as in Schedule.
struct Watch {
  /// 0: with minibatches after each step that completes an epoch, else after 100 steps.
  std::int64_t every = 0;
  /// The run ends after so many evaluations in a row of which none had a smaller loss than all before; 0: it does not.
  std::int64_t patience = 0;
  /// The run ends where the loss of the validation data, without them that of the step before the border, is at most
  /// this.
  std::optional<double> target_loss{};
  /// Whether the parameters that had the smallest loss of the validation data are kept, for Trainer::restore_best.
  bool keep_best = false;
};

/// Which of the data the plan `graph` reads where the caller has them, see Trainer::set_data.
struct DataInPlace {
  bool x = false;
  bool y = false;
  bool sample_weights = false;
  bool operator==(const DataInPlace&) const = default;
};

/// One training run. The number of steps is not part of it; it is an argument of Trainer::train.
struct TrainingSpec {
  Loss loss = Loss::squared_error;
  double huber_delta = 1;  ///< of huber, above 0
  Reduction reduction = Reduction::sum;
  bool class_targets = false;   ///< with cross_entropy: targets are numbers of classes. Trainer fills it in.
  bool sample_weights = false;  ///< samples have weights, see Trainer::set_data. Trainer fills it in.
  DataInPlace in_place{};       ///< Trainer fills it in.
  Optimizer optimizer{};
  std::int64_t samples = 0;  ///< rows of the data; Trainer fills it in. 0: a network that only predicts.
  /// Samples per step; 0: all. Of another size B than all N of them, row r of the step that follows s others takes the
  /// sample at position p = s B + r: sample p mod N, or with `shuffle` the one that the order of epoch p / N, which
  /// depends on `seed`, N and the epoch alone, has at p mod N. Each epoch has each sample once; a batch may begin in
  /// one epoch and end in the next. Steps are counted as in Schedule.
  /// @{
  std::int64_t batch_size = 0;
  bool shuffle = true;
  /// @}
  Watch watch{};
  Precision precision = Precision::fp32;
  Formulation formulation = Formulation::primal;
  /// Only with `gram`: this many steps after Z was last computed from W and b, it is computed from them again, and its
  /// momentum from theirs, which removes the difference that rounding has caused. 0: never.
  std::int64_t reprojection_steps = 0;
  /// True: the same bits on every run, for any number of threads. False: before the first step, a GPU's executor times
  /// the algorithms that cuBLASLt proposes for each matrix product and takes the fastest, which may differ from run to
  /// run.
  bool deterministic = true;
  DeviceChoice device{};
  /// How long, in milliseconds, blocks of one launch of the plans `persistent` and `fused` may wait for each other.
  /// Then the run ends with a DeviceError, and no longer occupies the GPU. A launch takes half a second. 0: no limit.
  std::int64_t deadline_ms = 10000;
  PersistentForm form = PersistentForm::automatic;  ///< of the plan `persistent`
  int threads = 0;         ///< CPU threads, at most kMaxThreads; 0: one if a step is short, else all available cores
  std::uint64_t seed = 0;  ///< of the initial weights, see Trainer::initialize
};

}  // namespace deviceloop
