// How the persistent executor takes a step and uses its memory: plain functions of the shape and of what the GPU has,
// so that plans for any GPU are made and tested without one, and count the bytes that the executor takes.
//
// A step is a list of phases; a phase is a list of operations, each cut into tasks that no other task of the phase
// depends on; between phases is a barrier of all blocks of the launch. With L layers there are 2 L phases:
//
//   forward of layer 0, ..., of layer L-1 (which takes the errors, too)
//   gradient of the input of layer L-1, and the loss; of layer L-2 and the update of layer L-1; ...
//   update of layers 1 and 0
//
// so that a layer's weights change after its input's gradient was taken. In the Gram formulation the forward phase of
// the first layer takes its pre-activations as they are, which are updated in place of its weights.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include <deviceloop/plan.h>
#include <deviceloop/spec.h>

#include "../step/step.h"
#include "decision.h"
#include "on_chip_layout.h"
#include "two_layer_layout.h"

namespace deviceloop {

/// How a block of kThreads threads takes a tile of a product: `groups` of its threads share the inner dimension, each
/// takes `depth` of it at a time for the whole tile, `thread_rows` x `thread_columns` a thread.
template <int rows_, int columns_, int groups_, int thread_rows_, int thread_columns_, int depth_bytes>
struct TileShape {
  static constexpr int rows = rows_, columns = columns_, groups = groups_;
  static constexpr int thread_rows = thread_rows_, thread_columns = thread_columns_;
  template <class T>
  static constexpr int depth = depth_bytes / static_cast<int>(sizeof(T));
};
using SmallTile = TileShape<16, 16, 8, 2, 4, 128>;
using MediumTile = TileShape<32, 32, 4, 4, 4, 128>;
using LargeTile = TileShape<64, 64, 1, 4, 4, 64>;
enum class Tile : std::int16_t { small, medium, large };

/// An operand that is not there.
constexpr std::uint64_t kNone = ~std::uint64_t{0};

/// One operation of a phase; products are v = start + a b + bias + addend, [rows, inner] times [inner, columns];
/// absent terms are zero. Offsets are in bytes.
struct PersistentOperation {
  enum class Kind : std::int16_t {
    linear,    ///< out = v
    hidden,    ///< out = activation(v), and v to `extra`
    errors,    ///< out = the gradient of the loss by element of activation(v) and the target `extra`, sums to `slots`
    row_loss,  ///< the same by row, of a [rows, columns]; the activation's derivative follows from b
    input_gradient,  ///< out = v times the activation's derivative, which follows from `extra`
    weight_update,   ///< updates out by the gradient v
    gram_update,     ///< the same, and sum, for which the optimizer keeps `extra`, by the gradient b
    bias_update,     ///< updates out [columns] by the gradient column sums of a [inner, columns]
    loss,            ///< the loss of the step: its scale times the sum of slots [inner]
  };
  Kind kind = Kind::linear;
  Tile tile = Tile::small;
  Activation activation{};                ///< of hidden, input_gradient and, for the output layer, of both losses
  std::int32_t keeps_pre_activation = 0;  ///< of the losses: 1 if its gradient follows from v, 0 if from its value
  OptimizerKind optimizer{};              ///< of updates
  std::int64_t rows = 0, columns = 0, inner = 0;
  std::uint64_t a = kNone, b = kNone;           ///< operands
  std::int64_t a_stride = 0, b_stride = 0;      ///< elements
  std::int32_t a_by_inner = 1, b_by_inner = 0;  ///< neighbours in memory are neighbours along the inner dimension
  std::uint64_t start = kNone, bias = kNone;    ///< [rows, columns], [columns]
  std::uint64_t out = kNone, extra = kNone, sum = kNone, slots = kNone;
  std::uint64_t state[elementwise::kMostStates] = {kNone, kNone};  ///< what the optimizer keeps for out
  double addend = 0;
  std::int64_t tiles_across = 1, tasks = 1;
};

/// Rows of a task of row_loss, one a warp.
constexpr int kRowLossRows = 8;
/// Columns of a task of bias_update.
constexpr int kBiasColumns = 32;

struct PersistentPhase {
  std::int64_t first_operation = 0;
  std::int64_t tasks = 0;
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
  PersistentForm form = PersistentForm::grid;
  std::int64_t blocks = 1;
  int shared_bytes = 0;
  std::vector<PersistentOperation> operations;
  std::vector<PersistentPhase> phases;  ///< those of a step, then one with the loss alone
  std::int64_t forward_phases = 0;
  /// With the form `two_layer`: how it is cut instead of by the operations, in either formulation.
  cuda::TwoLayerLayout two_layer;
  cuda::GramTwoLayerLayout gram_two_layer;
  /// With the form `on_chip`: how it is cut instead.
  cuda::OnChipLayout on_chip;
  double predicted_us_per_step = 0;
  double floor_us_per_step = 0;  ///< see Plan::floor_us_per_step
  std::int64_t steps_per_launch = 1;

  // Memory. The region is what steps work on; in the form `block` it is copied to shared memory for a launch, and its
  // first state_bytes back.
  std::uint64_t region_bytes = 0;
  std::uint64_t state_bytes = 0;
  std::uint64_t program = 0;     ///< operations, then phases
  std::uint64_t scalars = 0;     ///< StepScalars<T> [scalar_sets]: of the steps of a launch
  std::int64_t scalar_sets = 1;  ///< 1 where all steps have the same, else steps_per_launch
  std::uint64_t arrivals = 0;    ///< unsigned: of blocks at barriers
  std::uint64_t failed = 0;      ///< 64 bits: why a launch gave up
  std::uint64_t tagged = 0;      ///< with the form `two_layer`: Tagged<T> [tagged_slots]
  std::int64_t tagged_slots = 0;
  std::uint64_t losses = 0;      ///< double [2, steps_per_launch]
  std::uint64_t loss = 0;        ///< double: of a launch that asks for the loss alone
  std::uint64_t loss_parts = 0;  ///< with the form `on_chip`: double [steps_per_launch, blocks]
  std::int64_t predict_rows = 0;
  std::uint64_t predict_input = 0;  ///< [predict_rows, in_features]
  std::uint64_t predict_even = 0;   ///< [predict_rows, widest layer], twice
  std::uint64_t predict_odd = 0;
  std::uint64_t bytes = 0;

  std::size_t program_bytes() const {
    return operations.size() * sizeof(PersistentOperation) + phases.size() * sizeof(PersistentPhase);
  }
  /// "132 blocks of the grid, 7 phases a step, 16384 steps a launch": for reports.
  std::string description() const;
  /// "forward of layer 1": for messages.
  std::string phase_name(std::int64_t phase) const;
};

/// Shared memory of the kernel, in either precision, beside its program and its region.
constexpr std::size_t kPersistentTileBytes = 42 << 10;

/// `training.samples` may be 0: a network that only predicts. Throws InvalidArgument where sizes overflow. The
/// specifications have been validated.
/// @{
PersistentLayout make_persistent_layout(const NetworkSpec& network, const TrainingSpec& training, const GpuCaps& gpu);
/// The same, of a step that is made already; with the form `on_chip`, of a cluster of at most so many blocks.
PersistentLayout make_persistent_layout(const NetworkSpec& network, const TrainingSpec& training, const GpuCaps& gpu,
                                        Step step, int most_on_chip_blocks = cuda::kOnChipBlocks);
/// @}

/// The persistent executor's answer, with a PersistentLayout.
void ask_persistent(const Request& request, Answer& answer);

/// What the form `two_layer` asks of a GPU. How many clusters of 4 and 8 blocks are resident is an estimate, 10 in 11
/// and 15 in 16 of those that the multiprocessors would hold, because clusters lie within a part of the GPU and some
/// parts are smaller: as on an H100 (bench/probe/, cluster_residency).
cuda::TwoLayerDevice two_layer_device(const GpuCaps& gpu);

/// An operation of the step, or of what the step keeps, before it is cut.
PersistentOperation persistent_operation(const PersistentLayout& layout, const StepOperation& operation);

/// A product or bias_update that gets a launch of its own, cut for `multiprocessors`.
PersistentOperation cut_alone(PersistentOperation operation, std::int64_t multiprocessors, std::uint64_t element_bytes);

}  // namespace deviceloop
