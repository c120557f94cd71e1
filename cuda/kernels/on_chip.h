// One launch that trains a small network for many steps, on minibatches or on all samples, in clusters whose blocks
// keep the parameters and all that the optimizer keeps in shared memory: host/planning/on_chip_layout.h says how. T is
// float or double; pointers are of the current device; only the launch is checked for errors. Compute capability 9.0.
//
// Steps in one launch and in several have the same bits. `*failed` is 0 before the launch. A wait that lasts until
// timeout_ns after its block began (0: no limit) ends the whole grid with on_chip_code() in `*failed`; then neither
// the parameters nor the losses of that launch may be used.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "../../host/losses.h"
#include "../../host/permutation.h"
#include "../../host/planning/on_chip_layout.h"

namespace deviceloop::cuda {

struct TaggedUnit;

/// A parameter and what the optimizer keeps for it, in global memory.
template <class T>
struct OnChipParameter {
  T* values = nullptr;
  T* states[elementwise::kMostStates] = {};
};

template <class T>
struct OnChipArguments {
  // Rows of the data, of which `order` tells which ones a step takes.
  const T* x = nullptr;            ///< [samples, inputs]
  const T* y = nullptr;            ///< [samples, target_columns]
  const T* row_weights = nullptr;  ///< [samples]; null: the rows have none
  BatchOrder order{};
  SampleNetwork network{};  ///< of order.samples

  OnChipParameter<T> weights[kOnChipLayers], biases[kOnChipLayers];
  OptimizerKind optimizer{};
  const elementwise::StepScalars<T>* scalars = nullptr;
  std::int32_t scalar_stride = 0;  ///< from step to step; 0 where all have the same

  LossOfStep loss{};
  Activation activation{}, output_activation{};
  T leaky_slope = 0;
  /// Whether the gradient of the activation, and of the last one, follows from its pre-activation, else from its value.
  bool keeps_pre_activation = false, keeps_last_pre_activation = false;

  std::int64_t first_step = 0;  ///< steps that were taken before
  std::int64_t steps = 0;
  bool forward_only = false;     ///< takes the loss of one step, and changes nothing
  double* losses = nullptr;      ///< [steps]
  double* loss_parts = nullptr;  ///< [steps, all blocks]: for the kernel's own use
  // Of several clusters alone.
  TaggedUnit* tagged = nullptr;  ///< [OnChipLayout::tagged_units()]
  unsigned first_tag = 0;        ///< of the first step; no word may have a tag of the steps to come
  /// A counter, to which each block of a launch that ends well adds 1, and its value before the launch.
  unsigned* blocks_done = nullptr;
  unsigned done_before = 0;
  std::uint64_t timeout_ns = 0;
  std::uint64_t* failed = nullptr;
};

/// Once for a layout, on the current device.
template <class T>
void prepare_on_chip(const OnChipLayout& layout);

/// How many clusters of such a launch the current device runs at once: 0 where it does not take one of that size. A
/// launch must not have more.
template <class T>
std::int64_t resident_on_chip(const OnChipLayout& layout);

/// `cooperative`, of several clusters: the launch fails where they cannot all run at once.
template <class T>
void launch_on_chip(const OnChipArguments<T>& arguments, const OnChipLayout& layout, bool cooperative,
                    cudaStream_t stream);

}  // namespace deviceloop::cuda
