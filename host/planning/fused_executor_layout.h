// How the executor `fused` uses its memory, and its answer to the planner: plain functions of the specifications and of
// what the GPU has. host/planning/fused_layout.h says how its kernel shares a step.
#pragma once

#include <array>
#include <cstdint>
#include <limits>
#include <string>
#include <vector>

#include <deviceloop/plan.h>
#include <deviceloop/spec.h>

#include "../step/step.h"
#include "decision.h"
#include "fused_layout.h"
#include "prediction_space.h"

namespace deviceloop {

/// Offsets are in bytes from the start of one arena in device memory, each a multiple of 256.
struct FusedExecutorLayout {
  Step step;
  GpuCaps gpu;          ///< what it was made for
  std::string refusal;  ///< why it cannot run, in one sentence; empty where it can
  std::string note;     ///< why it runs otherwise than planned; empty where it does not
  cuda::FusedLayout fused;
  LossOfStep loss_of_step{};
  double floor_us_per_step = 0;  ///< see Plan::floor_us_per_step
  std::int64_t steps_per_launch = 1;

  /// Where each tensor of the step lies; kNone for those that no memory is needed for.
  std::vector<std::uint64_t> tensors;
  std::uint64_t at(TensorId id) const { return id == kNoTensor ? kNone : tensors[static_cast<std::size_t>(id)]; }
  std::uint64_t tiles = 0;       ///< of the inputs, as the kernel reads them
  std::uint64_t operands = 0;    ///< of the kernel
  std::uint64_t slots = 0;       ///< of the kernel; in clusters its TaggedUnits
  std::uint64_t loss_parts = 0;  ///< double [blocks]
  std::uint64_t arrivals = 0;    ///< 32 bits: of the grid's barrier
  std::uint64_t failed = 0;      ///< 64 bits: why a launch gave up
  std::uint64_t scalars = 0;     ///< StepScalars<float> [scalar_sets]: of the steps of a launch
  std::int64_t scalar_sets = 1;  ///< 1 where all steps have the same, else steps_per_launch
  std::uint64_t losses = 0;      ///< double [2, steps_per_launch]
  std::uint64_t loss = 0;        ///< double: of a launch that asks for the loss alone
  PredictionSpace prediction;
  std::uint64_t bytes = 0;

  /// "one cluster of 16 blocks of 384 threads ..., at most 16384 steps a launch": for reports.
  std::string description() const;
};

/// What a device runs at once, where an executor has asked it: at most so many clusters of 1, 2, 4, 8 and 16 blocks.
struct FusedLimits {
  static constexpr std::int64_t kAny = std::numeric_limits<std::int64_t>::max();
  std::array<std::int64_t, 5> clusters = {kAny, kAny, kAny, kAny, kAny};
};

/// `training.samples` may be 0: a network that only predicts. Throws InvalidArgument where sizes overflow. The
/// specifications have been validated. With lower limits it takes no more bytes than without.
FusedExecutorLayout make_fused_executor_layout(const NetworkSpec& network, const TrainingSpec& training,
                                               const GpuCaps& gpu, Step step, const FusedLimits& limits = {});

/// The executor's answer, with a FusedExecutorLayout.
void ask_fused(const Request& request, Answer& answer);

}  // namespace deviceloop
