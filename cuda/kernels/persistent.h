// The launches of the persistent executor: a training of any number of steps by one, and single operations.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "../../host/planning/persistent_layout.h"

namespace deviceloop::cuda {

/// What all operations of a launch share.
template <class T>
struct LaunchConstants {
  LossOfStep loss{};
  std::uint64_t weights = kNone;  ///< where those of the rows of a batch lie, [rows]; kNone: the rows have none
  T leaky_slope = 0;              ///< of Activation::leaky_relu
};

/// What a launch of the persistent kernel works on; all pointers are to device memory.
template <class T>
struct PersistentArguments {
  unsigned char* region;  ///< PersistentLayout: region_bytes, of which state_bytes outlive a launch
  std::uint64_t region_bytes;
  std::uint64_t state_bytes;
  const PersistentOperation* operations;  ///< phases lie behind them
  std::int32_t operation_count;
  std::int32_t phase_count;     ///< of a step, without the one of the loss alone
  std::int32_t forward_phases;  ///< of these
  PersistentForm form;
  LaunchConstants<T> constants;
  bool forward_only;  ///< takes the losses of the parameters as they are, and changes nothing
  const elementwise::StepScalars<T>* scalars;
  std::int32_t scalar_stride;  ///< from step to step; 0 where all have the same
  std::int64_t steps;
  double* losses;      ///< [steps]
  unsigned* arrivals;  ///< of blocks at barriers, so far `arrived`
  unsigned arrived;
  std::uint64_t timeout_ns;  ///< the longest that the launch may wait; 0: for ever
  std::uint64_t* failed;     ///< late_wait_code(phase + 1, step) of a wait that took longer; 0 while there is none
};

/// Once for a layout, on the current device.
template <class T>
void prepare_persistent(const PersistentLayout& layout);

/// How many blocks, or clusters of them, of such a launch the current device runs at once.
template <class T>
std::int64_t resident_persistent(const PersistentLayout& layout);

template <class T>
void launch_persistent(const PersistentArguments<T>& arguments, const PersistentLayout& layout, cudaStream_t stream);

/// How often the blocks of a launch arrive in all, for `arrived` of the next.
std::uint64_t arrivals_of(const PersistentLayout& layout, std::int64_t steps, bool forward_only);

/// A product or bias_update of cut_alone by a launch of its own, with operands at offsets from `memory`.
template <class T>
void launch_operation(unsigned char* memory, const PersistentOperation& operation,
                      const elementwise::StepScalars<T>& scalars, T leaky_slope, cudaStream_t stream);

}  // namespace deviceloop::cuda
