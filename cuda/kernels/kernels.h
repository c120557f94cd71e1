// The kernels' launch functions, for the executors and for the public functions of <deviceloop/cuda.h>, which say what
// each computes. Nothing is checked here but the launch: pointers are of the current device and ranges as wide as told;
// counts are above 0. T is float or double.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <span>
#include <type_traits>

#include <deviceloop/spec.h>

#include "../../host/activations.h"
#include "../../host/element_rule.h"
#include "../../host/elementwise.h"
#include "../../host/losses.h"
#include "../../host/permutation.h"
#include "../../host/planning/kernel_layout.h"
#include "../../host/planning/small_product.h"
#include "../../host/precision.h"

namespace deviceloop::cuda {

/// Where a launch also stores what it makes as operands of products in a precision that rounds them: as many elements
/// as it makes, in their order, aligned to a group of them; float of tf32 and of the two parts of tf32x3, else 16 bits,
/// of which rows may lie further apart. Of T = float alone.
struct RoundedCopy {
  void* high = nullptr;  ///< null: nowhere
  void* low = nullptr;   ///< null where there is one part
  Precision precision = Precision::fp32;
  std::int64_t columns = 0, pitch = 0;  ///< of 16 bits: of a row, and elements from row to row; 0: there are no gaps
};

/// Only that, of elements that lie in memory, aligned to 16 bytes.
void launch_round(const RoundedCopy& rounded, const float* values, std::int64_t count, cudaStream_t stream);

template <class T>
void launch_relu(T* out, const T* in, std::int64_t count, cudaStream_t stream);

template <class T>
void launch_relu_gradient(T* dz, const T* z, const T* dh, std::int64_t count, cudaStream_t stream);

/// dz = the gradient of the activation at `kept`, its pre-activation if it keeps that, else its value, times dh.
template <class T>
void launch_activation_gradient(const ActivationOfStep& activation, T* dz, const T* kept, const T* dh,
                                std::int64_t count, cudaStream_t stream, const RoundedCopy& rounded = {});

template <class T>
void launch_sgd_update(T* weights, const T* dweights, T learning_rate, std::int64_t count, cudaStream_t stream);

/// out = a x + b y; out may be x or y.
template <class T>
void launch_weighted_sum(T* out, T a, const T* x, T b, const T* y, std::int64_t count, cudaStream_t stream);

/// What the optimizer keeps for each parameter, as many arrays of them as it keeps numbers.
template <class T>
struct OptimizerState {
  T* values[elementwise::kMostStates];
};

/// What becomes of a gradient that a launch computes: `out` is it; or, with `scalars`, `out` is what it is the gradient
/// of, which the optimizer changes by it, and `state` with that. `scalars`, here and below, are in device memory.
template <class T>
struct GradientEnd {
  T* out = nullptr;
  const elementwise::StepScalars<T>* scalars = nullptr;
  OptimizerKind optimizer = OptimizerKind::gradient_descent;
  OptimizerState<T> state{};  ///< null where the optimizer keeps no more
};

/// *factor = clip_factor(the sum of the squares of the gradients, clip_norm). `slots` holds square_sum_slots(count)
/// doubles, and is not used where that is 0. With `loss_scaling`, the state of a LossScaling, gradients are those times
/// its scale: *factor = that over the scale, where clip_norm may be 0 for none; or NaN where a gradient is infinite or
/// NaN. The scale then adapts.
template <class T>
void launch_gradient_factor(T* factor, T* loss_scaling, const T* gradients, double clip_norm, std::int64_t count,
                            double* slots, cudaStream_t stream);

/// h = activation(z + bias), and z + bias to `kept`, which may be null, and is null unless the activation keeps it.
template <class T>
void launch_bias_activation(const ActivationOfStep& activation, T* h, T* kept, const T* z, const T* bias,
                            std::int64_t batch, std::int64_t features, cudaStream_t stream,
                            const RoundedCopy& rounded = {});

/// z += bias in place.
template <class T>
void launch_add_bias(T* z, const T* bias, std::int64_t batch, std::int64_t features, cudaStream_t stream);

/// Where the losses of steps go, in device memory: that of step i to losses[i % size], with i the number of steps so
/// far, which the launch counts. A captured step so finds its own place on every replay. Without `steps` to losses[0].
struct LossRing {
  double* losses;
  std::int64_t* steps = nullptr;
  std::int64_t size = 1;
};

/// Where the gradient of a loss goes.
template <class T>
struct LossGradient {
  LossGradient(T* to = nullptr, const T* scaling = nullptr,
               const RoundedCopy& copy = {})  // NOLINT: most have `out` alone
      : out(to), loss_scaling(scaling), rounded(copy) {}
  T* out;                 ///< null: nowhere
  const T* loss_scaling;  ///< the state of a LossScaling, by whose scale it is multiplied; or null
  RoundedCopy rounded;
};

/// The loss of predictions [rows, columns] and, unless that is null, its gradient, which may overwrite them. `slots`
/// holds element_loss_slots<T>(rows * columns) or row_loss_slots(rows) doubles, and is not used where that is 0.
/// `weights` [rows], which multiply the losses of their rows, may be null.
template <class T>
void launch_loss(const LossOfStep& loss, const LossRing& ring, const std::type_identity_t<LossGradient<T>>& gradient,
                 const T* prediction, const T* target, const T* weights, std::int64_t rows, std::int64_t columns,
                 double* slots, cudaStream_t stream);

/// The same without the end: each of its loss_blocks() leaves a partial sum, which LossSum adds up.
template <class T>
void launch_loss_blocks(const LossOfStep& loss, double* partial_sums,
                        const std::type_identity_t<LossGradient<T>>& gradient, const T* prediction, const T* target,
                        const T* weights, std::int64_t rows, std::int64_t columns, cudaStream_t stream);
struct LossSum {
  LossRing ring{};
  double scale = 1;  ///< of LossOfStep
  const double* partial_sums = nullptr;
  std::int64_t count = 0;  ///< 0: none
};

/// Gradients that an update computes by itself: that of the parameter `first` + j is the sum of column j of a matrix
/// [rows, columns], with at most kMostSummedTiles tiles of rows by row_sum_layout(). In parameters and state the range
/// begins at a multiple of 16 bytes and is followed by nothing up to the next.
template <class T>
struct SummedGradient {
  const T* matrix;
  std::int64_t first, rows, columns;
};

/// Sums that an update takes beside its own work, so that they need no launch: at most kMostSummedGradients, and a
/// loss.
template <class T>
struct UpdateSums {
  std::span<const SummedGradient<T>> gradients{};
  LossSum loss{};
};

/// What gradients are multiplied by before an update.
template <class T>
struct GradientFactor {
  const T* value = nullptr;  ///< in device memory; null: nothing
  bool nan_skips = false;    ///< where it is NaN nothing changes
};

/// Changes parameters and state by `gradients`, as the optimizer says; all of them aligned to 16 bytes. Of the ranges
/// of `sums`, `gradients` are not read, and nothing is rounded; they need no factor.
template <class T>
void launch_update(OptimizerKind optimizer, T* parameters, const OptimizerState<T>& state, const T* gradients,
                   const GradientFactor<T>& factor, const UpdateSums<T>& sums,
                   const elementwise::StepScalars<T>* scalars, std::int64_t count, cudaStream_t stream,
                   const RoundedCopy& rounded = {});

/// What evaluations of validation data leave in device memory.
struct EvaluationState {
  double loss = 0;           ///< of the last one
  double correct = 0;        ///< how many of its predictions are right
  double best_loss = 0;      ///< the smallest so far
  std::int64_t is_best = 0;  ///< 1 if the last one has it
};

/// counts[i] = how many predictions of the kLossRows rows from i kLossRows on are right, see counted_predictions().
template <class T>
void launch_count_right(double* counts, const LossOfStep& loss, const T* prediction, const T* target, std::int64_t rows,
                        std::int64_t columns, cudaStream_t stream);

/// Ends an evaluation whose sums are those of `losses` and of `counts`; one that may not be the best is not.
void launch_end_evaluation(EvaluationState* state, const double* losses, std::int64_t loss_terms, const double* counts,
                           std::int64_t count_terms, bool may_be_best, cudaStream_t stream);

/// kept = values, if the last evaluation is the best.
template <class T>
void launch_keep_best(T* kept, const T* values, const EvaluationState* state, std::int64_t count, cudaStream_t stream);

/// `slots` holds column_sums_slots(batch, features) doubles, and is not used where that is 0.
template <class T>
void launch_column_sums(const GradientEnd<T>& sums, const T* matrix, std::int64_t batch, std::int64_t features,
                        double* slots, cudaStream_t stream);

/// Here and below the operands of products, `in`, weights and the gradient dout, are first rounded to `precision`.
template <class T>
void launch_narrow_linear(T* out, const T* in, const T* weights, const T* bias, std::int64_t batch,
                          std::int64_t in_features, int out_features, cudaStream_t stream,
                          Precision precision = Precision::fp32);

/// The narrow layer and the loss of its outputs in one launch: gradient [batch, out_features] = that of the loss by the
/// predictions, times the scale of `loss_scaling`, unless that is null, and of each of narrow_loss_blocks(batch) blocks
/// of rows a partial sum of the loss, which LossSum adds up. `bias` and `row_weights` may be null.
template <class T>
void launch_narrow_loss(const LossOfStep& loss, double* partial_sums, T* gradient, const T* in, const T* weights,
                        const T* bias, const T* target, const T* row_weights, std::int64_t batch,
                        std::int64_t in_features, int out_features, cudaStream_t stream,
                        const std::type_identity_t<T>* loss_scaling = nullptr, Precision precision = Precision::fp32);

/// dz, which may be null, is masked by the marks of h only if `masked`. `slots` holds narrow_linear_gradient_slots(...)
/// doubles, and is not used where that is 0. dz is that of the weights before an update. Blocks more take the column
/// sums of dout, unless dbias.out is null, and end a loss, where there is one. `rounded` is of dz.
template <class T>
void launch_narrow_linear_gradient(bool masked, T* dz, const GradientEnd<T>& dweights, const GradientEnd<T>& dbias,
                                   const T* h, const T* dout, const T* weights, std::int64_t batch,
                                   std::int64_t in_features, int out_features, double* slots, cudaStream_t stream,
                                   const LossSum& loss = {}, Precision precision = Precision::fp32,
                                   const RoundedCopy& rounded = {});

/// A product of small matrices. At most one operand is transposed. The result and `marked` are [rows, columns], and the
/// result is no operand; a bias has a value for each column.
struct SmallProduct {
  ProductShape shape;
  const float* a = nullptr;
  const float* b = nullptr;
  GradientEnd<float> out{};  ///< alone `out` of it, but for ProductEnd::gradient
  ProductEnd end = ProductEnd::store;
  const float* bias = nullptr;
  const float* marked = nullptr;
  GradientEnd<float> sums{};  ///< with ProductEnd::gradient, unless null: the column sums of b
};
/// How a product whose result, through `end`, are the inputs h of a narrow layer goes on: the layer, the loss of its
/// outputs and its gradients, as launch_narrow_loss and launch_narrow_linear_gradient take them, but for the layer's
/// own gradient, for which both are stored. At most kMaxNarrowOutputs outputs; `bias` and `row_weights` may be null.
struct NarrowLossEnd {
  LossOfStep loss{};
  int outputs = 0;
  const float* weights = nullptr;  ///< [columns, outputs]
  const float* bias = nullptr;
  const float* target = nullptr;
  const float* row_weights = nullptr;
  float* gradient = nullptr;       ///< [rows, outputs]: of the loss by the predictions
  float* below = nullptr;          ///< [rows, columns]: of the loss by the product with its bias
  double* partial_sums = nullptr;  ///< of the loss: product_loss_blocks() of them
};
/// Of a product without transposed operands, cut by product_with_loss_layout().
void launch_product_with_loss(const SmallProduct& product, const NarrowLossEnd& narrow,
                              const SmallProductLayout& layout, cudaStream_t stream);

/// Products that do not depend on each other, cut by small_products_layout(): one, or of a^T b up to kMostProducts. A
/// block more ends a loss, where there is one, of products a^T b.
void launch_small_products(std::span<const SmallProduct> products, const SmallProductLayout& layout,
                           cudaStream_t stream, const LossSum& loss = {});

/// out = activation(start + a b + bias + addend), of any size. At most one operand is transposed; `start`, which may be
/// `out`, is as large as it. `start` and `bias` may be null.
template <class T>
struct TileProduct {
  ProductShape shape;
  T* out = nullptr;
  const T* a = nullptr;
  const T* b = nullptr;
  const T* start = nullptr;
  const T* bias = nullptr;
  T addend = 0;
  ActivationOfStep activation{Activation::identity};
  /// Operands of float are rounded as in steps of bf16 and tf32; in tf32x3, which has fp32's accuracy, they are not.
  Precision precision = Precision::fp32;
};
template <class T>
void launch_tile_product(const TileProduct<T>& product, cudaStream_t stream);

/// Rows of a batch and of the data that they are taken from, both [..., columns] without gaps; they do not overlap.
template <class T>
struct GatheredRows {
  T* out;  ///< null: only the rounded elements
  const T* data;
  std::int64_t columns;
  RoundedCopy rounded{};
};
inline constexpr std::size_t kMostGathered = 3;

/// The batch of a step: row r of each out [rows, columns] is the row order.sample(*step * rows + r) of its
/// data [order.samples, columns]; of at most kMostGathered. `step`, not negative, is in device memory.
template <class T>
void launch_gather_rows(std::span<const GatheredRows<T>> matrices, const BatchOrder& order, const std::int64_t* step,
                        std::int64_t rows, cudaStream_t stream);

/// out = in, converted; a matrix's rows lie `stride` elements apart.
template <class Out, class In>
void launch_convert(Out* out, std::int64_t out_stride, const In* in, std::int64_t in_stride, std::int64_t rows,
                    std::int64_t columns, cudaStream_t stream);

/// Blocks of launch_find_wrong for so many elements, at most kMostFindBlocks.
std::int64_t find_blocks(std::int64_t count);
inline constexpr std::int64_t kMostFindBlocks = 1024;

/// firsts[block] = the number, in row order, of the first element that breaks the rule among those of the block, which
/// come after those of the block before; rows * columns where none does.
template <class T>
void launch_find_wrong(std::int64_t* firsts, const T* in, std::int64_t stride, std::int64_t rows, std::int64_t columns,
                       const ElementRule& rule, cudaStream_t stream);

}  // namespace deviceloop::cuda
