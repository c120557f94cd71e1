// One launch that trains a narrow network for many steps, each on all rows, by products of bf16, tf32 or tf32x3 on
// Hopper's tensor cores: host/planning/fused_layout.h says how. Sums, parameters and what the optimizer keeps are
// float. All activations but the sine, and all losses. Pointers are of the current device; only the launch is checked
// for errors. Compute capability 9.0 alone.
//
// What is rounded to bf16 (for tf32 see fused_tf32.h), to nearest: the inputs, the weights, each hidden layer, the
// derivatives of activations other than relu, the gradient of the outputs and those of the hidden layers; biases are
// added, and the loss is taken, in float. Steps in one launch and in several have the same bits. `*failed` is 0 before
// the launch. A wait that lasts until timeout_ns after its block began (0: no limit) ends the grid with fused_code() in
// `*failed`; then neither the parameters nor the losses of that launch may be used.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "../../host/activations.h"
#include "../../host/losses.h"
#include "../../host/permutation.h"
#include "../../host/planning/fused_layout.h"

namespace deviceloop::cuda {

/// A parameter and what the optimizer keeps for it, in global memory.
struct FusedParameter {
  float* values = nullptr;  ///< null: a bias that there is not
  float* states[elementwise::kMostStates] = {};
};

struct FusedArguments {
  const std::uint32_t* tiles = nullptr;  ///< of the inputs, by launch_fused_tiles
  const float* y = nullptr;              ///< [data_rows, outputs], or [data_rows, 1] of classes
  const float* row_weights = nullptr;    ///< [data_rows]; null: the rows have none
  BatchOrder order;                      ///< where a step gathers its rows
  SampleNetwork network;                 ///< of order.samples
  int widths[kFusedHidden + 2] = {};     ///< inputs, hidden layers, outputs
  FusedParameter weights[kFusedHidden + 1], biases[kFusedHidden + 1];
  ActivationOfStep activation{Activation::relu}, output_activation{};
  LossOfStep loss{};
  OptimizerKind optimizer{};
  const elementwise::StepScalars<float>* scalars = nullptr;
  std::int32_t scalar_stride = 0;  ///< from step to step; 0 where all have the same

  std::int64_t first_step = 0;  ///< steps that were taken before
  std::int64_t steps = 0;
  bool forward_only = false;  ///< only the loss is wanted: nothing is updated
  double* losses = nullptr;   ///< [steps]

  // For the kernel's own use.
  unsigned char* operands = nullptr;  ///< bf16: [operand_bytes], 0 before the first launch, at a multiple of 16 bytes
  /// [blocks, slots().count(), 4], at a multiple of 16 bytes; in clusters instead TaggedUnit [tagged_units()], 0 before
  /// each launch.
  float* slots = nullptr;
  double* loss_parts = nullptr;  ///< [blocks]
  unsigned* arrivals = nullptr;  ///< 0 before each launch
  std::uint64_t timeout_ns = 0;
  std::uint64_t* failed = nullptr;
};

/// x [data_rows, inputs] as tiles in the layout's precision, [data_tiles, tile_bytes]; with zeros beyond x.
void launch_fused_tiles(std::uint32_t* tiles, const float* x, int inputs, const FusedLayout& layout,
                        cudaStream_t stream);

/// Once for a layout, on the current device.
void prepare_fused(const FusedLayout& layout);

/// How many clusters of such a launch the current device runs at once. Call it after prepare_fused, of a layout that
/// has clusters.
std::int64_t resident_fused_clusters(const FusedLayout& layout);

/// `cooperative`, of several clusters: the launch fails where they cannot all run at once. One without clusters always
/// does.
void launch_fused(const FusedArguments& arguments, const FusedLayout& layout, bool cooperative, cudaStream_t stream);

}  // namespace deviceloop::cuda
