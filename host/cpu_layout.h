// How the CPU executor cuts a training run into tasks and memory: a plain function of the shape, so that the planner
// counts the bytes that the executor takes, and so that the borders of tasks, and with them the order of every sum,
// never depend on the number of threads.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include <deviceloop/spec.h>

#include "gram_layout.h"

namespace deviceloop {

/// Offsets are in bytes from the start of one arena, each a multiple of 64.
///
/// Two ways to take a step:
/// - `folded`: each panel of rows goes forward and backward through all layers and leaves its activations H and
///   gradients dZ; then each weight is updated by W -= lr H^T dZ over the whole batch, in panels of its rows.
/// - `chunked`, for many samples and few parameters: each block of rows goes through in panels small enough to stay in
///   a core's cache, and adds its weight gradients to a slot of its own; then the slots are added in order.
///
/// In the Gram formulation steps are always folded: it pays where samples are few. Its first layer is then updated as a
/// weight Z would be whose input is K.
struct CpuLayout {
  struct Layer {
    std::int64_t in_features = 0;
    std::int64_t out_features = 0;
    std::uint64_t weight = 0;  ///< [in_features, out_features]
    std::uint64_t bias = 0;    ///< [out_features]; only with bias
    /// H of this layer (for all but the last) and dZ. Folded: [samples, out_features]. Chunked: [panel_rows,
    /// out_features], once for each thread, `thread_stride` bytes apart.
    std::uint64_t hidden = 0;
    std::uint64_t gradient = 0;
    /// Folded: the weight's rows of one update task, and the number of such tasks.
    std::int64_t update_rows = 0;
    std::int64_t update_tasks = 0;
    /// Chunked: offsets of this layer's gradients in a slot, in elements.
    std::int64_t slot_weight = 0;
    std::int64_t slot_bias = 0;
  };
  std::vector<Layer> layers;

  std::optional<GramLayout> gram;

  bool chunked = false;
  std::int64_t panel_rows = 0;  ///< rows of a panel; the last one may have fewer
  std::int64_t block_rows = 0;  ///< rows of one task of the first phase: a panel when folded, a block when chunked
  std::int64_t blocks = 0;
  bool one_k_block =
      false;  ///< folded: the batch is one block of the sum over samples, so the update goes into W directly

  std::uint64_t x = 0;               ///< [samples, in_features]
  std::uint64_t y = 0;               ///< [samples, outputs]
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
  std::uint64_t parameter_bytes = 0;  ///< parameters come first in the arena
  std::uint64_t bytes = 0;

  static constexpr std::int64_t kPredictRows = 64;
  static constexpr std::int64_t kSlotRange = 4096;  ///< chunked: elements of one task that adds slots
};

/// `training.samples` may be 0: a network that only predicts. Throws InvalidArgument where sizes overflow. The
/// specifications have been validated.
CpuLayout make_cpu_layout(const NetworkSpec& network, const TrainingSpec& training, int threads);

}  // namespace deviceloop
