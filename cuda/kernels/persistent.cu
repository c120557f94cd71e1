// One launch for many steps of training a network of any depth: the phases of a step are those of
// host/planning/persistent_layout.h, with a barrier of all blocks between them. Parameters, activations and data stay
// in the L2 cache, or with a single block in its shared memory.
#include "persistent.h"

#include <cstddef>
#include <type_traits>

#include "../../host/elementwise.h"
#include "../runtime/launch.h"
#include "activation_calls.cuh"
#include "loss_rows.cuh"
#include "slots.cuh"
#include "tile.cuh"

namespace deviceloop::cuda {

using elementwise::StepScalars;

namespace {

using Kind = PersistentOperation::Kind;

template <class T>
struct PersistentShared {
  union {
    TileMemory<T, SmallTile> small;
    TileMemory<T, MediumTile> medium;
    TileMemory<T, LargeTile> large;
    double thread_sums[kThreads];
  };
  double warp_sums[kThreads / kWarpThreads];
  elementwise::StepScalars<T> scalars;  ///< of the step
  int is_synchronized;
};
static_assert(sizeof(PersistentShared<float>) <= kPersistentTileBytes &&
              sizeof(PersistentShared<double>) <= kPersistentTileBytes);

template <class T, class Shape>
__device__ TileMemory<T, Shape>& tile_memory(PersistentShared<T>& memory) {
  if constexpr (std::is_same_v<Shape, SmallTile>)
    return memory.small;
  else if constexpr (std::is_same_v<Shape, MediumTile>)
    return memory.medium;
  else
    return memory.large;
}

template <class T>
__device__ T* at(unsigned char* base, std::uint64_t offset) {
  return reinterpret_cast<T*>(base + offset);
}

/// Whether the product goes on by what is added to it.
__device__ inline bool has_addends(Kind kind) {
  switch (kind) {
    case Kind::linear:
    case Kind::hidden:
    case Kind::errors:
      return true;
    case Kind::row_loss:
    case Kind::input_gradient:
    case Kind::weight_update:
    case Kind::gram_update:
    case Kind::bias_update:
    case Kind::loss:
      return false;
  }
  return false;
}

/// Updates element `index` of `out`, and what the optimizer keeps for it.
template <class T>
__device__ void update_element(const PersistentOperation& op, unsigned char* base, const StepScalars<T>& scalars,
                               std::int64_t index, T gradient) {
  T state[elementwise::kMostStates] = {};
#pragma unroll
  for (int s = 0; s < elementwise::kMostStates; ++s)
    if (op.state[s] != kNone) state[s] = at<T>(base, op.state[s])[index];
  elementwise::update(op.optimizer, at<T>(base, op.out)[index], state, gradient, scalars);
#pragma unroll
  for (int s = 0; s < elementwise::kMostStates; ++s)
    if (op.state[s] != kNone) at<T>(base, op.state[s])[index] = state[s];
}

/// Updates element `index` of `out` and of the sum by an optimizer that keeps one number for each. Called, so that the
/// kernel's own code remains that of gradient descent.
template <class T>
DEVICELOOP_RARELY_CALLED void update_gram_element(const PersistentOperation& op, unsigned char* base,
                                                  const StepScalars<T>& scalars, std::int64_t index, T gradient) {
  update_element(op, base, scalars, index, gradient);
  T state[elementwise::kMostStates] = {at<T>(base, op.extra)[index]};
  elementwise::update(op.optimizer, at<T>(base, op.sum)[index], state, at<T>(base, op.b)[index], scalars);
  at<T>(base, op.extra)[index] = state[0];
}

/// What becomes of element `index`, of that row and column, of the product, whose value is v; returns its loss, if it
/// has one.
template <class T>
__device__ T finish_element(const PersistentOperation& op, const LaunchConstants<T>& constants, unsigned char* base,
                            const StepScalars<T>& scalars, std::int64_t index, std::int64_t row, std::int64_t column,
                            T v) {
  T* const out = at<T>(base, op.out);
  if (has_addends(op.kind)) {
    if (op.start != kNone) v += at<T>(base, op.start)[index];
    if (op.bias != kNone) v += at<T>(base, op.bias)[column];
    v += static_cast<T>(op.addend);
  }
  switch (op.kind) {
    case Kind::linear:
      out[index] = v;
      break;
    case Kind::hidden:
      if (op.extra != kNone) at<T>(base, op.extra)[index] = v;
      out[index] = activation_value(op.activation, constants.leaky_slope, v);
      break;
    case Kind::errors: {
      const bool is_plain = op.activation == Activation::identity;
      const T prediction = is_plain ? v : activation_value(op.activation, constants.leaky_slope, v);
      elementwise::LossTerm<T> term = elementwise::loss_term(constants.loss, prediction, at<T>(base, op.extra)[index]);
      if (constants.weights != kNone) term = elementwise::weighted(term, at<T>(base, constants.weights)[row]);
      const T kept = op.keeps_pre_activation != 0 ? v : prediction;
      out[index] =
          is_plain ? term.gradient : activation_gradient(op.activation, constants.leaky_slope, kept, term.gradient);
      return term.value;
    }
    case Kind::input_gradient:
      out[index] = activation_gradient(op.activation, constants.leaky_slope, at<T>(base, op.extra)[index], v);
      break;
    case Kind::weight_update:
      update_element(op, base, scalars, index, v);
      break;
    case Kind::gram_update: {
      if (op.extra != kNone) {
        update_gram_element(op, base, scalars, index, v);
        break;
      }
      T& sum = at<T>(base, op.sum)[index];
      out[index] = elementwise::sgd_update(out[index], v, scalars.learning_rate);
      sum = elementwise::sgd_update(sum, at<T>(base, op.b)[index], scalars.learning_rate);
      break;
    }
    case Kind::row_loss:
    case Kind::bias_update:
    case Kind::loss:
      break;
  }
  return T(0);
}

template <class Shape, class T>
__device__ void take_tile(PersistentShared<T>& memory, const PersistentOperation& op,
                          const LaunchConstants<T>& constants, unsigned char* base, const StepScalars<T>& scalars,
                          std::int64_t task) {
  auto& tile = tile_memory<T, Shape>(memory);
  const std::int64_t first_row = task / op.tiles_across * Shape::rows;
  const std::int64_t first_column = task % op.tiles_across * Shape::columns;
  tile_product<T, Shape>(tile, {at<T>(base, op.a), op.a_stride, op.a_by_inner != 0, op.rows},
                         {at<T>(base, op.b), op.b_stride, op.b_by_inner != 0, op.columns}, op.inner, first_row,
                         first_column);
  constexpr int kElements = Shape::rows * Shape::columns / kThreads;
  static_assert(kElements <= kTerms);
  const auto thread = static_cast<int>(thread_index());
  T squares = 0;
#pragma unroll 1
  for (int turn = 0; turn < kElements; ++turn) {
    const int element = turn * kThreads + thread;
    const int row = element / Shape::columns, column = element % Shape::columns;
    if (first_row + row >= op.rows || first_column + column >= op.columns) continue;
    T sum = tile.sums[0][row][column];
#pragma unroll
    for (int group = 1; group < Shape::groups; ++group) sum += tile.sums[group][row][column];
    squares += finish_element(op, constants, base, scalars, (first_row + row) * op.columns + first_column + column,
                              first_row + row, first_column + column, sum);
  }
  if (op.kind == Kind::errors) {
    const double total = block_sum(static_cast<double>(squares), memory.warp_sums);
    if (thread == 0) at<double>(base, op.slots)[task] = total;
  }
  block_barrier();  // the tile's memory is free again
}

/// A thread adds at most kTerms rows in T, from there in double; the threads of a column are then added in order.
template <class T>
__device__ void take_bias_update(PersistentShared<T>& memory, const PersistentOperation& op, unsigned char* base,
                                 const StepScalars<T>& scalars, std::int64_t task) {
  constexpr int kAcross = kBiasColumns, kDown = kThreads / kAcross;
  const auto thread = static_cast<int>(thread_index());
  const std::int64_t column = task * kAcross + thread % kAcross;
  double total = 0;
  if (column < op.columns) {
    const T* const from = at<T>(base, op.a) + column;
    for (std::int64_t first = thread / kAcross; first < op.inner; first += kDown * kTerms) {
      T sum = 0;
#pragma unroll 8
      for (int term = 0; term < kTerms; ++term) {
        const std::int64_t row = first + term * kDown;
        if (row < op.inner) sum += from[row * op.columns];
      }
      total += static_cast<double>(sum);
    }
  }
  memory.thread_sums[thread] = total;
  block_barrier();
  if (thread < kAcross && column < op.columns) {
    for (int down = 1; down < kDown; ++down) total += memory.thread_sums[down * kAcross + thread];
    update_element(op, base, scalars, column, static_cast<T>(total));
  }
  block_barrier();
}

/// A warp takes a row.
template <class T>
__device__ void take_row_loss(PersistentShared<T>& memory, const PersistentOperation& op,
                              const LaunchConstants<T>& constants, unsigned char* base, std::int64_t task) {
  static_assert(kRowLossRows * kWarpThreads == kThreads);
  const std::int64_t row = task * kRowLossRows + thread_index() / kWarpThreads;
  double of_row = 0;
  if (row < op.rows) {
    T* const gradient = at<T>(base, op.out) + row * op.columns;
    const T weight = constants.weights != kNone ? at<T>(base, constants.weights)[row] : T(1);
    const T value =
        cross_entropy_row(gradient, at<T>(base, op.a) + row * op.columns,
                          at<T>(base, op.extra) + row * (constants.loss.has_classes ? 1 : op.columns), op.columns,
                          constants.loss.has_classes, static_cast<T>(constants.loss.scale) * weight);
    const unsigned lane = thread_index() % kWarpThreads;
    if (lane == 0) of_row = static_cast<double>(value * weight);
    if (op.activation != Activation::identity)
      for (std::int64_t j = lane; j < op.columns; j += kWarpThreads)
        gradient[j] = activation_gradient(op.activation, constants.leaky_slope, at<T>(base, op.b)[row * op.columns + j],
                                          gradient[j]);
  }
  const double total = block_sum(of_row, memory.warp_sums);
  if (thread_index() == 0) at<double>(base, op.slots)[task] = total;
  block_barrier();
}

template <class T>
__device__ void take_loss(PersistentShared<T>& memory, const PersistentOperation& op, unsigned char* base, double scale,
                          double* loss) {
  const auto thread = static_cast<int>(thread_index());
  double sum = 0;
  for (std::int64_t slot = thread; slot < op.inner; slot += kThreads) sum += at<double>(base, op.slots)[slot];
  sum = block_sum(sum, memory.warp_sums);
  if (thread == 0) *loss = sum * scale;
  block_barrier();
}

template <class T>
__device__ void take_product(PersistentShared<T>& memory, const PersistentOperation& op,
                             const LaunchConstants<T>& constants, unsigned char* base, const StepScalars<T>& scalars,
                             std::int64_t task) {
  switch (op.tile) {
    case Tile::small:
      return take_tile<SmallTile>(memory, op, constants, base, scalars, task);
    case Tile::medium:
      return take_tile<MediumTile>(memory, op, constants, base, scalars, task);
    case Tile::large:
      return take_tile<LargeTile>(memory, op, constants, base, scalars, task);
  }
}

/// What all threads of all blocks have written before, they see after. False, in every thread of the block, where the
/// launch must end.
template <class T>
__device__ bool synchronize(PersistentShared<T>& memory, const PersistentArguments<T>& arguments,
                            const Deadline& deadline, unsigned target, std::uint64_t code) {
  if (arguments.form == PersistentForm::cluster) {
    cluster_barrier();
    return true;
  }
  block_barrier();
  if (arguments.form == PersistentForm::block) return true;
  if (thread_index() == 0) {
    arrive(arguments.arrivals);
    memory.is_synchronized = wait_until(arguments.arrivals, target, deadline, code);
  }
  block_barrier();
  return memory.is_synchronized != 0;
}

__device__ inline void copy_words(void* to, const void* from, std::uint64_t bytes) {
  for (std::uint64_t word = thread_index(); word < bytes / 8; word += kThreads)
    static_cast<std::uint64_t*>(to)[word] = static_cast<const std::uint64_t*>(from)[word];
}

/// Block b takes the tasks b, b + blocks, ... of each phase. Sums have an order that depends on the layout alone.
template <class T>
__global__ void __launch_bounds__(kThreads, 1) persistent_kernel(PersistentArguments<T> arguments) {
  auto& memory = shared<PersistentShared<T>>();
  // Behind the tiles: the program, and with a single block the region.
  unsigned char* const behind = reinterpret_cast<unsigned char*>(&memory) + kPersistentTileBytes;
  const std::uint64_t program_bytes =
      arguments.operation_count * sizeof(PersistentOperation) + (arguments.phase_count + 1) * sizeof(PersistentPhase);
  copy_words(behind, arguments.operations, program_bytes);
  const auto* const operations = reinterpret_cast<const PersistentOperation*>(behind);
  const auto* const phases = reinterpret_cast<const PersistentPhase*>(operations + arguments.operation_count);
  unsigned char* base = arguments.region;
  if (arguments.form == PersistentForm::block) {
    base = behind + program_bytes;
    copy_words(base, arguments.region, arguments.region_bytes);
  }
  block_barrier();

  const Deadline deadline{arguments.timeout_ns == 0 ? 0 : clock_ns() + arguments.timeout_ns, arguments.failed};
  const int phases_of_step = arguments.forward_only ? arguments.forward_phases + 1 : arguments.phase_count;
  unsigned target = arguments.arrived;
  for (std::int64_t step = 0; step < arguments.steps; ++step) {
    // They are read behind the next barrier, that of the forward phase.
    if (step == 0 || arguments.scalar_stride != 0)
      copy_words(&memory.scalars, arguments.scalars + step * arguments.scalar_stride, sizeof memory.scalars);
    for (int index = 0; index < phases_of_step; ++index) {
      const bool is_loss_alone = arguments.forward_only && index == arguments.forward_phases;
      const int phase = is_loss_alone ? arguments.phase_count : index;
      const std::int64_t tasks = phases[phase].tasks;
      for (std::int64_t number = block_index(); number < tasks; number += grid_blocks()) {
        const PersistentOperation* op = operations + phases[phase].first_operation;
        std::int64_t task = number;
        for (; task >= op->tasks; ++op) task -= op->tasks;
        if (op->kind == Kind::loss)
          take_loss(memory, *op, base, arguments.constants.loss.scale, arguments.losses + step);
        else if (op->kind == Kind::row_loss)
          take_row_loss(memory, *op, arguments.constants, base, task);
        else if (op->kind == Kind::bias_update)
          take_bias_update(memory, *op, base, memory.scalars, task);
        else
          take_product(memory, *op, arguments.constants, base, memory.scalars, task);
      }
      target += grid_blocks();
      const std::uint64_t code = late_wait_code(phase + 1, step);
      if (!synchronize(memory, arguments, deadline, target, code)) return;
    }
  }
  if (arguments.form == PersistentForm::block) copy_words(arguments.region, base, arguments.state_bytes);
}

/// One task of one operation a block.
template <class T>
__global__ void __launch_bounds__(kThreads, 1)
    operation_kernel(unsigned char* memory, PersistentOperation operation, StepScalars<T> scalars, T leaky_slope) {
  auto& block_memory = shared<PersistentShared<T>>();
  if (operation.kind == Kind::bias_update)
    take_bias_update(block_memory, operation, memory, scalars, block_index());
  else
    take_product(block_memory, operation, {{}, kNone, leaky_slope}, memory, scalars, block_index());
}

template <class T>
LaunchConfig config_of(const PersistentLayout& layout) {
  LaunchConfig config{layout.blocks, kThreads, layout.shared_bytes};
  if (layout.form == PersistentForm::cluster) config.cluster_blocks = static_cast<int>(layout.blocks);
  config.cooperative = layout.form == PersistentForm::grid;
  return config;
}

}  // namespace

template <class T>
void prepare_persistent(const PersistentLayout& layout) {
  prepare_kernel(reinterpret_cast<const void*>(persistent_kernel<T>), config_of<T>(layout));
}

template <class T>
std::int64_t resident_persistent(const PersistentLayout& layout) {
  return resident_clusters(reinterpret_cast<const void*>(persistent_kernel<T>), config_of<T>(layout));
}

template <class T>
void launch_persistent(const PersistentArguments<T>& arguments, const PersistentLayout& layout, cudaStream_t stream) {
  launch(persistent_kernel<T>, config_of<T>(layout), stream, arguments);
}

std::uint64_t arrivals_of(const PersistentLayout& layout, std::int64_t steps, bool forward_only) {
  if (layout.form != PersistentForm::grid) return 0;
  const auto phases = forward_only ? layout.forward_phases + 1 : static_cast<std::int64_t>(layout.phases.size()) - 1;
  return static_cast<std::uint64_t>(layout.blocks * phases * steps);
}

template <class T>
void launch_operation(unsigned char* memory, const PersistentOperation& operation, const StepScalars<T>& scalars,
                      T leaky_slope, cudaStream_t stream) {
  launch(operation_kernel<T>, {operation.tasks, kThreads, static_cast<int>(sizeof(PersistentShared<T>))}, stream,
         memory, operation, scalars, leaky_slope);
}

template void prepare_persistent<float>(const PersistentLayout&);
template void prepare_persistent<double>(const PersistentLayout&);
template std::int64_t resident_persistent<float>(const PersistentLayout&);
template std::int64_t resident_persistent<double>(const PersistentLayout&);
template void launch_persistent(const PersistentArguments<float>&, const PersistentLayout&, cudaStream_t);
template void launch_persistent(const PersistentArguments<double>&, const PersistentLayout&, cudaStream_t);
template void launch_operation(unsigned char*, const PersistentOperation&, const StepScalars<float>&, float,
                               cudaStream_t);
template void launch_operation(unsigned char*, const PersistentOperation&, const StepScalars<double>&, double,
                               cudaStream_t);

}  // namespace deviceloop::cuda
