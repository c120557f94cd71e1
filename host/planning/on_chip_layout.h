// How clusters of blocks train a small network on minibatches, with the parameters and all that the optimizer keeps in
// their shared memory for the whole launch: plain functions of the shape and of what the device has, so that planning
// for any GPU is tested without one; the kernel takes the layout as it is.
//
// A step's rows are split over the blocks of a cluster. Each block has all parameters, computes its rows forward and
// backward, and sends its part of the gradient to the blocks that own the parameters: those add the parts in the order
// of the blocks, update their share, and send it to all. Both travel in units of 16 bytes: of a layer whose weight has
// rows of units_across units, unit u is the (u % units_across)th of row u / units_across, the bias being the last row;
// block u % blocks owns it, as its (u / blocks)th of the layer.
//
// The first layer may be split by its inputs instead, where it is wide. Then a block has a range of them, the bias
// being one more input that is always 1: those columns of all rows of the step, and their rows of the weight with what
// the optimizer keeps for them, which never leave the block. It multiplies both and sends each block the part of the
// pre-activations of that block's rows, which adds the parts in the order of the blocks and goes on as before. Backward
// each block sends all others the gradient by the pre-activations of its rows; with that of all rows a block computes
// the gradient of its rows of the weight alone.
//
// Of several clusters each has all parameters and a part of the step's rows, and does all of the above with them. Then
// what the blocks of one rank own, the same in each cluster, has as many sums as there are clusters. A block's list of
// units, those of all layers behind each other, is cut into one range for each cluster, which adds the sums of its
// range in the order of the clusters, updates these units, and sends them to the others: two exchanges through global
// memory. The other way would be one exchange, of all sums to all clusters, each of which updates everything. It reads
// as many times more as there are clusters: for 784-128-10 in seven clusters of 16 the words of a step are 42 MB, 6 us
// of what the L2 cache gives, instead of 16 MB and 2 us, where one exchange less saves 1 us; and every block would keep
// the gradient, and with Adam two more numbers, of all of its units, 81 KB instead of 12, which do not fit. For
// 64-64-64-1 both are under 4 MB, and the second exchange is what it costs.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <vector>

#include "kernel_layout.h"

namespace deviceloop::cuda {

struct OnChipShape {
  std::int64_t batch = 0;            ///< rows of a step
  std::vector<std::int64_t> widths;  ///< of the input, and of each layer
  bool bias = false;
  int element_bytes = 4;            ///< 4 or 8
  int states = 0;                   ///< numbers that the optimizer keeps for each parameter
  bool by_row = false;              ///< of the loss: it needs whole rows of predictions
  std::int64_t target_columns = 1;  ///< of a row of targets
  bool tf32x3 = false;  ///< of 4 bytes: products by tensor cores, three in TF32 for each, where that is faster
};

struct OnChipDevice {
  std::int64_t shared_bytes = 0;  ///< the most that a block can have
  /// At once, of 1, 2, 4, 8 and 16 blocks with a multiprocessor each.
  std::array<std::int64_t, 5> resident_clusters{};
};

inline constexpr int kOnChipLayers = 8;
inline constexpr int kOnChipBlocks = 16;
inline constexpr int kOnChipThreads = 256;
/// A thread's tile of a product, of so many rows and columns; it takes as many of the inner dimension at a time.
inline constexpr int kOnChipTile = 4;
inline constexpr int kOnChipTensorRows = 16;
inline constexpr std::int64_t kTaggedUnitBytes = 32;

/// n / divisor for n and divisor below 2^15, by a multiplication.
struct SmallDivisor {
  unsigned divisor = 1;
  unsigned factor = 1u << 31;

  static constexpr SmallDivisor of(unsigned divisor) { return {divisor, ((1u << 31) - 1) / divisor + 1}; }
  DEVICELOOP_HOST_DEVICE constexpr unsigned quotient(unsigned n) const {
    return static_cast<unsigned>(std::uint64_t{n} * factor >> 31);
  }
};

/// How the threads of a block share the tiles of a product: 1, 4 or 16 lanes of a warp share one, each with every
/// `slices`th group of kOnChipTile of the inner dimension.
struct OnChipProduct {
  int slices = 1;
  int tiles = 1;
  int tiles_down = 1;
  SmallDivisor across;  ///< tiles in a row of them
  int inner = 1;        ///< groups
  // By tensor cores a warp has a tile of kOnChipTensorRows rows instead.
  int tensor_columns = 0;  ///< of such a tile, 8 or 16; 0: not by tensor cores
  int tensor_tiles = 0;
  SmallDivisor tensor_across;  ///< such tiles in a row of them
};

/// Places in a block's shared memory are in bytes from its begin; matrices of T have rows that are `..._stride`
/// elements apart and end with zeros.
struct OnChipLayer {
  int in = 0, out = 0;  ///< split by inputs: `in` are a block's at most, whole tiles, the last of all being the bias
  int in_padded = 0;    ///< to whole tiles
  int weight_at = 0;    ///< T [in_padded, out], and behind it the bias
  int weight_stride = 0;
  int out_stride = 0;   ///< of `output` and `gradient`
  int output_at = -1;   ///< T [rows_padded, out]; none of a last layer whose predictions become errors at once
  int gradient_at = 0;  ///< of the pre-activation; before it that itself, where the activation's gradient needs it
  /// Parts of the gradient: units [blocks, owned]; split by inputs, itself, where the cluster updates it: units [owned]
  /// or, if that is less, [updated].
  int received_at = 0;
  int units = 0;  ///< split by inputs: of a block, at most
  SmallDivisor units_across;
  int owned = 0;        ///< units of a block, at most
  int first_owned = 0;  ///< of all that a block owns, the first of this layer
  OnChipProduct forward, input_gradient, weight_gradient;
};

struct OnChipLayout {
  int layers = 0;
  int clusters = 1;
  int blocks_log2 = 0;  ///< of a cluster
  int batch = 0;
  int cluster_rows = 0;  ///< of a cluster, at most; the last may have fewer
  int rows = 0;          ///< of a block, at most; the last may have fewer, or none
  int rows_padded = 0;   ///< to whole tiles
  int inputs = 0;
  int target_columns = 0;
  bool bias = false;
  bool tf32x3 = false;  ///< OnChipShape::tf32x3
  int states = 0;
  int owned = 0;           ///< units of a block, of all layers, at most
  int updated = 0;         ///< of them, in a cluster, at most: cluster c has those from c * updated on
  bool by_inputs = false;  ///< how the first layer is split; else by rows
  int input_rows = 0;      ///< whose inputs the block has: cluster_rows where they are split, else rows
  int input_rows_padded = 0;
  int input_stride = 0;
  int input_at = 0;       ///< by the parity of the step: T [2, input_rows_padded, inputs of the block]
  int target_at = 0;      ///< T [2, rows, target_columns]
  int row_weight_at = 0;  ///< T [2, rows]
  int state_at = 0;       ///< T [states, updated units]
  int sample_at = 0;      ///< std::int64_t [input_rows]: which samples the rows of a step are
  int scalars_at = 0;     ///< StepScalars<T> [1]
  int control_at = 0;     ///< barriers, and what the block's threads tell each other
  int shared_bytes = 0;
  // Where the first layer is split by inputs.
  int input_blocks = 0;           ///< that have inputs, the first of all
  SmallDivisor rows_of_block;     ///< row of the cluster / rows is the block that has it
  int sums_at = 0;                ///< parts of the pre-activations: units [input_blocks, rows, units_across]
  int sums_bytes = 0;             ///< that land there in a step, for each row of the block
  int output_gradient_at = 0;     ///< the gradient by them, of all rows: T [input_rows_padded, out]
  int output_gradient_bytes = 0;  ///< that land there in a step, for each row of the cluster
  OnChipLayer layer[kOnChipLayers];
  double estimated_us = 0;  ///< of a step

  DEVICELOOP_HOST_DEVICE constexpr int blocks() const { return 1 << blocks_log2; }
  DEVICELOOP_HOST_DEVICE constexpr int all_blocks() const { return clusters << blocks_log2; }
  /// TaggedUnit in global memory, of several clusters: sums [clusters, blocks, owned], then parameters [blocks, owned].
  constexpr std::int64_t tagged_units() const {
    return clusters == 1 ? 0 : (std::int64_t{clusters} + 1) * blocks() * owned;
  }
};

/// Bytes at control_at.
inline constexpr int kOnChipControlBytes = (2 * kOnChipLayers + 2) * 8 + kOnChipThreads / 32 * 8 + 8;

/// A layout, or why there is none: one sentence with what it needs and what the device has.
struct OnChipDecision {
  OnChipLayout layout;
  std::string refusal;        ///< empty where it fits
  bool is_too_large = false;  ///< why it refuses: smaller layers or batches would do
};

/// The clusters, and the split of their first layer, with the shortest estimated step. Sizes of the shape are at least
/// 1.
OnChipDecision decide_on_chip(const OnChipShape& shape, const OnChipDevice& device);

/// Of clusters of 2^blocks_log2 blocks, with its estimate; it may need more shared memory than there is. At most
/// kOnChipLayers layers and kOnChipRows rows of a block, no layer of more than kOnChipWidth units or inputs, counted
/// for each block where the first layer is split by its inputs. Each cluster must have a row: (clusters - 1) *
/// divide_up(batch, clusters) < batch.
OnChipLayout make_on_chip(const OnChipShape& shape, int blocks_log2, bool by_inputs = false, int clusters = 1);
inline constexpr std::int64_t kOnChipWidth = 2048, kOnChipRows = 1024;

/// "one cluster of 16 blocks that keeps all parameters on chip, 98.3 KiB of shared memory each; a block has 16 rows of
/// a step", "7 clusters of 16 blocks that keep all parameters on chip each and exchange sums of gradients, ..."
std::string describe(const OnChipLayout& layout);

/// The phases of late_wait_code.
enum class OnChipPhase : std::int64_t {
  kWeights = 1,
  kGradients = 2,
  kSums = 3,
  kOutputGradients = 4,
  kClusterGradients = 5,
  kClusterWeights = 6,
  kLosses = 7
};
const char* name(OnChipPhase phase);

DEVICELOOP_HOST_DEVICE constexpr std::uint64_t on_chip_code(OnChipPhase phase, std::int64_t step) {
  return late_wait_code(static_cast<std::int64_t>(phase), step);
}

}  // namespace deviceloop::cuda
