// How one launch trains inputs -> hidden (ReLU) -> outputs for many steps: what each block owns and keeps on chip.
// Plain functions of the shape and of what the device has, so that planning for any GPU is tested without one; the
// kernels take the layouts as they are.
#pragma once

#include <array>
#include <cstdint>
#include <string>

#include "kernel_layout.h"

namespace deviceloop::cuda {

struct TwoLayerShape {
  std::int64_t batch = 0;  ///< rows of a step: samples
  std::int64_t inputs = 0;
  std::int64_t hidden = 0;
  std::int64_t outputs = 0;
  int element_bytes = 4;     ///< 4 or 8
  bool hidden_bias = false;  ///< of the hidden layer: to the primal form one more input, which is 1
};

struct TwoLayerDevice {
  std::int64_t shared_bytes = 0;  ///< the most that a block can have
  /// Clusters of 1, 2, 4, 8 and 16 blocks that run at once where each block has a multiprocessor to itself: the first
  /// is the number of multiprocessors, and sizes that the device does not have are 0.
  std::array<std::int64_t, 5> resident_clusters{};
};

/// Most threads of a block of the Gram kernel; each may then use 128 registers.
inline constexpr int kTwoLayerThreads = 512;
/// The largest batch, and most outputs.
inline constexpr std::int64_t kTwoLayerBatch = 128, kTwoLayerOutputs = 16;
/// The fewest samples of a direct form: four warps of each of four blocks have some. And its most clusters: eight lanes
/// wait for four words each.
inline constexpr std::int64_t kDirectBatch = 49, kDirectClusters = 32;
/// Slots that a thread asks for at once: registers bound them.
DEVICELOOP_HOST_DEVICE constexpr int slots_at_once(int element_bytes) { return 32 / element_bytes; }
/// Threads of a block of the primal kernel, each of which may use 255 registers, of 32 bits. In at most kTileRegisters
/// of them it keeps its tile of X. A warp has kRowLanes x kColumnLanes lanes.
inline constexpr int kPrimalThreads = 256, kTileRegisters = 128, kRowLanes = 8, kColumnLanes = 4;
/// A thread of the Gram kernel keeps kGramTileRows rows of K by 2, 4 or 8 columns; so many lanes share a row.
inline constexpr int kGramTileRows = 4, kGramColumnLanes = 16;

/// Hidden units that a thread of the primal kernel works on at a time: 16 bytes of them; of the Gram kernel.
DEVICELOOP_HOST_DEVICE constexpr int units_in_group(int element_bytes) { return 16 / element_bytes; }
inline constexpr int kGramUnitsInGroup = 4;

/// Of the Gram kernel: what a block does from the pre-activations of its own hidden units to their gradients. Shared
/// memory is told in bytes from its begin, each place a multiple of 16.
struct OutputLayerLayout {
  int batch = 0;
  int outputs = 0;
  int hidden = 0;
  int units = 0;       ///< hidden units that a block works on, whole groups of them
  int groups = 0;      ///< of kGramUnitsInGroup
  int publishers = 0;  ///< blocks: each adds to the predictions
  int lanes_log2 = 0;  ///< 2^that threads share the publishers of one prediction
  int hidden_at = 0;   ///< h, marked: T [groups, batch, units of a group]
  int dz_at = 0;       ///< T [groups, rows, units of a group]; rows beyond the batch are 0
  int dz_rows = 0;
  int gradient_at = 0;     ///< 2 (p - y) by the parity of the step: T [2, batch, outputs]
  int target_at = 0;       ///< T [batch, outputs]
  int weight_at = 0;       ///< w2 of the units: T [units, outputs]
  int hidden_bias_at = 0;  ///< b1 of the units: T [units]
  int bias_at = 0;         ///< b2: T [outputs]
  int failed_at = 0;       ///< int: 1 once a wait of this block has failed
  int deadline_at = 0;     ///< Deadline
};

/// The primal form. A cluster owns `units` hidden units. Each of its blocks holds a slice of `columns` inputs, of the
/// whole batch, in registers, and has the predictions of `samples` of the batch's rows to itself. Shared memory is told
/// in bytes from its begin, each place a multiple of 16.
struct TwoLayerLayout {
  int batch = 0, inputs = 0, hidden = 0, outputs = 0;
  int clusters = 0;
  int publishers = 0;      ///< those who add to the predictions: clusters
  int cluster_log2 = 0;    ///< of the blocks of a cluster
  int units = 0;           ///< hidden units of a cluster, whole groups of them
  int groups = 0;          ///< of units_in_group
  int groups_at_once = 0;  ///< in partial sums
  int columns = 0;         ///< inputs of a block, a bias among them; the last of a cluster may have fewer
  int column_warps = 0;    ///< warps that hold columns
  int tile_rows = 0;       ///< a thread's tile of X: 4, 8 or 16, of every kRowLanes-th row,
  int tile_columns = 0;    ///< by so many columns
  int samples = 0;         ///< of a block; the last that has any may have fewer
  int owners = 0;          ///< blocks of a cluster that have samples
  bool direct = false;  ///< a sample's predictions pass from lane to lane, not through shared memory: for one output,
                        ///< one group and clusters of four
  int lanes_log2 = 0;   ///< 2^that threads share the words of one prediction
  int poll_after = 0;   ///< cycles from the publication of a block's words to its first poll for the others'
  int threads = 0;
  int shared_bytes = 0;
  int weight_at = 0;         ///< w1 of the block's columns and units: T [groups, columns of column_warps, group]
  int partial_at = 0;        ///< of Z, by warp: T [column_warps, groups_at_once, rows, group]
  int received_at = 0;       ///< of Z, by block: T [cluster_blocks, groups, samples, group]
  int hidden_at = 0;         ///< h, marked: T [groups, samples, group]
  int dz_at = 0;             ///< T [groups, rows, group]; rows beyond the batch are 0
  int gradient_at = 0;       ///< 2 (p - y) of the block's samples: T [samples, outputs]
  int target_at = 0;         ///< y of these: T [samples, outputs]
  int output_weight_at = 0;  ///< w2 of the units: T [units, outputs]
  int output_bias_at = 0;    ///< b2: T [outputs]
  int sums_at = 0;           ///< parts of the gradients of w2 and b2: by block, T [cluster_blocks, units x outputs +
                             ///< outputs]; if direct, by warp, and of the loss: T [6, cluster_blocks x warps]
  int loss_at = 0;           ///< of each block's samples: double [cluster_blocks]
  int barriers_at = 0;       ///< TransactionBarrier [3]: for Z, dZ and the sums
  int failed_at = 0;         ///< by the parity of the step, 1 once a wait of this block has failed: int [2]
  int deadline_at = 0;       ///< Deadline
  double estimated_us = 0;   ///< of a step

  int cluster_blocks() const { return 1 << cluster_log2; }
  std::int64_t blocks() const { return std::int64_t{clusters} << cluster_log2; }
  /// Tagged<T> in global memory, of 2 sizeof(T) bytes.
  std::int64_t slots() const { return std::int64_t{2} * publishers * (direct ? kTwoLayerBatch : batch * outputs); }
};

/// The Gram form. A block owns `output.units` hidden units and holds K = X X^T in registers. A warp has eight rows:
/// lane r 16 + c holds four of them, of every 16-th column from c on.
struct GramTwoLayerLayout {
  OutputLayerLayout output;
  int blocks = 0;
  int threads = 0;
  int shared_bytes = 0;
  int tile_columns = 0;  ///< 2, 4 or 8
  int row_warps = 0;     ///< warps that hold rows; those above only help with slots
  int z_at = 0;          ///< T [groups, batch, units of a group]
  int sum_at = 0;        ///< of -learning_rate dz: as z
  double estimated_us = 0;

  // The direct form, for one output: a cluster of four blocks owns kGramUnitsInGroup hidden units, each of its blocks
  // the rows of K of `samples` samples, a warp of four, and a lane four rows by every 32nd column, tile_columns of
  // them.
  bool direct = false;
  int cluster_log2 = 0;      ///< of the blocks of a cluster
  int samples = 0;           ///< of a block; the last has fewer
  int poll_after = 0;        ///< as of TwoLayerLayout
  int received_dz_at = 0;    ///< by the parity of the step: T [2, 128, units]; rows beyond the batch are 0
  int received_sums_at = 0;  ///< the same, by warp, for four units, the loss and b2: T [2, 6, 4 x 8]
  int barriers_at = 0;       ///< TransactionBarrier [2, 2]: for dZ by the parity, then for the sums

  int cluster_blocks() const { return 1 << cluster_log2; }

  std::int64_t slots() const {
    return std::int64_t{2} * output.publishers * (direct ? kTwoLayerBatch : output.batch * output.outputs);
  }
};

/// A layout, or why there is none: one sentence with what it needs and what the device has.
template <class Layout>
struct TwoLayerDecision {
  Layout layout;
  std::string refusal;  ///< empty where it fits

  bool fits() const { return refusal.empty(); }
};

/// The decomposition with the shortest estimated step. Sizes of the shape are at least 1.
TwoLayerDecision<TwoLayerLayout> decide_two_layer(const TwoLayerShape& shape, const TwoLayerDevice& device);
TwoLayerDecision<GramTwoLayerLayout> decide_gram_two_layer(const TwoLayerShape& shape, const TwoLayerDevice& device);

/// One decomposition, with its estimate: of `units` hidden units, whole groups, a cluster of 2^cluster_log2 blocks, or
/// a block. It may need more shared memory, or clusters, than there are.
TwoLayerLayout make_two_layer(const TwoLayerShape& shape, int cluster_log2, std::int64_t units);
GramTwoLayerLayout make_gram_two_layer(const TwoLayerShape& shape, std::int64_t units);
/// The direct form in clusters of four blocks; for one output and at least kDirectBatch samples.
GramTwoLayerLayout make_direct_gram(const TwoLayerShape& shape);

/// "25 clusters of 4 blocks of 512 threads; a block has 250 inputs and 4 hidden units in 77.1 KiB of shared memory"
std::string describe(const TwoLayerLayout& layout);
std::string describe(const GramTwoLayerLayout& layout);

/// The phases of late_wait_code.
enum class TwoLayerPhase : std::int64_t { kClusterExchange = 1, kPredictions = 2 };

DEVICELOOP_HOST_DEVICE constexpr std::uint64_t two_layer_code(TwoLayerPhase phase, std::int64_t step) {
  return late_wait_code(static_cast<std::int64_t>(phase), step);
}

}  // namespace deviceloop::cuda
