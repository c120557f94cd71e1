// How the persistent executor trains, and how it uses its memory: plain functions of the shape and of what the GPU has,
// so that plans for any GPU are made and tested without one, and count the bytes that the executor takes. Each of its
// forms is a kernel that takes many steps in one launch; its own header says how it is cut.
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
#include "on_chip_layout.h"
#include "prediction_space.h"
#include "two_layer_layout.h"

namespace deviceloop {

/// What a device runs at once, where an executor has asked it: at most so many clusters of 1, 2, 4, 8 and 16 blocks of
/// each form.
struct ResidentLimits {
  std::array<std::int64_t, 5> two_layer_clusters = {kAny, kAny, kAny, kAny, kAny};
  std::array<std::int64_t, 5> on_chip_clusters = two_layer_clusters;

  static constexpr std::int64_t kAny = std::numeric_limits<std::int64_t>::max();
};

/// Offsets are in bytes from the start of one arena in device memory, each a multiple of 256.
struct PersistentLayout {
  Step step;
  GpuCaps gpu;  ///< what it was made for
  LossOfStep loss_of_step{};
  /// Where each tensor of the step lies; kNone for those that no memory is needed for.
  std::vector<std::uint64_t> tensors;
  std::uint64_t at(TensorId id) const { return id == kNoTensor ? kNone : tensors[static_cast<std::size_t>(id)]; }

  // How it runs.
  std::string refusal;  ///< why it cannot, in one sentence; empty where it can
  std::string note;     ///< why it runs otherwise than planned; empty where it does not
  PersistentForm form = PersistentForm::two_layer;
  std::int64_t blocks = 1;
  cuda::TwoLayerLayout two_layer;           ///< with the form `two_layer`
  cuda::GramTwoLayerLayout gram_two_layer;  ///< the same in the Gram formulation
  cuda::OnChipLayout on_chip;               ///< with the form `on_chip`
  double predicted_us_per_step = 0;
  double floor_us_per_step = 0;  ///< see Plan::floor_us_per_step
  std::int64_t steps_per_launch = 1;

  // Memory.
  std::uint64_t scalars = 0;     ///< StepScalars<T> [scalar_sets + 1]: of the steps of a launch, and of a rebuild
  std::int64_t scalar_sets = 1;  ///< 1 where all steps have the same, else steps_per_launch
  std::uint64_t slots = 0;       ///< double: partial sums of a rebuild
  std::uint64_t failed = 0;      ///< 64 bits: why a launch gave up
  /// With the form `two_layer` Tagged<T> [slots()], with `on_chip` of several clusters TaggedUnit [tagged_units()].
  std::uint64_t tagged = 0;
  std::int64_t tagged_bytes = 0;
  std::uint64_t losses = 0;       ///< double [2, steps_per_launch]
  std::uint64_t loss = 0;         ///< double: of a launch that asks for the loss alone
  std::uint64_t loss_parts = 0;   ///< with the form `on_chip`: double [steps_per_launch, blocks]
  std::uint64_t blocks_done = 0;  ///< the same of several clusters: 32 bits
  PredictionSpace prediction;
  std::uint64_t bytes = 0;

  /// "25 clusters of 4 blocks of 512 threads ..., at most 16384 steps a launch": for reports.
  std::string description() const;
  /// "exchange of gradients": what a phase of late_wait_code is, for messages.
  std::string phase_name(std::int64_t phase) const;
};

/// `training.samples` may be 0: a network that only predicts. Throws InvalidArgument where sizes overflow. The
/// specifications have been validated.
/// @{
PersistentLayout make_persistent_layout(const NetworkSpec& network, const TrainingSpec& training, const GpuCaps& gpu);
/// The same, of a step that is made already.
PersistentLayout make_persistent_layout(const NetworkSpec& network, const TrainingSpec& training, const GpuCaps& gpu,
                                        Step step, const ResidentLimits& limits = {});
/// @}

/// The persistent executor's answer, with a PersistentLayout.
void ask_persistent(const Request& request, Answer& answer);

/// What the form `two_layer` asks of a GPU. How many clusters of 4 and 8 blocks are resident is an estimate, 10 in 11
/// and 15 in 16 of those that the multiprocessors would hold, because clusters lie within a part of the GPU and some
/// parts are smaller: as on an H100 (bench/probe/, cluster_residency).
cuda::TwoLayerDevice two_layer_device(const GpuCaps& gpu);

/// What the form `on_chip` asks of it. Several clusters run at once where a launch can be cooperative; those of 16
/// blocks are taken to be 7 of the 8 that the multiprocessors would hold (cluster_residency, as above).
cuda::OnChipDevice on_chip_device(const GpuCaps& gpu);

}  // namespace deviceloop
