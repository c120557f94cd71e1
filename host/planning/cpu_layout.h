// How the CPU executor cuts a training run into tasks and memory: a plain function of the shape, so that the planner
// counts the bytes that the executor takes, and so that the borders of tasks, and with them the order of every sum,
// never depend on the number of threads.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include <deviceloop/spec.h>

#include "../precision.h"
#include "../step/step.h"
#include "decision.h"

namespace deviceloop {

/// Offsets are in bytes from the start of one arena, each a multiple of 64.
///
/// Two ways to take a step, both by operations of the step in their order:
/// - `folded`: each panel of rows goes through the operations by row, forward and backward, and leaves its activations
///   H and gradients dZ; then the updates are taken over the whole batch, in panels of the parameters' rows.
/// - `chunked`, for many samples and few parameters: each block of rows goes through in panels small enough to stay in
///   a core's cache, and adds its gradients to a slot of its own; then the slots are added in order.
///
/// In the Gram formulation steps are always folded: it pays where samples are few.
struct CpuLayout {
  /// An operation over the whole batch, which changes a parameter or, in the Gram formulation, Z.
  struct Update {
    StepOperation operation;
    std::int64_t task_rows = 0;  ///< folded: rows of `out` of one task
    std::int64_t tasks = 0;      ///< folded
    std::int64_t slot = 0;       ///< chunked: offset of the gradient in a slot, in elements
    std::int64_t elements = 0;   ///< of `out`
  };

  Step step;
  /// Where each tensor of the step lies; activations and gradients, where steps are chunked, in a thread's scratch, as
  /// [panel_rows, columns]. Predictions without an activation lie where their gradient will.
  std::vector<std::uint64_t> tensors;
  std::uint64_t at(TensorId id) const { return tensors[static_cast<std::size_t>(id)]; }
  /// Of a precision that rounds the operands of products, where the rounded elements of each of them lie, as `tensors`
  /// says, for each part; kNone of what is no operand. Empty where products read the tensors themselves.
  std::vector<std::array<std::uint64_t, kMostOperandParts>> operands{};
  bool is_operand(TensorId id) const {
    return !operands.empty() && operands[static_cast<std::size_t>(id)].front() != kNone;
  }
  std::vector<Update> updates;  ///< of a step, the first layer's first
  std::vector<Update> rebuild;  ///< as Step::Gram::rebuild, cut as folded updates are

  bool chunked = false;
  std::int64_t panel_rows = 0;  ///< rows of a panel; the last one may have fewer
  std::int64_t block_rows = 0;  ///< rows of one task of the first phase: a panel when folded, a block when chunked
  std::int64_t blocks = 0;
  bool adds_products = false;  ///< folded: products add to what they update, as the batch is one block of their sums

  std::uint64_t losses = 0;          ///< double [blocks]
  std::uint64_t slots = 0;           ///< chunked: [blocks, slot_elements]
  std::int64_t slot_elements = 0;    ///< chunked: parameters of the network
  std::uint64_t thread_scratch = 0;  ///< what each thread has for itself, `thread_stride` bytes apart
  std::uint64_t thread_stride = 0;
  std::uint64_t column_sums = 0;    ///< in a thread's scratch: double [widest layer], with bias
  std::uint64_t update = 0;         ///< in a thread's scratch: [update_rows, out_features] of any layer
  std::uint64_t predict_input = 0;  ///< in a thread's scratch: [kPredictRows, in_features]
  std::uint64_t predict_even = 0;   ///< in a thread's scratch: [kPredictRows, widest layer], twice
  std::uint64_t predict_odd = 0;
  /// In a thread's scratch: the rounded elements of a layer's input, [kPredictRows, widest layer or input], for each
  /// part.
  std::array<std::uint64_t, kMostOperandParts> predict_operand = {kNone, kNone};
  /// The parameters come first in the arena, up to here. Each number that the optimizer keeps and, with
  /// keeps_gradients, the gradients take as much, in the same order.
  std::uint64_t parameter_bytes = 0;
  bool keeps_gradients = false;   ///< all of them are needed before one is used: clip_norm, or a scale of the loss
  std::uint64_t gradients = 0;    ///< with keeps_gradients
  std::uint64_t square_sums = 0;  ///< with clip_norm: double, one for each kSlotRange gradients
  std::uint64_t bytes = 0;

  static constexpr std::uint64_t kNone = UINT64_MAX;
  static constexpr std::int64_t kMostPanelRows = 512;
  static constexpr std::int64_t kPredictRows = 64;
  static constexpr std::int64_t kSlotRange = 4096;  ///< elements of one task that adds slots, or clips and updates
};

/// `training.samples` may be 0: a network that only predicts. Throws InvalidArgument where sizes overflow. The
/// specifications have been validated.
/// @{
CpuLayout make_cpu_layout(const NetworkSpec& network, const TrainingSpec& training, int threads);
/// The same, of a step that is made already.
CpuLayout make_cpu_layout(const NetworkSpec& network, const TrainingSpec& training, int threads, Step step);
/// @}

/// The CPU's answer, with a CpuLayout.
void ask_cpu(const Request& request, Answer& answer);

}  // namespace deviceloop
